//! Random changes of training images, drawn from a seed of the caller's, so that a repeated round
//! sees the same pictures on any number of threads.
//!
//! Order: crop, mirror, turn, colour, stain, intensity, noise. Images are channel planes of
//! numbers in [0, 1]; what a change would push out of it is clamped.

use std::ops::RangeInclusive;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use tributary_shared::augment::Augment;

/// One image's change, drawn once: the same for the image and its mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Variation {
    /// Left, top, width and height of the part kept, as shares of the side.
    window: Option<[f32; 4]>,
    mirror: bool,
    upside_down: bool,
    quarter_turns: u8,
    brightness: f32,
    contrast: f32,
    saturation: f32,
    hue: f32,
    stain: Option<Stain>,
    gain: f32,
    bias: f32,
    power: f32,
    noise: Option<(f32, [u8; 32])>,
}

/// Factor and shift of haematoxylin, eosin and DAB.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stain {
    factors: [f32; 3],
    shifts: [f32; 3],
}

impl Variation {
    /// Draws a change within the strengths of `augment`. Every strength has its own draws in a
    /// fixed order: switching one on leaves the others' as they were.
    pub fn draw(augment: &Augment, seed: [u8; 32]) -> Self {
        Self::drawn(augment, None, seed)
    }

    /// As [`Self::draw`], of a part of the image whose share of the area lies in `area`.
    pub fn draw_part(augment: &Augment, area: RangeInclusive<f64>, seed: [u8; 32]) -> Self {
        Self::drawn(augment, Some(area), seed)
    }

    fn drawn(augment: &Augment, part: Option<RangeInclusive<f64>>, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let mut signed = || signed(&mut rng);
        let [area, ratio, left, top] = std::array::from_fn(|_| (signed() + 1.0) / 2.0);
        let coins: [bool; 2] = std::array::from_fn(|_| signed() < 0.0);
        let quarter_turns = ((signed() + 1.0) * 2.0) as u8 % 4;
        let mut near_one = |strength: f64| 1.0 + strength as f32 * signed();
        let [brightness, contrast] = [augment.brightness, augment.contrast].map(&mut near_one);
        let [saturation, gain] = [augment.saturation, augment.gain].map(&mut near_one);
        let stain = Stain {
            factors: std::array::from_fn(|_| near_one(augment.stain)),
            shifts: std::array::from_fn(|_| near_one(augment.stain) - 1.0),
        };
        let hue = near_one(augment.hue) - 1.0;
        let bias = near_one(augment.bias) - 1.0;
        let power = (near_one(augment.gamma) - 1.0).exp();
        let mut noise_seed = [0; 32];
        rng.fill_bytes(&mut noise_seed);
        let cropped = augment.crop_area_min > 0.0 && augment.crop_area_min < 1.0;
        let areas = part.or(cropped.then_some(augment.crop_area_min..=1.0));
        Self {
            window: areas.map(|areas| {
                let (least, most) = (*areas.start() as f32, *areas.end() as f32);
                window(least + (most - least) * area, ratio, [left, top])
            }),
            mirror: augment.flip_horizontal && coins[0],
            upside_down: augment.flip_vertical && coins[1],
            quarter_turns: if augment.rotate_90 { quarter_turns } else { 0 },
            brightness,
            contrast,
            saturation,
            hue,
            stain: (augment.stain > 0.0).then_some(stain),
            gain,
            bias,
            power,
            noise: (augment.noise > 0.0).then_some((augment.noise as f32, noise_seed)),
        }
    }

    /// Changes one image, `[channels, side, side]` in [0, 1].
    pub fn image(&self, channels: usize, side: usize, pixels: &mut [f32]) {
        for plane in pixels.chunks_exact_mut(side * side) {
            if let Some(window) = self.window {
                let cut = resample(window, side, plane, side);
                plane.copy_from_slice(&cut);
            }
            self.place(side, plane);
        }
        self.recolour(channels, side * side, pixels);
        self.intensity(pixels);
    }

    /// As [`Self::image`], the result on a grid of `to` pixels a side: `[channels, to, to]`.
    pub fn image_on(&self, channels: usize, side: usize, pixels: &[f32], to: usize) -> Vec<f32> {
        let window = self.window.unwrap_or([0.0, 0.0, 1.0, 1.0]);
        let mut changed = Vec::with_capacity(channels * to * to);
        for plane in pixels.chunks_exact(side * side) {
            let mut cut = resample(window, side, plane, to);
            self.place(to, &mut cut);
            changed.extend(cut);
        }
        self.recolour(channels, to * to, &mut changed);
        self.intensity(&mut changed);
        changed
    }

    /// Changes one mask, `[side, side]`, as the image it belongs to.
    pub fn mask(&self, side: usize, mask: &mut [u8]) {
        if let Some(window) = self.window {
            let row = |axis: usize, i: usize| {
                let at = sample_at(window[axis], window[axis + 2], (side, side), i).round();
                (at.max(0.0) as usize).min(side - 1)
            };
            let cut: Vec<u8> = (0..side * side)
                .map(|i| mask[row(1, i / side) * side + row(0, i % side)])
                .collect();
            mask.copy_from_slice(&cut);
        }
        self.place(side, mask);
    }

    /// Mirrors and turns, exactly.
    fn place<T: Copy>(&self, side: usize, plane: &mut [T]) {
        if self.mirror {
            plane.chunks_exact_mut(side).for_each(<[T]>::reverse);
        }
        if self.upside_down {
            for row in 0..side / 2 {
                let (upper, lower) = plane.split_at_mut((side - 1 - row) * side);
                upper[row * side..][..side].swap_with_slice(&mut lower[..side]);
            }
        }
        for _ in 0..self.quarter_turns {
            // Counter-clockwise, as numpy's rot90.
            let turned: Vec<T> =
                (0..side * side).map(|i| plane[(i % side) * side + side - 1 - i / side]).collect();
            plane.copy_from_slice(&turned);
        }
    }

    fn recolour(&self, channels: usize, plane: usize, pixels: &mut [f32]) {
        if self.brightness != 1.0 {
            pixels.iter_mut().for_each(|x| *x = (*x * self.brightness).clamp(0.0, 1.0));
        }
        let grey_of = |pixels: &[f32], i: usize| match channels {
            3 => grey([pixels[i], pixels[plane + i], pixels[2 * plane + i]]),
            _ => pixels[i],
        };
        if self.contrast != 1.0 {
            let sum: f64 = (0..plane).map(|i| f64::from(grey_of(pixels, i))).sum();
            let mean = (sum / plane as f64) as f32;
            pixels.iter_mut().for_each(|x| *x = towards(mean, *x, self.contrast));
        }
        if channels != 3 {
            return;
        }
        for i in 0..plane {
            let mut rgb = [pixels[i], pixels[plane + i], pixels[2 * plane + i]];
            if self.saturation != 1.0 {
                let grey = grey(rgb);
                rgb = rgb.map(|x| towards(grey, x, self.saturation));
            }
            if self.hue != 0.0 {
                rgb = turn_hue(rgb, self.hue);
            }
            if let Some(stain) = &self.stain {
                rgb = stain.apply(rgb);
            }
            for (channel, x) in rgb.into_iter().enumerate() {
                pixels[channel * plane + i] = x;
            }
        }
    }

    fn intensity(&self, pixels: &mut [f32]) {
        if self.power != 1.0 {
            pixels.iter_mut().for_each(|x| *x = x.clamp(0.0, 1.0).powf(self.power));
        }
        if self.gain != 1.0 || self.bias != 0.0 {
            pixels.iter_mut().for_each(|x| *x = x.mul_add(self.gain, self.bias).clamp(0.0, 1.0));
        }
        if let Some((deviation, seed)) = self.noise {
            let mut rng = ChaCha8Rng::from_seed(seed);
            for x in pixels {
                let draw: f32 = StandardNormal.sample(&mut rng);
                *x = (*x + deviation * draw).clamp(0.0, 1.0);
            }
        }
    }
}

/// Uniform in [-1, 1).
fn signed(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0
}

/// A rectangle of this share of the area, its ratio log-uniform in 3:4 to 4:3.
fn window(area: f32, ratio: f32, corner: [f32; 2]) -> [f32; 4] {
    let ratio = (4.0f32 / 3.0).powf(2.0 * ratio - 1.0);
    let (width, height) = ((area * ratio).sqrt().min(1.0), (area / ratio).sqrt().min(1.0));
    [corner[0] * (1.0 - width), corner[1] * (1.0 - height), width, height]
}

/// Where, in pixels of the old picture, the middle of pixel `i` of the new one lies, given the sides
/// of both.
fn sample_at(start: f32, length: f32, (from, to): (usize, usize), i: usize) -> f32 {
    start * from as f32 + (i as f32 + 0.5) * length * (from as f32 / to as f32) - 0.5
}

/// Stretches the window to `to` pixels a side, bilinearly.
fn resample(window: [f32; 4], side: usize, plane: &[f32], to: usize) -> Vec<f32> {
    let place = |axis: usize, i: usize| {
        let last = (side - 1) as f32;
        let at = sample_at(window[axis], window[axis + 2], (side, to), i).clamp(0.0, last);
        let low = at as usize;
        (low, (low + 1).min(side - 1), at - low as f32)
    };
    let columns: Vec<_> = (0..to).map(|x| place(0, x)).collect();
    let mut out = Vec::with_capacity(to * to);
    for y in 0..to {
        let (top, bottom, down) = place(1, y);
        for &(left, right, across) in &columns {
            let mix = |row: usize| {
                let (a, b) = (plane[row * side + left], plane[row * side + right]);
                a + across * (b - a)
            };
            let (a, b) = (mix(top), mix(bottom));
            out.push(a + down * (b - a));
        }
    }
    out
}

/// Rec. 601 luma, as torchvision's `rgb_to_grayscale`.
fn grey([r, g, b]: [f32; 3]) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

fn towards(anchor: f32, x: f32, factor: f32) -> f32 {
    (anchor + factor * (x - anchor)).clamp(0.0, 1.0)
}

/// Turns the hue by `turn` of the circle, lightness and saturation of HSV kept.
fn turn_hue(rgb: [f32; 3], turn: f32) -> [f32; 3] {
    let [r, g, b] = rgb;
    let value = r.max(g).max(b);
    let chroma = value - r.min(g).min(b);
    if chroma <= 0.0 {
        return rgb;
    }
    let sixth = if value == r {
        (g - b) / chroma
    } else if value == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    let sixth = (sixth + 6.0 * turn).rem_euclid(6.0);
    [5.0, 3.0, 1.0].map(|n| {
        let k = (n + sixth).rem_euclid(6.0);
        value - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

/// Ruifrok and Johnston 2001: optical densities of haematoxylin, eosin and DAB, one a row.
const RGB_FROM_HED: [[f32; 3]; 3] = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]];
/// Its inverse.
const HED_FROM_RGB: [[f32; 3]; 3] = [
    [1.877_982_7, -1.007_678_7, -0.556_115_8],
    [-0.065_908_06, 1.134_730_4, -0.135_521_8],
    [-0.601_907_4, -0.480_414_2, 1.573_588],
];
/// The darkest a channel is taken to be; stains are told in units of its density, as
/// scikit-image's `rgb2hed`.
const DARKEST: f32 = 1e-6;

impl Stain {
    fn apply(&self, rgb: [f32; 3]) -> [f32; 3] {
        let unit = DARKEST.ln();
        let density = rgb.map(|x| x.max(DARKEST).ln() / unit);
        let stains = times(density, &HED_FROM_RGB);
        let moved: [f32; 3] =
            std::array::from_fn(|i| stains[i].mul_add(self.factors[i], self.shifts[i]));
        times(moved, &RGB_FROM_HED).map(|density| (density * unit).exp().clamp(0.0, 1.0))
    }
}

fn times(row: [f32; 3], matrix: &[[f32; 3]; 3]) -> [f32; 3] {
    std::array::from_fn(|j| (0..3).map(|i| row[i] * matrix[i][j]).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(channels: usize, side: usize) -> Vec<f32> {
        let level = |i: usize| ((i * 7919 + 13) % 251) as f32 / 250.0;
        (0..channels * side * side).map(level).collect()
    }

    fn none() -> Variation {
        Variation::draw(&Augment::default(), [7; 32])
    }

    #[test]
    fn zero_strength_changes_no_bit() {
        for channels in [1, 3] {
            let mut changed = image(channels, 9);
            none().image(channels, 9, &mut changed);
            assert_eq!(changed, image(channels, 9));
        }
        let whole = Variation { window: Some([0.0, 0.0, 1.0, 1.0]), ..none() };
        let mut changed = image(3, 9);
        whole.image(3, 9, &mut changed);
        assert_eq!(changed, image(3, 9), "a crop of everything");
    }

    #[test]
    fn mirrors_and_turns_move_whole_pixels() {
        let moved = |variation: Variation| {
            let mut plane: Vec<u8> = (0..9).collect();
            variation.mask(3, &mut plane);
            plane
        };
        assert_eq!(moved(Variation { mirror: true, ..none() }), [2, 1, 0, 5, 4, 3, 8, 7, 6]);
        assert_eq!(moved(Variation { upside_down: true, ..none() }), [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        // numpy.rot90([[0,1,2],[3,4,5],[6,7,8]])
        assert_eq!(moved(Variation { quarter_turns: 1, ..none() }), [2, 5, 8, 1, 4, 7, 0, 3, 6]);
        assert_eq!(moved(Variation { quarter_turns: 2, ..none() }), [8, 7, 6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_mask_moves_with_its_image() {
        let augment = Augment {
            flip_horizontal: true,
            flip_vertical: true,
            rotate_90: true,
            crop_area_min: 0.3,
            ..Augment::default()
        };
        let side = 32;
        // A disc: what is bright in the image is 1 in the mask.
        let inside = |i: usize| {
            let (x, y) = ((i % side) as f32 - 11.0, (i / side) as f32 - 18.0);
            x * x + y * y < 60.0
        };
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..40u8 {
            let variation = Variation::draw(&augment, [seed; 32]);
            kinds.insert((variation.mirror, variation.upside_down, variation.quarter_turns));
            let mut image: Vec<f32> =
                (0..side * side).map(|i| f32::from(u8::from(inside(i)))).collect();
            let mut mask: Vec<u8> = image.iter().map(|x| *x as u8).collect();
            variation.image(1, side, &mut image);
            variation.mask(side, &mut mask);
            let agree = image.iter().zip(&mask).filter(|(x, m)| (**x > 0.5) == (**m == 1)).count();
            assert!(agree * 100 >= side * side * 97, "{agree} of {}: {variation:?}", side * side);
        }
        assert!(kinds.len() > 10, "of sixteen ways to lie, {} occur", kinds.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_another_picture() {
        let augment = Augment {
            crop_area_min: 0.5,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.1,
            stain: 0.05,
            gain: 0.1,
            bias: 0.05,
            gamma: 0.2,
            noise: 0.02,
            flip_horizontal: true,
            flip_vertical: true,
            rotate_90: true,
        };
        let varied = |seed: u8| {
            let mut pixels = image(3, 8);
            Variation::draw(&augment, [seed; 32]).image(3, 8, &mut pixels);
            assert!(pixels.iter().all(|x| (0.0..=1.0).contains(x)), "clamped");
            pixels
        };
        assert_eq!(varied(1), varied(1));
        assert_ne!(varied(1), varied(2));
        // A strength more leaves the other draws alone.
        let without = Augment { noise: 0.0, stain: 0.0, ..augment.clone() };
        let (a, b) = (Variation::draw(&augment, [3; 32]), Variation::draw(&without, [3; 32]));
        assert_eq!((a.window, a.hue, a.power), (b.window, b.hue, b.power));
    }

    #[test]
    fn stains_follow_the_closed_form() {
        for (i, row) in RGB_FROM_HED.iter().enumerate() {
            let product = times(*row, &HED_FROM_RGB);
            for (j, x) in product.into_iter().enumerate() {
                assert!((x - f32::from(u8::from(i == j))).abs() < 1e-5, "{i} {j}: {x}");
            }
        }
        let rgb = [0.6, 0.3, 0.7];
        let still = Stain { factors: [1.0; 3], shifts: [0.0; 3] };
        for (a, b) in still.apply(rgb).into_iter().zip(rgb) {
            assert!((a - b).abs() < 1e-5);
        }
        // Twice every stain is twice every density: the square of the transmitted light.
        let twice = Stain { factors: [2.0; 3], shifts: [0.0; 3] };
        for (a, b) in twice.apply(rgb).into_iter().zip(rgb) {
            assert!((a - b * b).abs() < 1e-5, "{a} {}", b * b);
        }
        // A shift of one stain multiplies the light by that stain's own colour.
        let more = Stain { factors: [1.0; 3], shifts: [0.01, 0.0, 0.0] };
        for ((a, b), density) in more.apply(rgb).into_iter().zip(rgb).zip(RGB_FROM_HED[0]) {
            let expected = b * (0.01 * density * DARKEST.ln()).exp();
            assert!((a - expected).abs() < 1e-5, "{a} {expected}");
        }
    }

    #[test]
    fn colours_turn_as_they_should() {
        let close = |a: [f32; 3], b: [f32; 3]| {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
        };
        close(turn_hue([1.0, 0.0, 0.0], 1.0 / 3.0), [0.0, 1.0, 0.0]);
        close(turn_hue([1.0, 0.0, 0.0], -1.0 / 3.0), [0.0, 0.0, 1.0]);
        close(turn_hue([0.2, 0.7, 0.4], 0.0), [0.2, 0.7, 0.4]);
        close(turn_hue([0.5, 0.5, 0.5], 0.3), [0.5, 0.5, 0.5]);
        let mut grey_image = vec![0.2, 0.4, 0.6, 0.8];
        Variation { contrast: 0.5, ..none() }.image(1, 2, &mut grey_image);
        for (a, b) in grey_image.iter().zip([0.35, 0.45, 0.55, 0.65]) {
            assert!((a - b).abs() < 1e-6);
        }
        let mut dark = vec![0.5f32; 4];
        Variation { power: 2.0, gain: 2.0, bias: 0.1, ..none() }.image(1, 2, &mut dark);
        assert!(dark.iter().all(|x| (x - 0.6).abs() < 1e-6), "{dark:?}");
    }
}
