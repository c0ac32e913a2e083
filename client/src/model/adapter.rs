//! What the adapter adds inside the frozen blocks, by kind: see
//! [`Adaptation`](tributary_shared::adaptation::Adaptation) for the formulas and their papers.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData, activation};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tributary_shared::adaptation::{Adaptation, Target};

use super::fused;
use super::head::Head;
use super::trained::{Layer, Leaves, Map};
use super::vit::{Linear, typed};

/// The two halves of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sublayer {
    Attention,
    Mlp,
}

/// The trained weights on a device.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    factors: BTreeMap<(usize, Target), Factors>,
    factor_scale: f64,
    bottlenecks: BTreeMap<(usize, Sublayer), Bottleneck>,
    /// AdaptFormer's factor; absent where bottlenecks stand in line.
    parallel_scale: Option<f64>,
    prompts: BTreeMap<usize, Tensor<3>>,
    /// Changes of frozen biases, by block and module.
    shifts: BTreeMap<(usize, &'static str), Tensor<3>>,
    head: Option<Head>,
}

/// LoRA's A and B, and with DoRA the change of every output's row length, `[copies, 1, out]`.
#[derive(Clone, Debug)]
struct Factors {
    down: Map,
    up: Map,
    magnitude: Option<Tensor<3>>,
}

#[derive(Clone, Debug)]
struct Bottleneck {
    down: Layer,
    up: Layer,
}

impl Bottleneck {
    fn of(leaves: &Leaves<'_>, name: &str) -> Option<Self> {
        let down = Layer::of(leaves, &format!("{name}.adapter.down"))?;
        Some(Self { down, up: Layer::of(leaves, &format!("{name}.adapter.up"))? })
    }
}

impl Adapter {
    /// Takes from `leaves` what the adaptation adds; changes of whole weights are the model's own.
    pub(crate) fn of(adaptation: &Adaptation, depth: usize, leaves: &Leaves<'_>) -> Self {
        let scale = |kind: &Adaptation| match kind {
            Adaptation::Lora(lora) => (lora.scale(), None),
            Adaptation::AdaptFormer { scale, .. } => (0.0, Some(*scale)),
            Adaptation::Houlsby { .. }
            | Adaptation::Prompts { .. }
            | Adaptation::BitFit { .. }
            | Adaptation::HeadOnly
            | Adaptation::LastBlocks { .. }
            | Adaptation::Full => (0.0, None),
        };
        let (factor_scale, parallel_scale) = scale(adaptation);
        let mut adapter = Self {
            factors: BTreeMap::new(),
            factor_scale,
            bottlenecks: BTreeMap::new(),
            parallel_scale,
            prompts: BTreeMap::new(),
            shifts: BTreeMap::new(),
            head: Head::of(leaves),
        };
        for block in 0..depth {
            adapter.take_block(block, leaves, matches!(adaptation, Adaptation::BitFit { .. }));
        }
        adapter
    }

    fn take_block(&mut self, block: usize, leaves: &Leaves<'_>, shifted: bool) {
        for target in Target::ALL {
            let module = format!("blocks.{block}.{}", target.module());
            let factor = |name: &str| leaves.map(&format!("{module}.{name}"));
            if let (Some(down), Some(up)) = (factor("lora_A"), factor("lora_B")) {
                let magnitude = leaves.row(&format!("{module}.lora_magnitude"));
                self.factors.insert((block, target), Factors { down, up, magnitude });
            }
        }
        for (sublayer, part) in [(Sublayer::Attention, "attn"), (Sublayer::Mlp, "mlp")] {
            if let Some(found) = Bottleneck::of(leaves, &format!("blocks.{block}.{part}")) {
                self.bottlenecks.insert((block, sublayer), found);
            }
        }
        if let Some(prompts) = leaves.tokens(&format!("blocks.{block}.prompts")) {
            self.prompts.insert(block, prompts);
        }
        if shifted {
            let modules = Target::ALL.into_iter().map(Target::module).chain(["norm1", "norm2"]);
            for module in modules {
                if let Some(shift) = leaves.row(&format!("blocks.{block}.{module}.bias")) {
                    self.shifts.insert((block, module), shift);
                }
            }
        }
    }

    /// The head that pools tokens by itself, if it is such a one.
    pub(crate) fn pooling_head(&self) -> Option<&Head> {
        self.head.as_ref().filter(|head| head.pools())
    }

    /// Pooled `[images, 1, features]` to outputs `[images, outputs]`.
    ///
    /// # Panics
    /// When the contract has no head over features.
    pub(crate) fn outputs(&self, pooled: Tensor<3>) -> Tensor<2> {
        let head = self.head.as_ref().expect("the contract of a model with outputs has a head");
        head.forward(pooled)
    }

    /// The frozen `map` of `x` with what is added to it. LoRA's branch is two thin products: the
    /// dense W + B A is never differentiated, its gradient would cost as much as training W.
    pub(crate) fn map(
        &self,
        block: usize,
        target: Target,
        map: &Linear,
        x: Tensor<3>,
        dropout: &mut Dropout,
    ) -> Tensor<3> {
        let y = match self.factors.get(&(block, target)) {
            None => map.forward(x),
            Some(factors) => {
                let low = factors.down.apply(dropout.apply(x.clone()));
                let branch = factors.up.apply(low.mul_scalar(self.factor_scale));
                match &factors.magnitude {
                    None => map.forward(x) + branch,
                    Some(change) => {
                        let scale = factors.row_scale(map, self.factor_scale, change.clone());
                        let scale = typed(scale, map.dtype());
                        (map.product(x) + branch) * scale + map.bias_row()
                    }
                }
            }
        };
        self.shifted(block, target.module(), y)
    }

    /// `y` with the change of the bias of `module`, if that is trained.
    pub(crate) fn shifted(&self, block: usize, module: &'static str, y: Tensor<3>) -> Tensor<3> {
        match self.shifts.get(&(block, module)) {
            Some(shift) => {
                let shift = typed(shift.clone(), y.dtype());
                y + shift
            }
            None => y,
        }
    }

    /// What follows a sublayer before its skip connection.
    pub(crate) fn after(&self, block: usize, sublayer: Sublayer, h: Tensor<3>) -> Tensor<3> {
        match (self.bottlenecks.get(&(block, sublayer)), self.parallel_scale) {
            (Some(Bottleneck { down, up }), None) => {
                h.clone() + up.forward(fused::gelu(down.forward(h)))
            }
            (Some(_), Some(_)) | (None, _) => h,
        }
    }

    /// What is added beside the multilayer perceptron, which reads the same `normed`.
    pub(crate) fn beside(&self, block: usize, normed: &Tensor<3>) -> Option<Tensor<3>> {
        let scale = self.parallel_scale?;
        let Bottleneck { down, up } = self.bottlenecks.get(&(block, Sublayer::Mlp))?;
        Some(up.forward(activation::relu(down.forward(normed.clone()))).mul_scalar(scale))
    }

    /// Tokens that enter with this block.
    pub(crate) fn prompts_of(&self, block: usize) -> usize {
        self.prompts.get(&block).map_or(0, |prompts| prompts.dims()[1])
    }

    /// The tokens that enter a block: an image's own `own` with this block's prompts after them,
    /// which replace an earlier block's. Attention does not see in what order they stand.
    pub(crate) fn prompted(&self, block: usize, own: usize, x: Tensor<3>) -> Tensor<3> {
        let Some(prompts) = self.prompts.get(&block) else { return x };
        let [images, _, width] = x.dims();
        let prompts = prompts.clone().expand([images, prompts.dims()[1], width]);
        Tensor::cat(vec![x.narrow(1, 0, own), prompts], 1)
    }
}

impl Factors {
    /// DoRA's factor `[copies, 1, out]` on every output: its trained row length over the length
    /// of the row of W + s B A, which counts as a constant (section 4.3 of the paper).
    fn row_scale(&self, map: &Linear, scale: f64, change: Tensor<3>) -> Tensor<3> {
        let weight = typed(map.constant(), DType::F32);
        let lengths = |weight: Tensor<2>| weight.square().sum_dim(0).sqrt().unsqueeze_dim::<3>(0);
        let product = self.down.constant().matmul(self.up.constant()).mul_scalar(scale);
        // A row of zeros has no direction to keep.
        let adapted = lengths(weight.clone() + product).clamp_min(1e-12);
        (lengths(weight).clamp_min(1e-12) + change) / adapted
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

    pub(crate) fn apply(&mut self, x: Tensor<3>) -> Tensor<3> {
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
        let mask = typed(mask, x.dtype());
        x * mask
    }
}
