//! One look at a picture: what `data inspect` counts, and its thumbnail.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageFormat};
use tributary_shared::digest::{Digest, Hasher};

use super::pixels::Picture;

/// Bins of the intensity histogram, each 16 of 256 levels.
pub(super) const BINS: usize = 16;
/// Longer side of a thumbnail, pixels.
const THUMBNAIL_SIDE: u32 = 112;
/// A shorter side below this is odd, pixels.
const TINY_BELOW: u32 = 32;
/// A longer side of more than this many shorter ones is odd.
const ASPECT_MAX: u32 = 3;
/// A picture with more than this share of its pixels in one bin shows next to nothing.
const FLAT_ABOVE: f64 = 0.995;

/// What one picture is like.
pub(super) struct Seen {
    pub(super) dimensions: (u32, u32),
    pub(super) colour: bool,
    /// Pixels in each bin of grey levels (of all channels).
    pub(super) levels: [u64; BINS],
    /// Of size, channels and pixels: equal for equal pictures, whatever their files are.
    pub(super) digest: Digest,
    pub(super) odd: Vec<&'static str>,
    /// A PNG file, where one was asked for.
    pub(super) thumbnail: Option<Vec<u8>>,
}

impl Seen {
    pub(super) fn of(picture: Picture, thumbnail: bool) -> Self {
        let dimensions = picture.dimensions();
        let colour = picture.is_colour();
        let samples = picture.samples();
        let mut levels = [0; BINS];
        for level in samples {
            levels[usize::from(*level) * BINS / 256] += 1;
        }
        let mut hasher = Hasher::new();
        hasher.update(&dimensions.0.to_le_bytes());
        hasher.update(&dimensions.1.to_le_bytes());
        hasher.update(&[u8::from(colour)]);
        hasher.update(samples);
        let mut odd = Vec::new();
        let (short, long) = (dimensions.0.min(dimensions.1), dimensions.0.max(dimensions.1));
        if short < TINY_BELOW {
            odd.push("tiny: a side of fewer than 32 pixels");
        }
        if long > ASPECT_MAX * short {
            odd.push("long: one side more than 3 times the other");
        }
        let fullest = levels.iter().copied().max().unwrap_or(0);
        if fullest as f64 > FLAT_ABOVE * samples.len() as f64 {
            odd.push("flat: nearly all pixels of one level");
        }
        if colour && samples.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b) {
            odd.push("grey pictures stored as colour");
        }
        let digest = hasher.finish();
        let thumbnail = if thumbnail { thumbnail_of(picture) } else { None };
        Self { dimensions, colour, levels, digest, odd, thumbnail }
    }
}

/// Encoding to memory fails for no picture that could be decoded; if it does, none is shown.
fn thumbnail_of(picture: Picture) -> Option<Vec<u8>> {
    let (width, height) = picture.dimensions();
    let longer = width.max(height).max(1);
    let scaled = |side: u32| {
        let side = u64::from(side) * u64::from(THUMBNAIL_SIDE) / u64::from(longer);
        u32::try_from(side).unwrap_or(THUMBNAIL_SIDE).max(1)
    };
    let (width, height) = (scaled(width), scaled(height));
    let small: DynamicImage = match picture {
        Picture::Grey(grey) => imageops::resize(&grey, width, height, FilterType::Triangle).into(),
        Picture::Rgb(rgb) => imageops::resize(&rgb, width, height, FilterType::Triangle).into(),
    };
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(png.into_inner())
}
