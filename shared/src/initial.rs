//! The initial adapter (version 0), the same bits for everybody who knows manifest and seed, so that
//! neither a site nor an auditor needs to trust the coordinator's choice.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::contract::AdapterContract;
use crate::digest::{Digest, Hasher};
use crate::layout::TensorSpec;
use crate::manifest::RunManifest;
use crate::name::RunName;
use crate::tensors::{Header, Subject};

/// Values made at a time.
const BLOCK_VALUES: usize = 4096;

/// The header that version `version` of a run's global adapter must have.
pub fn adapter_header(run: &RunName, version: u32, contract: &AdapterContract) -> Header {
    let subject = Subject::Adapter { run: run.clone(), version };
    Header::new(subject, contract.digest(), &contract.layout)
}

/// Canonical bytes of a checked manifest's initial adapter: the adapted features equal the frozen
/// backbone's, except under prompts. LoRA's A (as `peft` begins), a bottleneck's way down and the
/// head's maps are uniform in +-1/sqrt(in) as torch's `Linear` and `Conv2d`; prompts and mask tokens
/// are uniform with deviation 0.02; a decoder's norms are the identity; everything else is zero: B,
/// the way up, biases, changes of frozen weights, the query.
///
/// # Panics
/// When `manifest` has not passed its check.
pub fn initial_adapter(manifest: &RunManifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_initial_adapter(manifest, |piece| bytes.extend_from_slice(piece));
    bytes
}

/// Digest of [`initial_adapter`], in constant memory.
///
/// # Panics
/// When `manifest` has not passed its check.
pub fn initial_digest(manifest: &RunManifest) -> Digest {
    let mut hasher = Hasher::new();
    write_initial_adapter(manifest, |piece| hasher.update(piece));
    hasher.finish()
}

/// Gives the bytes of [`initial_adapter`] piece by piece.
///
/// # Panics
/// When `manifest` has not passed its check.
pub fn write_initial_adapter(manifest: &RunManifest, mut sink: impl FnMut(&[u8])) {
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let seed = manifest.training.as_ref().map_or(0, |t| t.seed);
    sink(&adapter_header(&manifest.name, 0, &contract).to_bytes());
    for spec in contract.layout.tensors() {
        write_initial_values(spec, seed, &mut sink);
    }
}

fn write_initial_values(spec: &TensorSpec, seed: u64, sink: &mut impl FnMut(&[u8])) {
    let mut block = [0; BLOCK_VALUES * 4];
    let start = Start::of(spec);
    // One stream a tensor: adding a tensor leaves the others as they were.
    let key = Digest::of(format!("tributary initial adapter\n{seed}\n{}", spec.name).as_bytes());
    let mut rng = ChaCha12Rng::from_seed(*key.as_bytes());
    let mut left = spec.elements();
    while left > 0 {
        let take = left.min(BLOCK_VALUES);
        let piece = &mut block[..take * 4];
        for value in piece.chunks_exact_mut(4) {
            let start = match start {
                Start::Zero => break,
                Start::One => 1.0,
                Start::Uniform { bound } => {
                    let unit = (rng.next_u32() >> 8) as f32 / 16_777_216.0;
                    bound * (2.0 * unit - 1.0)
                }
            };
            value.copy_from_slice(&start.to_le_bytes());
        }
        sink(piece);
        left -= take;
    }
}

/// What a tensor's values are before training.
#[derive(Clone, Copy)]
enum Start {
    Zero,
    One,
    /// Uniform in +-bound. Nothing else is drawn from: a normal distribution needs functions that
    /// platforms round differently.
    Uniform {
        bound: f32,
    },
}

impl Start {
    fn of(spec: &TensorSpec) -> Self {
        let name = spec.name.as_str();
        let of_head = name.starts_with("head.") && name.ends_with("weight");
        let from_inputs = name.ends_with(".lora_A") || name.ends_with(".adapter.down.weight");
        match spec.shape[..] {
            [_] if of_head => Self::One,
            [_, ref inputs @ ..] if of_head || from_inputs => {
                Self::Uniform { bound: 1.0 / (inputs.iter().product::<usize>() as f32).sqrt() }
            }
            [_, _] if name.ends_with(".prompts") => Self::token(),
            [1, 1, _] if name.ends_with(".mask_token") => Self::token(),
            _ => Self::Zero,
        }
    }

    /// Of deviation 0.02.
    fn token() -> Self {
        Self::Uniform { bound: 0.02 * 3.0_f32.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::decode;

    #[test]
    fn the_pieces_are_the_adapter_its_header_says_and_hash_to_its_digest() {
        let manifest = RunManifest::from_toml(
            r#"
            schema_version = 1
            name = "r"
            task = { kind = "multi_class", classes = ["a", "b", "c"] }
            quorum = { sites = 1 }
            rounds = { count = 1, round_deadline_s = 60, stall_timeout_s = 60 }
            adapter = { rank = 2, alpha = 1.0, targets = ["q"] }
            [training]
            epochs = 1
            batch_size = 4
            learning_rate = 0.1
            holdout = 0.2
            seed = 1
            [backbone]
            digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
            mean = [0.5]
            std = [0.5]
            [backbone.architecture]
            image_size = 16
            patch_size = 8
            channels = 1
            width = 4096
            depth = 1
            heads = 4
            mlp_width = 20
            "#,
        )
        .unwrap();
        let contract = manifest.contract().unwrap();
        let bytes = initial_adapter(&manifest);
        assert_eq!(Digest::of(&bytes), initial_digest(&manifest));
        let values = decode(&bytes, &adapter_header(&manifest.name, 0, &contract)).unwrap();
        let [lora_a, lora_b, bias, weight] = &values[..] else { panic!("four tensors") };
        assert!(lora_b.iter().chain(bias).all(|v| *v == 0.0));
        // Uniform in +-b has the standard deviation b / sqrt(3).
        for tensor in [lora_a, weight] {
            let bound = 1.0 / 64.0_f32;
            assert!(tensor.iter().all(|v| v.abs() <= bound));
            let square: f32 = tensor.iter().map(|v| v * v).sum::<f32>() / tensor.len() as f32;
            assert!((square.sqrt() * 3.0_f32.sqrt() / bound - 1.0).abs() < 0.05);
        }
    }
}
