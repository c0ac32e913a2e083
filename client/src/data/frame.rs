//! Where the backbone's square lies in a picture: all of it, stretched, or its middle at its own ratio.

use image::{GenericImageView, ImageBuffer, Pixel, imageops};

use super::InputSpec;

/// How many times longer than wide a picture is resized at most; of a longer one the middle is taken
/// first, as a line of pixels would otherwise grow without bound.
const RATIO_MAX: u32 = 8;

/// A resize and a cut out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The whole picture's sides when resized.
    resized: [u32; 2],
    /// The upper left corner of the square in that.
    corner: [u32; 2],
    /// Side of the square.
    side: u32,
}

impl Frame {
    /// Without `crop_pct` the square is the whole picture. With it, as timm's
    /// `transforms_imagenet_eval` has it: the shorter side becomes `side / crop_pct`, the other keeps
    /// the ratio, both rounded down, and the square is the middle, half pixels to the even one.
    pub(super) fn of((width, height): (u32, u32), side: u32, crop_pct: Option<f64>) -> Self {
        let Some(share) = crop_pct else {
            return Self { resized: [side; 2], corner: [0; 2], side };
        };
        let short = (f64::from(side) / share).floor() as u32;
        let (width, height) = (width.max(1), height.max(1));
        let of = |length: u32| u64::from(short) * u64::from(length) / u64::from(width.min(height));
        let resized = [width, height].map(|length| of(length) as u32);
        let middle = |length: u32| f64::from(length - side) / 2.0;
        Self {
            resized,
            corner: resized.map(|length| middle(length).round_ties_even() as u32),
            side,
        }
    }

    /// Which pixel of a picture with `length` along `axis` (0: across) is nearest to pixel `at` of the
    /// square. In integers: exact where the sizes agree.
    pub(super) fn nearest(&self, axis: usize, at: usize, length: u32) -> usize {
        let at = at + self.corner[axis] as usize;
        (2 * at + 1) * length as usize / (2 * self.resized[axis] as usize)
    }
}

/// The square that the backbone sees of `picture`.
pub(super) fn framed<P: Pixel<Subpixel = u8> + 'static>(
    picture: ImageBuffer<P, Vec<u8>>,
    input: &InputSpec,
    filter: imageops::FilterType,
) -> ImageBuffer<P, Vec<u8>> {
    let side = input.image_size as u32;
    let picture = if input.crop_pct.is_some() { shortened(picture) } else { picture };
    let Frame { resized: [width, height], corner: [left, top], .. } =
        Frame::of(picture.dimensions(), side, input.crop_pct);
    let resized = match picture.dimensions() == (width, height) {
        true => picture,
        false => imageops::resize(&picture, width, height, filter),
    };
    match (width, height) == (side, side) {
        true => resized,
        false => resized.view(left, top, side, side).to_image(),
    }
}

/// The middle of a picture that is too long.
fn shortened<P: Pixel<Subpixel = u8> + 'static>(
    picture: ImageBuffer<P, Vec<u8>>,
) -> ImageBuffer<P, Vec<u8>> {
    let (width, height) = picture.dimensions();
    let longest = width.min(height).saturating_mul(RATIO_MAX);
    if width.max(height) <= longest {
        return picture;
    }
    let (w, h) = (width.min(longest), height.min(longest));
    picture.view((width - w) / 2, (height - h) / 2, w, h).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_torchvisions() {
        let of = |dimensions, side, share| {
            let Frame { resized, corner, .. } = Frame::of(dimensions, side, share);
            (resized, corner)
        };
        assert_eq!(of((640, 480), 224, None), ([224, 224], [0, 0]));
        // python: floor(224 / 0.9) = 248, int(248 * 640 / 480) = 330, round(53.0), round(12.0)
        assert_eq!(of((640, 480), 224, Some(0.9)), ([330, 248], [53, 12]));
        assert_eq!(of((480, 640), 224, Some(1.0)), ([224, 298], [0, 37]));
        // round(2.5) = 2 and round(3.5) = 4.
        assert_eq!(of((21, 23), 16, Some(0.75)), ([21, 23], [2, 4]));
    }

    #[test]
    fn the_nearest_pixel_is_under_the_middle() {
        let whole = Frame::of((8, 8), 4, None);
        assert_eq!([0, 1, 2, 3].map(|at| whole.nearest(0, at, 8)), [1, 3, 5, 7]);
        // 8 x 6 becomes 5 x 4; the square of 4 begins at round(0.5) = 0.
        let middle = Frame::of((8, 6), 4, Some(1.0));
        assert_eq!([0, 3].map(|at| middle.nearest(0, at, 8)), [0, 5]);
        assert_eq!([0, 3].map(|at| middle.nearest(1, at, 6)), [0, 5]);
    }

    #[test]
    fn a_line_of_pixels_stays_small() {
        let line = image::GrayImage::from_fn(5000, 1, |x, _| image::Luma([(x / 20) as u8]));
        let short = shortened(line);
        assert_eq!(short.dimensions(), (8, 1));
        assert_eq!(short.get_pixel(4, 0).0, [125]);
    }
}
