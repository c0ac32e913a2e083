//! The objectives against PyTorch (`tests/python/self_supervised_fixtures.py`).

use std::collections::BTreeMap;

use serde::Deserialize;
use tributary_shared::architecture::Architecture;
use tributary_shared::layout::TensorSpec;
use tributary_shared::objective::{Dino, Mae, Objective};

use super::mae::{Decoder, Seen};
use super::mask::Masked;
use super::{Judged, Learner, dino_loss, nt_xent};
use crate::model::{AdaptedVit, Compute, Dropout, HeadOf, Input, Level, patchify, positions};
use crate::trainer::{Control, Pretraining, TrainError};

#[derive(Deserialize)]
struct Golden {
    contrasts: Vec<Contrast>,
    distillations: Vec<Distillation>,
    masked: MaskedGolden,
    smaller: SmallerGolden,
}

#[derive(Deserialize)]
struct SmallerGolden {
    pixels: Vec<f32>,
    features: Vec<f64>,
    by_feature: Vec<f32>,
    gradients: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Contrast {
    width: usize,
    temperature: f64,
    projections: Vec<f32>,
    loss: f64,
    by_output: Vec<f64>,
}

#[derive(Deserialize)]
struct Distillation {
    prototypes: usize,
    local_views: usize,
    student: Vec<f32>,
    teacher: Vec<f32>,
    centre: Vec<f64>,
    loss: f64,
    by_output: Vec<f64>,
}

#[derive(Deserialize)]
struct MaskedGolden {
    order: Vec<Vec<usize>>,
    seen: Vec<f32>,
    targets: Vec<f32>,
    losses: BTreeMap<String, MaskedLoss>,
}

#[derive(Deserialize)]
struct MaskedLoss {
    loss: f64,
    gradients: BTreeMap<String, Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/fixtures/loss/self_supervised.json")).unwrap()
}

fn near(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < tolerance, "{found} {expected}");
    }
}

#[test]
fn the_contrast_of_views_is_pytorchs() {
    for case in golden().contrasts {
        let Judged { loss, by_output } =
            nt_xent(&case.projections, case.width, case.temperature, &Control::default()).unwrap();
        assert!((loss - case.loss).abs() < 1e-9, "{loss} {}", case.loss);
        near(&by_output, &case.by_output, 1e-6);
    }
}

#[test]
fn comparing_many_views_hears_a_stop() {
    let control = Control::default();
    control.stop();
    let found = nt_xent(&[0.5; 64], 4, 0.1, &control);
    assert!(matches!(found, Err(TrainError::Stopped)), "{found:?}");
}

#[test]
fn two_views_alone_have_nothing_to_be_told_from() {
    let judged = nt_xent(&[1.0, 2.0, -3.0, 0.5], 2, 0.1, &Control::default()).unwrap();
    assert!(judged.loss.abs() < 1e-12 && judged.by_output.iter().all(|d| d.abs() < 1e-6));
}

#[test]
fn self_distillation_is_pytorchs() {
    for case in golden().distillations {
        let dino =
            Dino { prototypes: case.prototypes, local_views: case.local_views, ..Dino::default() };
        let judged = dino_loss(&dino, &case.student, &case.teacher, &case.centre);
        assert!((judged.loss - case.loss).abs() < 1e-6, "{} {}", judged.loss, case.loss);
        near(&judged.by_output, &case.by_output, 1e-5);
    }
}

/// As the fixture's generator makes them.
fn weight(number: usize, spec: &TensorSpec) -> Vec<f32> {
    let one = if spec.name.contains("norm") && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
    let of = |i: usize| (0.15 * (number as f64 + 0.7 * i as f64).sin() + one) as f32;
    (0..spec.elements()).map(of).collect()
}

/// A pretraining by masked autoencoding of grey pictures with four-pixel patches.
fn plan(image_size: usize) -> Pretraining {
    let plain = Architecture::plain(image_size, 4, 8, 1, 2);
    Pretraining {
        architecture: Architecture { channels: 1, mlp_width: 12, ..plain },
        objective: Objective::Mae(Mae { decoder_width: 32, ..Mae::default() }),
        augment: None,
        epochs: 1,
        batch_size: 2,
        learning_rate: 0.1,
        weight_decay: 0.0,
        seed: 1,
    }
}

#[test]
fn a_smaller_picture_is_seen_as_pytorch_sees_it() {
    let golden = golden().smaller;
    let plan = plan(16);
    let nothing = plan.nothing();
    let contract = plan.contract(&nothing);
    let model = AdaptedVit::new(&nothing, &contract, &Compute::cpu());
    let specs = contract.layout.tensors();
    let values: Vec<Vec<f32>> = specs.iter().enumerate().map(|(t, spec)| weight(t, spec)).collect();
    let values = model.place(&values);
    // Two pictures of 8 pixels a side where the model's own have 16.
    let small = Architecture { image_size: 8, ..plan.architecture };
    let mut rows = Vec::new();
    golden.pixels.chunks(64).for_each(|image| patchify(&small, image, &mut rows));
    let input = Input::Smaller { rows: &rows, images: 2, side: 2 };
    let head: &HeadOf<'_> = &|_, features| features;
    let (level, dropout) = (Level::Features, &mut Dropout::off());
    let features = model.through(&values, input, level, dropout, head);
    near(&features, &golden.features, 1e-5);
    let known = |features: &[f32]| {
        near(features, &golden.features, 1e-5);
        (0.0, golden.by_feature)
    };
    let found = model.gradient_through(&values, input, level, dropout, head, known);
    assert_eq!(golden.gradients.len(), 3);
    for (name, expected) in golden.gradients {
        let at = specs.iter().position(|spec| spec.name == name).unwrap();
        near(&found.values[at], &expected, 1e-5);
    }
}

#[test]
fn the_masked_autoencoder_is_pytorchs() {
    let plan = plan(8);
    let Objective::Mae(mae) = &plan.objective else { panic!("a masked autoencoder") };
    let nothing = plan.nothing();
    let contract = plan.contract(&nothing);
    let model = AdaptedVit::new(&nothing, &contract, &Compute::cpu());
    let specs = contract.layout.tensors();
    let values: Vec<Vec<f32>> = specs.iter().enumerate().map(|(t, spec)| weight(t, spec)).collect();
    let learner = Learner {
        model: &model,
        objective: &plan.objective,
        shard_images: 2,
        dropout: 0.0,
        readers: 0,
    };
    let golden = golden().masked;
    let masked = Masked {
        images: 2,
        visible: 1,
        order: golden.order.concat(),
        patches: golden.seen,
        targets: golden.targets,
    };
    let places = positions(&plan.architecture, mae.decoder_width);
    for (what, expected) in golden.losses {
        let seen = if what == "all" { Seen::All } else { Seen::ClassToken };
        let architecture = &plan.architecture;
        let decoder = Decoder { mae, architecture, places: &places, masked: &masked, seen };
        let found = decoder.gradient(&learner, &model.place(&values), 1.0, &mut Dropout::off());
        assert!((found.loss - expected.loss).abs() < 1e-5, "{} {}", found.loss, expected.loss);
        assert!(expected.gradients.len() > 2);
        for (name, expected) in expected.gradients {
            let at = specs.iter().position(|spec| spec.name == name).unwrap();
            near(&found.values[at], &expected, 1e-5);
        }
    }
}
