//! Losses in closed form, in f64: value and derivative by each logit.

use tributary_shared::manifest::Task;

use crate::data::Label;

/// A case's loss and its derivative by each logit.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// Its derivative by each logit.
    pub by_logit: Vec<f64>,
}

/// The loss of one case: binary cross-entropy with logits (its mean over the classes when there
/// are several labels), cross-entropy over a softmax when classes exclude each other. `None`
/// when the label is no label of this task.
pub fn case_loss(task: &Task, logits: &[f32], label: &Label) -> Option<Loss> {
    match (task, label) {
        (Task::Binary { .. }, Label::Class(class @ (0 | 1))) => {
            Some(binary_cross_entropy(logits, &[*class == 1]))
        }
        (Task::MultiClass { .. }, Label::Class(class)) if *class < logits.len() => {
            Some(cross_entropy(logits, *class))
        }
        (Task::MultiLabel { .. }, Label::Many(marks)) if marks.len() == logits.len() => {
            Some(binary_cross_entropy(logits, marks))
        }
        _ => None,
    }
}

/// ln(1 + e^-|x|) + max(x, 0) - x y, which neither overflows nor cancels.
fn binary_cross_entropy(logits: &[f32], marks: &[bool]) -> Loss {
    let share = 1.0 / logits.len() as f64;
    let mut loss = Loss { value: 0.0, by_logit: Vec::with_capacity(logits.len()) };
    for (logit, mark) in logits.iter().zip(marks) {
        let (x, y) = (f64::from(*logit), f64::from(u8::from(*mark)));
        loss.value += share * ((-x.abs()).exp().ln_1p() + x.max(0.0) - x * y);
        loss.by_logit.push(share * (sigmoid(x) - y));
    }
    loss
}

fn cross_entropy(logits: &[f32], class: usize) -> Loss {
    let mut by_logit = softmax(logits);
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - f64::from(largest)).exp()).sum();
    let value = sum.ln() + f64::from(largest) - f64::from(logits[class]);
    by_logit[class] -= 1.0;
    Loss { value, by_logit }
}

/// What the task's logits mean: one sigmoid each, or a softmax.
pub fn probabilities(task: &Task, logits: &[f32]) -> Vec<f32> {
    match task {
        Task::MultiClass { .. } => softmax(logits).into_iter().map(|p| p as f32).collect(),
        Task::Binary { .. } | Task::MultiLabel { .. } | Task::Rehearsal { .. } => {
            logits.iter().map(|x| sigmoid(f64::from(*x)) as f32).collect()
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> =
        logits.iter().map(|x| (f64::from(*x) - f64::from(largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(count: usize) -> Vec<String> {
        (0..count).map(|c| format!("class {c}")).collect()
    }

    fn tasks() -> [(Task, Vec<Label>, usize); 3] {
        [
            (Task::Binary { classes: classes(2) }, vec![Label::Class(0), Label::Class(1)], 1),
            (Task::MultiClass { classes: classes(3) }, (0..3).map(Label::Class).collect(), 3),
            (
                Task::MultiLabel { classes: classes(3) },
                vec![Label::Many(vec![true, false, true]), Label::Many(vec![false; 3])],
                3,
            ),
        ]
    }

    #[test]
    fn the_loss_is_minus_the_log_of_the_probability() {
        for (task, labels, outputs) in tasks() {
            let logits = &[0.3f32, -1.2, 2.0][..outputs];
            let p = probabilities(&task, logits);
            for label in labels {
                let expected = match &label {
                    Label::Class(class) if outputs == 1 => {
                        -f64::from(if *class == 1 { p[0] } else { 1.0 - p[0] }).ln()
                    }
                    Label::Class(class) => -f64::from(p[*class]).ln(),
                    Label::Many(marks) => {
                        let one = |(p, mark): (&f32, &bool)| {
                            -f64::from(if *mark { *p } else { 1.0 - p }).ln()
                        };
                        p.iter().zip(marks).map(one).sum::<f64>() / outputs as f64
                    }
                    Label::Unlabelled => unreachable!(),
                };
                let found = case_loss(&task, logits, &label).unwrap().value;
                assert!((found - expected).abs() < 1e-6, "{label:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_derivative_is_the_slope() {
        for (task, labels, outputs) in tasks() {
            let logits = [0.25f32, 0.0, -2.0];
            for label in labels {
                let at = |k: usize, shift: f32| {
                    let mut moved = logits[..outputs].to_vec();
                    moved[k] += shift;
                    case_loss(&task, &moved, &label).unwrap().value
                };
                let by_logit = case_loss(&task, &logits[..outputs], &label).unwrap().by_logit;
                for (k, slope) in by_logit.iter().enumerate() {
                    // A power of two: exact in f32.
                    let h = 1.0 / 1024.0;
                    let found = (at(k, h) - at(k, -h)) / (2.0 * f64::from(h));
                    assert!((slope - found).abs() < 1e-6, "{label:?} {k}: {slope} {found}");
                }
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for (task, labels, outputs) in tasks() {
            for extreme in [1e30f32, -1e30] {
                let logits = vec![extreme; outputs];
                for label in &labels {
                    let loss = case_loss(&task, &logits, label).unwrap();
                    assert!(loss.value.is_finite(), "{label:?} {extreme}");
                    assert!(loss.by_logit.iter().all(|d| d.is_finite()));
                }
            }
        }
    }

    #[test]
    fn a_label_of_another_task_has_no_loss() {
        let [(binary, ..), (multi_class, ..), (multi_label, ..)] = tasks();
        assert_eq!(case_loss(&binary, &[0.0], &Label::Class(2)), None);
        assert_eq!(case_loss(&binary, &[0.0], &Label::Unlabelled), None);
        assert_eq!(case_loss(&multi_class, &[0.0; 3], &Label::Class(3)), None);
        assert_eq!(case_loss(&multi_label, &[0.0; 3], &Label::Many(vec![true])), None);
    }
}
