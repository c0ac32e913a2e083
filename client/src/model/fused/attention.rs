//! Attention forward and back. With scores S = Q K^T / sqrt(width), probabilities P = softmax(S) and
//! Y = P V: dV = P^T dY, dS = P * (dY V^T - rowsum(dY * Y)), dQ = dS K / sqrt(width), dK = dS^T Q /
//! sqrt(width) (Dao et al. 2022, arXiv:2205.14135, appendix B). P is computed anew going back: it
//! is larger than everything else of a block together.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::AttentionModuleOptions;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape};

use super::{Attended, Kernels};

/// `[images, tokens, heads * width]` as `[images, heads, tokens, width]`.
fn split<B: Backend>(x: FloatTensor<B>, heads: usize) -> FloatTensor<B> {
    let [images, tokens, width] = x.shape().dims();
    let x = B::float_reshape(x, Shape::new([images, tokens, heads, width / heads]));
    B::float_swap_dims(x, 1, 2)
}

/// The inverse of [`split`].
fn merge<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [images, heads, tokens, width] = x.shape().dims();
    let x = B::float_swap_dims(x, 1, 2);
    B::float_reshape(x, Shape::new([images, tokens, heads * width]))
}

/// Without a graph.
pub(super) fn plain<B: Backend>(qkv: [FloatTensor<B>; 3], heads: usize) -> FloatTensor<B> {
    merge::<B>(forward::<B>(qkv.map(|x| split::<B>(x, heads))))
}

/// Attention by the backend's own fused kernel.
pub(super) fn forward<B: Backend>([q, k, v]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
    B::attention(q, k, v, None, None, AttentionModuleOptions::default())
}

/// What `scores` are multiplied by.
pub(super) fn scale(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// The derivatives by queries, keys and values, from the backend's plain operations.
pub(super) fn back<B: Backend>(
    qkv: [FloatTensor<B>; 3],
    mixed: FloatTensor<B>,
    by_mixed: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let dtype = by_mixed.dtype();
    let [q, k, v] = qkv.map(|x| cast::<B>(x, DType::F32));
    let [mixed, by_mixed] = [mixed, by_mixed].map(|x| cast::<B>(x, DType::F32));
    let [_, _, _, width] = q.shape().dims();
    let q = B::float_mul_scalar(q, scale(width).into());
    let transposed = |x: FloatTensor<B>| B::float_swap_dims(x, 2, 3);
    let probabilities = B::softmax(B::float_matmul(q.clone(), transposed(k.clone())), 3);
    let by_v = B::float_matmul(transposed(probabilities.clone()), by_mixed.clone());
    let row_sums = B::float_sum_dim(B::float_mul(by_mixed.clone(), mixed), 3);
    let by_probabilities = B::float_matmul(by_mixed, transposed(v));
    let by_scores = B::float_mul(probabilities, B::float_sub(by_probabilities, row_sums));
    let by_k = B::float_matmul(transposed(by_scores.clone()), q);
    let by_q = B::float_mul_scalar(B::float_matmul(by_scores, k), scale(width).into());
    [by_q, by_k, by_v].map(|x| cast::<B>(x, dtype))
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, FloatDType::from(dtype)) }
}

/// As a node of a graph.
pub(super) fn tracked<B: Kernels, C: CheckpointStrategy>(
    inputs: [FloatTensor<Autodiff<B, C>>; 3],
    heads: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|x| x.node());
    let qkv = inputs.map(|x| split::<B>(x.into_primitive(), heads));
    match Attention.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let attended = B::attend(qkv.clone());
            let mixed = merge::<B>(attended.mixed.clone());
            prepared.finish((qkv, attended), mixed)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(merge::<B>(forward::<B>(qkv))),
    }
}

#[derive(Debug)]
struct Attention;

impl<B: Kernels> Backward<B, 3> for Attention {
    type State = ([FloatTensor<B>; 3], Attended<B>);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (qkv, attended) = ops.state;
        let [_, heads, _, _] = attended.mixed.shape().dims();
        let by_mixed = split::<B>(gradients.consume::<B>(&ops.node), heads);
        let by_qkv = B::attention_back(qkv, attended, by_mixed);
        for (parent, gradient) in ops.parents.into_iter().zip(by_qkv) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, merge::<B>(gradient));
            }
        }
    }
}
