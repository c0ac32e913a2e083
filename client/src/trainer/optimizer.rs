//! AdamW, the learning rate's path over a run, and gradient clipping, on flat values.
//!
//! On the host and in our own words, because burn's clips tensor by tensor, decays biases and
//! keeps its state behind process-wide ids; an adapter is small enough not to notice.

use rayon::prelude::*;
use tributary_shared::layout::TensorSpec;

use crate::model::Values;

const BETA1: f64 = 0.9;
const EPSILON: f32 = 1e-8;

/// The tensors that weight decay applies to: those of two or more dimensions. Biases, normalisation scales,
/// LayerScale and DoRA magnitudes are exempt, as in timm's optimisers.
pub(super) fn decayed(specs: &[TensorSpec]) -> Vec<bool> {
    specs.iter().map(|spec| spec.shape.len() > 1).collect()
}

/// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), its moments starting at zero.
#[derive(Clone, Debug)]
pub struct AdamW {
    beta2: f64,
    weight_decay: f64,
    decayed: Vec<bool>,
    first: Values,
    second: Values,
    time: i32,
}

impl AdamW {
    /// An optimiser of `values`; `decayed` says of each tensor whether weight decay applies.
    pub fn new(values: &[Vec<f32>], decayed: Vec<bool>, weight_decay: f64) -> Self {
        let zeros: Values = values.iter().map(|tensor| vec![0.0; tensor.len()]).collect();
        Self { beta2: 0.999, weight_decay, decayed, first: zeros.clone(), second: zeros, time: 0 }
    }

    /// With another decay of the second moment than 0.999.
    #[must_use]
    pub fn beta2(self, beta2: f64) -> Self {
        Self { beta2, ..self }
    }

    /// One step of `learning_rate` against `gradient`.
    pub fn step(&mut self, values: &mut [Vec<f32>], gradient: &[Vec<f32>], learning_rate: f64) {
        self.time += 1;
        let (b1, b2) = (BETA1 as f32, self.beta2 as f32);
        let step = (learning_rate / (1.0 - BETA1.powi(self.time))) as f32;
        let root = (1.0 - self.beta2.powi(self.time)).sqrt() as f32;
        let kept = (1.0 - learning_rate * self.weight_decay) as f32;
        values
            .par_iter_mut()
            .zip(gradient)
            .zip(self.first.par_iter_mut().zip(&mut self.second))
            .zip(&self.decayed)
            .for_each(|(((values, gradient), (first, second)), decayed)| {
                let kept = if *decayed { kept } else { 1.0 };
                for i in 0..values.len() {
                    let g = gradient[i];
                    first[i] = b1 * first[i] + (1.0 - b1) * g;
                    second[i] = b2 * second[i] + (1.0 - b2) * g * g;
                    let denominator = second[i].sqrt() / root + EPSILON;
                    values[i] = kept * values[i] - step * first[i] / denominator;
                }
            });
    }
}

/// Scales `gradient` down to an L2 norm of `norm_max` over all tensors; 0 switches it off.
/// Gives the norm before.
pub fn clip(gradient: &mut [Vec<f32>], norm_max: f64) -> f64 {
    let squares = |tensor: &Vec<f32>| tensor.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let norm = gradient.iter().map(squares).sum::<f64>().sqrt();
    if norm_max > 0.0 && norm > norm_max {
        let scale = (norm_max / norm) as f32;
        gradient.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

/// The learning rate of step `position` (from 0) of `total`: linear warm-up to `peak` over
/// `warmup` steps, then half a cosine down to zero.
pub fn learning_rate(peak: f64, position: u64, warmup: u64, total: u64) -> f64 {
    if position < warmup {
        return peak * (position + 1) as f64 / warmup as f64;
    }
    let left = (total.max(warmup + 1) - warmup) as f64;
    let done = ((position - warmup) as f64 / left).min(1.0);
    peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "flex")]
    use burn::optim::{AdamWConfig, Optimizer};
    #[cfg(feature = "flex")]
    use burn::tensor::{Device, Tensor, TensorData};

    use super::*;

    /// Failed before: supervised rounds decayed DoRA magnitudes and normalisation scales.
    #[test]
    fn weight_decay_applies_to_matrices_alone() {
        let spec =
            |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.into() };
        let specs = [
            spec("blocks.0.attn.q.lora_A", &[4, 8]),
            spec("blocks.0.attn.q.lora_magnitude_vector", &[8]),
            spec("blocks.0.norm1.weight", &[8]),
            spec("blocks.0.ls1.gamma", &[8]),
            spec("head.bias", &[2]),
            spec("prompts", &[3, 8]),
        ];
        assert_eq!(decayed(&specs), [true, false, false, false, false, true]);
    }

    #[test]
    fn the_first_step_is_the_learning_rate_against_the_sign() {
        let mut values = vec![vec![1.0, 1.0, 1.0], vec![1.0]];
        let mut adam = AdamW::new(&values, vec![true, false], 0.5);
        adam.step(&mut values, &[vec![1e-3, -4.0, 0.0], vec![2.0]], 0.1);
        // Decay first: 1 - 0.1 * 0.5; then +-0.1, whatever the gradient's size.
        let expected = [0.85, 1.05, 0.95, 0.9];
        for (found, expected) in values.iter().flatten().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn ten_steps_agree_with_burns_adamw() {
        let start = [0.5f32, -1.0, 2.0, 0.0];
        let gradient = |t: usize| -> Vec<f32> {
            (0..4).map(|i| ((t * 7 + i * 3) % 11) as f32 / 5.0 - 1.0).collect()
        };
        let device = Device::flex();
        let theirs = AdamWConfig::new().with_epsilon(EPSILON).with_weight_decay(0.3).build();
        let mut tensor = Tensor::<1>::from_data(TensorData::new(start.to_vec(), [4]), &device);
        let mut state = None;
        let mut values = vec![start.to_vec()];
        let mut ours = AdamW::new(&values, vec![true], 0.3);
        for t in 0..10 {
            let g = Tensor::<1>::from_data(TensorData::new(gradient(t), [4]), &device);
            (tensor, state) = theirs.step(0.05, tensor, g, state);
            ours.step(&mut values, &[gradient(t)], 0.05);
        }
        let expected: Vec<f32> = tensor.into_data().try_to_vec().unwrap();
        for (found, expected) in values[0].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradient = vec![vec![3.0], vec![0.0, 4.0]];
        assert_eq!(clip(&mut gradient, 0.0), 5.0);
        assert_eq!(clip(&mut gradient, 6.0), 5.0);
        assert_eq!(gradient, [vec![3.0], vec![0.0, 4.0]]);
        clip(&mut gradient, 1.0);
        assert!((gradient[0][0] - 0.6).abs() < 1e-6 && (gradient[1][1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn the_rate_warms_up_and_decays_over_the_whole_run() {
        let rate = |position| learning_rate(2.0, position, 4, 14);
        assert_eq!((0..4).map(rate).collect::<Vec<_>>(), [0.5, 1.0, 1.5, 2.0]);
        assert_eq!(rate(4), 2.0);
        assert!((rate(9) - 1.0).abs() < 1e-12, "half-way down");
        assert!((5..14).all(|p| rate(p) < rate(p - 1)));
        assert!(rate(14).abs() < 1e-12 && rate(99).abs() < 1e-12);
        assert_eq!(learning_rate(2.0, 0, 0, 1), 2.0);
    }
}
