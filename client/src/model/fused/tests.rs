//! The fused operations against burn's own, which autodiff takes apart.

use burn::tensor::module::{attention as plain_attention, layer_norm as plain_norm};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Tensor, TensorData, activation};
use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::adapted::download;
use super::super::vit::typed;
use super::{attention, gelu, layer_norm};
use crate::model::Compute;

const EPS: f64 = 1e-6;
const HEADS: usize = 3;

/// Numbers around zero of which no two tests need the same.
fn drawn<const D: usize>(dims: [usize; D], seed: u64) -> Tensor<D> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let unit = |_| (rng.next_u32() >> 8) as f32 / 4_194_304.0 - 2.0;
    let numbers: Vec<f32> = (0..dims.iter().product()).map(unit).collect();
    Tensor::from_data(TensorData::new(numbers, dims), Compute::cpu().device())
}

/// The value of `of` at `inputs`, then the derivative of its product with fixed numbers by each.
fn with_gradients<const N: usize>(
    inputs: &[Tensor<3>; N],
    of: impl Fn([Tensor<3>; N]) -> Tensor<3>,
) -> Vec<Vec<f32>> {
    let leaves = inputs.each_ref().map(|x| x.clone().autodiff().require_grad());
    let y = of(leaves.clone());
    let by_y = drawn(y.dims(), 99).autodiff();
    let mut gradients = (typed(y.clone(), DType::F32) * by_y).sum().backward();
    let value = download(typed(y.inner(), DType::F32));
    let by_leaf = |leaf: &Tensor<3>| {
        let gradient = leaf.grad_remove(&mut gradients).expect("every input has a derivative");
        download(typed(gradient, DType::F32))
    };
    std::iter::once(value).chain(leaves.iter().map(by_leaf)).collect()
}

#[track_caller]
fn assert_near(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (which, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "tensor {which}");
        let most = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(most > 1e-3, "tensor {which} says nothing");
        for (found, expected) in found.iter().zip(expected) {
            let distance = (found - expected).abs();
            assert!(distance <= tolerance * most, "tensor {which}: {found} is not {expected}");
        }
    }
}

/// burn's attention of the same layout.
fn taken_apart([q, k, v]: [Tensor<3>; 3]) -> Tensor<3> {
    let [images, queries, width] = q.dims();
    let split = |x: Tensor<3>| {
        let tokens = x.dims()[1];
        x.reshape([images, tokens, HEADS, width / HEADS]).swap_dims(1, 2)
    };
    let options = AttentionModuleOptions::default();
    let mixed = plain_attention(split(q), split(k), split(v), None, None, options);
    mixed.swap_dims(1, 2).reshape([images, queries, width])
}

#[test]
fn attention_is_burns_forward_and_back() {
    // All tokens ask; then the class token alone, as in a last block.
    for queries in [70, 1] {
        let [keys, width] = [70, HEADS * 16];
        let qkv =
            [drawn([2, queries, width], 1), drawn([2, keys, width], 2), drawn([2, keys, width], 3)];
        let found = with_gradients(&qkv, |qkv| attention(qkv, HEADS));
        assert_near(&found, &with_gradients(&qkv, taken_apart), 1e-5);
    }
}

#[test]
fn attention_in_bfloat16_is_near_the_one_in_f32() {
    let qkv = [1, 2, 3].map(|seed| drawn([2, 33, HEADS * 8], seed));
    let reduced = with_gradients(&qkv, |qkv| attention(qkv.map(|x| typed(x, DType::BF16)), HEADS));
    // Three digits are what the type has.
    assert_near(&reduced, &with_gradients(&qkv, taken_apart), 2e-2);
}

#[test]
fn a_norm_is_burns_forward_and_back() {
    let inputs = [drawn([3, 5, 24], 4), drawn([1, 1, 24], 5), drawn([1, 1, 24], 6)];
    let flat = |x: Tensor<3>| x.flatten::<1>(0, 2);
    let found =
        with_gradients(&inputs, |[x, weight, bias]| layer_norm(x, flat(weight), flat(bias), EPS));
    let expected = with_gradients(&inputs, |[x, weight, bias]| {
        plain_norm(x, flat(weight), Some(flat(bias)), EPS)
    });
    assert_near(&found, &expected, 1e-5);
}

#[test]
fn a_norm_of_frozen_weights_differentiates_its_input_alone() {
    let [weight, bias] = [drawn([24], 5), drawn([24], 6)];
    let constant = |x: &Tensor<1>| x.clone().autodiff();
    let inputs = [drawn([3, 5, 24], 4)];
    let found =
        with_gradients(&inputs, |[x]| layer_norm(x, constant(&weight), constant(&bias), EPS));
    let expected =
        with_gradients(&inputs, |[x]| plain_norm(x, constant(&weight), Some(constant(&bias)), EPS));
    assert_near(&found, &expected, 1e-5);
}

#[test]
fn gelu_is_burns_forward_and_back() {
    // A view of a part, too: what is kept must be of that part.
    let inputs = [drawn([4, 3, 50], 7).mul_scalar(4.0)];
    let part = |x: Tensor<3>| x.narrow(0, 1, 2);
    let found = with_gradients(&inputs, |[x]| gelu(part(x)));
    assert_near(&found, &with_gradients(&inputs, |[x]| activation::gelu(part(x))), 1e-6);
}
