//! How good predictions are. Pure; classes as the task orders them.

mod ordinal;
mod pointing;
mod segmentation;
mod survival;

pub use ordinal::{mean_grade_error, median_grade, quadratic_kappa};
pub use pointing::Pointing;
pub use segmentation::Overlap;
pub use survival::concordance;

use crate::data::Label;

/// Area under the ROC curve of `scores` (higher means positive), ties counted half: the
/// Mann-Whitney statistic over ranks. `None` when one of the two classes is absent or a score is
/// not a number: then there is no curve.
///
/// # Panics
/// When the slices differ in length.
pub fn auroc(scores: &[f32], positive: &[bool]) -> Option<f64> {
    assert_eq!(scores.len(), positive.len(), "one score a case");
    let positives = positive.iter().filter(|p| **p).count();
    let negatives = positive.len() - positives;
    if positives == 0 || negatives == 0 || scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    // Twice the rank sum of the positives, in integers: ties share the mean rank.
    let mut twice_rank_sum = 0u128;
    let mut start = 0;
    while start < order.len() {
        let score = scores[order[start]];
        let tied = order[start..].iter().take_while(|i| scores[**i] == score).count();
        let tied_positives = order[start..start + tied].iter().filter(|i| positive[**i]).count();
        twice_rank_sum += tied_positives as u128 * (2 * start + tied + 1) as u128;
        start += tied;
    }
    let smallest = positives as u128 * (positives as u128 + 1);
    let twice_wins = twice_rank_sum - smallest;
    Some(twice_wins as f64 / (2.0 * positives as f64 * negatives as f64))
}

/// The mean over classes of each class against the rest. A single probability column is a binary
/// task's: the probability of class 1. Classes that are always or never present are left out;
/// `None` when none is left.
///
/// # Panics
/// When the slices differ in length or a row has fewer columns than the labels ask for.
pub fn macro_auroc(probabilities: &[Vec<f32>], labels: &[Label]) -> Option<f64> {
    assert_eq!(probabilities.len(), labels.len(), "one row of probabilities a case");
    let columns = probabilities.first()?.len();
    let of_column = |column: usize| {
        let scores: Vec<f32> = probabilities.iter().map(|row| row[column]).collect();
        let positive: Vec<bool> =
            labels.iter().map(|label| is_positive(label, column, columns)).collect();
        auroc(&scores, &positive)
    };
    mean((0..columns).filter_map(of_column))
}

fn is_positive(label: &Label, column: usize, columns: usize) -> bool {
    match label {
        Label::Class(class) if columns == 1 => *class == 1,
        Label::Class(class) => *class == column,
        Label::Many(marks) => marks[column],
        Label::FollowUp { .. } | Label::Mask { .. } | Label::Unlabelled => false,
    }
}

/// The mean recall of the classes that occur: the most probable class, or a probability of at
/// least 0.5 in a single column. With several labels a case, the mean over the labels of
/// (sensitivity + specificity) / 2. `None` without a labelled case.
///
/// # Panics
/// When the slices differ in length or a row has fewer columns than the labels ask for.
pub fn balanced_accuracy(probabilities: &[Vec<f32>], labels: &[Label]) -> Option<f64> {
    assert_eq!(probabilities.len(), labels.len(), "one row of probabilities a case");
    let columns = probabilities.first()?.len();
    if labels.iter().any(|label| matches!(label, Label::Many(_))) {
        let of_column = |column: usize| {
            let outcomes = probabilities.iter().zip(labels).filter_map(|(row, label)| {
                let Label::Many(marks) = label else { return None };
                Some((usize::from(marks[column]), row[column] >= 0.5))
            });
            mean_recall(outcomes.map(|(truth, said)| (truth, usize::from(said))), 2)
        };
        return mean((0..columns).filter_map(of_column));
    }
    let outcomes = probabilities.iter().zip(labels).filter_map(|(row, label)| {
        let Label::Class(class) = label else { return None };
        Some((*class, predicted(row)))
    });
    mean_recall(outcomes, columns.max(2))
}

/// The class that a row of probabilities says: the first of the largest.
fn predicted(row: &[f32]) -> usize {
    match row {
        [positive] => usize::from(*positive >= 0.5),
        row => {
            let mut best = 0;
            for (class, probability) in row.iter().enumerate() {
                if *probability > row[best] {
                    best = class;
                }
            }
            best
        }
    }
}

fn mean_recall(outcomes: impl Iterator<Item = (usize, usize)>, classes: usize) -> Option<f64> {
    let mut right_of = vec![(0u64, 0u64); classes];
    for (truth, said) in outcomes {
        right_of[truth].0 += u64::from(truth == said);
        right_of[truth].1 += 1;
    }
    let occurring = right_of.iter().filter(|(_, cases)| *cases > 0);
    mean(occurring.map(|(right, cases)| *right as f64 / *cases as f64))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
