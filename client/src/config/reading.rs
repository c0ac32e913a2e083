//! How files become pictures: the site's choices, `[data.reading]` of `site.toml`.

use std::path::PathBuf;

use serde::Deserialize;
use tributary_shared::dataset::{DataContract, Plane, Window};

use crate::data::isolate::Isolation;

/// How files become pictures. Image files have no choices; DICOM, NIfTI and slides do.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    /// Share of the images that may be refused; above it the whole source is.
    pub refused_share_max: f64,
    /// Most bytes of resized pixels kept in memory. Images of a folder that would take more are
    /// decoded again each time they are asked for; an npz is refused.
    pub kept_bytes_max: u64,
    /// How stored values become grey levels.
    pub window: Window,
    /// Which frames of a multi-frame DICOM file are cases.
    pub frames: Frames,
    /// Which slices of a volume are cases.
    pub slices: Slices,
    /// Cubes of a volume are cases instead of slices, all in one bag.
    pub patches: Option<Patches>,
    /// Which tiles of a whole slide are cases, all in one bag.
    pub slides: Slides,
    /// The OpenSlide library, where the system does not find it by its name; only in a program built
    /// with `--features openslide`.
    pub openslide: Option<PathBuf>,
    /// Most memory of one decoder's process, MiB of address space beside what the program maps at its start: 128 to
    /// 65536.
    pub decoder_memory_mib: u64,
    /// Most time of a decoder's process for one picture, frame or tile, or for opening a slide, seconds: 1 to 3600. A file
    /// of many frames has this time for each.
    pub decoder_seconds: u64,
    /// Isolation of OpenSlide and of the decoders of JPEG, JPEG 2000 and Parquet descriptions; chosen by the program,
    /// not by `site.toml`.
    #[serde(skip)]
    pub isolation: Isolation,
    /// DICOM modality code of files that name none.
    pub modality: Option<String>,
    /// Distance of neighbouring pixels in files that name none, millimetres.
    pub spacing_mm: Option<f64>,
}

/// Which frames of a multi-frame DICOM file are cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// Each one, all with the label of the file.
    #[default]
    All,
    /// The one in the middle.
    Middle,
}

/// Which slices of a volume are cases.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slices {
    /// How they lie in the patient.
    pub plane: Plane,
    /// Each one, or the one in the middle.
    pub take: Frames,
    /// Distance between two that are taken, millimetres; every slice when absent. Neighbours of a
    /// 2.5D picture are as far away.
    pub every_mm: Option<f64>,
    /// 1: grey pictures. 3: 2.5D, the slice before, the slice itself and the slice after it as the
    /// three channels; at either end the slice itself stands in.
    pub depth: u32,
}

/// Which cubes of a volume are cases. Lengths are millimetres, or voxels of an npz.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patches {
    /// Side of a cube.
    pub size: f64,
    /// From one cube to the next along each axis; the last one ends where the volume does.
    pub stride: f64,
}

/// Which tiles of a whole slide are cases.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slides {
    /// Resolution, micrometres a pixel: 0.5 is what a 20x objective gives, 0.25 a 40x.
    pub mpp: f64,
    /// Side of a tile, pixels of that resolution; the backbone's image size is best.
    pub tile: u32,
    /// Share of a tile that must be tissue.
    pub tissue_min: f64,
    /// Most tiles of one slide; of more, as many are drawn.
    pub tiles_max: u32,
    /// Names the draw.
    pub seed: u64,
}

impl Default for Slides {
    fn default() -> Self {
        Self { mpp: 0.5, tile: 224, tissue_min: 0.5, tiles_max: 1000, seed: 0 }
    }
}

impl Slides {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if !(0.01..=1000.0).contains(&self.mpp) {
            let mend = format!("{} is not between 0.01 and 1000 micrometres", self.mpp);
            return Err(("data.reading.slides.mpp", mend));
        }
        if !(8..=4096).contains(&self.tile) {
            return Err(("data.reading.slides.tile", "write 8 to 4096 pixels".to_owned()));
        }
        if !(0.0..=1.0).contains(&self.tissue_min) {
            return Err(("data.reading.slides.tissue_min", "write a share, 0 to 1".to_owned()));
        }
        if !(1..=100_000).contains(&self.tiles_max) {
            return Err(("data.reading.slides.tiles_max", "write 1 to 100000".to_owned()));
        }
        Ok(())
    }
}

impl Default for Slices {
    fn default() -> Self {
        Self { plane: Plane::Axial, take: Frames::All, every_mm: None, depth: 1 }
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            refused_share_max: 0.05,
            kept_bytes_max: 2 << 30,
            window: Window::File,
            frames: Frames::All,
            slices: Slices::default(),
            patches: None,
            slides: Slides::default(),
            openslide: None,
            decoder_memory_mib: 1024,
            decoder_seconds: 60,
            isolation: Isolation::default(),
            modality: None,
            spacing_mm: None,
        }
    }
}

impl Reading {
    /// With what a run's contract decides for the site.
    pub fn under(mut self, contract: Option<&DataContract>) -> Self {
        if let Some(window) = contract.and_then(|contract| contract.window) {
            self.window = window;
        }
        self
    }

    /// The first key that makes no sense, with the mend.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(0.0..=1.0).contains(&self.refused_share_max) {
            let mend = format!("{} is not between 0 and 1", self.refused_share_max);
            return Err(("data.reading.refused_share_max", mend));
        }
        if !matches!(self.slices.depth, 1 | 3) {
            let mend = format!("{} is neither 1 nor 3", self.slices.depth);
            return Err(("data.reading.slices.depth", mend));
        }
        let length = |mm: Option<f64>| mm.is_none_or(|mm| mm.is_finite() && mm > 0.0);
        if !length(self.slices.every_mm) {
            return Err(("data.reading.slices.every_mm", "write a length above 0".to_owned()));
        }
        if let Some(Patches { size, stride }) = self.patches
            && !(length(Some(size)) && length(Some(stride)))
        {
            return Err(("data.reading.patches", "write lengths above 0".to_owned()));
        }
        self.slides.check()?;
        if self.openslide.is_some() && !cfg!(feature = "openslide") {
            let mend = "this program has no OpenSlide in it; leave it out, or use one built with \
                        --features openslide";
            return Err(("data.reading.openslide", mend.to_owned()));
        }
        if !(128..=65_536).contains(&self.decoder_memory_mib) {
            return Err(("data.reading.decoder_memory_mib", "write 128 to 65536".to_owned()));
        }
        if !(1..=3600).contains(&self.decoder_seconds) {
            return Err(("data.reading.decoder_seconds", "write 1 to 3600".to_owned()));
        }
        if !length(self.spacing_mm) {
            return Err(("data.reading.spacing_mm", "write a length above 0".to_owned()));
        }
        self.window.check().map_err(|mend| ("data.reading.window", mend))
    }
}
