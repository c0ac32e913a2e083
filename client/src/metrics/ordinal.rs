//! How far predicted grades lie from the true ones.

/// Quadratic weighted kappa (Cohen 1968) of pairs `(true grade, predicted grade)` below `grades`.
/// `None` without a pair, or when all lie in one grade: then there is no chance to compare with.
///
/// # Panics
/// When a grade is not below `grades`.
pub fn quadratic_kappa(pairs: &[(usize, usize)], grades: usize) -> Option<f64> {
    let (mut of_truth, mut of_said) = (vec![0u64; grades], vec![0u64; grades]);
    let mut seen = 0.0;
    let square = |a: usize, b: usize| (a as f64 - b as f64).powi(2);
    for (truth, said) in pairs {
        of_truth[*truth] += 1;
        of_said[*said] += 1;
        seen += square(*truth, *said);
    }
    let mut by_chance = 0.0;
    for (truth, a) in of_truth.iter().enumerate() {
        for (said, b) in of_said.iter().enumerate() {
            by_chance += square(truth, said) * *a as f64 * *b as f64;
        }
    }
    (by_chance > 0.0).then(|| 1.0 - seen * pairs.len() as f64 / by_chance)
}

/// The mean distance of `(true grade, predicted grade)`, in grades; `None` without a pair.
pub fn mean_grade_error(pairs: &[(usize, usize)]) -> Option<f64> {
    let sum: usize = pairs.iter().map(|(truth, said)| truth.abs_diff(*said)).sum();
    (!pairs.is_empty()).then(|| sum as f64 / pairs.len() as f64)
}

/// The middle grade of a row of probabilities: the first at which half of it is reached.
pub fn median_grade(probabilities: &[f32]) -> usize {
    let mut reached = 0.0;
    for (grade, probability) in probabilities.iter().enumerate() {
        reached += f64::from(*probability);
        if reached >= 0.5 {
            return grade;
        }
    }
    probabilities.len().saturating_sub(1)
}
