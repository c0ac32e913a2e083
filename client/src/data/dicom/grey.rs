//! Monochrome samples: stored value, modality value, grey level.

use dicom_object::{DefaultDicomObject, Tag};
use dicom_pixeldata::{DecodedPixelData, PixelRepresentation, VoiLutFunction};
use image::GrayImage;
use tributary_shared::dataset::Window;
use tributary_shared::outcome::chain;

use super::lookup::Lookup;
use super::{DicomProblem, PHOTOMETRIC, text};
use crate::data::pixels::Picture;
use crate::data::window::Curve;

const MODALITY_LUT_SEQUENCE: Tag = Tag(0x0028, 0x3000);
const VOI_LUT_SEQUENCE: Tag = Tag(0x0028, 0x3010);

pub(super) fn picture(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
    frame: u32,
    window: Window,
) -> Result<Picture, DicomProblem> {
    let values = modality_values(object, decoded, frame)?;
    let mut levels = match window {
        Window::File => own_levels(object, decoded, frame, &values)?,
        Window::Given { centre, width } => levels(&values, Curve::Linear { centre, width }),
        Window::MinMax | Window::Percentile { .. } => {
            levels(&values, Curve::of_values(window, &values).unwrap_or(Curve::min_max(&values)))
        }
    };
    if text(object, PHOTOMETRIC) == "MONOCHROME1" {
        for level in &mut levels {
            *level = 255 - *level;
        }
    }
    GrayImage::from_raw(decoded.columns(), decoded.rows(), levels)
        .map(Picture::Grey)
        .ok_or_else(too_few)
}

fn levels(values: &[f32], curve: Curve) -> Vec<u8> {
    values.iter().map(|value| curve.level(f64::from(*value))).collect()
}

fn too_few() -> DicomProblem {
    DicomProblem::Pixels { detail: "fewer bytes than the picture needs".to_owned() }
}

/// Stored samples, sign-extended from the bits that are in use.
pub(super) fn stored(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
) -> Result<Vec<i64>, DicomProblem> {
    // One frame was decoded, so it is the first here.
    let bytes = decoded.frame_data(0).map_err(|_| too_few())?;
    let bits = u32::from(decoded.bits_stored().clamp(1, 32));
    let signed = decoded.pixel_representation() == PixelRepresentation::Signed;
    let extend = |word: u32| {
        let shift = 32 - bits;
        match signed {
            true => i64::from(((word << shift) as i32) >> shift),
            false => i64::from((word << shift) >> shift),
        }
    };
    match decoded.bits_allocated() {
        // Bit samples come as bytes of 0 or 255.
        1 => Ok(bytes.iter().map(|byte| i64::from(*byte)).collect()),
        8 => Ok(bytes.iter().map(|byte| extend(u32::from(*byte))).collect()),
        16 => {
            Ok(bytes.as_chunks().0.iter().map(|b| extend(u16::from_ne_bytes(*b).into())).collect())
        }
        32 => Ok(bytes.as_chunks().0.iter().map(|b| extend(u32::from_ne_bytes(*b))).collect()),
        bits => Err(DicomProblem::Layout {
            photometric: text(object, PHOTOMETRIC),
            samples: decoded.samples_per_pixel(),
            bits,
        }),
    }
}

/// Hounsfield units and the like: the modality table, or slope and intercept.
pub(super) fn modality_values(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
    frame: u32,
) -> Result<Vec<f32>, DicomProblem> {
    let stored = stored(object, decoded)?;
    if let Some(table) = Lookup::of_sequence(object, MODALITY_LUT_SEQUENCE, "modality LUT")? {
        return Ok(stored.into_iter().map(|value| f32::from(table.entry(value))).collect());
    }
    let rescale = decoded.rescale().map_err(|error| pixels(&error))?;
    let rescale = of_frame(rescale, frame);
    let apply = |value: i64| rescale.map_or(value as f64, |r| r.apply(value as f64)) as f32;
    Ok(stored.into_iter().map(apply).collect())
}

/// As the file itself asks; see [`Window::File`].
fn own_levels(
    object: &DefaultDicomObject,
    decoded: &DecodedPixelData<'_>,
    frame: u32,
    values: &[f32],
) -> Result<Vec<u8>, DicomProblem> {
    if let Some(table) = Lookup::of_sequence(object, VOI_LUT_SEQUENCE, "VOI LUT")? {
        return Ok(values.iter().map(|value| table.level(*value as i64)).collect());
    }
    let window = decoded.window().map_err(|error| pixels(&error))?;
    let window = of_frame(window.unwrap_or_default(), frame);
    if let Some(window) = window.filter(|window| window.width.is_finite() && window.width > 0.0) {
        let functions = decoded.voi_lut_function().map_err(|error| pixels(&error))?;
        let (centre, width) = (window.center, window.width);
        return Ok(levels(
            values,
            match of_frame(functions.unwrap_or_default(), frame) {
                None | Some(VoiLutFunction::Linear) if width >= 1.0 => {
                    Curve::Linear { centre, width }
                }
                Some(VoiLutFunction::Sigmoid) => Curve::Sigmoid { centre, width },
                Some(VoiLutFunction::Linear | VoiLutFunction::LinearExact) | None => {
                    Curve::LinearExact { centre, width }
                }
            },
        ));
    }
    if decoded.bits_stored() == 8 && values.iter().all(|value| (0.0..=255.0).contains(value)) {
        return Ok(values.iter().map(|value| value.round() as u8).collect());
    }
    Ok(levels(values, Curve::min_max(values)))
}

/// One for all frames, or one a frame.
fn of_frame<T>(values: &[T], frame: u32) -> Option<&T> {
    values.get(frame as usize).or(values.first())
}

fn pixels(error: &dyn std::error::Error) -> DicomProblem {
    DicomProblem::Pixels { detail: chain(error) }
}
