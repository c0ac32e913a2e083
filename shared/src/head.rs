//! What turns tokens into logits: the part of the adapter that is trained from nothing.

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::layout::TensorSpec;
use crate::problems::Problems;

/// Widest hidden layer.
const HIDDEN_MAX: usize = 65_536;

/// The head of a model whose outputs are one row of logits an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Head {
    /// A linear map of the pooled tokens.
    Linear {},
    /// Linear, exact GELU, linear, of the pooled tokens.
    Mlp {
        /// Width between the two.
        hidden: usize,
    },
    /// A linear map of the patch tokens' mean, weighted by a softmax over their products with one
    /// learned query. It starts as the plain mean.
    AttentionPool {},
}

impl Default for Head {
    fn default() -> Self {
        Self::Linear {}
    }
}

impl Head {
    /// Whether it is the one that a manifest need not name.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses widths that make no head.
    pub(crate) fn check(&self, found: &mut Problems) {
        if let Self::Mlp { hidden } = self {
            found.require((1..=HIDDEN_MAX).contains(hidden), "head.hidden", || {
                format!("{hidden} is not between 1 and {HIDDEN_MAX}")
            });
        }
    }

    /// Width of what it pools or is given of each image.
    pub fn input_width(&self, architecture: &Architecture) -> usize {
        match self {
            Self::Linear {} | Self::Mlp { .. } => architecture.features(),
            Self::AttentionPool {} => architecture.width,
        }
    }

    /// Every tensor of a head of `outputs` logits, in no particular order.
    pub fn tensors(&self, architecture: &Architecture, outputs: usize) -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: format!("head.{name}"),
            shape: shape.to_vec(),
        };
        let pooled = self.input_width(architecture);
        let (mut tensors, input) = match self {
            Self::Linear {} => (Vec::new(), pooled),
            Self::Mlp { hidden } => (
                vec![spec("hidden.weight", &[*hidden, pooled]), spec("hidden.bias", &[*hidden])],
                *hidden,
            ),
            Self::AttentionPool {} => (vec![spec("query", &[pooled])], pooled),
        };
        tensors.extend([spec("weight", &[outputs, input]), spec("bias", &[outputs])]);
        tensors
    }
}
