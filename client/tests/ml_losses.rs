//! Losses, their derivatives and their metrics against PyTorch and scikit-learn
//! (`tests/python/loss_fixtures.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

use serde::Deserialize;
use tributary_client::data::Label;
use tributary_client::metrics::{
    Overlap, concordance, mean_grade_error, median_grade, quadratic_kappa,
};
use tributary_client::trainer::{FollowUp, Loss, Stretch, Weighing, cox_loss, segmentation_loss};
use tributary_shared::manifest::{Task, Training};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    survival: Vec<Survival>,
    segmentation: Vec<Segmentation>,
    grades: Grades,
}

#[derive(Deserialize)]
struct Slope {
    logits: Vec<f32>,
    value: f64,
    by_logit: Vec<f64>,
}

impl Slope {
    fn compare(&self, found: &Loss) {
        assert!((found.value - self.value).abs() < 1e-9, "{} {}", found.value, self.value);
        assert_eq!(found.by_logit.len(), self.by_logit.len());
        for (found, expected) in found.by_logit.iter().zip(&self.by_logit) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }
}

#[derive(Deserialize)]
struct Case {
    task: String,
    label: usize,
    smoothing: f64,
    weights: Vec<f64>,
    #[serde(flatten)]
    slope: Slope,
}

#[derive(Deserialize)]
struct Survival {
    time: Vec<f64>,
    event: Vec<u8>,
    concordance: f64,
    #[serde(flatten)]
    slope: Slope,
}

#[derive(Deserialize)]
struct Segmentation {
    classes: usize,
    patches: usize,
    cells: usize,
    side: usize,
    mask: Vec<u8>,
    weights: Vec<f64>,
    #[serde(flatten)]
    slope: Slope,
}

#[derive(Deserialize)]
struct Grades {
    truth: Vec<usize>,
    said: Vec<usize>,
    kappa: f64,
    error: f64,
    dice: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("fixtures/loss/losses.json")).unwrap()
}

fn task(kind: &str, classes: usize) -> Task {
    let classes: Vec<String> = (0..classes).map(|c| format!("{c}")).collect();
    serde_json::from_value(serde_json::json!({ "kind": kind, "classes": classes })).unwrap()
}

fn training(weights: &[f64], smoothing: f64) -> Training {
    serde_json::from_value(serde_json::json!({
        "epochs": 1, "batch_size": 1, "learning_rate": 1.0, "holdout": 0.0, "seed": 1,
        "class_weights": weights, "label_smoothing": smoothing,
    }))
    .unwrap()
}

#[test]
fn case_losses_are_pytorchs() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 14);
    for case in golden.cases {
        let task = task(&case.task, case.weights.len());
        let training = training(&case.weights, case.smoothing);
        let weighing = Weighing::of(&training, &task, std::iter::empty());
        let label = Label::Class(case.label);
        case.slope.compare(&weighing.case_loss(&task, &case.slope.logits, &label).unwrap());
    }
}

#[test]
fn balanced_weights_are_those_of_scikit_learn() {
    // compute_class_weight("balanced"): n / (classes * n_class).
    let task = task("multi_class", 3);
    let mut training = training(&[], 0.0);
    training.class_weights = serde_json::from_value("balanced".into()).unwrap();
    let labels = [0, 0, 0, 1, 0, 2, 0, 1].map(Label::Class);
    let weighing = Weighing::of(&training, &task, labels.iter());
    let plain = Weighing::default();
    for (class, factor) in [(0, 8.0 / 15.0), (1, 8.0 / 6.0), (2, 8.0 / 3.0)] {
        let of = |w: &Weighing| w.case_loss(&task, &[0.1, 0.2, 0.3], &Label::Class(class)).unwrap();
        assert!((of(&weighing).value / of(&plain).value - factor).abs() < 1e-12);
    }
}

#[test]
fn the_partial_likelihood_is_pytorchs_and_the_concordance_its_definition() {
    for case in golden().survival {
        let followed: Vec<FollowUp> = case
            .time
            .iter()
            .zip(&case.event)
            .map(|(time, event)| FollowUp { time: *time, event: *event == 1 })
            .collect();
        case.slope.compare(&cox_loss(&case.slope.logits, &followed));
        let events: Vec<bool> = case.event.iter().map(|event| *event == 1).collect();
        let found = concordance(&case.slope.logits, &case.time, &events).unwrap();
        assert!((found - case.concordance).abs() < 1e-12, "{found} {}", case.concordance);
    }
    assert_eq!(concordance(&[1.0, 2.0], &[1.0, 2.0], &[false, false]), None);
    assert_eq!(concordance(&[2.0, 1.0], &[1.0, 2.0], &[true, false]), Some(1.0));
    assert_eq!(concordance(&[1.0, 1.0], &[1.0, 2.0], &[true, false]), Some(0.5));
    assert_eq!(concordance(&[f32::NAN, 1.0], &[1.0, 2.0], &[true, false]), None);
}

#[test]
fn dice_and_cross_entropy_on_the_masks_grid_are_pytorchs() {
    for case in golden().segmentation {
        let Segmentation { classes, patches, cells, side, .. } = case;
        let stretch = Stretch { classes, patches, cells, side };
        let training = training(&case.weights, 0.0);
        let weighing = Weighing::of(&training, &task("multi_class", classes), std::iter::empty());
        let found = segmentation_loss(&stretch, &weighing, &case.slope.logits, &case.mask);
        case.slope.compare(&found);
    }
}

#[test]
fn agreement_is_scikit_learns() {
    let Grades { truth, said, kappa, error, dice } = golden().grades;
    let pairs: Vec<(usize, usize)> = truth.iter().copied().zip(said.iter().copied()).collect();
    assert!((quadratic_kappa(&pairs, 5).unwrap() - kappa).abs() < 1e-12);
    assert!((mean_grade_error(&pairs).unwrap() - error).abs() < 1e-12);
    // As pixels: the Dice coefficient of a class is its F1.
    let bytes = |grades: &[usize]| grades.iter().map(|g| *g as u8).collect::<Vec<_>>();
    let mut overlap = Overlap::new(6);
    let (truth, said) = (bytes(&truth), bytes(&said));
    overlap.add(&truth[..50], &said[..50]);
    overlap.add(&truth[50..], &said[50..]);
    overlap.add(&[255], &[0]);
    let found = overlap.dice();
    for (found, expected) in found.iter().zip(&dice) {
        assert!((found.unwrap() - expected).abs() < 1e-12);
    }
    assert_eq!(found[5], None, "a class that is nowhere");
    let mean = dice[1..].iter().sum::<f64>() / 4.0;
    assert!((overlap.mean_dice().unwrap() - mean).abs() < 1e-12);
    assert_eq!(quadratic_kappa(&[(1, 1), (1, 1)], 3), None, "no chance to compare with");
    assert_eq!(mean_grade_error(&[]), None);
    assert_eq!(median_grade(&[0.4, 0.2, 0.4]), 1);
}
