//! One file of whatever kind: which cases lie in it, and the picture of each.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tributary_shared::dataset::Plane;

use super::guard::caught;
use super::pixels::Picture;
use super::{DataError, ImageProblem, dicom, image_file, slide, volume};
use crate::config::reading::{Frames, Reading};

/// What a file is, told by its content: hospital exports lie about extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// PNG, JPEG or TIFF, or nothing that is known.
    Image,
    Dicom,
    Volume,
    /// A whole slide.
    Slide,
}

/// What is known about one picture besides its pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// DICOM code, such as `CT`.
    pub(super) modality: Option<String>,
    pub(super) plane: Option<Plane>,
    /// The larger of the two distances of neighbouring pixels.
    pub(super) spacing_mm: Option<f64>,
    /// Stored with white as the lowest value (MONOCHROME1).
    pub(super) inverted: bool,
}

/// Where the picture of one case is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// Shared by the cases of a file.
    pub(super) path: Arc<PathBuf>,
    pub(super) part: Part,
}

/// Which picture of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The only one.
    Whole,
    /// A DICOM frame, from 0.
    Frame(u32),
    /// A slice of a volume, from 0.
    Slice(u32),
    /// A cube of a volume, from 0.
    Patch(u32),
    /// A tile of a slide, its corner in pixels of the finest level.
    Tile([u32; 2]),
}

impl Part {
    /// The id of the case in a file or array of `several`.
    pub(super) fn id(self, name: &str, several: bool) -> String {
        match self {
            Self::Frame(at) | Self::Slice(at) | Self::Patch(at) if several => {
                format!("{name}#{at}")
            }
            // Whether a slide gives one tile or more, a tile is named by its place.
            Self::Tile([x, y]) => format!("{name}#{x},{y}"),
            Self::Whole | Self::Frame(_) | Self::Slice(_) | Self::Patch(_) => name.to_owned(),
        }
    }

    /// Whether all such parts of a file are one bag, whoever else its patient's images belong to.
    pub(super) fn shares_bag(self) -> bool {
        match self {
            Self::Patch(_) | Self::Tile(_) => true,
            Self::Whole | Self::Frame(_) | Self::Slice(_) => false,
        }
    }
}

/// A file's cases, and whom they show when the file says so.
pub(super) struct Contents {
    pub(super) parts: Vec<Part>,
    pub(super) facts: Facts,
    pub(super) header: Option<dicom::Header>,
}

impl Kind {
    /// Looks at the first bytes (of a TIFF, at its directories); the name decides only where the content is silent.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let mut head = Vec::new();
        File::open(path)?.take(352).read_to_end(&mut head)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let named = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
        if is(128, b"DICM") || named(&[".dcm", ".dicom", ".ima"]) {
            return Ok(Self::Dicom);
        }
        let volume = is(344, b"n+1\0") || is(344, b"ni1\0");
        if volume || named(&[".nii"]) || (named(&[".nii.gz"]) && is(0, &[0x1F, 0x8B])) {
            return Ok(Self::Volume);
        }
        if slide::is_slide(path, &head) { Ok(Self::Slide) } else { Ok(Self::Image) }
    }

    /// Whether a walk over a folder takes the file for a case at all.
    pub(super) fn is_picture(self, path: &Path) -> std::io::Result<bool> {
        if self != Self::Image {
            return Ok(true);
        }
        let mut head = Vec::new();
        File::open(path)?.take(64).read_to_end(&mut head)?;
        Ok(image::guess_format(&head).is_ok_and(|format| {
            use image::ImageFormat::{Jpeg, Png, Tiff};
            matches!(format, Png | Jpeg | Tiff)
        }))
    }
}

/// Which cases the file holds; no pixel is decoded.
pub(super) fn contents(path: &Path, kind: Kind, reading: &Reading) -> Result<Contents, DataError> {
    guarded(path, || match kind {
        Kind::Image => {
            Ok(Contents { parts: vec![Part::Whole], facts: Facts::default(), header: None })
        }
        Kind::Dicom => {
            let header = dicom::header(path).map_err(|problem| dicom_error(path, problem))?;
            let parts = match (header.frames, reading.frames) {
                (1, _) => vec![Part::Frame(0)],
                (frames, Frames::All) => (0..frames).map(Part::Frame).collect(),
                (frames, Frames::Middle) => vec![Part::Frame(frames / 2)],
            };
            Ok(Contents { parts, facts: header.facts.clone(), header: Some(header) })
        }
        Kind::Volume => {
            let grid = volume::grid(path).map_err(|p| volume_error(path, p))?;
            let parts = grid.parts(reading).map_err(|p| volume_error(path, p))?;
            Ok(Contents { parts, facts: grid.facts(reading), header: None })
        }
        Kind::Slide => {
            let tiles = slide::tiles(path, reading).map_err(|p| slide_error(path, p))?;
            let parts = tiles.into_iter().map(Part::Tile).collect();
            Ok(Contents { parts, facts: slide::facts(&reading.slides), header: None })
        }
    })
    .map(|mut contents| {
        let facts = &mut contents.facts;
        facts.modality = facts.modality.take().or_else(|| reading.modality.clone());
        facts.spacing_mm = facts.spacing_mm.or(reading.spacing_mm);
        contents
    })
}

/// A file that was opened for its pictures.
pub(super) enum Opened {
    Image,
    Dicom(dicom::Object),
    Volume(volume::Volume),
    Slide(Box<slide::Slide>),
}

impl Opened {
    /// Opens what `part` of the file needs.
    pub(super) fn open(path: &Path, part: Part, reading: &Reading) -> Result<Self, DataError> {
        guarded(path, || match part {
            Part::Whole => Ok(Self::Image),
            Part::Frame(_) => {
                dicom::Object::open(path).map(Self::Dicom).map_err(|p| dicom_error(path, p))
            }
            Part::Slice(_) | Part::Patch(_) => {
                let volume = volume::open(path, reading.window);
                volume.map(Self::Volume).map_err(|p| volume_error(path, p))
            }
            Part::Tile(_) => {
                let opened = slide::Slide::open(path, reading);
                opened.map(|slide| Self::Slide(Box::new(slide))).map_err(|p| slide_error(path, p))
            }
        })
    }

    pub(super) fn picture(
        &self,
        path: &Path,
        part: Part,
        reading: &Reading,
    ) -> Result<Picture, DataError> {
        guarded(path, || match (self, part) {
            (Self::Dicom(object), Part::Frame(frame)) => {
                object.frame(frame, reading).map_err(|p| dicom_error(path, p))
            }
            (Self::Volume(volume), Part::Slice(_) | Part::Patch(_)) => {
                Ok(volume.picture(reading, part))
            }
            (Self::Slide(slide), Part::Tile(at)) => {
                slide.tile(&reading.slides, at).map_err(|p| slide_error(path, p))
            }
            (Self::Image | Self::Dicom(_) | Self::Volume(_) | Self::Slide(_), _) => {
                image_file::decode(path)
            }
        })
    }
}

/// A decoder that panics on a damaged file costs that file and nothing else.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    caught(read).unwrap_or_else(|| {
        let problem = ImageProblem::Damaged { detail: "the decoder gave up on it".to_owned() };
        Err(DataError::Image { path: path.display().to_string(), problem })
    })
}

fn dicom_error(path: &Path, problem: dicom::DicomProblem) -> DataError {
    DataError::Dicom { path: path.display().to_string(), problem }
}

fn volume_error(path: &Path, problem: volume::VolumeProblem) -> DataError {
    DataError::Volume { path: path.display().to_string(), problem }
}

fn slide_error(path: &Path, problem: slide::SlideProblem) -> DataError {
    DataError::Slide { path: path.display().to_string(), problem }
}
