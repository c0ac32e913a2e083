//! Heads of tasks whose outputs are more than a linear map of one image's features.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, sigmoid, softmax, tanh};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use tributary_shared::architecture::Architecture;
use tributary_shared::bags::Bags;
use tributary_shared::task::Decoder;

use crate::model::{Leaves, linear_of};

/// The scores of gated attention over a bag's features (Ilse et al. 2018, arXiv:1802.04712):
/// w . (tanh(V h_k) * sigmoid(U h_k)) of each row h_k, `[instances, 1]` from
/// `[instances, 1, width]`. An image counts in its bag as the softmax of the bag's scores says.
pub(super) fn bag_scores(leaves: &Leaves<'_>, bags: &Bags, features: Tensor<3>) -> Tensor<2> {
    let [instances, _, width] = features.dims();
    let features = features.reshape([instances, width]);
    let map = |name: &str, outputs| {
        linear_of(&mut |n| leaves.take(n), &format!("head.attention.{name}"), outputs)
    };
    let content = tanh(map("content", bags.attention_width).forward(features.clone()));
    let gate = sigmoid(map("gate", bags.attention_width).forward(features));
    map("score", 1).forward(content * gate)
}

/// One row a bag, the mean of its images' features as [`bag_scores`] weigh them: from
/// `[instances, 1, width]`, bag after bag of `sizes`, to `[bags, 1, width]`.
pub(super) fn pool_bags(
    leaves: &Leaves<'_>,
    bags: &Bags,
    sizes: &[usize],
    features: Tensor<3>,
) -> Tensor<3> {
    let [instances, _, width] = features.dims();
    let scores = bag_scores(leaves, bags, features.clone());
    let features = features.reshape([instances, width]);
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
