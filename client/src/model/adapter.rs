//! LoRA factors and head on the device (Hu et al. 2021, arXiv:2106.09685).

use std::collections::BTreeMap;

use burn::tensor::module::linear;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tributary_shared::contract::{Lora, Target};

use super::vit::{Linear, TensorSource, linear_of};

/// The trained weights on a device.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    factors: BTreeMap<(usize, Target), Factors>,
    scale: f64,
    pub(crate) head: Linear,
}

/// Views `[in, rank]` and `[rank, out]` of the stored `lora_A [rank, in]`, `lora_B [out, rank]`.
#[derive(Clone, Debug)]
struct Factors {
    down: Tensor<2>,
    up: Tensor<2>,
}

impl Adapter {
    /// Takes every tensor of the adapter contract from `source`.
    pub(crate) fn of(
        lora: &Lora,
        depth: usize,
        head_outputs: usize,
        source: &mut TensorSource<'_>,
    ) -> Self {
        let mut factors = BTreeMap::new();
        if lora.rank > 0 {
            for block in 0..depth {
                for &target in &lora.targets {
                    let module = format!("blocks.{block}.{}", target.module());
                    let mut factor = |name: &str| source(&format!("{module}.{name}"));
                    let (a, b) = (factor("lora_A"), factor("lora_B"));
                    let rank = lora.rank as i32;
                    let down = a.reshape([rank, -1]).transpose();
                    let up = b.reshape([-1, rank]).transpose();
                    factors.insert((block, target), Factors { down, up });
                }
            }
        }
        Self { factors, scale: lora.scale(), head: linear_of(source, "head", head_outputs) }
    }

    /// What the adapter adds to `target`'s output: alpha/rank * B A dropout(x), as two thin
    /// products. The dense W + B A is never formed: its gradient would cost as much as training W.
    pub(crate) fn branch(
        &self,
        block: usize,
        target: Target,
        x: &Tensor<3>,
        dropout: &mut Dropout,
    ) -> Option<Tensor<3>> {
        let factors = self.factors.get(&(block, target))?;
        let low = linear(dropout.apply(x.clone()), factors.down.clone(), None);
        Some(linear(low.mul_scalar(self.scale), factors.up.clone(), None))
    }
}

/// Inverted dropout whose masks come from a seed of ours, the same on every backend.
#[derive(Debug)]
pub(crate) struct Dropout(Option<(f64, ChaCha8Rng)>);

impl Dropout {
    /// Lets everything through.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Drops with probability `rate`.
    pub(crate) fn seeded(rate: f64, seed: [u8; 32]) -> Self {
        Self((rate > 0.0).then(|| (rate, ChaCha8Rng::from_seed(seed))))
    }

    fn apply(&mut self, x: Tensor<3>) -> Tensor<3> {
        let Some((rate, rng)) = &mut self.0 else { return x };
        let dims = x.dims();
        // Sixteen bits a decision: the rate is met within 1/65536.
        let dropped_below = (*rate * 65_536.0).round() as u32;
        let kept = (1.0 / (1.0 - f64::from(dropped_below) / 65_536.0)) as f32;
        let elements = dims.iter().product();
        let mut mask = Vec::with_capacity(elements + 1);
        while mask.len() < elements {
            let word = rng.next_u32();
            for draw in [word & 0xffff, word >> 16] {
                mask.push(if draw < dropped_below { 0.0 } else { kept });
            }
        }
        mask.truncate(elements);
        let mask = Tensor::<3>::from_data(TensorData::new(mask, dims), &x.device());
        x * mask
    }
}
