//! Softmax attention: the fused one that trains, and one that keeps its probabilities to be looked
//! at.

use burn::tensor::{DType, Tensor, activation};

use super::fused;
use super::vit::typed;

/// Softmax attention of `heads` heads; query tokens may be fewer than key tokens. A `watch` keeps
/// the probabilities, which the fused kernel never has as a whole.
pub(super) fn attend(
    [q, k, v]: [Tensor<3>; 3],
    heads: usize,
    watch: Option<&mut Watch>,
) -> Tensor<3> {
    let Some(watch) = watch else { return fused::attention([q, k, v], heads) };
    let [images, kept, width] = q.dims();
    let split = |x: Tensor<3>| {
        let tokens = x.dims()[1];
        x.reshape([images, tokens, heads, width / heads]).swap_dims(1, 2)
    };
    let dtype = q.dtype();
    let (q, k, v) = (split(q), split(k), split(v));
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let scores = typed(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)), DType::F32);
    let probabilities = watch.keep(activation::softmax(scores, 3));
    let mixed = typed(probabilities, dtype).matmul(v);
    mixed.swap_dims(1, 2).reshape([images, kept, width])
}

/// Every block's attention probabilities, and the leaves that gather their derivatives.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(super) seen: Vec<Seen>,
    fresh: usize,
}

/// One block's, `[images, heads, queries, keys]`.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) probabilities: Tensor<4>,
    /// Zero, added to the probabilities: its derivative is theirs.
    pub(super) leaf: Tensor<4>,
    /// How many of the last keys entered with this block.
    pub(super) fresh: usize,
}

impl Watch {
    /// The next block is entered with `fresh` tokens that none before it has seen.
    pub(super) fn enter(&mut self, fresh: usize) {
        self.fresh = fresh;
    }

    fn keep(&mut self, probabilities: Tensor<4>) -> Tensor<4> {
        let plain = probabilities.clone().inner();
        let leaf = plain.zeros_like().autodiff().require_grad();
        self.seen.push(Seen { probabilities: plain, leaf: leaf.clone(), fresh: self.fresh });
        probabilities + leaf
    }
}
