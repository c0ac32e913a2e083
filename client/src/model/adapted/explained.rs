//! What the adapted model looked at: every block's attention, and how an output hangs on it.

use burn::tensor::{Tensor, TensorData};

use super::{AdaptedVit, download};
use crate::model::Dropout;
use crate::model::attention::Watch;

/// One block's attention over one image.
#[derive(Clone, Debug)]
pub(crate) struct BlockAttention {
    /// Tokens that ask: all of the image's own, and prompts but after the last block.
    pub(crate) queries: usize,
    /// Tokens that are asked.
    pub(crate) keys: usize,
    /// How many of the last keys entered with this block: prompts.
    pub(crate) fresh: usize,
    /// `[heads, queries, keys]`.
    pub(crate) probabilities: Vec<f32>,
    /// The derivative of the output that was asked about by each probability.
    pub(crate) gradient: Vec<f32>,
}

/// An image's logits with every block's attention, first block first.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) logits: Vec<f32>,
    /// What the head takes of each patch where it pools by attention; they sum to 1.
    pub(crate) shares: Option<Vec<f32>>,
    pub(crate) blocks: Vec<BlockAttention>,
}

impl AdaptedVit {
    /// Runs one image, keeping attention. `weigh` is given the logits and says the weights of the
    /// sum of them whose derivatives are taken.
    pub(crate) fn look(
        &self,
        values: &[Vec<f32>],
        rows: &[f32],
        weigh: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Looked {
        let leaves = self.leaves(&self.place(values), true);
        let adapter = self.adapter(&leaves);
        let changed = self.changed(&leaves, true);
        let vit = changed.as_ref().unwrap_or(&self.training);
        let mut watch = Watch::default();
        let tokens = vit.tokens(self.patches(rows, 1).autodiff());
        let tokens = vit.watched(tokens, Some(&adapter), &mut Dropout::off(), &mut watch);
        let shares = vit.shares(tokens.clone(), &adapter);
        let logits = adapter.outputs(vit.pool(tokens, Some(&adapter)));
        let dims = logits.dims();
        let said = download(logits.clone().inner());
        let weights = TensorData::new(weigh(&said), dims);
        let weights = Tensor::<2>::from_data(weights, &self.device).autodiff();
        let mut gradients = (logits * weights).sum().backward();
        let block = |seen: crate::model::attention::Seen| {
            let [_, _, queries, keys] = seen.probabilities.dims();
            let zeros = seen.probabilities.zeros_like();
            BlockAttention {
                queries,
                keys,
                fresh: seen.fresh,
                gradient: download(seen.leaf.grad_remove(&mut gradients).unwrap_or(zeros)),
                probabilities: download(seen.probabilities),
            }
        };
        let shares = shares.map(|shares| download(shares.inner()));
        Looked { logits: said, shares, blocks: watch.seen.into_iter().map(block).collect() }
    }
}
