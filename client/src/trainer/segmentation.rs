//! Segmentation: logits of patch tokens stretched to the mask's grid, Dice and cross-entropy in
//! closed form, in f64.

use tributary_shared::architecture::Architecture;
use tributary_shared::task::Task;

use super::loss::{Loss, Weighing, log_sum_exp};
use crate::data::UNMARKED;

/// Added to both sides of a Dice ratio, so that a class that is nowhere has one.
const DICE_EPSILON: f64 = 1.0;

/// From the outputs of patch tokens to logits on the mask's grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Classes.
    pub classes: usize,
    /// Patches along a side.
    pub patches: usize,
    /// Logits along a side of a patch.
    pub cells: usize,
    /// Pixels along a side of the mask.
    pub side: usize,
}

impl Stretch {
    /// Of a segmentation of images of `architecture`, its masks on the grid of the input.
    pub(super) fn of(task: &Task, architecture: &Architecture) -> Option<Self> {
        let Task::Segmentation { classes, decoder } = task else { return None };
        Some(Self {
            classes: classes.len(),
            patches: architecture.image_size / architecture.patch_size,
            cells: decoder.cells(),
            side: architecture.image_size,
        })
    }

    /// Where output `[patch, class, row, column]` of logit `(y, x)` of `class` stands.
    fn output(&self, class: usize, y: usize, x: usize) -> usize {
        let cells = self.cells;
        let patch = (y / cells) * self.patches + x / cells;
        ((patch * self.classes + class) * cells + y % cells) * cells + x % cells
    }

    /// Outputs of one image, `patches^2 * classes * cells^2`.
    pub fn outputs(&self) -> usize {
        (self.patches * self.cells).pow(2) * self.classes
    }

    /// For each pixel along a side the two logits it lies between and how far it is from the first:
    /// bilinear, pixel middles aligned (PyTorch's `align_corners=False`).
    fn places(&self) -> Vec<(usize, usize, f64)> {
        let grid = self.patches * self.cells;
        let place = |i: usize| {
            let at = (i as f64 + 0.5) * grid as f64 / self.side as f64 - 0.5;
            let at = at.clamp(0.0, (grid - 1) as f64);
            let low = at as usize;
            (low, (low + 1).min(grid - 1), at - low as f64)
        };
        (0..self.side).map(place).collect()
    }

    /// The four outputs that make a pixel's logit of `class`, with their shares.
    fn corners(
        &self,
        class: usize,
        down: (usize, usize, f64),
        across: (usize, usize, f64),
    ) -> [(usize, f64); 4] {
        let (top, bottom, v) = down;
        let (left, right, h) = across;
        [
            (self.output(class, top, left), (1.0 - v) * (1.0 - h)),
            (self.output(class, top, right), (1.0 - v) * h),
            (self.output(class, bottom, left), v * (1.0 - h)),
            (self.output(class, bottom, right), v * h),
        ]
    }

    /// Each pixel's most likely class, `[side, side]`.
    pub fn classes_of(&self, outputs: &[f32]) -> Vec<u8> {
        let logits = self.logits(outputs);
        let best = |pixel: &[f64]| {
            let mut best = 0;
            for (class, logit) in pixel.iter().enumerate() {
                if *logit > pixel[best] {
                    best = class;
                }
            }
            best as u8
        };
        logits.chunks_exact(self.classes).map(best).collect()
    }

    /// `[side, side, classes]`.
    fn logits(&self, outputs: &[f32]) -> Vec<f64> {
        let places = self.places();
        let mut logits = Vec::with_capacity(self.side * self.side * self.classes);
        for down in &places {
            for across in &places {
                for class in 0..self.classes {
                    let corners = self.corners(class, *down, *across);
                    logits.push(corners.iter().map(|(at, w)| w * f64::from(outputs[*at])).sum());
                }
            }
        }
        logits
    }

    /// The derivative by each output of what has these derivatives by each logit.
    fn pull_back(&self, by_logit: &[f64]) -> Vec<f64> {
        let places = self.places();
        let mut by_output = vec![0.0; self.outputs()];
        let mut by_logit = by_logit.iter();
        for down in &places {
            for across in &places {
                for class in 0..self.classes {
                    let d = by_logit.next().copied().unwrap_or_default();
                    for (at, share) in self.corners(class, *down, *across) {
                        by_output[at] += share * d;
                    }
                }
            }
        }
        by_output
    }
}

/// The loss of one image and its derivative by each of its outputs: the mean cross-entropy of the
/// marked pixels, each times its class's factor, plus one minus the mean over classes of the soft
/// Dice coefficient (Milletari et al. 2016, arXiv:1606.04797, without squares).
///
/// # Panics
/// When `outputs` or `mask` have another size than `stretch` says.
pub fn segmentation_loss(
    stretch: &Stretch,
    weighing: &Weighing,
    outputs: &[f32],
    mask: &[u8],
) -> Loss {
    assert_eq!(outputs.len(), stretch.outputs(), "one number an output");
    assert_eq!(mask.len(), stretch.side * stretch.side, "one class a pixel");
    let classes = stretch.classes;
    let marked = mask.iter().filter(|class| **class != UNMARKED).count();
    if marked == 0 {
        return Loss { value: 0.0, by_logit: vec![0.0; outputs.len()] };
    }
    let mut logits = stretch.logits(outputs);
    let share = 1.0 / marked as f64;
    let mut overlap = vec![0.0; classes];
    let mut sizes = vec![0.0; classes];
    let mut value = 0.0;
    // The logits become probabilities, in place.
    for (pixel, class) in logits.chunks_exact_mut(classes).zip(mask) {
        let (log_sum, p) = log_sum_exp(pixel);
        if *class != UNMARKED {
            let class = usize::from(*class);
            value += share * weighing.factor(class) * (log_sum - pixel[class]);
            overlap[class] += p[class];
            sizes[class] += 1.0;
            sizes.iter_mut().zip(&p).for_each(|(size, p)| *size += p);
        }
        pixel.copy_from_slice(&p);
    }
    let dice: Vec<f64> = overlap
        .iter()
        .zip(&sizes)
        .map(|(overlap, size)| (2.0 * overlap + DICE_EPSILON) / (size + DICE_EPSILON))
        .collect();
    value += 1.0 - dice.iter().sum::<f64>() / classes as f64;
    for (p, class) in logits.chunks_exact_mut(classes).zip(mask) {
        if *class == UNMARKED {
            p.fill(0.0);
            continue;
        }
        let class = usize::from(*class);
        let by_p = |k: usize| {
            let hit = if k == class { 2.0 } else { 0.0 };
            (dice[k] - hit) / (sizes[k] + DICE_EPSILON) / classes as f64
        };
        let mean: f64 = p.iter().enumerate().map(|(k, p)| p * by_p(k)).sum();
        let entropy = share * weighing.factor(class);
        for (k, p) in p.iter_mut().enumerate() {
            let target = f64::from(u8::from(k == class));
            *p = *p * (by_p(k) - mean) + entropy * (*p - target);
        }
    }
    Loss { value, by_logit: stretch.pull_back(&logits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: Stretch = Stretch { classes: 3, patches: 2, cells: 2, side: 7 };

    fn outputs() -> Vec<f32> {
        (0..STRETCH.outputs()).map(|i| ((i * 37) % 64) as f32 / 16.0 - 2.0).collect()
    }

    fn mask() -> Vec<u8> {
        (0..49).map(|i| if i % 11 == 10 { UNMARKED } else { (i * i % 5 % 3) as u8 }).collect()
    }

    #[test]
    fn the_derivative_is_the_slope() {
        let loss =
            |outputs: &[f32]| segmentation_loss(&STRETCH, &Weighing::default(), outputs, &mask());
        let found = loss(&outputs()).by_logit;
        for k in 0..STRETCH.outputs() {
            let at = |shift: f32| {
                let mut moved = outputs();
                moved[k] += shift;
                loss(&moved).value
            };
            let h = 1.0 / 1024.0;
            let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
            assert!((found[k] - slope).abs() < 1e-7, "{k}: {} {slope}", found[k]);
        }
    }

    #[test]
    fn a_perfect_answer_costs_nothing_and_is_read_back() {
        let stretch = Stretch { classes: 2, patches: 2, cells: 1, side: 2 };
        let mask = [0, 1, 1, 0];
        let outputs = [40.0, -40.0, -40.0, 40.0, -40.0, 40.0, 40.0, -40.0];
        let loss = segmentation_loss(&stretch, &Weighing::default(), &outputs, &mask);
        assert!(loss.value.abs() < 1e-12, "{loss:?}");
        assert_eq!(stretch.classes_of(&outputs), mask);
        let unmarked = segmentation_loss(&stretch, &Weighing::default(), &outputs, &[UNMARKED; 4]);
        assert_eq!(unmarked.value, 0.0);
    }
}
