//! The weight of each delta in a round: the training cases that its site declared, cut to the
//! largest share that one site may have. Whole numbers only, so that everybody who computes it gets
//! the same.

use serde::{Deserialize, Serialize};
use tributary_shared::name::SiteName;

use super::seat::Accepted;

/// Steps in which `limits.share_max` is reckoned.
const PARTS: u32 = 1_000_000;

/// The weight of one site's delta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// The site.
    pub site: SiteName,
    /// Training cases that it declared.
    pub declared: u64,
    /// Training cases that its delta is weighted by.
    pub used: u64,
}

/// The weights of a round's counted deltas, in their order.
pub fn weigh<'a>(
    counted: impl Iterator<Item = (&'a SiteName, &'a Accepted)>,
    share_max: Option<f64>,
) -> Vec<Weight> {
    let (sites, declared): (Vec<_>, Vec<_>) = counted.map(|(site, a)| (site, a.cases)).unzip();
    let used = used(&declared, share_max);
    let weights = sites.into_iter().zip(declared).zip(used);
    weights.map(|((site, declared), used)| Weight { site: site.clone(), declared, used }).collect()
}

/// `declared` cut to the largest whole number at which no used weight is above its share of the sum
/// of all used weights. One bound holds for all, so that the order of the sites is kept.
///
/// The share is `share_max` to six digits, or when absent the larger of 1/2 and 2/n for n weights;
/// below 1/n, which cannot be, it is 1/n.
pub(super) fn used(declared: &[u64], share_max: Option<f64>) -> Vec<u64> {
    let (part, whole) = share(share_max, declared.len());
    let fits = |most: &u64| {
        let used = || declared.iter().map(|cases| u128::from(*cases.min(most)));
        used().max().unwrap_or_default() * whole <= part * used().sum::<u128>()
    };
    let largest = declared.iter().copied().max().unwrap_or_default().max(1);
    // Whatever fits, everything below fits; 1 always does, since all are equal then.
    let (mut low, mut high) = (1, largest);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(&middle) { low = middle } else { high = middle - 1 }
    }
    declared.iter().map(|cases| *cases.min(&low)).collect()
}

/// The largest share of one of `count` weights, as a fraction.
fn share(share_max: Option<f64>, count: usize) -> (u128, u128) {
    let count = count.max(1) as u128;
    let (part, whole) = match share_max {
        Some(share) => ((share * f64::from(PARTS)).round() as u128, u128::from(PARTS)),
        None if count < 4 => (2.min(count), count),
        None => (1, 2),
    };
    if part * count < whole { (1, count) } else { (part, whole) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A2: one claim outweighed all others. The closed form by hand: share / (1 - share) times the
    /// sum of the others, where one is above it.
    #[test]
    fn a_claim_is_cut_to_its_share() {
        for (share, declared, expected) in [
            (None, &[10_000_000, 100][..], &[10_000_000, 100][..]),
            (None, &[10_000_000, 100, 200], &[600, 100, 200]),
            (None, &[10_000_000, 100, 200, 300], &[600, 100, 200, 300]),
            (None, &[100, 200, 300], &[100, 200, 300]),
            (None, &[7], &[7]),
            (Some(0.5), &[900, 100], &[100, 100]),
            (Some(0.25), &[900, 100, 100, 100, 100], &[133, 100, 100, 100, 100]),
            // Two above the share: both are a third of the sum.
            (Some(1.0 / 3.0), &[900, 800, 50, 40], &[89, 89, 50, 40]),
            (Some(0.1), &[5, 9, 7], &[5, 5, 5]),
            (Some(1.0), &[10_000_000, 1, 1, 1], &[10_000_000, 1, 1, 1]),
        ] {
            assert_eq!(used(declared, share), expected, "{share:?} of {declared:?}");
        }
        assert_eq!(used(&[], None), [0; 0]);
    }

    proptest! {
        #[test]
        fn the_cut_is_the_least_that_keeps_the_share(
            declared in proptest::collection::vec(1u64..=1 << 40, 1..=256),
            share_max in proptest::option::of(0.000_001..=1.0f64),
        ) {
            let (part, whole) = share(share_max, declared.len());
            let found = used(&declared, share_max);
            let sum = |weights: &[u64]| weights.iter().map(|w| u128::from(*w)).sum::<u128>();
            let most = found.iter().copied().max().unwrap();
            prop_assert!(u128::from(most) * whole <= part * sum(&found), "no share is above it");
            for (used, declared) in found.iter().zip(&declared) {
                prop_assert!(*used >= 1);
                prop_assert_eq!(*used, *declared.min(&most), "one bound for all");
            }
            if found != declared {
                let more: Vec<u64> = declared.iter().map(|d| *d.min(&(most + 1))).collect();
                prop_assert!(u128::from(most + 1) * whole > part * sum(&more), "one more is too much");
            }
            // The closed form: with the k largest cut, part * (sum of the others) / (whole - k part).
            let mut sorted = declared.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let fits = u128::from(sorted[0]) * whole <= part * sum(&sorted);
            let closed = (1..sorted.len()).filter(|k| whole > *k as u128 * part).map(|k| {
                (k, part * sum(&sorted[k..]) / (whole - k as u128 * part))
            });
            let bound = closed.filter(|(k, bound)| *bound >= u128::from(sorted[*k])).map(|(_, b)| b);
            let expected = if fits { None } else { bound.min() };
            if let Some(bound) = expected {
                prop_assert_eq!(u128::from(most), bound.min(u128::from(sorted[0])));
            } else if fits {
                prop_assert_eq!(found, declared);
            }
        }
    }
}
