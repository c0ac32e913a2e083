//! The Cox partial likelihood (Cox 1972), ties after Breslow (1974).

use super::loss::Loss;

/// How long one case was followed, and whether the event was seen then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FollowUp {
    /// Until the event or the last look.
    pub time: f64,
    /// Whether the event was seen.
    pub event: bool,
}

/// Minus the mean over events of ln(e^x_i / sum of e^x_j over all j still followed at i's time),
/// where x is the log of the relative hazard, and its derivative by each x. Cases at risk are those
/// of the same set: a batch while training, all held-out cases in an evaluation. Without an event
/// there is nothing to learn: zero.
///
/// # Panics
/// When the slices differ in length.
pub fn cox_loss(log_hazards: &[f32], cases: &[FollowUp]) -> Loss {
    assert_eq!(log_hazards.len(), cases.len(), "one hazard a case");
    let mut loss = Loss { value: 0.0, by_logit: vec![0.0; cases.len()] };
    let events = cases.iter().filter(|case| case.event).count();
    if events == 0 {
        return loss;
    }
    let share = 1.0 / events as f64;
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by(|a, b| cases[*b].time.total_cmp(&cases[*a].time));
    let x = |case: usize| f64::from(log_hazards[case]);
    // From the last time to the first the set at risk only grows; in logarithms, for hazards have
    // no bounds.
    let mut at_risk = f64::NEG_INFINITY;
    let mut groups = Vec::new();
    let mut start = 0;
    while start < order.len() {
        let time = cases[order[start]].time;
        let tied = order[start..].iter().take_while(|case| cases[**case].time == time).count();
        let group = &order[start..start + tied];
        at_risk = group.iter().fold(at_risk, |sum, case| log_add(sum, x(*case)));
        let mut count = 0.0f64;
        for case in group.iter().filter(|case| cases[**case].event) {
            loss.value += share * (at_risk - x(*case));
            loss.by_logit[*case] -= share;
            count += 1.0;
        }
        groups.push((group, count.ln() - at_risk));
        start += tied;
    }
    // Each case counts in the sets of all events up to its own time.
    let mut weight = f64::NEG_INFINITY;
    for (group, of_group) in groups.into_iter().rev() {
        weight = log_add(weight, of_group);
        for case in group {
            loss.by_logit[*case] += share * (weight + x(*case)).exp();
        }
    }
    loss
}

/// ln(e^a + e^b).
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(times: &[(f64, bool)]) -> Vec<FollowUp> {
        times.iter().map(|(time, event)| FollowUp { time: *time, event: *event }).collect()
    }

    #[test]
    fn by_hand() {
        // At time 1 all three are at risk, at time 2 two; the third was never seen to have it.
        let loss = cox_loss(&[0.5, -0.5, 1.0], &cases(&[(1.0, true), (2.0, true), (3.0, false)]));
        let [a, b, c] = [0.5f64, -0.5, 1.0].map(f64::exp);
        let expected = -((a / (a + b + c)).ln() + (b / (b + c)).ln()) / 2.0;
        assert!((loss.value - expected).abs() < 1e-12, "{} {expected}", loss.value);
        assert!(loss.by_logit.iter().sum::<f64>().abs() < 1e-12, "a common shift changes nothing");
    }

    #[test]
    fn the_derivative_is_the_slope_with_ties_and_censoring() {
        let followed = cases(&[
            (3.0, true),
            (1.0, true),
            (3.0, true),
            (2.0, false),
            (3.0, false),
            (5.0, true),
            (0.5, false),
        ]);
        let hazards = [0.25f32, -1.0, 2.0, 0.5, -0.75, 1.5, 3.0];
        let loss = cox_loss(&hazards, &followed);
        for k in 0..hazards.len() {
            let at = |shift: f32| {
                let mut moved = hazards;
                moved[k] += shift;
                cox_loss(&moved, &followed).value
            };
            let h = 1.0 / 1024.0;
            let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
            assert!((loss.by_logit[k] - slope).abs() < 1e-6, "{k}: {} {slope}", loss.by_logit[k]);
        }
        assert_eq!(loss.by_logit[6], 0.0, "gone before the first event");
    }

    #[test]
    fn without_an_event_there_is_nothing_to_learn_and_extremes_stay_finite() {
        let loss = cox_loss(&[1.0, 2.0], &cases(&[(1.0, false), (2.0, false)]));
        assert_eq!(loss, Loss { value: 0.0, by_logit: vec![0.0; 2] });
        let loss = cox_loss(&[1e30, 0.0], &cases(&[(1.0, true), (2.0, true)]));
        assert!(loss.value.is_finite() && loss.by_logit.iter().all(|d| d.is_finite()), "{loss:?}");
    }
}
