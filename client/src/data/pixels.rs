//! Decoded pixels to the backbone's input: colour, size, normalisation.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, RgbImage};
use tributary_shared::dataset::Interpolation;

use super::frame::framed;
use super::medium::{Opened, Part, Place};
use super::{DataError, InputSpec};
use crate::config::reading::Reading;

/// An 8-bit picture as decoded.
pub(super) enum Picture {
    Grey(GrayImage),
    Rgb(RgbImage),
}

impl Picture {
    pub(super) fn dimensions(&self) -> (u32, u32) {
        match self {
            Self::Grey(grey) => grey.dimensions(),
            Self::Rgb(rgb) => rgb.dimensions(),
        }
    }

    /// Every level, row by row, colours side by side.
    pub(super) fn samples(&self) -> &[u8] {
        match self {
            Self::Grey(grey) => grey.as_raw(),
            Self::Rgb(rgb) => rgb.as_raw(),
        }
    }

    pub(super) fn is_colour(&self) -> bool {
        matches!(self, Self::Rgb(_))
    }

    /// Colours as the backbone asks (grey is repeated, RGB becomes Rec. 709 luma), and the square
    /// that it sees.
    pub(super) fn fit(self, input: &InputSpec) -> Vec<u8> {
        let filter = filter(input.interpolation);
        match (self, input.channels) {
            (Self::Rgb(rgb), 3) => framed(rgb, input, filter).into_raw(),
            (Self::Rgb(rgb), _) => framed(imageops::grayscale(&rgb), input, filter).into_raw(),
            (Self::Grey(grey), 3) => {
                let grey = framed(grey, input, filter).into_raw();
                grey.into_iter().flat_map(|level| [level; 3]).collect()
            }
            (Self::Grey(grey), _) => framed(grey, input, filter).into_raw(),
        }
    }
}

impl From<Picture> for DynamicImage {
    fn from(picture: Picture) -> Self {
        match picture {
            Picture::Grey(grey) => Self::ImageLuma8(grey),
            Picture::Rgb(rgb) => Self::ImageRgb8(rgb),
        }
    }
}

/// The filters that Pillow's `BILINEAR` and `BICUBIC` are.
fn filter(interpolation: Interpolation) -> FilterType {
    match interpolation {
        Interpolation::Bilinear => FilterType::Triangle,
        Interpolation::Bicubic => FilterType::CatmullRom,
    }
}

/// `(x / 255 - mean) / std`, from pixels beside each other to channel planes.
pub(super) fn normalise(bytes: &[u8], input: &InputSpec, out: &mut [f32]) {
    let plane = input.image_size * input.image_size;
    for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
        let scale = (1.0 / (255.0 * input.std[channel])) as f32;
        let shift = (-input.mean[channel] / input.std[channel]) as f32;
        let levels = bytes.iter().skip(channel).step_by(input.channels);
        for (out, level) in out.iter_mut().zip(levels) {
            *out = f32::from(*level).mul_add(scale, shift);
        }
    }
}

/// Collects fitted images until they would take too much memory.
pub(super) struct Kept {
    pub(super) input: InputSpec,
    pub(super) bytes_max: u64,
    bytes: Vec<u8>,
}

impl Kept {
    pub(super) fn new(input: &InputSpec, bytes_max: u64) -> Self {
        Self { input: input.clone(), bytes_max, bytes: Vec::new() }
    }

    /// Bytes that `images` fitted images take.
    pub(super) fn bytes_of(&self, images: usize) -> u64 {
        images as u64 * self.input.numbers() as u64
    }

    pub(super) fn fits(&self, images: usize) -> bool {
        self.bytes_of(images) <= self.bytes_max
    }

    pub(super) fn push(&mut self, fitted: &[u8]) {
        self.bytes.extend_from_slice(fitted);
    }

    pub(super) fn store(self) -> PixelStore {
        PixelStore::Kept(self.bytes)
    }
}

/// Where the fitted pixels of a source's cases come from.
pub(super) enum PixelStore {
    /// One fitted image after another.
    Kept(Vec<u8>),
    /// Too large to keep: decoded again each time.
    Files(Box<Files>),
}

/// Cases that are decoded when they are asked for.
pub(super) struct Files {
    places: Vec<Place>,
    reading: Reading,
    /// The volume or multi-frame file read last: its other slices are likely to follow.
    last: Mutex<Option<(Place, Arc<Opened>)>>,
}

impl Files {
    pub(super) fn new(places: Vec<Place>, reading: Reading) -> Self {
        Self { places, reading, last: Mutex::new(None) }
    }

    fn fitted(&self, index: usize, input: &InputSpec) -> Result<Vec<u8>, DataError> {
        let place = &self.places[index];
        let opened = self.opened(place)?;
        let picture = opened.picture(&place.path, place.part, &self.reading).inspect_err(|_| {
            // A process that had it open may have ended: the next try opens it again.
            *self.last() = None;
        });
        Ok(picture?.fit(input))
    }

    fn last(&self) -> MutexGuard<'_, Option<(Place, Arc<Opened>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, place: &Place) -> Result<Arc<Opened>, DataError> {
        if place.part == Part::Whole {
            return Ok(Arc::new(Opened::Image));
        }
        if let Some((known, opened)) = &*self.last()
            && known.path == place.path
        {
            return Ok(Arc::clone(opened));
        }
        let opened = Arc::new(Opened::open(&place.path, place.part, &self.reading)?);
        *self.last() = Some((place.clone(), Arc::clone(&opened)));
        Ok(opened)
    }
}

impl PixelStore {
    pub(super) fn with(
        &self,
        index: usize,
        input: &InputSpec,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), DataError> {
        match self {
            Self::Kept(bytes) => {
                let size = input.numbers();
                take(&bytes[index * size..][..size]);
            }
            Self::Files(files) => take(&files.fitted(index, input)?),
        }
        Ok(())
    }
}
