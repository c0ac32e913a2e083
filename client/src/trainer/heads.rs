//! Heads of tasks whose outputs are more than a linear map of one image's features.

use burn::tensor::activation::{gelu, sigmoid, softmax};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, activation};
use tributary_shared::architecture::Architecture;
use tributary_shared::bags::Bags;
use tributary_shared::task::Decoder;

use crate::model::{Leaves, linear_of};

/// Gated attention over each bag's features (Ilse et al. 2018, arXiv:1802.04712), one row a bag:
/// from `[instances, 1, width]`, bag after bag of `sizes`, to `[bags, 1, width]`. With
/// a_k proportional to exp(w . (tanh(V h_k) * sigmoid(U h_k))), a bag's row is the sum of a_k h_k.
pub(super) fn pool_bags(
    leaves: &Leaves<'_>,
    bags: &Bags,
    sizes: &[usize],
    features: Tensor<3>,
) -> Tensor<3> {
    let [instances, _, width] = features.dims();
    let features = features.reshape([instances, width]);
    let map = |name: &str, outputs| {
        linear_of(&mut |n| leaves.take(n), &format!("head.attention.{name}"), outputs)
    };
    let content = activation::tanh(map("content", bags.attention_width).forward(features.clone()));
    let gate = sigmoid(map("gate", bags.attention_width).forward(features.clone()));
    let scores = map("score", 1).forward(content * gate);
    let mut start = 0;
    let mut rows = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let shares = softmax(scores.clone().narrow(0, start, size), 0);
        rows.push((features.clone().narrow(0, start, size) * shares).sum_dim(0));
        start += size;
    }
    Tensor::cat(rows, 0).reshape([sizes.len(), 1, width])
}

/// A segmentation's outputs, `[images, patches, outputs]` from tokens `[images, patches, width]`.
pub(super) fn segment(
    leaves: &Leaves<'_>,
    architecture: &Architecture,
    (decoder, outputs): (&Decoder, usize),
    tokens: Tensor<3>,
) -> Tensor<3> {
    let map = |name: &str, outputs| linear_of(&mut |n| leaves.take(n), name, outputs);
    let tokens = match *decoder {
        Decoder::Linear {} => tokens,
        Decoder::Convolutional { channels } => {
            let [images, patches, width] = tokens.dims();
            let side = architecture.image_size / architecture.patch_size;
            let low = map("head.decoder.down", channels).forward(tokens.clone());
            let grid = low.swap_dims(1, 2).reshape([images, channels, side, side]);
            let weight = leaves.take("head.decoder.convolution.weight");
            let weight = weight.reshape([channels, channels, 3, 3]);
            let bias = leaves.take("head.decoder.convolution.bias");
            let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
            let mixed = gelu(conv2d(grid, weight, Some(bias), options));
            let mixed = mixed.reshape([images, channels, patches]).swap_dims(1, 2);
            tokens + map("head.decoder.up", width).forward(mixed)
        }
    };
    map("head", outputs).forward(tokens)
}
