//! A slide's resolutions, read by our own TIFF reader, or by OpenSlide where that cannot.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::RgbImage;

#[cfg(feature = "openslide")]
use super::isolated;
use super::pyramid::Pyramid;
use super::{SlideProblem, vendor};
use crate::config::reading::Reading;

/// A slide's levels, finest first.
pub(super) struct Levels {
    sides: Vec<(u32, u32)>,
    source: Source,
}

enum Source {
    Tiff(Box<Pyramid<BufReader<File>>>),
    #[cfg(feature = "openslide")]
    OpenSlide(Box<isolated::Reader>),
}

impl Levels {
    /// Our own reader goes first; OpenSlide is asked for scanners' own formats and for compressions
    /// that we lack.
    pub(super) fn open(path: &Path, reading: &Reading) -> Result<Self, SlideProblem> {
        let refused = match vendor(path) {
            Some(ending) => SlideProblem::Vendor { ending: ending.to_owned() },
            None => match Self::of_tiff(path) {
                Err(problem @ SlideProblem::Compression { .. }) => problem,
                read => return read,
            },
        };
        Self::by_openslide(path, reading, refused)
    }

    fn of_tiff(path: &Path) -> Result<Self, SlideProblem> {
        let file =
            File::open(path).map_err(|error| SlideProblem::Format { detail: error.to_string() })?;
        let pyramid = Pyramid::read(BufReader::new(file))?;
        Ok(Self { sides: pyramid.dimensions(), source: Source::Tiff(Box::new(pyramid)) })
    }

    #[cfg(feature = "openslide")]
    fn by_openslide(
        path: &Path,
        reading: &Reading,
        _refused: SlideProblem,
    ) -> Result<Self, SlideProblem> {
        let reader = isolated::Reader::open(path, reading)?;
        Ok(Self { sides: reader.dimensions(), source: Source::OpenSlide(Box::new(reader)) })
    }

    #[cfg(not(feature = "openslide"))]
    fn by_openslide(
        _path: &Path,
        _reading: &Reading,
        refused: SlideProblem,
    ) -> Result<Self, SlideProblem> {
        Err(refused)
    }

    /// Micrometres a pixel of the finest level: what the file says, else what was declared, else
    /// what its objective gives by rule (0.5 for 20x).
    pub(super) fn mpp(&self, declared: Option<f64>) -> Option<f64> {
        match &self.source {
            Source::Tiff(pyramid) => pyramid.mpp().or(declared),
            #[cfg(feature = "openslide")]
            Source::OpenSlide(reader) => {
                reader.mpp().or(declared).or_else(|| Some(10.0 / reader.objective_power()?))
            }
        }
    }

    /// Of the finest level.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        self.sides[0]
    }

    pub(super) fn level_dimensions(&self, level: usize) -> (u32, u32) {
        self.sides[level]
    }

    pub(super) fn coarsest(&self) -> usize {
        self.sides.len() - 1
    }

    /// The coarsest level that is not coarser than `downsample`, and how much coarser than the finest
    /// it is.
    pub(super) fn level_for(&self, downsample: f64) -> (usize, f64) {
        let of = |(width, _): &(u32, u32)| f64::from(self.sides[0].0) / f64::from(*width);
        // A level of 4.0003 is one of 4.
        let level = self.sides.iter().rposition(|level| of(level) <= downsample * 1.01);
        let level = level.unwrap_or(0);
        (level, of(&self.sides[level]))
    }

    /// Decodes what of a level lies in the rectangle from `corner` to `end` (both inside it) piece by
    /// piece, and hands over each with its own corner. Pieces may reach beyond the rectangle.
    pub(super) fn each_tile(
        &mut self,
        level: usize,
        corner: [u32; 2],
        end: [u32; 2],
        take: &mut impl FnMut([u32; 2], &RgbImage),
    ) -> Result<(), SlideProblem> {
        match &mut self.source {
            Source::Tiff(pyramid) => pyramid.each_tile(level, corner, end, take),
            #[cfg(feature = "openslide")]
            Source::OpenSlide(reader) => {
                reader.next_picture();
                let square = isolated::SQUARE;
                let steps = |axis: usize| (corner[axis]..=end[axis]).step_by(square as usize);
                for top in steps(1) {
                    for left in steps(0) {
                        let size = [end[0] - left, end[1] - top].map(|more| square.min(more + 1));
                        take([left, top], &reader.region(level, [left, top], size)?);
                    }
                }
                Ok(())
            }
        }
    }
}
