//! How well risks order the times of events.

/// Harrell's concordance index (Harrell et al. 1982): of all pairs in which one had the event
/// while the other was still followed, or was followed as long without it, the share in which the
/// first had the higher risk; equal risks count half. `None` without a pair or with a risk that is
/// no number.
///
/// # Panics
/// When the slices differ in length.
pub fn concordance(risks: &[f32], times: &[f64], events: &[bool]) -> Option<f64> {
    assert!(risks.len() == times.len() && times.len() == events.len(), "one of each a case");
    if risks.iter().any(|risk| risk.is_nan()) {
        return None;
    }
    let mut ranks: Vec<f32> = risks.to_vec();
    ranks.sort_by(f32::total_cmp);
    ranks.dedup_by(|a, b| a == b);
    let rank = |case: usize| ranks.partition_point(|risk| *risk < risks[case]);
    // From the last time to the first; the counts hold everybody who outlasted the case at hand.
    let mut order: Vec<usize> = (0..risks.len()).collect();
    order.sort_by(|a, b| times[*b].total_cmp(&times[*a]));
    let mut outlasted = Counts(vec![0; ranks.len() + 1]);
    let (mut twice_won, mut pairs) = (0u128, 0u128);
    let mut start = 0;
    while start < order.len() {
        let time = times[order[start]];
        let tied = order[start..].iter().take_while(|case| times[**case] == time).count();
        let group = &order[start..start + tied];
        group.iter().filter(|case| !events[**case]).for_each(|case| outlasted.add(rank(*case)));
        for case in group.iter().filter(|case| events[**case]) {
            let (below, up_to) = (outlasted.below(rank(*case)), outlasted.below(rank(*case) + 1));
            twice_won += u128::from(below + up_to);
            pairs += u128::from(outlasted.below(ranks.len()));
        }
        group.iter().filter(|case| events[**case]).for_each(|case| outlasted.add(rank(*case)));
        start += tied;
    }
    (pairs > 0).then(|| twice_won as f64 / (2 * pairs) as f64)
}

/// Counts by rank with sums in logarithmic time (Fenwick 1994).
struct Counts(Vec<u64>);

impl Counts {
    fn add(&mut self, rank: usize) {
        let mut at = rank + 1;
        while at < self.0.len() {
            self.0[at] += 1;
            at += at & at.wrapping_neg();
        }
    }

    /// How many have a rank below `rank`.
    fn below(&self, rank: usize) -> u64 {
        let (mut at, mut sum) = (rank, 0);
        while at > 0 {
            sum += self.0[at];
            at &= at - 1;
        }
        sum
    }
}
