//! Operations that are one node of the graph each. burn's autodiff takes attention and LayerNorm
//! apart when it differentiates: every part is kept, each head's scores among them, and passed over
//! again. Here the inputs are kept and the rest is computed anew going back.
//!
//! One implementation serves every backend; where a backend has kernels of its own for the way
//! back, [`Kernels`] takes those.

mod attention;
#[cfg(feature = "flex")]
mod flex;
mod gelu;
#[cfg(feature = "tch")]
mod libtorch;
mod norm;
#[cfg(test)]
mod tests;

#[cfg(feature = "tch")]
#[expect(deprecated, reason = "burn deprecates LibTorch but ships it; see docs/libtorch.md")]
use burn::backend::LibTorch;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

/// Softmax attention of `heads` heads (Vaswani et al. 2017, arXiv:1706.03762): queries, keys and
/// values `[images, tokens, heads * width]` to `[images, query tokens, heads * width]`. The softmax
/// is taken in f32 whatever the inputs' type.
pub(super) fn attention([q, k, v]: [Tensor<3>; 3], heads: usize) -> Tensor<3> {
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Fused>::fused_attention(q, k, v, heads))
}

/// LayerNorm over the last axis (Ba et al. 2016, arXiv:1607.06450).
pub(super) fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<3> {
    let [weight, bias] = [weight, bias].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Fused>::fused_norm(x.into_dispatch(), weight, bias, eps))
}

/// x Phi(x), Phi the normal distribution's (Hendrycks and Gimpel 2016, arXiv:1606.08415).
pub(super) fn gelu(x: Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as Fused>::fused_gelu(x.into_dispatch()))
}

/// The operations, on a backend with or without a graph.
#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
trait Fused: Backend {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        attention::plain::<Self>([q, k, v], heads)
    }

    fn fused_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        Self::layer_norm(x, weight, Some(bias), eps)
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu(x)
    }
}

impl<B: Kernels, C: CheckpointStrategy> Fused for Autodiff<B, C> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
    ) -> FloatTensor<Self> {
        attention::tracked::<B, C>([q, k, v], heads)
    }

    fn fused_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::tracked::<B, C>(x, weight, bias, eps)
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::tracked::<B, C>(x)
    }
}

/// What a backend computes without a graph. Attention's tensors are `[images, heads, tokens, width]`.
trait Kernels: Backend {
    /// Attention, and what [`Self::attention_back`] wants to see again beside it.
    fn attend(qkv: [FloatTensor<Self>; 3]) -> Attended<Self> {
        Attended { mixed: attention::forward::<Self>(qkv), log_sums: None }
    }

    /// The derivatives by queries, keys and values, given the one by what they were mixed into.
    fn attention_back(
        qkv: [FloatTensor<Self>; 3],
        attended: Attended<Self>,
        by_mixed: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        attention::back::<Self>(qkv, attended.mixed, by_mixed)
    }

    /// The derivative by `x` of its rows centred and scaled to unit variance, given the one by those.
    fn standardize_back(
        x: FloatTensor<Self>,
        by_rows: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        norm::back::<Self>(x, by_rows, eps)
    }

    /// GELU, and what [`Self::gelu_back`] wants to see again, as large as `x`.
    fn gelu_kept(x: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        [Self::gelu(x.clone()), x]
    }

    /// The derivative by GELU's input, given the one by its output.
    fn gelu_back(kept: FloatTensor<Self>, by_y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::gelu_backward(kept, by_y)
    }
}

/// Values mixed by attention.
#[derive(Clone, Debug)]
struct Attended<B: Backend> {
    mixed: FloatTensor<B>,
    /// Of each query's exponentials, where the backend has them, `[images, heads, tokens]`.
    log_sums: Option<FloatTensor<B>>,
}
