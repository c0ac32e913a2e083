//! Which patches of a shard's images are seen, and what the hidden ones hold.

use std::ops::Range;

use rand::seq::SliceRandom as _;

use super::{Learner, Views};
use crate::trainer::session::TrainError;

/// A shard of images with most patches hidden.
pub(super) struct Masked {
    pub(super) images: usize,
    /// Patches seen of each image.
    pub(super) visible: usize,
    /// For each image its patches' places, those seen first.
    pub(super) order: Vec<usize>,
    /// Pixels of the seen patches, in that order.
    pub(super) patches: Vec<f32>,
    /// Pixels of the hidden patches, in that order, each patch at mean 0 and variance 1.
    pub(super) targets: Vec<f32>,
}

impl Masked {
    /// Patches hidden of each image.
    pub(super) fn hidden(&self) -> usize {
        self.order.len() / self.images - self.visible
    }

    /// For each image its seen patches' places.
    pub(super) fn seen_places(&self) -> Vec<Vec<usize>> {
        let patches = self.order.len() / self.images;
        self.order.chunks(patches).map(|image| image[..self.visible].to_vec()).collect()
    }

    /// The rows of `table` (`[tokens, width]`, patches last) at the places of each image's
    /// patches of `range`.
    pub(super) fn rows(&self, table: &[f32], width: usize, range: Range<usize>) -> Vec<f32> {
        let patches = self.order.len() / self.images;
        let before = table.len() / width - patches;
        let mut rows = Vec::new();
        for image in self.order.chunks(patches) {
            for place in &image[range.clone()] {
                let start = (before + place) * width;
                rows.extend_from_slice(&table[start..start + width]);
            }
        }
        rows
    }
}

/// The images of `shard` under `views`, masked: a function of the views' name and epoch, and of the
/// image.
pub(super) fn masked(
    learner: &Learner<'_>,
    mask_ratio: f64,
    views: &Views<'_>,
    shard: &[usize],
) -> Result<Masked, TrainError> {
    let architecture = learner.model.architecture();
    let all = architecture.patches();
    let hidden = ((all as f64 * mask_ratio).round() as usize).clamp(1, all - 1);
    let numbers = architecture.channels * architecture.patch_size.pow(2);
    let mut masked = Masked {
        images: shard.len(),
        visible: all - hidden,
        order: Vec::with_capacity(all * shard.len()),
        patches: Vec::new(),
        targets: Vec::new(),
    };
    for index in shard {
        let rows = learner.whole_rows(views, std::slice::from_ref(index))?;
        let (_, mut rng) = views.mask(*index);
        let mut order: Vec<usize> = (0..all).collect();
        order.shuffle(&mut rng);
        for (rank, place) in order.iter().enumerate() {
            let pixels = &rows[place * numbers..(place + 1) * numbers];
            if rank < masked.visible {
                masked.patches.extend_from_slice(pixels);
            } else {
                masked.targets.extend(standardised(pixels));
            }
        }
        masked.order.extend(order);
    }
    Ok(masked)
}

/// Mean 0 and variance 1: contrast, not brightness, is what a guess is judged by.
fn standardised(pixels: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let count = pixels.len() as f64;
    let mean = pixels.iter().map(|p| f64::from(*p)).sum::<f64>() / count;
    let squares = pixels.iter().map(|p| (f64::from(*p) - mean).powi(2)).sum::<f64>();
    let deviation = (squares / (count - 1.0).max(1.0) + 1e-6).sqrt();
    pixels.iter().map(move |p| ((f64::from(*p) - mean) / deviation) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_is_either_seen_or_hidden_and_rows_follow_the_order() {
        let masked = Masked {
            images: 2,
            visible: 1,
            order: vec![2, 0, 1, 1, 2, 0],
            patches: Vec::new(),
            targets: Vec::new(),
        };
        // Row 0 is the class token's.
        let table = [9.0, 9.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5];
        assert_eq!(masked.rows(&table, 2, 0..1), [2.0, 2.5, 1.0, 1.5]);
        assert_eq!(masked.rows(&table, 2, 1..3), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 0.0, 0.5]);
        assert_eq!(masked.hidden(), 2);
    }

    #[test]
    fn targets_have_mean_zero_and_variance_one_unless_flat() {
        let found: Vec<f32> = standardised(&[1.0, 2.0, 3.0]).collect();
        for (found, expected) in found.iter().zip([-1.0, 0.0, 1.0]) {
            assert!((found - expected).abs() < 1e-5, "{found}");
        }
        assert!(standardised(&[0.25; 4]).all(|v| v == 0.0));
    }
}
