//! OpenSlide in a process of its own for each slide that is open, or in this one where tests and benches ask for that; and
//! the answers of such a process.

use std::path::{Path, PathBuf};

use image::RgbImage;

pub(super) use super::openslide::SQUARE;
use super::{SlideProblem, openslide};
use crate::config::reading::Reading;
use crate::data::isolate::{Asked, DecoderProblem, Description, Limits, Region, Session};

/// A slide that OpenSlide opened.
pub(super) struct Reader {
    described: Description,
    place: Place,
}

/// The process in which a slide is open.
enum Place {
    Here(openslide::Reader),
    There(Session),
}

impl Reader {
    /// Opens a slide by the library that the site names, or by the one that the system finds.
    pub(super) fn open(path: &Path, reading: &Reading) -> Result<Self, SlideProblem> {
        let limits =
            Limits { memory_mib: reading.decoder_memory_mib, seconds: reading.decoder_seconds };
        let library = reading.openslide.as_deref();
        match reading.isolation.session(limits)? {
            Some(session) => Self::there(path, library, session),
            None => {
                let reader = openslide::Reader::open(path, library)?;
                Ok(Self { described: reader.description(), place: Place::Here(reader) })
            }
        }
    }

    fn there(
        path: &Path,
        library: Option<&Path>,
        mut session: Session,
    ) -> Result<Self, SlideProblem> {
        const NAME: &str = "its path is not UTF-8";
        let name = library.map(|path| {
            path.to_str().ok_or_else(|| SlideProblem::Library { what: NAME.to_owned() })
        });
        let loaded = session.ask(Asked::Library(name.transpose()?))?;
        loaded.map_err(|what| SlideProblem::Library { what })?;
        let unreadable = |detail: String| SlideProblem::Format { detail };
        let name = path.to_str().ok_or_else(|| unreadable(NAME.to_owned()))?;
        let described = session.ask(Asked::Open(name))?.map_err(unreadable)?;
        let described = Description::read(&described).ok_or(DecoderProblem::Answer)?;
        Ok(Self { described, place: Place::There(session) })
    }

    /// Width and height of each level, finest first.
    pub(super) fn dimensions(&self) -> Vec<(u32, u32)> {
        self.described.sides.clone()
    }

    /// Micrometres a pixel of the finest level.
    pub(super) fn mpp(&self) -> Option<f64> {
        self.described.mpp
    }

    /// Magnification of the objective, such as 20 or 40.
    pub(super) fn objective_power(&self) -> Option<f64> {
        self.described.objective_power
    }

    /// Starts the time limit of another picture; the regions that follow are parts of it.
    pub(super) fn next_picture(&mut self) {
        match &mut self.place {
            Place::Here(_) => (),
            Place::There(session) => session.next_picture(),
        }
    }

    /// A rectangle of one level on white, at most [`SQUARE`] pixels a side; beyond the slide it is white too.
    pub(super) fn region(
        &mut self,
        level: usize,
        corner: [u32; 2],
        size: [u32; 2],
    ) -> Result<RgbImage, SlideProblem> {
        let region = Region { level: level as u32, corner, size };
        let bytes = match &mut self.place {
            Place::Here(reader) => reader.region(region)?,
            Place::There(session) => session
                .ask(Asked::Region(region))?
                .map_err(|detail| SlideProblem::Format { detail })?,
        };
        Ok(RgbImage::from_raw(size[0], size[1], bytes).expect("three bytes a pixel"))
    }
}

/// The library and the slide that a process has open.
#[derive(Default)]
pub(in crate::data) struct Served {
    library: Option<PathBuf>,
    reader: Option<openslide::Reader>,
}

impl Served {
    /// Answers one question.
    ///
    /// # Errors
    /// The problem of the library or the slide, without the words that the client puts before it.
    pub(in crate::data) fn answer(&mut self, asked: &Asked<'_>) -> Result<Vec<u8>, String> {
        match asked {
            Asked::Library(path) => {
                self.library = path.map(PathBuf::from);
                openslide::library(self.library.as_deref()).map_err(words)?;
                Ok(Vec::new())
            }
            Asked::Open(path) => {
                let reader = openslide::Reader::open(Path::new(path), self.library.as_deref());
                Ok(self.reader.insert(reader.map_err(words)?).description().bytes())
            }
            Asked::Region(region) => match &self.reader {
                Some(reader) => reader.region(*region).map_err(words),
                None => Err("no slide is open".to_owned()),
            },
        }
    }
}

fn words(problem: SlideProblem) -> String {
    if let SlideProblem::Library { what: words } | SlideProblem::Format { detail: words } = problem
    {
        words
    } else {
        problem.to_string()
    }
}
