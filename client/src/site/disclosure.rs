//! Statistical disclosure control of the numbers that leave a site beside the declared tensors and the
//! declared number of cases: none is computed from few cases, and counts are rounded down.

use tributary_shared::terms::SiteMetrics;

use super::activity::{Activity, Phase};

/// Counts are rounded down to multiples of it.
const COUNT_STEP: u64 = 10;
/// Parts in which the progress of an evaluation is sent.
const PARTS: u64 = 100;

/// The metrics of a round as they leave: nothing of fewer held-out cases than `least`, their number rounded down, and
/// their scores to three decimals: a score is often a fraction of that number.
pub(super) fn metrics(metrics: SiteMetrics, least: u64) -> SiteMetrics {
    let held = metrics.holdout_cases;
    if held < least.max(1) {
        let SiteMetrics { steps, train_loss, train_s, .. } = metrics;
        return SiteMetrics { steps, train_loss, train_s, ..SiteMetrics::default() };
    }
    SiteMetrics {
        holdout_cases: count(held).max(least).max(1),
        holdout_auroc: metrics.holdout_auroc.map(score),
        holdout_kappa: metrics.holdout_kappa.map(score),
        holdout_grade_error: metrics.holdout_grade_error.map(score),
        holdout_concordance: metrics.holdout_concordance.map(score),
        holdout_dice: metrics.holdout_dice.map(score),
        ..metrics
    }
}

fn score(score: f64) -> f64 {
    (score * 1_000.0).round() / 1_000.0
}

/// A number of cases that was not declared, as it is sent: rounded down.
pub(super) fn count(cases: u64) -> u64 {
    cases - cases % COUNT_STEP
}

/// Steps done and to do, as heartbeats tell them. The steps of a training follow from the declared
/// cases; those of an evaluation would tell how many cases are held out.
pub(super) fn progress(activity: &Activity) -> (u64, u64) {
    match activity.phase {
        Phase::Evaluating if activity.steps > 0 => {
            (activity.step.saturating_mul(PARTS) / activity.steps, PARTS)
        }
        Phase::Evaluating => (0, 0),
        Phase::Connecting
        | Phase::Suspended
        | Phase::Waiting
        | Phase::Preparing
        | Phase::Fetching
        | Phase::Features
        | Phase::Training
        | Phase::Writing
        | Phase::Uploading
        | Phase::Submitting => (activity.step, activity.steps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(holdout_cases: u64) -> SiteMetrics {
        SiteMetrics {
            steps: 7,
            train_loss: Some(0.5),
            holdout_cases,
            holdout_loss: Some(0.7),
            holdout_auroc: Some(0.8),
            holdout_kappa: Some(0.1),
            holdout_grade_error: Some(0.2),
            holdout_concordance: Some(0.3),
            holdout_dice: Some(0.4),
            train_s: 3.0,
        }
    }

    /// A5, A14. Failed before: the loss of a single held-out case was told, and its exact count.
    #[test]
    fn nothing_is_told_of_few_held_out_cases_and_counts_are_rough() {
        for (held, least, told) in [(9, 10, 0), (0, 0, 0), (1, 1, 1), (14, 12, 12), (17, 10, 10)] {
            let left = metrics(measured(held), least);
            assert_eq!(left.holdout_cases, told, "{held} of {least}");
            let all = [
                left.holdout_loss,
                left.holdout_auroc,
                left.holdout_kappa,
                left.holdout_grade_error,
                left.holdout_concordance,
                left.holdout_dice,
            ];
            assert!(all.iter().all(|number| number.is_some() == (told > 0)), "{held}: {left:?}");
            assert_eq!((left.steps, left.train_loss, left.train_s), (7, Some(0.5), 3.0));
        }
    }

    /// Failed before: 14/17 was told to the last bit, and with it that 17 or 34 cases are held out.
    #[test]
    fn scores_are_told_to_three_decimals() {
        let exact = SiteMetrics {
            holdout_grade_error: Some(14.0 / 17.0),
            holdout_auroc: Some(2.0 / 3.0),
            ..measured(17)
        };
        let left = metrics(exact, 10);
        assert_eq!((left.holdout_grade_error, left.holdout_auroc), (Some(0.824), Some(0.667)));
    }

    #[test]
    fn the_length_of_an_evaluation_is_not_told() {
        let at =
            |phase, step, steps| progress(&Activity { phase, step, steps, ..Default::default() });
        assert_eq!(at(Phase::Evaluating, 3, 7), (42, 100));
        assert_eq!(at(Phase::Evaluating, 7, 7), (100, 100));
        assert_eq!(at(Phase::Evaluating, 0, 0), (0, 0));
        assert_eq!(at(Phase::Training, 3, 7), (3, 7));
    }
}
