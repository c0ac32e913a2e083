//! Proof that a round stands in the history that this site follows: its run, its opening, and the
//! adapter that it starts from. Without it, a coordinator could give one site a base, and with it a
//! model, that no other site and no auditor ever sees.

use serde::Deserialize;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::SiteName;
use tributary_shared::outcome::Failure;
use tributary_shared::refusal::Refusal;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::merkle::{leaf_hash, verify_inclusion};

use super::deliver::reason_failed;
use super::terms::Asked;
use super::{Halt, Site};
use crate::transport::CallError;

/// Most leaves read of one proof.
const LEAVES_MAX: usize = 3;
/// Most hashes of an inclusion proof: a log of 2^64 leaves needs no more.
const PROOF_HASHES_MAX: usize = 64;

impl Site {
    /// Follows the history to a head that proves the round; the refusal of a round that it does not
    /// prove.
    pub(super) async fn prove(&mut self, asked: &Asked) -> Result<Result<(), Refusal>, Halt> {
        let request = v1::EvidenceRequest {
            run: asked.terms.run.to_string(),
            round: asked.terms.round,
            base_digest: asked.terms.base.as_bytes().to_vec().into(),
            old_size: self.keeper.size(),
            held_note: self.keeper.note(),
        };
        let mut backoff = super::backoff();
        // The lease of the round goes on meanwhile.
        let reply = loop {
            match self.coordinator()?.evidence(request.clone()).await {
                Err(CallError::Busy(failure)) => self.wait_for_room(&failure, &mut backoff).await,
                answered => break answered?,
            }
        };
        let checkpoint = reply.checkpoint.unwrap_or_default();
        self.follow(&checkpoint)?;
        if !checkpoint.recoveries_json.is_empty() {
            // Nothing was proved yet under the history that was just gone back to.
            let text = "the history was restored from a backup meanwhile";
            return Err(CallError::Rejected(Failure::refused("history_restored", text)).into());
        }
        let Some(head) = self.keeper.checkpoint() else {
            return Ok(Err(reason_failed("the history has no checkpoint")));
        };
        let proved = check(&reply.leaves, head, asked, &self.name);
        Ok(proved.map_err(|problem| {
            reason_failed(format!("the round is not proved by the history: {problem}"))
        }))
    }
}

/// A leaf's content, as far as a round is proved by it.
#[derive(Deserialize)]
struct Record {
    stream: String,
    event: Event,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    RunStarted {
        manifest_digest: Digest,
        adapter: Digest,
    },
    RoundOpened {
        round: u32,
        base: Digest,
        cohort: Vec<SiteName>,
        #[serde(default)]
        passed_over: Vec<PassedOver>,
    },
    AdapterPublished {
        version: u32,
        adapter: Digest,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct PassedOver {
    site: SiteName,
}

/// Checks that `leaves` under `head` prove that the run of `asked` began with its manifest, that its
/// round was opened to `site` on its base, and that the base is an adapter of the run.
pub(super) fn check(
    leaves: &[v1::ProvenLeaf],
    head: &Checkpoint,
    asked: &Asked,
    site: &SiteName,
) -> Result<(), String> {
    let (mut started, mut opened, mut based) = (false, false, false);
    let terms = &asked.terms;
    for leaf in leaves.iter().take(LEAVES_MAX) {
        let record = proven(leaf, head)?;
        if record.stream != format!("run/{}", terms.run) {
            return Err(format!("leaf {} is of another run", leaf.leaf));
        }
        match record.event {
            Event::RunStarted { manifest_digest, adapter } => {
                started |= manifest_digest == terms.manifest;
                based |= adapter == terms.base;
            }
            Event::RoundOpened { round, base, cohort, passed_over } => {
                let named = cohort.iter().chain(passed_over.iter().map(|p| &p.site));
                let (asked, all) = (cohort.len(), cohort.len() + passed_over.len());
                let sized = (asked..=all).contains(&(terms.cohort_size as usize));
                let same = round == terms.round && base == terms.base;
                opened |= same && sized && named.into_iter().any(|name| name == site);
            }
            Event::AdapterPublished { version, adapter } => {
                based |= adapter == terms.base && (1..terms.round).contains(&version);
            }
            Event::Other => {}
        }
    }
    let holds = [
        (started, "no start of the run with this manifest"),
        (opened, "no such round, opened to this site with this base and cohort"),
        (based, "the base is no adapter of the run"),
    ];
    match holds.into_iter().find(|(holds, _)| !holds) {
        Some((_, missing)) => Err(missing.to_owned()),
        None => Ok(()),
    }
}

/// The content of a leaf that is in the tree under `head`.
fn proven(leaf: &v1::ProvenLeaf, head: &Checkpoint) -> Result<Record, String> {
    let index = leaf.leaf;
    if leaf.inclusion.len() > PROOF_HASHES_MAX {
        return Err(format!("leaf {index}: a proof of excessive length"));
    }
    let proof = leaf.inclusion.iter().map(|hash| Digest::try_from(&hash[..]));
    let proof: Vec<Digest> =
        proof.collect::<Result<_, _>>().map_err(|e| format!("leaf {index}: {e}"))?;
    verify_inclusion(leaf_hash(&leaf.record_json), index, head.size, &proof, head.root)
        .map_err(|e| format!("leaf {index}: {e}"))?;
    serde_json::from_slice(&leaf.record_json).map_err(|e| format!("leaf {index}: no record: {e}"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::{Value, json};
    use tributary_shared::terms::Terms;
    use tributary_shared::timestamp::Timestamp;
    use tributary_shared::tlog::merkle::{inclusion_proof, node_hash};

    use super::super::fixture::rehearsal;
    use super::*;

    fn asked(round: u32, base: Digest) -> Asked {
        let manifest = rehearsal("r");
        let terms = Terms {
            run: "r".parse().unwrap(),
            round,
            manifest: manifest.digest(),
            base,
            cohort_size: 2,
            deadline: Timestamp::from_millis(0),
        };
        let contract = manifest.contract().unwrap();
        Asked { manifest, terms, contract, base_bytes: 0 }
    }

    fn base() -> Digest {
        Digest::of(b"version 1")
    }

    /// A log of one run whose second round is open, with something of another run in between.
    fn history() -> Vec<Value> {
        let (manifest, initial) = (asked(1, base()).terms.manifest, Digest::of(b"version 0"));
        let record = |run: &str, event: Value| json!({ "stream": run, "event": event });
        let opened = |round: u32, base: Digest| {
            json!({
                "type": "round_opened", "round": round, "base": base, "deadline": 9,
                "cohort": ["a", "b"], "passed_over": [{ "site": "c", "reason": "away" }],
            })
        };
        vec![
            record(
                "run/other",
                json!({ "type": "adapter_published", "version": 1, "adapter": initial }),
            ),
            record(
                "run/r",
                json!({ "type": "run_started", "manifest_digest": manifest, "adapter": initial }),
            ),
            record("run/r", opened(1, initial)),
            record(
                "run/r",
                json!({ "type": "adapter_published", "version": 1, "adapter": base() }),
            ),
            record("run/r", opened(2, base())),
        ]
    }

    /// The hash over leaves `2^level * index` and on.
    fn node(leaves: &[Digest], level: u32, index: u64) -> Digest {
        match level {
            0 => leaves[index as usize],
            _ => node_hash(
                node(leaves, level - 1, 2 * index),
                node(leaves, level - 1, 2 * index + 1),
            ),
        }
    }

    /// The answer of a coordinator with this log, and its head.
    fn proof(log: &[Value], shown: &[u64]) -> (Vec<v1::ProvenLeaf>, Checkpoint) {
        let bytes: Vec<Vec<u8>> = log.iter().map(|r| r.to_string().into_bytes()).collect();
        let hashes: Vec<Digest> = bytes.iter().map(|bytes| leaf_hash(bytes)).collect();
        let mut tree = tributary_shared::tlog::frontier::Frontier::new();
        hashes.iter().for_each(|hash| drop(tree.append(*hash)));
        let head = Checkpoint { origin: "log".to_owned(), size: tree.size(), root: tree.root() };
        let proven = shown.iter().map(|&leaf| {
            let nodes = |level, index| Ok::<_, Infallible>(node(&hashes, level, index));
            let inclusion = inclusion_proof(leaf, head.size, &nodes).unwrap();
            v1::ProvenLeaf {
                leaf,
                record_json: bytes[leaf as usize].clone().into(),
                inclusion: inclusion.iter().map(|h| h.as_bytes().to_vec().into()).collect(),
            }
        });
        (proven.collect(), head)
    }

    fn judged(log: &[Value], shown: &[u64], asked: &Asked, site: &str) -> Result<(), String> {
        let (leaves, head) = proof(log, shown);
        check(&leaves, &head, asked, &site.parse().unwrap())
    }

    #[test]
    fn a_round_of_the_history_is_proved() {
        let log = history();
        for site in ["a", "b", "c"] {
            assert_eq!(judged(&log, &[1, 4, 3], &asked(2, base()), site), Ok(()));
            assert_eq!(judged(&log, &[1, 2], &asked(1, Digest::of(b"version 0")), site), Ok(()));
        }
    }

    /// A7. Failed before: from the second round on the base was the coordinator's free choice.
    #[test]
    fn a_base_that_is_not_in_the_history_is_refused() {
        let log = history();
        let crafted = asked(2, Digest::of(b"crafted"));
        assert!(judged(&log, &[1, 4, 3], &crafted, "a").unwrap_err().contains("no such round"));
        // A round that was logged for it, on a base that was never published.
        let mut forged = log.clone();
        forged[4]["event"]["base"] = json!(crafted.terms.base);
        let missing = "the base is no adapter of the run";
        assert_eq!(judged(&forged, &[1, 4, 3], &crafted, "a").unwrap_err(), missing);
        // Another run's adapter, and a version that can't be there yet.
        assert!(
            judged(&log, &[1, 4, 0], &asked(2, base()), "a").unwrap_err().contains("another run")
        );
        forged = log.clone();
        forged[3]["event"]["version"] = json!(2);
        assert_eq!(judged(&forged, &[1, 4, 3], &asked(2, base()), "a").unwrap_err(), missing);
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let log = history();
        let whole = asked(2, base());
        for (shown, site) in [(&[1, 3][..], "a"), (&[4, 3], "a"), (&[1, 4], "a"), (&[], "a")] {
            assert!(judged(&log, shown, &whole, site).is_err(), "{shown:?}");
        }
        assert!(judged(&log, &[1, 4, 3], &whole, "d").is_err(), "not asked");
        let mut larger = whole.clone();
        larger.terms.cohort_size = 9;
        assert!(judged(&log, &[1, 4, 3], &larger, "a").is_err(), "a cohort that is claimed");
        let mut other = whole.clone();
        other.terms.manifest = Digest::of(b"another");
        assert!(judged(&log, &[1, 4, 3], &other, "a").is_err(), "another manifest");
        // Leaves of another tree.
        let (mut leaves, head) = proof(&log, &[1, 4, 3]);
        let site: SiteName = "a".parse().unwrap();
        let text = String::from_utf8(leaves[1].record_json.to_vec()).unwrap();
        leaves[1].record_json = text.replace("\"round\":2", "\"round\":3").into_bytes().into();
        assert!(check(&leaves, &head, &asked(3, base()), &site).is_err());
        let (mut leaves, head) = proof(&log, &[1, 4, 3]);
        leaves[0].inclusion.push(vec![0; 31].into());
        assert!(check(&leaves, &head, &whole, &site).is_err());
    }
}
