//! DICOM files: what the header says, and the pixels of one frame as a doctor would see them.

mod colour;
mod foreign;
mod grey;
mod lookup;
mod survey;

use std::path::Path;

use dicom_object::file::ReadPreamble;
use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use dicom_pixeldata::PixelDecoder;
use tributary_shared::dataset::Plane;
use tributary_shared::outcome::chain;

use super::compressed;
use super::image_file::{DECODE_MIB_MAX, SIDE_MAX};
use super::isolate::DecoderProblem;
use super::medium::Facts;
use super::pixels::Picture;
use crate::config::reading::Reading;

/// Largest file read, bytes: enhanced multi-frame objects are large.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// Most frames of one file.
const FRAMES_MAX: u32 = 100_000;
/// Longest header, bytes: everything before the pixels.
const HEADER_BYTES_MAX: u64 = 64 << 20;

const SOP_INSTANCE_UID: Tag = Tag(0x0008, 0x0018);
const MODALITY: Tag = Tag(0x0008, 0x0060);
const PATIENT_ID: Tag = Tag(0x0010, 0x0020);
const IMAGER_PIXEL_SPACING: Tag = Tag(0x0018, 0x1164);
const STUDY_INSTANCE_UID: Tag = Tag(0x0020, 0x000D);
const IMAGE_ORIENTATION: Tag = Tag(0x0020, 0x0037);
const SAMPLES_PER_PIXEL: Tag = Tag(0x0028, 0x0002);
const PHOTOMETRIC: Tag = Tag(0x0028, 0x0004);
const NUMBER_OF_FRAMES: Tag = Tag(0x0028, 0x0008);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const PIXEL_SPACING: Tag = Tag(0x0028, 0x0030);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

/// What is wrong with a DICOM file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DicomProblem {
    /// The file cannot be taken apart.
    #[error("not readable as DICOM: {detail}")]
    Format {
        /// What the reader said.
        detail: String,
    },
    /// Too many bytes.
    #[error("{bytes} bytes; a DICOM file has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// A length that is no multiple of the size of its values.
    #[error("the element {tag} declares {declared} bytes for values of {value} bytes each")]
    Values {
        /// The element.
        tag: Tag,
        /// Bytes that it declares.
        declared: u32,
        /// Bytes of a value.
        value: u32,
    },
    /// A length that the file cannot hold.
    #[error("the element {tag} declares {declared} bytes, and {left} are left in the file")]
    Length {
        /// The element.
        tag: Tag,
        /// Its length, bytes.
        declared: u64,
        /// Bytes behind its header.
        left: u64,
    },
    /// Sequences within sequences.
    #[error("more than {max} sequences within each other")]
    Depth {
        /// The bound.
        max: u32,
    },
    /// Elements, and items of sequences.
    #[error("more than {max} elements and items")]
    Elements {
        /// The bound.
        max: u32,
    },
    /// What stands before the pixels.
    #[error("more than {max} bytes before its pixels")]
    Header {
        /// The bound.
        max: u64,
    },
    /// A deflated data set that holds far more than its packed bytes.
    #[error("deflated, and more than {max} bytes unpacked")]
    Unpacked {
        /// The bound.
        max: u64,
    },
    /// A report, a plan, a waveform.
    #[error("holds no picture (no pixel data)")]
    NoPicture,
    /// Nothing says whom it shows.
    #[error("names neither a PatientID nor a StudyInstanceUID")]
    Nobody,
    /// A size that cannot be.
    #[error(
        "{columns} x {rows} pixels, {frames} frames; it may have 1 to {max} pixels a side and at most {frames_max} frames"
    )]
    Size {
        /// Pixels across.
        columns: u32,
        /// Pixels down.
        rows: u32,
        /// Frames.
        frames: u32,
        /// Most pixels a side.
        max: u32,
        /// Most frames.
        frames_max: u32,
    },
    /// Compressed in a way that is not read here, or damaged.
    #[error("the pixels cannot be decoded: {detail}")]
    Pixels {
        /// What the decoder said.
        detail: String,
    },
    /// The decoder's own process did not give the pixels.
    #[error(transparent)]
    Decoder(#[from] DecoderProblem),
    /// Samples that are no grey levels or colours of 8 or 16 bits.
    #[error("{photometric} with {samples} samples of {bits} bits is not read here")]
    Layout {
        /// Its photometric interpretation.
        photometric: String,
        /// Samples a pixel.
        samples: u16,
        /// Bits a sample.
        bits: u16,
    },
    /// A lookup table that cannot be.
    #[error("its {table} is damaged")]
    Lookup {
        /// Which table.
        table: &'static str,
    },
}

/// What a header says.
pub(super) struct Header {
    pub(super) patient: String,
    /// Whether the patient is known by the study alone.
    pub(super) by_study: bool,
    pub(super) study: String,
    pub(super) instance: String,
    pub(super) frames: u32,
    pub(super) facts: Facts,
}

/// Reads everything before the pixels.
pub(super) fn header(path: &Path) -> Result<Header, DicomProblem> {
    check_size(path)?;
    let surveyed = survey::survey(path, true)?;
    let set = surveyed.open(path, HEADER_BYTES_MAX).map_err(|error| format(&error))?;
    let object = OpenFileOptions::new()
        .read_until(PIXEL_DATA)
        .read_preamble(ReadPreamble::Always)
        .from_reader(set)
        .map_err(|error| format(&error))?;
    let (study, instance) = (text(&object, STUDY_INSTANCE_UID), text(&object, SOP_INSTANCE_UID));
    if object.get(ROWS).is_none() || object.get(PHOTOMETRIC).is_none() {
        return Err(DicomProblem::NoPicture);
    }
    let patient = text(&object, PATIENT_ID);
    let by_study = patient.is_empty();
    let patient = if by_study { study.clone() } else { patient };
    if patient.is_empty() {
        return Err(DicomProblem::Nobody);
    }
    let number = |tag| object.get(tag).and_then(|e| e.to_int::<u32>().ok());
    let frames = number(NUMBER_OF_FRAMES).unwrap_or(1).max(1);
    let (rows, columns) = (number(ROWS).unwrap_or(0), number(COLUMNS).unwrap_or(0));
    let sides = 1..=SIDE_MAX;
    if !sides.contains(&rows) || !sides.contains(&columns) || frames > FRAMES_MAX {
        let (max, frames_max) = (SIDE_MAX, FRAMES_MAX);
        return Err(DicomProblem::Size { columns, rows, frames, max, frames_max });
    }
    let modality = Some(text(&object, MODALITY)).filter(|modality| !modality.is_empty());
    let spacing = numbers(&object, PIXEL_SPACING).or(numbers(&object, IMAGER_PIXEL_SPACING));
    let facts = Facts {
        modality,
        plane: numbers(&object, IMAGE_ORIENTATION).and_then(|axes| plane(&axes)),
        spacing_mm: spacing.and_then(|s| s.first().copied()).filter(|s| s.is_finite() && *s > 0.0),
        inverted: text(&object, PHOTOMETRIC) == "MONOCHROME1",
    };
    Ok(Header { patient, by_study, study, instance, frames, facts })
}

/// A whole file, for the pixels of its frames.
pub(super) struct Object(DefaultDicomObject);

impl Object {
    pub(super) fn open(path: &Path) -> Result<Self, DicomProblem> {
        check_size(path)?;
        let surveyed = survey::survey(path, false)?;
        // The limit again, for a file that grows meanwhile.
        let set = surveyed.open(path, FILE_BYTES_MAX).map_err(|error| format(&error))?;
        let object = OpenFileOptions::new()
            .read_preamble(ReadPreamble::Always)
            .from_reader(set)
            .map_err(|error| format(&error))?;
        if object.get(PIXEL_DATA).is_none() {
            return Err(DicomProblem::NoPicture);
        }
        Ok(Self(object))
    }

    /// One frame, windowed, MONOCHROME1 turned so that more is brighter, colours as RGB.
    pub(super) fn frame(&self, frame: u32, reading: &Reading) -> Result<Picture, DicomProblem> {
        let (object, window) = (&self.0, reading.window);
        let number = |tag| object.get(tag).and_then(|e| e.to_int::<u64>().ok()).unwrap_or(0);
        let factors = [number(ROWS), number(COLUMNS), number(SAMPLES_PER_PIXEL).max(1), 4];
        let bytes = factors.into_iter().fold(1, u64::saturating_mul);
        if number(ROWS) > u64::from(SIDE_MAX)
            || number(COLUMNS) > u64::from(SIDE_MAX)
            || bytes > DECODE_MIB_MAX << 20
        {
            let detail = format!("more than {DECODE_MIB_MAX} MiB a frame");
            return Err(DicomProblem::Pixels { detail });
        }
        let fragments = object.get(PIXEL_DATA).and_then(|e| e.value().fragments());
        let largest = fragments.into_iter().flatten().filter_map(|f| compressed::samples(f)).max();
        if largest.is_some_and(|samples| samples.saturating_mul(4) > DECODE_MIB_MAX << 20) {
            let detail = format!("its compressed picture is of more than {DECODE_MIB_MAX} MiB");
            return Err(DicomProblem::Pixels { detail });
        }
        let plain = foreign::is_foreign(object)
            .then(|| foreign::decoded(object, frame, reading))
            .transpose()?;
        let decoded = plain
            .as_ref()
            .unwrap_or(object)
            .decode_pixel_data_frame(frame)
            .map_err(|error| DicomProblem::Pixels { detail: chain(&error) })?;
        match decoded.samples_per_pixel() {
            1 if text(object, PHOTOMETRIC) == "PALETTE COLOR" => colour::palette(object, &decoded),
            1 => grey::picture(object, &decoded, frame, window),
            _ => colour::rgb(object, &decoded),
        }
    }
}

fn check_size(path: &Path) -> Result<(), DicomProblem> {
    let bytes = std::fs::metadata(path).map_err(|error| format(&error))?.len();
    let max = FILE_BYTES_MAX;
    if bytes > max { Err(DicomProblem::TooLarge { bytes, max }) } else { Ok(()) }
}

fn format(error: &dyn std::error::Error) -> DicomProblem {
    DicomProblem::Format { detail: chain(error) }
}

/// Empty when the element is not there or is no text.
fn text(object: &DefaultDicomObject, tag: Tag) -> String {
    let text = object.get(tag).and_then(|element| element.to_str().ok()).unwrap_or_default();
    text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()
}

fn numbers(object: &DefaultDicomObject, tag: Tag) -> Option<Vec<f64>> {
    object.get(tag).and_then(|element| element.to_multi_float64().ok())
}

/// From the directions of rows and columns: the axis that the slice is most perpendicular to, when
/// it is within about 35 degrees of it.
fn plane(axes: &[f64]) -> Option<Plane> {
    let [a, b, c, d, e, f] = *axes.first_chunk::<6>()?;
    let normal = [b * f - c * e, c * d - a * f, a * e - b * d];
    let planes = [Plane::Sagittal, Plane::Coronal, Plane::Axial];
    planes.into_iter().zip(normal).find(|(_, along)| along.abs() > 0.82).map(|(plane, _)| plane)
}

#[cfg(test)]
mod tests;
