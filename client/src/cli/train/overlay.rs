//! A map of heat over the picture that it explains.

use image::{Rgb, RgbImage};

use crate::data::InputSpec;
use crate::trainer::stretched;

/// Least side of a written picture, pixels: small images are shown larger.
const SIDE_MIN: usize = 256;
/// Colours from cold to hot, readable in grey too.
const RAMP: [[f32; 3]; 5] = [
    [0.0, 0.0, 0.1],
    [0.34, 0.06, 0.43],
    [0.73, 0.21, 0.33],
    [0.98, 0.55, 0.04],
    [0.99, 1.0, 0.64],
];
/// The border of what is marked.
const BORDER: Rgb<u8> = Rgb([80, 255, 80]);

/// The image `[channels, size, size]` in grey, the heat of its patches over it in colour, and the
/// border of the marked pixels in green.
pub(super) fn overlay(
    input: &InputSpec,
    image: &[f32],
    heat: &[f32],
    marked: Option<&[bool]>,
) -> RgbImage {
    let size = input.image_size;
    let factor = SIDE_MIN.div_ceil(size);
    let side = size * factor;
    let heat = stretched(heat, side);
    let hottest = heat.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let level = |x: usize, y: usize| {
        let of = |channel: usize| {
            let (mean, std) = (input.mean[channel] as f32, input.std[channel] as f32);
            image[(channel * size + y) * size + x] * std + mean
        };
        ((0..input.channels).map(of).sum::<f32>() / input.channels as f32).clamp(0.0, 1.0)
    };
    let inside = |x: usize, y: usize| marked.is_some_and(|marked| marked[y * size + x]);
    let border = |x: usize, y: usize| {
        let near = [(x + 1, y), (x, y + 1), (x.wrapping_sub(1), y), (x, y.wrapping_sub(1))];
        let out =
            |(x, y): (usize, usize)| x >= side || y >= side || !inside(x / factor, y / factor);
        inside(x / factor, y / factor) && near.into_iter().any(out)
    };
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let (x, y) = (x as usize, y as usize);
        if border(x, y) {
            return BORDER;
        }
        let warmth = (heat[y * side + x] / hottest).clamp(0.0, 1.0);
        let grey = level(x / factor, y / factor);
        let (colour, share) = (ramp(warmth), 0.7 * warmth.sqrt());
        Rgb(colour.map(|c| (255.0 * (grey + (c - grey) * share)) as u8))
    })
}

fn ramp(warmth: f32) -> [f32; 3] {
    let at = warmth * (RAMP.len() - 1) as f32;
    let low = (at as usize).min(RAMP.len() - 2);
    std::array::from_fn(|c| RAMP[low][c] + (RAMP[low + 1][c] - RAMP[low][c]) * (at - low as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_colours_what_is_hot_and_a_mark_has_a_border() {
        let input = InputSpec::plain(16, 1, 0.5, 0.5);
        let image = vec![0.0; 256];
        // The upper left of four patches is hot.
        let picture = overlay(&input, &image, &[1.0, 0.0, 0.0, 0.0], None);
        assert_eq!(picture.dimensions(), (256, 256));
        assert_eq!(picture.get_pixel(255, 255), &Rgb([127, 127, 127]), "cold: the image itself");
        let hot = picture.get_pixel(0, 0).0;
        assert!(hot[0] > 200 && hot[1] > 200 && hot[2] < 180, "{hot:?}");
        let mut marked = vec![false; 256];
        marked[16 * 8 + 8] = true;
        let picture = overlay(&input, &image, &[0.0; 4], Some(&marked));
        assert_eq!(picture.pixels().filter(|pixel| **pixel == BORDER).count(), 4 * 15);
        assert_eq!(picture.get_pixel(128, 128), &BORDER);
        assert_ne!(picture.get_pixel(136, 136), &BORDER, "its inside is shown");
    }
}
