//! The head on the device.

use burn::tensor::{Tensor, activation};

use super::fused;
use super::trained::{Layer, Leaves};

/// From pooled tokens, or from tokens that it pools itself, to logits.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `[copies, 1, width]`; pools by attention.
    query: Option<Tensor<3>>,
    hidden: Option<Layer>,
    output: Layer,
}

impl Head {
    /// The head among `leaves`; `None` where an objective decodes tokens instead.
    pub(crate) fn of(leaves: &Leaves<'_>) -> Option<Self> {
        Some(Self {
            query: leaves.row("head.query"),
            hidden: Layer::of(leaves, "head.hidden"),
            output: Layer::of(leaves, "head")?,
        })
    }

    /// Whether it looks at every patch token itself.
    pub(crate) fn pools(&self) -> bool {
        self.query.is_some()
    }

    /// The mean `[images, 1, width]` of patch tokens, weighted by softmax(tokens . query /
    /// sqrt(width)); `None` when the backbone's own pooling is asked for.
    pub(crate) fn pool(&self, patches: &Tensor<3>) -> Option<Tensor<3>> {
        let query = self.query.clone()?;
        let width = patches.dims()[2] as f64;
        let scores = (patches.clone() * query).sum_dim(2).div_scalar(width.sqrt());
        Some((activation::softmax(scores, 1) * patches.clone()).sum_dim(1))
    }

    /// Pooled `[images, 1, features]` to logits `[images, outputs]`.
    pub(crate) fn forward(&self, pooled: Tensor<3>) -> Tensor<2> {
        let pooled = match &self.hidden {
            Some(hidden) => fused::gelu(hidden.forward(pooled)),
            None => pooled,
        };
        let logits = self.output.forward(pooled);
        let [images, _, outputs] = logits.dims();
        logits.reshape([images, outputs])
    }
}
