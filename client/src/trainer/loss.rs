//! Losses of single cases in closed form, in f64: value and derivative by each logit.

use tributary_shared::manifest::{Task, Training};
use tributary_shared::training::{ClassWeights, WeightRule};

use crate::data::Label;

/// A loss and its derivative by each logit.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// Its derivative by each logit.
    pub by_logit: Vec<f64>,
}

/// How the cases of a task are weighed against each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weighing {
    /// One factor a class; none weighs all alike.
    factors: Option<Vec<f64>>,
    /// Share of the target that is spread evenly over the classes.
    smoothing: f64,
}

impl Weighing {
    /// The weighing that `training` asks for at a site with these training labels. Factors are not
    /// divided by their sum over a batch: a case counts the same in whatever batch it stands.
    pub fn of<'a>(
        training: &Training,
        task: &Task,
        labels: impl Iterator<Item = &'a Label>,
    ) -> Self {
        let factors = match &training.class_weights {
            None => None,
            Some(ClassWeights::Declared(factors)) => Some(factors.clone()),
            Some(ClassWeights::Rule(WeightRule::Balanced)) => {
                let classes = task.classes().len();
                let mut counts = vec![0u64; classes];
                labels.filter_map(Label::first_class).for_each(|class| counts[class] += 1);
                let cases: u64 = counts.iter().sum();
                let factor = |count: u64| match count {
                    0 => 0.0,
                    count => cases as f64 / (classes as f64 * count as f64),
                };
                Some(counts.into_iter().map(factor).collect())
            }
        };
        Self { factors, smoothing: training.label_smoothing }
    }

    /// The factor of `class`.
    pub(super) fn factor(&self, class: usize) -> f64 {
        self.factors.as_ref().map_or(1.0, |factors| factors[class])
    }

    /// The loss of one case, without smoothing where the task has no labels to smooth:
    ///
    /// * binary and multi-label: binary cross-entropy with logits, its mean over the labels, each
    ///   times its own label's factor (multi-label);
    /// * multi-class: cross-entropy over a softmax;
    /// * ordinal: minus the log of the grade's probability, logit k being the log odds of going
    ///   beyond grade k once it is reached (Shi et al. 2021, arXiv:2111.08851).
    ///
    /// `None` when the label is no label of this task, or the task has no loss of single logits.
    pub fn case_loss(&self, task: &Task, logits: &[f32], label: &Label) -> Option<Loss> {
        let (mut loss, class) = match (task, label) {
            (Task::Binary { .. }, Label::Class(class @ (0 | 1))) => {
                (self.binary_cross_entropy(logits, &[*class == 1], false), *class)
            }
            (Task::MultiClass { .. }, Label::Class(class)) if *class < logits.len() => {
                (self.cross_entropy(logits, *class), *class)
            }
            (Task::Ordinal { .. }, Label::Class(grade)) if *grade <= logits.len() => {
                (continuation(logits, *grade), *grade)
            }
            (Task::MultiLabel { .. }, Label::Many(marks)) if marks.len() == logits.len() => {
                return Some(self.binary_cross_entropy(logits, marks, true));
            }
            _ => return None,
        };
        let factor = self.factor(class);
        loss.value *= factor;
        loss.by_logit.iter_mut().for_each(|d| *d *= factor);
        Some(loss)
    }

    /// ln(1 + e^-|x|) + max(x, 0) - x y, which neither overflows nor cancels.
    fn binary_cross_entropy(&self, logits: &[f32], marks: &[bool], factored: bool) -> Loss {
        let mut loss = Loss { value: 0.0, by_logit: Vec::with_capacity(logits.len()) };
        for (class, (logit, mark)) in logits.iter().zip(marks).enumerate() {
            let share = if factored { self.factor(class) } else { 1.0 } / logits.len() as f64;
            let target = f64::from(u8::from(*mark));
            let (x, y) =
                (f64::from(*logit), target.mul_add(1.0 - self.smoothing, self.smoothing / 2.0));
            loss.value += share * (softplus(x) - x * y);
            loss.by_logit.push(share * (sigmoid(x) - y));
        }
        loss
    }

    fn cross_entropy(&self, logits: &[f32], class: usize) -> Loss {
        let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        let (log_sum, mut by_logit) = log_sum_exp(&logits);
        let mean = logits.iter().sum::<f64>() / logits.len() as f64;
        let value = log_sum - (1.0 - self.smoothing) * logits[class] - self.smoothing * mean;
        let spread = self.smoothing / logits.len() as f64;
        by_logit.iter_mut().for_each(|d| *d -= spread);
        by_logit[class] -= 1.0 - self.smoothing;
        Loss { value, by_logit }
    }
}

/// The unweighed loss of one case; see [`Weighing::case_loss`].
pub fn case_loss(task: &Task, logits: &[f32], label: &Label) -> Option<Loss> {
    Weighing::default().case_loss(task, logits, label)
}

/// Minus the log of the probability of passing every grade below `grade` and not that one.
fn continuation(logits: &[f32], grade: usize) -> Loss {
    let mut loss = Loss { value: 0.0, by_logit: vec![0.0; logits.len()] };
    for (k, logit) in logits.iter().enumerate().take(grade + 1) {
        let (x, passed) = (f64::from(*logit), k < grade);
        loss.value += softplus(if passed { -x } else { x });
        loss.by_logit[k] = sigmoid(x) - f64::from(u8::from(passed));
    }
    loss
}

/// What the task's logits mean: one sigmoid each, a softmax, the grades' probabilities, or the
/// logarithm of the relative hazard as it is.
pub fn probabilities(task: &Task, logits: &[f32]) -> Vec<f32> {
    match task {
        Task::MultiClass { .. } | Task::Segmentation { .. } => {
            let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            log_sum_exp(&logits).1.into_iter().map(|p| p as f32).collect()
        }
        Task::Ordinal { .. } => {
            let mut reached = 1.0;
            let mut all = Vec::with_capacity(logits.len() + 1);
            for logit in logits {
                let passed = sigmoid(f64::from(*logit));
                all.push((reached * (1.0 - passed)) as f32);
                reached *= passed;
            }
            all.push(reached as f32);
            all
        }
        Task::Survival {} => logits.to_vec(),
        Task::Binary { .. }
        | Task::MultiLabel { .. }
        | Task::SelfSupervised { .. }
        | Task::Rehearsal { .. } => logits.iter().map(|x| sigmoid(f64::from(*x)) as f32).collect(),
    }
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x).
fn softplus(x: f64) -> f64 {
    (-x.abs()).exp().ln_1p() + x.max(0.0)
}

/// The logarithm of the sum of the exponentials, and its derivative: the softmax.
pub(super) fn log_sum_exp(logits: &[f64]) -> (f64, Vec<f64>) {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    (sum.ln() + largest, powers.into_iter().map(|p| p / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(count: usize) -> Vec<String> {
        (0..count).map(|c| format!("class {c}")).collect()
    }

    fn tasks() -> [(Task, Vec<Label>, usize); 4] {
        [
            (Task::Binary { classes: classes(2) }, vec![Label::Class(0), Label::Class(1)], 1),
            (Task::MultiClass { classes: classes(3) }, (0..3).map(Label::Class).collect(), 3),
            (Task::Ordinal { classes: classes(4) }, (0..4).map(Label::Class).collect(), 3),
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
                    Label::FollowUp { .. } | Label::Mask { .. } | Label::Unlabelled => {
                        unreachable!()
                    }
                };
                let found = case_loss(&task, logits, &label).unwrap().value;
                assert!((found - expected).abs() < 1e-6, "{label:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_derivative_is_the_slope() {
        for smoothing in [0.0, 0.2] {
            for (task, labels, outputs) in tasks() {
                let factors = Some(vec![0.5, 2.0, 1.5, 0.25]);
                let weighing = Weighing { factors, smoothing };
                let logits = [0.25f32, 0.0, -2.0];
                for label in labels {
                    let at = |k: usize, shift: f32| {
                        let mut moved = logits[..outputs].to_vec();
                        moved[k] += shift;
                        weighing.case_loss(&task, &moved, &label).unwrap().value
                    };
                    let loss = weighing.case_loss(&task, &logits[..outputs], &label).unwrap();
                    for (k, slope) in loss.by_logit.iter().enumerate() {
                        // A power of two: exact in f32.
                        let h = 1.0 / 1024.0;
                        let found = (at(k, h) - at(k, -h)) / (2.0 * f64::from(h));
                        assert!((slope - found).abs() < 1e-6, "{label:?} {k}: {slope} {found}");
                    }
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
        let [(binary, ..), (multi_class, ..), (ordinal, ..), (multi_label, ..)] = tasks();
        assert_eq!(case_loss(&binary, &[0.0], &Label::Class(2)), None);
        assert_eq!(case_loss(&binary, &[0.0], &Label::Unlabelled), None);
        assert_eq!(case_loss(&multi_class, &[0.0; 3], &Label::Class(3)), None);
        assert_eq!(case_loss(&ordinal, &[0.0; 3], &Label::Class(4)), None);
        assert_eq!(case_loss(&multi_label, &[0.0; 3], &Label::Many(vec![true])), None);
    }
}
