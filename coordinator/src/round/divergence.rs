//! Signs that training has diverged, from the numbers that sites report: a run may publish every
//! round it was asked for and still have wrecked its adapter.

use tributary_shared::refusal::Refusal;
use tributary_shared::terms::SiteMetrics;
use tributary_shared::training::DIVERGED;

use super::seat::Seat;
use super::{PastRound, Run};

/// A loss is far above another when it is above this many times it and this much more.
const FAR_TIMES: f64 = 2.0;
const FAR_MORE: f64 = 0.1;

/// Hint that mends a run whose losses look wrong.
const MEND: &str = "training may have diverged: lower training.learning_rate";

/// The numbers of one closed round.
struct Numbers {
    round: u32,
    /// Version of the adapter that the round began with.
    base: u32,
    /// Held-out loss of that adapter, mean over held-out cases.
    holdout: Option<f64>,
    /// Training loss of the round, mean over training cases.
    train: Option<f64>,
}

/// Warnings about the run's losses, one sentence each. They are about the newest round that has the
/// numbers, so that a run that recovers is no longer warned of.
pub fn warnings(run: &Run) -> Vec<String> {
    let numbers: Vec<Numbers> = numbers(run).collect();
    let unfinished = run.past().iter().next_back();
    held_out(&numbers)
        .into_iter()
        .chain(trained(&numbers))
        .chain(unfinished.and_then(|(round, past)| not_finite(*round, past)))
        .collect()
}

/// Closed rounds by number, each with the version of its base.
pub fn base_versions(run: &Run) -> impl Iterator<Item = (u32, u32, &PastRound)> {
    let mut published = 0;
    run.past().iter().map(move |(round, past)| {
        let base = published;
        published += u32::from(past.published.is_some());
        (*round, base, past)
    })
}

fn numbers(run: &Run) -> impl Iterator<Item = Numbers> {
    base_versions(run).map(|(round, base, past)| Numbers {
        round,
        base,
        holdout: mean(past, |m| m.holdout_loss, |m, _| m.holdout_cases),
        train: mean(past, |m| m.train_loss, |_, cases| cases),
    })
}

fn mean(
    past: &PastRound,
    value: impl Fn(&SiteMetrics) -> Option<f64>,
    weight: impl Fn(&SiteMetrics, u64) -> u64,
) -> Option<f64> {
    let (mut sum, mut whole) = (0.0, 0.0);
    for seat in past.seats.values() {
        let Seat::Accepted(accepted) = seat else { continue };
        if let Some(value) = value(&accepted.metrics).filter(|v| v.is_finite()) {
            let cases = weight(&accepted.metrics, accepted.cases) as f64;
            sum += value * cases;
            whole += cases;
        }
    }
    (whole > 0.0).then(|| sum / whole)
}

fn far_above(loss: f64, reference: f64) -> bool {
    loss > (FAR_TIMES * reference).max(reference) + FAR_MORE
}

/// The newest evaluated adapter against the best before it.
fn held_out(numbers: &[Numbers]) -> Option<String> {
    let mut evaluated = numbers.iter().filter_map(|n| Some((n.base, n.holdout?)));
    let (base, loss) = evaluated.next_back()?;
    let (best_base, best) =
        evaluated.filter(|(earlier, _)| *earlier < base).min_by(|a, b| a.1.total_cmp(&b.1))?;
    far_above(loss, best).then(|| {
        format!(
            "held-out loss of adapter v{base} is {loss:.4}, that of v{best_base} was {best:.4}; {MEND}"
        )
    })
}

/// The newest round's training loss against the held-out loss of what it began with, and against
/// the training losses before it.
fn trained(numbers: &[Numbers]) -> Option<String> {
    let mut trained = numbers.iter().filter_map(|n| Some((n, n.train?)));
    let (newest, loss) = trained.next_back()?;
    if let Some(before) = newest.holdout.filter(|before| far_above(loss, *before)) {
        let Numbers { round, base, .. } = newest;
        return Some(format!(
            "mean training loss of round {round} is {loss:.4}, the held-out loss of its base v{base} \
             was {before:.4}; {MEND}"
        ));
    }
    let (best_round, best) =
        trained.map(|(n, loss)| (n.round, loss)).min_by(|a, b| a.1.total_cmp(&b.1))?;
    far_above(loss, best).then(|| {
        format!(
            "mean training loss of round {} is {loss:.4}, that of round {best_round} was {best:.4}; \
             {MEND}",
            newest.round
        )
    })
}

/// The sites whose loss or gradient left the finite numbers in a round.
fn not_finite(round: u32, past: &PastRound) -> Option<String> {
    let diverged = |seat: &Seat| {
        matches!(seat, Seat::Declined { reason: Refusal::SiteFailed { reason, .. }, .. }
            if reason.contains(DIVERGED))
    };
    let sites: Vec<&str> = past
        .seats
        .iter()
        .filter(|(_, seat)| diverged(seat))
        .map(|(site, _)| site.as_str())
        .collect();
    (!sites.is_empty()).then(|| {
        format!("training left the finite numbers in round {round} at {}; {MEND}", sites.join(", "))
    })
}
