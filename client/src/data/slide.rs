//! Whole slides: tiled TIFF pyramids (Aperio's `.svs` among them), read tile by tile, and whatever
//! OpenSlide reads where the program has it. No level is ever decoded whole but the smallest, for the
//! tissue mask, and that in stripes of its own tiles.

#[cfg(feature = "openslide")]
mod isolated;
mod levels;
#[cfg(feature = "openslide")]
mod openslide;
mod pyramid;
mod tissue;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use image::RgbImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

#[cfg(feature = "openslide")]
pub(super) use self::isolated::Served;
use self::levels::Levels;
use self::pyramid::Pyramid;
use self::tissue::Tissue;
use super::guard::caught;
use super::isolate::DecoderProblem;
use super::medium::Facts;
use super::pixels::Picture;
use crate::config::reading::{Reading, Slides};

/// Most tiles of a slide that are looked at.
const TILES_LOOKED_AT_MAX: u64 = 4 << 20;
/// Most pixels a side that are read of a level for one tile.
const REGION_SIDE_MAX: f64 = 8192.0;
/// Endings of scanners' own formats: some of them would pass for something else.
const VENDORS: [&str; 9] =
    [".mrxs", ".ndpi", ".ndpis", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"];
/// Those of them whose pixels lie in other files, beside it or in a folder.
const SEVERAL_FILES: [&str; 4] = [".mrxs", ".ndpis", ".vms", ".vmu"];

/// What is wrong with a whole slide.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlideProblem {
    /// The file cannot be taken apart.
    #[error("not readable as a slide: {detail}")]
    Format {
        /// What the reader said.
        detail: String,
    },
    /// A scanner's own format.
    #[error(
        "a slide of the kind {ending}; use a program built with --features openslide \
         (docs/data.md), or save it as a tiled pyramidal TIFF or SVS with JPEG tiles"
    )]
    Vendor {
        /// The file's ending.
        ending: String,
    },
    /// Fewer than two levels.
    #[error(
        "has no pyramid: {levels} tiled levels in colour; save it with smaller levels beside it"
    )]
    Levels {
        /// How many there are.
        levels: usize,
    },
    /// A compression that is not read.
    #[error(
        "its tiles are {found}; use a program built with --features openslide (docs/data.md), \
         or save it with JPEG, LZW or deflate"
    )]
    Compression {
        /// Its name or number.
        found: String,
    },
    /// No library for a slide that needs it.
    #[error(
        "needs OpenSlide, and {what}; install it or name it in data.reading.openslide \
         (docs/data.md)"
    )]
    Library {
        /// What is wrong with it.
        what: String,
    },
    /// The process in which OpenSlide runs gave no answer.
    #[error(transparent)]
    Decoder(#[from] DecoderProblem),
    /// A smallest level too large to look for tissue.
    #[error("its smallest level has {pixels} pixels, more than {max}; save it with smaller levels")]
    Overview {
        /// Its pixels.
        pixels: u64,
        /// The bound.
        max: u64,
    },
    /// No resolution.
    #[error(
        "names no resolution; declare data.reading.spacing_mm, e.g. 0.00025 for 0.25 um a pixel"
    )]
    Resolution,
    /// A resolution that the slide does not have.
    #[error(
        "has {has} um a pixel; it cannot show {asked}, so write data.reading.slides.mpp above it"
    )]
    Coarse {
        /// Its own.
        has: String,
        /// What was asked.
        asked: String,
    },
    /// Tiles too large or too many to read.
    #[error("{what}; change data.reading.slides")]
    Tiles {
        /// What is too much.
        what: String,
    },
    /// Nothing to see.
    #[error("no tile of {side} pixels at {mpp} um a pixel holds enough tissue")]
    NoTissue {
        /// Side of a tile.
        side: u32,
        /// Micrometres a pixel.
        mpp: String,
    },
}

/// Whether a file is a slide: a TIFF whose first picture is tiled and has a smaller tiled one beside
/// it, or whatever bears the ending of one.
pub(super) fn is_slide(path: &Path, head: &[u8]) -> bool {
    if ending(path, &[".svs"]).is_some() || vendor(path).is_some() {
        return true;
    }
    let magics: [&[u8]; 4] = [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"];
    let looks = || File::open(path).is_ok_and(|file| Pyramid::read(BufReader::new(file)).is_ok());
    magics.iter().any(|magic| head.starts_with(magic)) && caught(looks).unwrap_or(false)
}

/// The scanner's own format that a file's name says it is.
fn vendor(path: &Path) -> Option<&'static str> {
    ending(path, &VENDORS)
}

/// The ending of a slide that is more than this file.
pub(super) fn several_files(path: &Path) -> Option<&'static str> {
    ending(path, &SEVERAL_FILES)
}

fn ending(path: &Path, endings: &[&'static str]) -> Option<&'static str> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    endings.iter().copied().find(|ending| name.ends_with(ending))
}

/// What is known of a slide's tiles: SM is DICOM's slide microscopy.
pub(super) fn facts(slides: &Slides) -> Facts {
    let spacing_mm = Some(slides.mpp / 1000.0);
    Facts { modality: Some("SM".to_owned()), plane: None, spacing_mm, inverted: false }
}

/// The tiles that are cases, by rows: their corners in pixels of the finest level. A tile lies
/// wholly in the slide and holds enough tissue.
pub(super) fn tiles(path: &Path, reading: &Reading) -> Result<Vec<[u32; 2]>, SlideProblem> {
    let Slide { levels, mpp } = Slide::open(path, reading)?;
    let mut levels = levels.into_inner().unwrap_or_else(PoisonError::into_inner);
    let slides = &reading.slides;
    let side = f64::from(slides.tile) * slides.mpp / mpp;
    let (width, height) = levels.dimensions();
    let fitting = |length: u32| (f64::from(length) / side + 1e-6).floor() as u64;
    let (across, down) = (fitting(width), fitting(height));
    if across.saturating_mul(down) > TILES_LOOKED_AT_MAX {
        let what = format!("{across} x {down} tiles are more than {TILES_LOOKED_AT_MAX}");
        return Err(SlideProblem::Tiles { what });
    }
    let tissue = Tissue::of(&mut levels)?;
    let at = |index: u64| (index as f64 * side).round() as u32;
    let mut tiles: Vec<[u32; 2]> = (0..down)
        .flat_map(|row| (0..across).map(move |column| [at(column), at(row)]))
        .filter(|corner| tissue.share(*corner, side) >= slides.tissue_min)
        .collect();
    if tiles.is_empty() {
        let mpp = slides.mpp.to_string();
        return Err(SlideProblem::NoTissue { side: slides.tile, mpp });
    }
    if tiles.len() > slides.tiles_max as usize {
        let mut rng = ChaCha8Rng::seed_from_u64(slides.seed);
        tiles.shuffle(&mut rng);
        tiles.truncate(slides.tiles_max as usize);
        tiles.sort_by_key(|[x, y]| (*y, *x));
    }
    Ok(tiles)
}

/// A slide, ready to give tiles.
pub(super) struct Slide {
    levels: Mutex<Levels>,
    /// Micrometres a pixel of the finest level.
    mpp: f64,
}

impl Slide {
    pub(super) fn open(path: &Path, reading: &Reading) -> Result<Self, SlideProblem> {
        let levels = Levels::open(path, reading)?;
        let declared = reading.spacing_mm.map(|mm| mm * 1000.0);
        let mpp = levels.mpp(declared).ok_or(SlideProblem::Resolution)?;
        let asked = reading.slides.mpp;
        // Scanners differ by a few parts in a hundred from the resolution they are called by.
        if asked < 0.9 * mpp {
            let (has, asked) = (format!("{mpp:.4}"), asked.to_string());
            return Err(SlideProblem::Coarse { has, asked });
        }
        Ok(Self { levels: Mutex::new(levels), mpp })
    }

    /// The tile at a corner, from the coarsest level that is fine enough. It has that level's
    /// resolution: the resize to the backbone's input is the only one.
    pub(super) fn tile(&self, slides: &Slides, at: [u32; 2]) -> Result<Picture, SlideProblem> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let (level, downsample) = levels.level_for(slides.mpp / self.mpp);
        let side = f64::from(slides.tile) * slides.mpp / self.mpp / downsample;
        if side > REGION_SIDE_MAX {
            let what = format!("a tile takes {side:.0} pixels of the nearest level");
            return Err(SlideProblem::Tiles { what });
        }
        let corner = at.map(|x| (f64::from(x) / downsample).round() as u32);
        let side = (side.round() as u32).max(1);
        region(&mut levels, level, corner, side).map(Picture::Rgb)
    }
}

/// A square of one level; beyond its edge the last pixels go on.
fn region(
    levels: &mut Levels,
    level: usize,
    corner: [u32; 2],
    side: u32,
) -> Result<RgbImage, SlideProblem> {
    let (width, height) = levels.level_dimensions(level);
    let last = [width - 1, height - 1];
    let corner = [corner[0].min(last[0]), corner[1].min(last[1])];
    let end = [0, 1].map(|axis| corner[axis].saturating_add(side - 1).min(last[axis]));
    let mut picture = RgbImage::new(side, side);
    levels.each_tile(level, corner, end, &mut |[left, top], tile| {
        for (x, y, pixel) in tile.enumerate_pixels() {
            let (x, y) = (left + x, top + y);
            if (corner[0]..=end[0]).contains(&x) && (corner[1]..=end[1]).contains(&y) {
                picture.put_pixel(x - corner[0], y - corner[1], *pixel);
            }
        }
    })?;
    let (w, h) = (end[0] - corner[0] + 1, end[1] - corner[1] + 1);
    if (w, h) != (side, side) {
        let inner = picture.clone();
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            *pixel = *inner.get_pixel(x.min(w - 1), y.min(h - 1));
        }
    }
    Ok(picture)
}
