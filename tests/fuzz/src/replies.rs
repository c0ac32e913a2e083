//! Replies to a site, which is enrolled, holds a head of the history, and works on one round.

use std::convert::Infallible;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tributary_client::config::policy::Policy;
use tributary_client::site::{AtHand, check_reply};
use tributary_proto::calls::Call;
use tributary_proto::channel::StartupKit;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::{inclusion_proof, leaf_hash, node_hash};
use tributary_shared::tlog::recovery::{Draft, Head, Recovery};
use tributary_shared::tlog::witness::Witness;

use crate::{Outcome, log};

/// The manifest of the run in all messages.
pub const MANIFEST: &str = r#"schema_version = 1
name = "demo"
[task]
kind = "rehearsal"
payload_bytes = 12
[rounds]
count = 2
round_deadline_s = 60
stall_timeout_s = 30
[quorum]
sites = 1
"#;

const KIT: &str = r#"schema = 1
consortium = "demo"
address = "coordinator.example:7443"
root_fingerprint = "ROOT"
token = "0123456789abcdef"
role = "site"
name = "a"
expires = "2026-01-01T00:00:00Z"
"#;

const POLICY: &str = r#"backbones = "any"
strategies = ["fedavg"]
allow_rehearsal = true
cohort_min = 1
"#;

/// Before an Ed25519 key in a subject public key info, DER.
const ED25519_INFO: [u8; 12] = [0x30, 0x2A, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 3, 0x21, 0];
/// Seed of the key with which the site enrols.
pub const SITE_SEED: [u8; 32] = [9; 32];
/// Leaves of the head that the site holds, where it holds one.
pub const HELD_LEAVES: usize = 3;
/// Most leaves of an answer that are proved anew.
const LEAVES_MAX: usize = 8;

/// A kit for site `a` under the root of digest `root`, as its file.
pub fn kit_file(root: Digest) -> String {
    KIT.replace("ROOT", &root.to_string())
}

/// Version 1 of the run's adapter: the base of the round that the site works on.
pub fn base() -> Vec<u8> {
    let manifest = RunManifest::from_toml(MANIFEST).expect("a manifest");
    let contract = manifest.contract().expect("a checked manifest has a contract");
    tensors::encode(&adapter_header(&manifest.name, 1, &contract), &[vec![0.5; 3]])
}

/// The second round of the run, offered to the site.
pub fn assignment() -> v1::Assignment {
    let base = base();
    v1::Assignment {
        run: "demo".to_owned(),
        round: 2,
        manifest_json: RunManifest::from_toml(MANIFEST).expect("a manifest").to_json().into(),
        base_digest: Digest::of(&base).as_bytes().to_vec().into(),
        base_bytes: base.len() as u64,
        cohort_size: 1,
        deadline_ms: 9,
    }
}

/// A head over these leaves, signed.
pub fn signed_head(leaves: &[&[u8]]) -> String {
    let mut tree = Frontier::new();
    leaves.iter().for_each(|leaf| drop(tree.append(leaf_hash(leaf))));
    Checkpoint::sign(tree.size(), tree.root(), log::signer())
}

fn at_hand(witness: Witness) -> AtHand {
    let mut public_key = ED25519_INFO.to_vec();
    let pair = Ed25519KeyPair::from_seed_unchecked(&SITE_SEED).expect("a seed of 32 bytes");
    public_key.extend(pair.public_key().as_ref());
    AtHand {
        kit: StartupKit::parse(&kit_file(Digest::of(b"root"))).expect("a kit"),
        public_key,
        log: log::signer().verifier_key(),
        witness,
        assignment: assignment(),
        policy: Policy::from_toml(Path::new("policy.toml"), POLICY).expect("a policy"),
        cases: 100,
    }
}

/// A site that has seen no head yet.
static NEW: LazyLock<AtHand> =
    LazyLock::new(|| at_hand(Witness::new(log::signer().verifier_key())));

/// A site that has seen a head of [`HELD_LEAVES`] leaves, `0`, `1` and so on.
static HELD: LazyLock<AtHand> = LazyLock::new(|| {
    let leaves: Vec<String> = (0..HELD_LEAVES).map(|leaf| leaf.to_string()).collect();
    let leaves: Vec<&[u8]> = leaves.iter().map(String::as_bytes).collect();
    let witness = Witness::at(log::signer().verifier_key(), &signed_head(&leaves));
    at_hand(witness.expect("a head that was just signed"))
});

/// A reply as it comes; one that is signed or hashed also with true signatures and proofs over what
/// it says, so that what stands under them is reached.
pub(crate) fn reply(call: Call, body: &[u8]) -> Outcome {
    let came = Outcome::of(check_reply(call, body, &HELD));
    let mended = if call == Call::EnrolmentEnroll {
        let reply = v1::EnrollReply::decode(body);
        reply.map(|reply| under(Digest::of(&reply.root_der), call, body))
    } else if call == Call::SiteCheckpoint {
        v1::CheckpointReply::decode(body).map(|mut reply| {
            let root = resigned(&mut reply.recoveries_json);
            under(root, call, &reply.encode_to_vec())
        })
    } else if call == Call::SiteEvidence {
        v1::EvidenceReply::decode(body).map(|reply| {
            let proven = proven(reply.leaves).encode_to_vec();
            Outcome::of(check_reply(call, &proven, &NEW))
        })
    } else {
        return came;
    };
    came.or(mended.unwrap_or(Outcome::Refused))
}

/// The verdict where the consortium's root is `root`.
fn under(root: Digest, call: Call, body: &[u8]) -> Outcome {
    let mut held = HELD.clone();
    held.kit.root_fingerprint = root;
    Outcome::of(check_reply(call, body, &held))
}

/// Signs the readable statements and their heads with the log's key; gives the digest of the first
/// one's root.
fn resigned(statements: &mut [bytes::Bytes]) -> Digest {
    let mut root = Digest::of(b"root");
    for (place, statement) in statements.iter_mut().enumerate() {
        let Ok(mut recovery) = serde_json::from_slice::<Recovery>(statement) else { continue };
        if place == 0
            && let Ok(der) = STANDARD.decode(&recovery.root_certificate)
        {
            root = Digest::of(&der);
        }
        let said = &mut recovery.statement;
        let sign =
            |head: &mut Head| head.note = Checkpoint::sign(head.size, head.root, log::signer());
        said.lost.iter_mut().chain([&mut said.kept]).for_each(sign);
        said.log = log::signer().verifier_key();
        recovery.log_signature = Draft::sign(said.clone(), log::signer()).log_signature;
        *statement = recovery.to_json().into();
    }
    root
}

/// The answer of a coordinator whose history is these records and no other.
fn proven(mut leaves: Vec<v1::ProvenLeaf>) -> v1::EvidenceReply {
    leaves.truncate(LEAVES_MAX);
    let records: Vec<&[u8]> = leaves.iter().map(|leaf| &leaf.record_json[..]).collect();
    let hashes: Vec<Digest> = records.iter().map(|record| leaf_hash(record)).collect();
    let note = signed_head(&records);
    let nodes = |level, index| Ok::<_, Infallible>(node(&hashes, level, index));
    for (leaf, index) in leaves.iter_mut().zip(0..) {
        let proof =
            inclusion_proof(index, hashes.len() as u64, &nodes).expect("a leaf of the tree");
        leaf.leaf = index;
        leaf.inclusion = proof.iter().map(|hash| hash.as_bytes().to_vec().into()).collect();
    }
    let checkpoint = Some(v1::CheckpointReply { note, ..Default::default() });
    v1::EvidenceReply { checkpoint, leaves }
}

/// The hash over leaves `2^level * index` and on.
fn node(leaves: &[Digest], level: u32, index: u64) -> Digest {
    match level {
        0 => leaves[usize::try_from(index).expect("a leaf's place")],
        _ => {
            let below = |index| node(leaves, level - 1, index);
            node_hash(below(2 * index), below(2 * index + 1))
        }
    }
}
