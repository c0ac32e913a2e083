//! Learning without labels: a backbone at one place, adapters over rounds; both see more of the
//! labels afterwards than before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

#[expect(dead_code, reason = "not every test binary uses everything")]
mod ml_support;

use std::path::Path;
use std::process::Command;

use ndarray::{Array2, Array3};
use ndarray_npy::NpzWriter;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, Split};
use tributary_client::model::{Backbone, Compute, Values, random_backbone};
use tributary_client::trainer::{
    Control, LocalTraining, Pretraining, Probed, linear_probe, pretrain, train,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::Architecture;
use tributary_shared::augment::Augment;
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::objective::{Dino, Mae, Objective, SimClr};

use ml_support::{initial, manifest, unit};

fn architecture() -> Architecture {
    Architecture { channels: 1, ..Architecture::plain(16, 4, 32, 2, 2) }
}

fn objectives() -> [Objective; 3] {
    [
        Objective::Mae(Mae { decoder_width: 32, ..Mae::default() }),
        Objective::SimClr(SimClr { hidden: 64, projection: 32, ..SimClr::default() }),
        Objective::Dino(Dino {
            prototypes: 64,
            hidden: 64,
            projection: 32,
            teacher_momentum: 0.98,
            local_views: 1,
            // Parts stretched to the whole size; docs/objectives.md has other sizes and seeds.
            local_size: Some(16),
            ..Dino::default()
        }),
    ]
}

fn views(objective: &Objective) -> Option<Augment> {
    let augment = Augment {
        crop_area_min: 0.4,
        flip_horizontal: true,
        flip_vertical: true,
        brightness: 0.3,
        contrast: 0.3,
        ..Augment::default()
    };
    (!matches!(objective, Objective::Mae(_))).then_some(augment)
}

/// Stripes across or along, of random phase and width: nothing that the mean of a place tells.
fn stripes(folder: &Path, cases: usize, seed: u64) -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let waves: Vec<(f32, f32)> = (0..cases)
        .map(|_| (std::f32::consts::PI * unit(&mut rng), 1.2 + 0.4 * unit(&mut rng)))
        .collect();
    let images = Array3::from_shape_fn((cases, 16, 16), |(case, y, x)| {
        let (phase, frequency) = waves[case];
        let along = if case % 2 == 1 { x } else { y } as f32;
        (128.0 + 26.0 * (phase + frequency * along).sin() + 40.0 * unit(&mut rng)) as u8
    });
    let labels = Array2::from_shape_fn((cases, 1), |(case, _)| (case % 2) as u8);
    let path = folder.join(format!("stripes-{seed}.npz"));
    let mut writer = NpzWriter::new(std::fs::File::create(&path).unwrap());
    writer.add_array("train_images", &images).unwrap();
    writer.add_array("train_labels", &labels).unwrap();
    writer.finish().unwrap();
    let input = InputSpec::plain(16, 1, 0.5, 0.5);
    Dataset::open(&DataSource::Npz(path), &task(), &input).unwrap()
}

fn task() -> Task {
    Task::Binary { classes: vec!["across".to_owned(), "along".to_owned()] }
}

fn probe(probed: Probed<'_>, dataset: &Dataset, split: &Split) -> f64 {
    let (control, compute) = (Control::default(), Compute::cpu());
    linear_probe(probed, &task(), dataset, split, &compute, (&control, &mut |_| {}))
        .unwrap()
        .unwrap()
}

/// Whether a good part of what the one AUROC lacks is made up for.
fn surer(found: f64, than: f64) -> bool {
    1.0 - found < 0.85 * (1.0 - than)
}

#[test]
fn pretrained_features_beat_untrained_ones() {
    let folder = tempfile::tempdir().unwrap();
    let data = stripes(folder.path(), 192, 1);
    let labelled = stripes(folder.path(), 400, 2);
    let split = labelled.split(&HoldoutSalt::public(), 0.75);
    for objective in objectives() {
        let plan = Pretraining {
            architecture: architecture(),
            augment: views(&objective),
            objective,
            epochs: 60,
            batch_size: 32,
            learning_rate: 1e-3,
            weight_decay: 0.05,
            seed: 1,
        };
        plan.check().unwrap();
        let control = Control::default();
        let made = pretrain(&plan, &data, &Compute::cpu(), &control, &mut |_| {}).unwrap();
        let random = random_backbone(&plan.architecture, 1);
        let of = |backbone| probe(Probed { backbone, adapter: None }, &labelled, &split);
        let (trained, untrained) = (of(&made.backbone), of(&random));
        assert!(made.losses.iter().all(|loss| loss.is_finite()));
        assert!(surer(trained, untrained), "{:?} {trained} {untrained}", plan.objective);
    }
}

fn run_of(backbone: &Backbone, objective: Objective, adapter: &str) -> RunManifest {
    let mut run = manifest(backbone, 4);
    run.adapter = Some(toml::from_str::<Adaptation>(adapter).unwrap());
    let training = run.training.as_mut().unwrap();
    training.augment = views(&objective);
    training.epochs = 20;
    training.batch_size = 16;
    training.learning_rate = 4e-3;
    run.task = Task::SelfSupervised { objective };
    run.rounds.count = 4;
    run.check().unwrap();
    run
}

/// Rounds of federated averaging over sites of as many cases each.
fn federate(run: &RunManifest, backbone: &Backbone, sites: &[Dataset]) -> (Values, Vec<f64>) {
    let mut global = initial(run);
    let mut losses = Vec::new();
    for round in 1..=run.rounds.count {
        let updates: Vec<_> = sites
            .iter()
            .enumerate()
            .map(|(number, dataset)| {
                let work = LocalTraining {
                    backbone,
                    manifest: run,
                    base: &global,
                    dataset,
                    split: &dataset.split(&HoldoutSalt::public(), 0.25),
                    round,
                    site: &format!("site-{number}"),
                    compute: &Compute::cpu(),
                    cache: None,
                };
                train(&work, &Control::default(), &mut |_| {}).unwrap()
            })
            .collect();
        assert!(updates.iter().all(|update| update.cases > 0 && update.metrics.steps > 0));
        losses.push(updates.iter().map(|u| u.metrics.holdout_loss.unwrap()).sum::<f64>());
        for (at, tensor) in global.iter_mut().enumerate() {
            for (i, value) in tensor.iter_mut().enumerate() {
                *value =
                    updates.iter().map(|u| u.values[at][i]).sum::<f32>() / updates.len() as f32;
            }
        }
    }
    (global, losses)
}

#[test]
fn adapters_learn_without_labels_over_rounds() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = random_backbone(&architecture(), 3);
    let sites = [stripes(folder.path(), 128, 4), stripes(folder.path(), 128, 5)];
    let labelled = stripes(folder.path(), 400, 6);
    let split = labelled.split(&HoldoutSalt::public(), 0.75);
    let frozen = probe(Probed { backbone: &backbone, adapter: None }, &labelled, &split);
    let lora = "kind = \"lora\"\nrank = 8\nalpha = 16.0\ntargets = [\"q\", \"k\", \"v\", \"proj\", \"fc1\", \"fc2\"]";
    for objective in objectives() {
        let run = run_of(&backbone, objective.clone(), lora);
        let (global, losses) = federate(&run, &backbone, &sites);
        let contract = run.contract().unwrap();
        let adapter = Some((&contract, &global[..]));
        let adapted = probe(Probed { backbone: &backbone, adapter }, &labelled, &split);
        assert!(losses.last() < losses.first(), "{} {losses:?}", objective.as_str());
        assert!(surer(adapted, frozen), "{} {adapted} {frozen}", objective.as_str());
    }
}

#[test]
fn what_a_run_without_labels_cannot_give_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    stripes(folder.path(), 24, 1);
    let backbone = random_backbone(&architecture(), 3);
    backbone.save(&folder.path().join("b.safetensors")).unwrap();
    let [mae, _, _] = objectives();
    let lora = "kind = \"lora\"\nrank = 2\nalpha = 2.0\ntargets = [\"q\"]";
    let run = toml::to_string(&run_of(&backbone, mae, lora)).unwrap();
    std::fs::write(folder.path().join("run.toml"), run).unwrap();
    let client = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-client"));
        let common = "--run run.toml --adapter initial";
        command.current_dir(folder.path()).args(line.split(' ')).args(common.split(' '));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let data = "--backbone b.safetensors --data stripes-1.npz";
    let merge = "export --as backbone";
    for (line, problem) in [
        ("export --out peft".to_owned(), merge),
        ("export --as timm --backbone b.safetensors --out timm".to_owned(), merge),
        (format!("explain {data} --out looked"), merge),
        (format!("evaluate {data} --predictions p.csv"), "--predictions: a self_supervised run"),
        (format!("evaluate {data} --head-only"), "--head-only: adapter.kind: under head_only"),
    ] {
        let (code, said) = client(&line);
        assert_eq!(code, Some(4), "{line}: {said}");
        assert!(said.contains(problem) && said.trim_end().lines().count() == 1, "{line}: {said}");
    }
    assert_eq!(client(&format!("evaluate {data}")).0, Some(0));
    assert_eq!(
        client("export --as backbone --backbone b.safetensors --out m.safetensors").0,
        Some(0)
    );
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 4, "images, backbone, run and the merged backbone alone");
}
