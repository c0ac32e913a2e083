//! AUROC and balanced accuracy against closed forms and scikit-learn.

use proptest::prelude::*;
use serde_json::Value;
use tributary_client::data::Label;
use tributary_client::metrics::{auroc, balanced_accuracy, macro_auroc};

#[test]
fn auroc_of_every_order_of_four_is_the_share_of_ordered_pairs() {
    assert_eq!(auroc(&[0.1, 0.2, 0.3, 0.4], &[false, false, true, true]), Some(1.0));
    assert_eq!(auroc(&[0.4, 0.3, 0.2, 0.1], &[false, false, true, true]), Some(0.0));
    assert_eq!(auroc(&[0.1, 0.3, 0.2, 0.4], &[false, false, true, true]), Some(0.75));
    assert_eq!(auroc(&[0.5; 4], &[false, true, false, true]), Some(0.5));
    // One win, one tie, of two pairs.
    assert_eq!(auroc(&[0.2, 0.5, 0.5], &[false, true, false]), Some(0.75));
    // Signed zeros are one score.
    assert_eq!(auroc(&[-0.0, 0.0], &[true, false]), Some(0.5));
}

#[test]
fn without_both_classes_or_with_nan_there_is_no_curve() {
    assert_eq!(auroc(&[], &[]), None);
    assert_eq!(auroc(&[0.1, 0.9], &[true, true]), None);
    assert_eq!(auroc(&[0.1, 0.9], &[false, false]), None);
    assert_eq!(auroc(&[0.1, f32::NAN], &[false, true]), None);
    assert_eq!(macro_auroc(&[], &[]), None);
    assert_eq!(balanced_accuracy(&[], &[]), None);
    assert_eq!(balanced_accuracy(&[vec![0.3]], &[Label::Unlabelled]), None);
}

#[test]
fn an_absent_class_is_left_out_of_the_mean() {
    let rows = [vec![0.8, 0.1, 0.1], vec![0.3, 0.6, 0.1]];
    let labels = [Label::Class(0), Label::Class(1)];
    assert_eq!(macro_auroc(&rows, &labels), Some(1.0));
    assert_eq!(balanced_accuracy(&rows, &labels), Some(1.0));
}

#[test]
fn agrees_with_scikit_learn() {
    let golden: Value =
        serde_json::from_str(include_str!("fixtures/data/metrics.json")).expect("golden JSON");
    let cases = golden["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 7);
    for case in cases {
        let rows: Vec<Vec<f32>> =
            serde_json::from_value(case["probabilities"].clone()).expect("rows");
        let labels: Vec<Label> =
            case["labels"].as_array().expect("labels").iter().map(label).collect();
        let close = |ours: Option<f64>, theirs: &Value| {
            let (ours, theirs) = (ours.expect("a number"), theirs.as_f64().expect("a number"));
            assert!((ours - theirs).abs() < 1e-12, "{}: {ours} {theirs}", case["kind"]);
        };
        close(macro_auroc(&rows, &labels), &case["macro_auroc"]);
        close(balanced_accuracy(&rows, &labels), &case["balanced_accuracy"]);
    }
}

fn label(value: &Value) -> Label {
    match value.as_array() {
        Some(marks) => Label::Many(marks.iter().map(|mark| mark == 1).collect()),
        None => Label::Class(value.as_u64().expect("a class") as usize),
    }
}

proptest! {
    #[test]
    fn auroc_is_the_share_of_pairs_won(
        cases in prop::collection::vec((0u8..8, any::<bool>()), 2..60),
    ) {
        let scores: Vec<f32> = cases.iter().map(|(score, _)| f32::from(*score) / 8.0).collect();
        let positive: Vec<bool> = cases.iter().map(|(_, positive)| *positive).collect();
        let (mut twice_won, mut pairs) = (0u32, 0u32);
        for (a, a_positive) in &cases {
            for (b, b_positive) in &cases {
                if *a_positive && !b_positive {
                    pairs += 1;
                    twice_won += if a > b { 2 } else { u32::from(a == b) };
                }
            }
        }
        let expected = (pairs > 0).then(|| f64::from(twice_won) / (2.0 * f64::from(pairs)));
        prop_assert_eq!(auroc(&scores, &positive), expected);
        let turned: Vec<f32> = scores.iter().map(|score| 1.0 - score).collect();
        let opposite = auroc(&turned, &positive);
        prop_assert_eq!(opposite.is_none(), expected.is_none());
        if let (Some(one), Some(other)) = (opposite, expected) {
            prop_assert!((one + other - 1.0).abs() < 1e-12);
        }
    }
}
