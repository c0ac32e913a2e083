//! Parses and checks an assignment; nothing in it is trusted.

use tributary_proto::v1;
use tributary_shared::contract::AdapterContract;
use tributary_shared::digest::Digest;
use tributary_shared::initial::{adapter_header, initial_digest};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::refusal::Refusal;
use tributary_shared::terms::Terms;
use tributary_shared::timestamp::Timestamp;

use super::activity::RoundId;

/// Highest round of a run. Rounds below quorum, stops and resumptions make more of them than the
/// manifest asks for; no run comes near this.
const ROUNDS_MAX: u32 = 10_000_000;

/// A round that the site was asked to train, checked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The run's manifest.
    pub(super) manifest: RunManifest,
    /// What this round demands.
    pub(super) terms: Terms,
    /// The contract that the manifest implies.
    pub(super) contract: AdapterContract,
    /// Size of the round's base adapter.
    pub(super) base_bytes: u64,
}

impl Asked {
    /// Checks that a base is the initial adapter, version 0, which the site computes itself. Hashes as
    /// many bytes as the adapter has, so it is called after the policy has agreed.
    pub(super) fn check_initial(&self) -> Result<(), Refusal> {
        let initial = initial_digest(&self.manifest);
        if self.terms.base == initial {
            Ok(())
        } else {
            Err(wrong("base", initial, self.terms.base))
        }
    }
}

/// The run and round of an assignment; `None` when it does not even name one.
pub(super) fn round_of(assignment: &v1::Assignment) -> Option<RoundId> {
    let run = assignment.run.parse().ok()?;
    (assignment.round > 0).then_some(RoundId { run, round: assignment.round })
}

/// The site's own record of a run, before a round of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// The manifest that it agreed to: it can't change under way.
    pub(super) manifest: Option<Digest>,
    /// Rounds of which it has made a delta.
    pub(super) trained: u64,
    /// Leaves that accepted recovery statements say were lost.
    pub(super) lost_leaves: u64,
}

/// Rounds trained beside those that the manifest implies: a recovery took one away before this site
/// saw it in the log, or the run failed below its quorum and was resumed.
const REPEATED_MAX: u64 = 64;

/// Checks an assignment of `id` against its own manifest and what the site has of the run.
pub(super) fn check(
    id: &RoundId,
    assignment: &v1::Assignment,
    before: Before,
) -> Result<Asked, Refusal> {
    let malformed = |detail: String| Refusal::Malformed { detail };
    let manifest = read_manifest(&id.run, &assignment.manifest_json, before.manifest)?;
    // A round that ended below quorum is followed by another, so that there may be more rounds
    // than adapter versions. Numbers may jump after a recovery; what is bounded is what leaves.
    let rounds_max =
        manifest.rounds.count.saturating_mul(manifest.rounds.void_max.saturating_add(1));
    let lost_max = before.lost_leaves.saturating_add(REPEATED_MAX);
    if before.trained >= u64::from(rounds_max).saturating_add(lost_max) {
        let found = format!("{} trained already", before.trained);
        return Err(wrong("round", format!("at most {rounds_max} rounds"), found));
    }
    if id.round > ROUNDS_MAX {
        return Err(wrong("round", format!("at most {ROUNDS_MAX}"), id.round));
    }
    let base = Digest::try_from(&assignment.base_digest[..])
        .map_err(|e| malformed(format!("base digest: {e}")))?;
    let contract = manifest.contract().expect("a checked manifest has a contract");
    // Which version the base is shows in its header; here only its digits count.
    let size = |version| adapter_header(&id.run, version, &contract).total_bytes();
    let base_bytes = assignment.base_bytes;
    let newest = (id.round - 1).min(manifest.rounds.count);
    if !(size(0)..=size(newest)).contains(&base_bytes) {
        return Err(Refusal::Size { expected: size(newest), found: base_bytes });
    }
    let terms = Terms {
        run: id.run.clone(),
        round: id.round,
        manifest: manifest.digest(),
        base,
        cohort_size: assignment.cohort_size,
        deadline: Timestamp::from_millis(assignment.deadline_ms),
    };
    Ok(Asked { manifest, terms, contract, base_bytes })
}

/// Reads the manifest of `run` as it came. `known` is the manifest that this site agreed to before.
pub(super) fn read_manifest(
    run: &RunName,
    json: &[u8],
    known: Option<Digest>,
) -> Result<RunManifest, Refusal> {
    let malformed = |detail: String| Refusal::Malformed { detail };
    let manifest = RunManifest::from_json(json).map_err(|e| malformed(format!("manifest: {e}")))?;
    if manifest.to_json() != json {
        return Err(malformed("manifest: not in canonical form".to_owned()));
    }
    let digest = manifest.digest();
    if let Some(known) = known.filter(|known| *known != digest) {
        return Err(wrong("manifest", known, digest));
    }
    if manifest.name != *run {
        return Err(wrong("run", &manifest.name, run));
    }
    Ok(manifest)
}

fn wrong(field: &str, expected: impl ToString, found: impl ToString) -> Refusal {
    Refusal::Wrong {
        field: field.to_owned(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::rehearsal;
    use super::*;

    fn manifest() -> RunManifest {
        rehearsal("r")
    }

    fn assignment(round: u32) -> v1::Assignment {
        let manifest = manifest();
        let version = (round - 1).min(manifest.rounds.count);
        let header = adapter_header(&manifest.name, version, &manifest.contract().unwrap());
        v1::Assignment {
            run: "r".to_owned(),
            round,
            manifest_json: manifest.to_json().into(),
            base_digest: initial_digest(&manifest).as_bytes().to_vec().into(),
            base_bytes: header.total_bytes(),
            cohort_size: 1,
            deadline_ms: 0,
        }
    }

    fn checked(assignment: &v1::Assignment) -> Result<Asked, Refusal> {
        let asked = check(&round_of(assignment).unwrap(), assignment, Before::default())?;
        if asked.terms.round == 1 {
            asked.check_initial()?;
        }
        Ok(asked)
    }

    /// The refused field or code.
    fn refused(change: impl FnOnce(&mut v1::Assignment)) -> String {
        let mut changed = assignment(1);
        change(&mut changed);
        let refusal = checked(&changed).unwrap_err();
        if let Refusal::Wrong { field, .. } = refusal { field } else { refusal.code().to_owned() }
    }

    #[test]
    fn a_true_assignment_passes() {
        let asked = checked(&assignment(1)).unwrap();
        assert_eq!(asked.terms.manifest, manifest().digest());
        // The base of a later round is whatever came out of the one before.
        let mut second = assignment(2);
        second.base_digest = vec![7; 32].into();
        assert!(checked(&second).is_ok());
    }

    #[test]
    fn what_does_not_fit_its_manifest_is_refused() {
        assert_eq!(refused(|a| a.manifest_json = b"{}"[..].to_vec().into()), "malformed");
        assert_eq!(
            refused(|a| {
                let mut spaced = a.manifest_json.to_vec();
                spaced.push(b' ');
                a.manifest_json = spaced.into();
            }),
            "malformed"
        );
        assert_eq!(refused(|a| a.run = "other".to_owned()), "run");
        assert_eq!(refused(|a| a.round = ROUNDS_MAX + 1), "round");
        assert_eq!(refused(|a| a.base_digest = vec![7; 32].into()), "base");
        assert_eq!(refused(|a| a.base_digest = vec![7; 31].into()), "malformed");
        assert_eq!(refused(|a| a.base_bytes += 1), "size");
        assert!(round_of(&v1::Assignment { run: "../x".to_owned(), ..assignment(1) }).is_none());
        assert!(round_of(&v1::Assignment { round: 0, ..assignment(1) }).is_none());
    }

    #[test]
    fn a_run_keeps_the_manifest_it_began_with() {
        let id = RoundId { run: "r".parse().unwrap(), round: 1 };
        let known = |manifest| Before { manifest: Some(manifest), ..Before::default() };
        assert!(check(&id, &assignment(1), known(manifest().digest())).is_ok());
        let refusal = check(&id, &assignment(1), known(Digest::of(b"before"))).unwrap_err();
        assert!(matches!(refusal, Refusal::Wrong { field, .. } if field == "manifest"));
    }

    /// Failed before: the number of a round was bounded, and a run that went on above rounds lost
    /// with a coordinator's disk was refused.
    #[test]
    fn rounds_trained_are_bounded_and_their_numbers_are_not() {
        let check = |round, trained, lost_leaves| {
            let id = RoundId { run: "r".parse().unwrap(), round };
            check(&id, &assignment(round), Before { trained, lost_leaves, ..Before::default() })
        };
        let manifest = manifest();
        let most = u64::from(manifest.rounds.count * (manifest.rounds.void_max + 1));
        assert!(check(500, 0, 0).is_ok());
        assert!(check(3, most + REPEATED_MAX - 1, 0).is_ok());
        let refusal = check(3, most + REPEATED_MAX, 0).unwrap_err();
        assert!(matches!(refusal, Refusal::Wrong { field, .. } if field == "round"));
        assert!(check(3, most + REPEATED_MAX, 1).is_ok());
    }
}
