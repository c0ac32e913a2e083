//! A vision transformer that computes in microseconds, and images with something to find.

use std::path::Path;

use ndarray::{Array2, Array3};
use ndarray_npy::NpzWriter;
use rand::{Rng as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tributary_client::data::{DataSource, Dataset, InputSpec};
use tributary_client::model::{Backbone, Values, random_backbone};
use tributary_shared::architecture::Architecture;
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::decode;

pub(crate) fn architecture() -> Architecture {
    let plain = Architecture::plain(16, 4, 16, 2, 2);
    Architecture { channels: 1, mlp_width: 24, ..plain }
}

/// A backbone none of whose tensors is zero or one, so that a forgotten one shows.
pub(crate) fn backbone(architecture: &Architecture) -> Backbone {
    let plain = random_backbone(architecture, 5);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let moved = |values: &[f32]| values.iter().map(|v| v + 0.1 * unit(&mut rng)).collect();
    let values = plain.tensors().map(|(_, values)| values).map(moved).collect();
    Backbone::from_values(architecture.clone(), values)
}

/// Uniform in +-1.
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0
}

/// A binary run on `backbone` with LoRA of `rank` on all six maps; of the head alone at rank 0.
pub(crate) fn manifest(backbone: &Backbone, rank: usize) -> RunManifest {
    let per_channel = vec![0.5; backbone.architecture().channels];
    let architecture = toml::to_string(backbone.architecture()).unwrap();
    let adapter = match rank {
        0 => "kind = \"head_only\"".to_owned(),
        _ => format!(
            "rank = {rank}\nalpha = 4.0\ndropout = 0.1\n\
             targets = [\"q\", \"k\", \"v\", \"proj\", \"fc1\", \"fc2\"]"
        ),
    };
    let text = format!(
        r#"
schema_version = 1
name = "tiny"
[task]
kind = "binary"
classes = ["dark", "bright"]
[backbone]
digest = "{}"
mean = {per_channel:?}
std = {per_channel:?}
[backbone.architecture]
{architecture}
[adapter]
{adapter}
[training]
epochs = 2
batch_size = 10
learning_rate = 0.01
weight_decay = 0.01
warmup_steps = 2
gradient_clip = 1.0
holdout = 0.25
seed = 3
[rounds]
count = 2
round_deadline_s = 60
stall_timeout_s = 60
[quorum]
sites = 1
"#,
        backbone.digest()
    );
    RunManifest::from_toml(&text).unwrap()
}

/// The run's initial adapter.
pub(crate) fn initial(manifest: &RunManifest) -> Values {
    let header = adapter_header(&manifest.name, 0, &manifest.contract().unwrap());
    decode(&initial_adapter(manifest), &header).unwrap()
}

/// The initial adapter with every value moved, `lora_B` too.
pub(crate) fn moved(manifest: &RunManifest, seed: u64) -> Values {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut values = initial(manifest);
    values.iter_mut().flatten().for_each(|v| *v += 0.2 * unit(&mut rng));
    values
}

/// `cases` noisy images, every other with a bright patch, one patient each.
pub(crate) fn dataset(folder: &Path, cases: usize, seed: u64) -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let bright = |case: usize, y: usize, x: usize| case % 2 == 1 && y < 8 && x < 8;
    let images = Array3::from_shape_fn((cases, 16, 16), |(case, y, x)| {
        let base = if bright(case, y, x) { 120.0 } else { 70.0 };
        (base + 60.0 * unit(&mut rng)) as u8
    });
    let labels = Array2::from_shape_fn((cases, 1), |(case, _)| (case % 2) as u8);
    let path = folder.join(format!("data-{seed}.npz"));
    let mut writer = NpzWriter::new(std::fs::File::create(&path).unwrap());
    writer.add_array("train_images", &images).unwrap();
    writer.add_array("train_labels", &labels).unwrap();
    writer.finish().unwrap();
    let input = InputSpec::plain(16, 1, 0.5, 0.5);
    Dataset::open(&DataSource::Npz(path), &manifest(&backbone(&architecture()), 0).task, &input)
        .unwrap()
}
