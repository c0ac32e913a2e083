//! Which patients are held out: a salted hash of the id, so that every run, round and restart
//! divides a site's patients alike without a stored list.

use tributary_shared::digest::Hasher;

// Part of the agreement with every result ever reported: never change it.
const SALT: &[u8] = b"tributary holdout v1\0";

/// Indices of the cases on either side, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To evaluate on, never trained on.
    pub holdout: Vec<usize>,
}

pub(super) fn by_patient<'a>(patients: impl Iterator<Item = &'a str>, holdout: f64) -> Split {
    let (held, train) = patients.enumerate().partition::<Vec<_>, _>(|(_, p)| position(p) < holdout);
    let indices = |side: Vec<(usize, &str)>| side.into_iter().map(|(index, _)| index).collect();
    Split { train: indices(train), holdout: indices(held) }
}

/// Where a patient stands in [0, 1): the first 53 bits of SHA-256(salt, id). Held out when below
/// the share, so a larger share only adds patients.
fn position(patient: &str) -> f64 {
    let mut hasher = Hasher::new();
    hasher.update(SALT);
    hasher.update(patient.as_bytes());
    let digest = hasher.finish();
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_side_of_known_patients_never_changes() {
        // python: int.from_bytes(sha256(b"tributary holdout v1\0" + id).digest()[:8]) >> 11, / 2^53
        for (patient, expected) in [
            ("patient-1", 0.3940053996251264),
            ("patient-2", 0.8402804998848601),
            ("", 0.6590707196978699),
        ] {
            assert_eq!(position(patient), expected, "{patient}");
        }
    }

    #[test]
    fn nothing_and_nearly_everything_can_be_held_out() {
        let patients: Vec<String> = (0..500).map(|p| format!("p{p}")).collect();
        let split = |share| by_patient(patients.iter().map(String::as_str), share);
        assert_eq!(split(0.0).holdout, Vec::<usize>::new());
        assert_eq!(split(1.0).train, Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn a_patient_is_on_one_side_whatever_the_order_and_the_company(
            patients in prop::collection::vec("[a-z0-9]{1,3}", 1..200),
            rotation in 0usize..200,
            share in 0.0..0.9f64,
        ) {
            let side = |patients: &[String]| -> (BTreeSet<String>, BTreeSet<String>) {
                let split = by_patient(patients.iter().map(String::as_str), share);
                let names = |side: &[usize]| side.iter().map(|i| patients[*i].clone()).collect();
                (names(&split.train), names(&split.holdout))
            };
            let (train, held) = side(&patients);
            prop_assert!(train.is_disjoint(&held));
            let mut turned = patients.clone();
            turned.rotate_left(rotation % patients.len());
            prop_assert_eq!(side(&turned), (train.clone(), held.clone()));
            let half = &patients[..patients.len() / 2];
            let (half_train, half_held) = side(half);
            prop_assert!(half_train.is_subset(&train) && half_held.is_subset(&held));
        }

        #[test]
        fn the_share_of_patients_is_near_the_holdout(prefix in "[a-z]{4}", share in 0.05..0.9f64) {
            let patients: Vec<String> = (0..4000).map(|p| format!("{prefix}{p}")).collect();
            let held = by_patient(patients.iter().map(String::as_str), share).holdout.len();
            // Five standard deviations of a binomial share of 4000.
            let tolerance = 5.0 * (share * (1.0 - share) / 4000.0).sqrt();
            prop_assert!((held as f64 / 4000.0 - share).abs() < tolerance);
        }
    }
}
