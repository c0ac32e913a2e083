//! Which patients are held out: a salted hash of the id, so that every run, round and restart
//! divides a site's patients alike without a stored list.
//!
//! The salt is the site's secret. With a public one the other side could compute each patient's
//! place, choose a share just beside it, and learn from two counts whether that patient is here.

use std::fmt;

use tributary_shared::digest::Hasher;

/// Bytes of a site's salt.
const SALT_BYTES: usize = 32;
/// Bytes that a salt may have where a person wrote it.
const SALT_BYTES_ALLOWED: std::ops::RangeInclusive<usize> = 16..=64;
/// Never changed: published examples are divided by it.
const PUBLIC_SALT: &[u8] = b"tributary holdout v1\0";

/// The secret that divides a site's patients.
#[derive(Clone, PartialEq, Eq)]
pub struct HoldoutSalt(Box<[u8]>);

impl HoldoutSalt {
    /// A site's salt, of random bytes.
    pub fn new(random: [u8; SALT_BYTES]) -> Self {
        Self(random.into())
    }

    /// The salt of commands without a site's directory, and of the demo, benches and tests. It is
    /// public: it divides reproducibly and hides nothing.
    pub fn public() -> Self {
        Self(PUBLIC_SALT.into())
    }

    /// Reads what [`Self::to_hex`] writes: 32 to 128 hexadecimal digits. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.trim().as_bytes();
        let value = |digit: u8| (digit as char).to_digit(16);
        let pairs = digits.chunks(2).map(|pair| match pair {
            [high, low] => u8::try_from(value(*high)? << 4 | value(*low)?).ok(),
            _ => None,
        });
        let bytes: Vec<u8> = pairs.collect::<Option<_>>()?;
        SALT_BYTES_ALLOWED.contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// Two hexadecimal digits a byte.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

// It is a secret.
impl fmt::Debug for HoldoutSalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HoldoutSalt(..)")
    }
}

/// Indices of the cases on either side, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<usize>,
    /// To evaluate on, never trained on.
    pub holdout: Vec<usize>,
}

pub(super) fn by_patient<'a>(
    patients: impl Iterator<Item = &'a str>,
    salt: &HoldoutSalt,
    holdout: f64,
) -> Split {
    let held = |(_, patient): &(usize, &str)| position(salt, patient) < holdout;
    let (held, train) = patients.enumerate().partition::<Vec<_>, _>(held);
    let indices = |side: Vec<(usize, &str)>| side.into_iter().map(|(index, _)| index).collect();
    Split { train: indices(train), holdout: indices(held) }
}

/// Where a patient stands in [0, 1): the first 53 bits of SHA-256(salt, id). Held out when below
/// the share, so a larger share only adds patients.
fn position(salt: &HoldoutSalt, patient: &str) -> f64 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.0);
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
    fn under_the_public_salt_the_side_of_known_patients_never_changes() {
        // python: int.from_bytes(sha256(b"tributary holdout v1\0" + id).digest()[:8]) >> 11, / 2^53
        for (patient, expected) in [
            ("patient-1", 0.3940053996251264),
            ("patient-2", 0.8402804998848601),
            ("", 0.6590707196978699),
        ] {
            assert_eq!(position(&HoldoutSalt::public(), patient), expected, "{patient}");
        }
    }

    /// A5: places were a public function of the id, so that the chooser of the share could ask for
    /// one patient. Failed before: there was one salt for all sites.
    #[test]
    fn another_site_divides_the_same_patients_otherwise() {
        let patients: Vec<String> = (0..200).map(|p| format!("p{p}")).collect();
        let held =
            |salt: &HoldoutSalt| by_patient(patients.iter().map(String::as_str), salt, 0.5).holdout;
        let (one, other) = (HoldoutSalt::new([1; 32]), HoldoutSalt::new([2; 32]));
        assert_eq!(held(&one), held(&one.clone()));
        assert_ne!(held(&one), held(&other));
        assert_ne!(held(&one), held(&HoldoutSalt::public()));
        assert!(!format!("{one:?}").contains('1'));
    }

    #[test]
    fn a_salt_is_written_in_hexadecimal_and_nothing_else_is_one() {
        for salt in [HoldoutSalt::public(), HoldoutSalt::new([0xa5; 32])] {
            assert_eq!(HoldoutSalt::from_hex(&format!("{}\n", salt.to_hex())), Some(salt));
        }
        for text in ["", "00", &"0".repeat(31), &"0".repeat(33), &"0".repeat(130), &"g".repeat(64)]
        {
            assert_eq!(HoldoutSalt::from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_and_nearly_everything_can_be_held_out() {
        let patients: Vec<String> = (0..500).map(|p| format!("p{p}")).collect();
        let salt = HoldoutSalt::public();
        let split = |share| by_patient(patients.iter().map(String::as_str), &salt, share);
        assert_eq!(split(0.0).holdout, Vec::<usize>::new());
        assert_eq!(split(1.0).train, Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn a_patient_is_on_one_side_whatever_the_order_and_the_company(
            patients in prop::collection::vec("[a-z0-9]{1,3}", 1..200),
            rotation in 0usize..200,
            share in 0.0..0.9f64,
            salt: [u8; 32],
        ) {
            let salt = HoldoutSalt::new(salt);
            let side = |patients: &[String]| -> (BTreeSet<String>, BTreeSet<String>) {
                let split = by_patient(patients.iter().map(String::as_str), &salt, share);
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
        fn the_share_of_patients_is_near_the_holdout(
            prefix in "[a-z]{4}",
            share in 0.05..0.9f64,
            salt: [u8; 32],
        ) {
            let salt = HoldoutSalt::new(salt);
            let patients: Vec<String> = (0..4000).map(|p| format!("{prefix}{p}")).collect();
            let held = by_patient(patients.iter().map(String::as_str), &salt, share).holdout.len();
            // Five standard deviations of a binomial share of 4000.
            let tolerance = 5.0 * (share * (1.0 - share) / 4000.0).sqrt();
            prop_assert!((held as f64 / 4000.0 - share).abs() < tolerance);
        }
    }
}
