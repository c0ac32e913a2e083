//! LayerNorm back. With rows z = (x - mean) / sqrt(variance + eps) and y = z * weight + bias, and G =
//! dy * weight: dx = (G - mean(G) - z * mean(G * z)) / sqrt(variance + eps) (Ba et al. 2016,
//! arXiv:1607.06450). Only x is kept: its mean and variance are cheap.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::Shape;

use super::Kernels;

/// Rows of unit variance around zero, and what they were divided by.
fn standardized<B: Backend>(x: FloatTensor<B>, eps: f64) -> [FloatTensor<B>; 2] {
    let last = x.shape().num_dims() - 1;
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, last));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), last);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, eps.into()));
    [B::float_div(centred, deviation.clone()), deviation]
}

/// The derivative by `x`, from the backend's plain operations.
pub(super) fn back<B: Backend>(
    x: FloatTensor<B>,
    by_rows: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let last = x.shape().num_dims() - 1;
    let [rows, deviation] = standardized::<B>(x, eps);
    let along = B::float_mean_dim(B::float_mul(by_rows.clone(), rows.clone()), last);
    let mean = B::float_mean_dim(by_rows.clone(), last);
    let across = B::float_sub(by_rows, mean);
    B::float_div(B::float_sub(across, B::float_mul(rows, along)), deviation)
}

/// As a node of a graph.
pub(super) fn tracked<B: Kernels, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: FloatTensor<Autodiff<B, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = [x.node(), weight.node(), bias.node()];
    let [x, weight, bias] = [x, weight, bias].map(|x| x.into_primitive());
    match Norm.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let y = B::layer_norm(x.clone(), weight.clone(), Some(bias), eps);
            prepared.finish((x, weight, eps), y)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(B::layer_norm(x, weight, Some(bias), eps)),
    }
}

#[derive(Debug)]
struct Norm;

impl<B: Kernels> Backward<B, 3> for Norm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, eps) = ops.state;
        let [to_x, to_weight, to_bias] = ops.parents;
        let by_y = gradients.consume::<B>(&ops.node);
        let width = weight.shape().num_elements();
        let summed = |x: FloatTensor<B>| {
            let rows = x.shape().num_elements() / width;
            let sum = B::float_sum_dim(B::float_reshape(x, Shape::new([rows, width])), 0);
            B::float_reshape(sum, Shape::new([width]))
        };
        if let Some(node) = to_bias {
            gradients.register::<B>(node.id, summed(by_y.clone()));
        }
        if let Some(node) = to_weight {
            let [rows, _] = standardized::<B>(x.clone(), eps);
            gradients.register::<B>(node.id, summed(B::float_mul(by_y.clone(), rows)));
        }
        if let Some(node) = to_x {
            let weight = B::float_reshape(weight, Shape::new([1, 1, width]));
            let by_rows = B::float_mul(by_y, weight);
            gradients.register::<B>(node.id, B::standardize_back(x, by_rows, eps));
        }
    }
}
