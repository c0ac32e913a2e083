//! Weights before any training: what pretraining starts from and what it is compared with.

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution as _, StandardNormal, Uniform};
use tributary_shared::architecture::Architecture;
use tributary_shared::digest::Digest;
use tributary_shared::layout::TensorSpec;

use super::backbone::{Backbone, backbone_layout};

/// An untrained backbone, the same bits wherever `seed` is the same.
pub fn random_backbone(architecture: &Architecture, seed: u64) -> Backbone {
    let layout = backbone_layout(architecture);
    let values = |spec: &TensorSpec| match spec.name.as_str() {
        "pos_embed" => positions(architecture, architecture.width),
        _ => untrained(spec, seed),
    };
    Backbone::from_values(architecture.clone(), layout.tensors().iter().map(values).collect())
}

/// One tensor as the masked autoencoder begins (He et al. 2021, arXiv:2111.06377): matrices
/// uniform after Glorot, tokens normal with deviation 0.02, biases zero, norms and scales the
/// identity.
pub(crate) fn untrained(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    let elements = spec.elements();
    if spec.name.ends_with(".bias") {
        return vec![0.0; elements];
    }
    if let [_] = spec.shape[..] {
        return vec![1.0; elements];
    }
    let key = Digest::of(format!("tributary backbone\n{seed}\n{}", spec.name).as_bytes());
    let mut rng = ChaCha12Rng::from_seed(*key.as_bytes());
    if spec.name.ends_with(".weight") {
        let output = spec.shape[0];
        let bound = (6.0 / (output + elements / output) as f32).sqrt();
        let uniform = Uniform::new(-bound, bound).expect("the bound is finite and above zero");
        return uniform.sample_iter(rng).take(elements).collect();
    }
    (0..elements)
        .map(|_| {
            let draw: f32 = StandardNormal.sample(&mut rng);
            0.02 * draw
        })
        .collect()
}

/// Fixed sine and cosine positions `[position rows, width]` of the patch grid, half the width for the
/// column and half for the row, zero for the class token (as the masked autoencoder's code).
pub(crate) fn positions(architecture: &Architecture, width: usize) -> Vec<f32> {
    let side = architecture.side();
    let quarter = width / 4;
    let mut rows = vec![0.0; architecture.position_rows() * width];
    let before = usize::from(architecture.class_token);
    for (patch, row) in rows.chunks_mut(width).skip(before).enumerate() {
        for (axis, place) in [patch % side, patch / side].into_iter().enumerate() {
            for i in 0..quarter {
                let omega = 10_000f64.powf(-(i as f64) / quarter as f64);
                let angle = place as f64 * omega;
                row[axis * 2 * quarter + i] = angle.sin() as f32;
                row[axis * 2 * quarter + quarter + i] = angle.cos() as f32;
            }
        }
    }
    rows
}
