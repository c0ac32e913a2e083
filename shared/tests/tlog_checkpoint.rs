//! Keys, notes, checkpoints and the witness against C2SP's and our vectors, and every way to
//! change one of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::convert::Infallible;

use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use serde::Deserialize;
use tributary_shared::digest::Digest;
use tributary_shared::tlog::checkpoint::{Checkpoint, InvalidCheckpoint};
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::key::{Signer, VerifierKey};
use tributary_shared::tlog::merkle::{InvalidProof, consistency_proof, leaf_hash};
use tributary_shared::tlog::note::{self, InvalidNote};
use tributary_shared::tlog::witness::{InvalidWitness, Witness, WitnessRefusal};

#[derive(Deserialize)]
struct Golden {
    roots: Vec<String>,
    checkpoint: GoldenCheckpoint,
}

#[derive(Deserialize)]
struct GoldenCheckpoint {
    log_seed: String,
    log_vkey: String,
    witness_vkey: String,
    note: String,
    signed_note_spec_example: SpecExample,
}

#[derive(Deserialize)]
struct SpecExample {
    vkey: String,
    text: String,
    sig: String,
}

fn golden() -> GoldenCheckpoint {
    serde_json::from_str::<Golden>(include_str!("golden/tlog.json")).unwrap().checkpoint
}

fn golden_root() -> Digest {
    let golden: Golden = serde_json::from_str(include_str!("golden/tlog.json")).unwrap();
    format!("sha256:{}", golden.roots[7]).parse().unwrap()
}

fn signer(name: &str, seed: &str) -> Signer {
    let seed = hex::decode(seed).unwrap();
    Signer::new(name, Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()).unwrap()
}

fn log() -> Signer {
    signer("fl.example/consortium-a", &golden().log_seed)
}

fn vkey() -> VerifierKey {
    golden().log_vkey.parse().unwrap()
}

fn signed(text: &str) -> String {
    note::sign(text, &log())
}

#[test]
fn the_specification_example_verifies() {
    let SpecExample { vkey, text, sig } = golden().signed_note_spec_example;
    let key: VerifierKey = vkey.parse().unwrap();
    assert_eq!(key.to_string(), vkey);
    let note = format!("{text}\n\u{2014} example.com/foo {sig}\n");
    assert_eq!(note::open(&note, &key), Ok(&text[..]));
}

#[test]
fn the_golden_note_opens_and_is_made_byte_for_byte() {
    let golden = golden();
    let expected =
        Checkpoint { origin: "fl.example/consortium-a".into(), size: 8, root: golden_root() };
    // The golden note carries a witness's cosignature too, of a type that we ignore.
    assert_eq!(Checkpoint::open(&golden.note, &vkey()), Ok(expected));
    let ours = Checkpoint::sign(8, golden_root(), &log());
    let log_lines = golden.note.lines().count() - 1;
    let expected: String = golden.note.split_inclusive('\n').take(log_lines).collect();
    assert_eq!(ours, expected);
    assert_eq!(log().verifier_key(), vkey());
}

#[test]
fn a_generated_key_signs_what_its_verifier_key_verifies() {
    let pkcs8 = Signer::generate(&SystemRandom::new()).unwrap();
    let signer = Signer::from_pkcs8("a.example/log", &pkcs8).unwrap();
    let note = Checkpoint::sign(0, Digest::of(b""), &signer);
    assert!(Checkpoint::open(&note, &signer.verifier_key()).is_ok());
    let other = Checkpoint::open(&note, &vkey());
    assert_eq!(other, Err(InvalidCheckpoint::Note(InvalidNote::NoSignature)));
    assert!(Signer::from_pkcs8("a.example/log", &pkcs8[1..]).is_err());
    assert!(Signer::from_pkcs8("a b", &pkcs8).is_err());
    assert_eq!(format!("{signer:?}"), format!("Signer({})", signer.verifier_key()));
}

#[test]
fn only_an_exact_verifier_key_is_one() {
    let text = golden().log_vkey;
    let bad = [
        String::new(),
        "name".into(),
        format!("{text} "),
        format!("{text}\n"),
        text.replace("58a583fd", "58A583FD"),
        text.replace("58a583fd", "58a583fe"),
        text.replace("consortium-a", "consortium-b"),
        text.replace("fl.example", "fl example"),
        text[text.find('+').unwrap()..].into(),
        text[..text.len() - 4].into(),
        "x".repeat(10_000),
        // A cosignature key is not a log's.
        golden().witness_vkey,
    ];
    for text in bad {
        assert!(text.parse::<VerifierKey>().is_err(), "{text}");
    }
}

#[test]
fn a_note_has_one_form() {
    let good = signed("one\ntwo\n");
    let signature = good.lines().last().unwrap().to_owned();
    let form = |note: &str| match note::open(note, &vkey()) {
        Err(InvalidNote::Form(problem)) => problem,
        other => panic!("{note:?}: {other:?}"),
    };
    assert_eq!(form("text\n"), "no empty line before signatures");
    assert_eq!(form("text\n\n"), "the last signature line is cut");
    assert_eq!(form(good.trim_end()), "the last signature line is cut");
    assert_eq!(form(&good.replace('\n', "\r\n")), "it has control characters");
    assert_eq!(form(&good.replace('\u{2014}', "-")), "a signature line has no dash");
    assert_eq!(form("text\n\n\u{2014} name\n"), "a signature line has no signature");
    assert_eq!(form("text\n\n\u{2014}  AAAAAAA=\n"), "a signature line has no key name");
    assert_eq!(form("text\n\n\u{2014} name AAAAAAB=\n"), "a signature is not base64");
    assert_eq!(form("text\n\n\u{2014} name AAAAAA==\n"), "a signature has an impossible length");
    assert_eq!(
        form(&format!("{good}{}", format!("{signature}\n").repeat(16))),
        "more than 16 signatures"
    );
    let long = signed(&"line\n".repeat(10_000));
    assert_eq!(note::open(&long, &vkey()), Err(InvalidNote::TooLong));
}

#[test]
fn foreign_signatures_are_ignored_and_false_ones_of_ours_are_not() {
    let good = signed("text\n");
    let other = note::sign("text\n", &signer("other.example", &"03".repeat(32)));
    let line = |note: &str| format!("{}\n", note.lines().last().unwrap());
    let many = format!("text\n\n{}{}", line(&other).repeat(15), line(&good));
    assert_eq!(note::open(&many, &vkey()), Ok("text\n"));
    // Our name and key id over another text: refused even beside a true one.
    let replayed = format!("{good}{}", line(&signed("another text\n")));
    assert_eq!(note::open(&replayed, &vkey()), Err(InvalidNote::BadSignature));
}

#[test]
fn a_checkpoint_has_three_canonical_lines() {
    let root = "Xcnaeac".to_owned() + "GWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=";
    let origin = "fl.example/consortium-a";
    let open = |text: String| Checkpoint::open(&signed(&text), &vkey());
    assert!(open(format!("{origin}\n8\n{root}\n")).is_ok());
    for text in [
        format!("{origin}\n8\n"),
        format!("{origin}\n8\n{root}\nextension\n"),
        format!("\n8\n{root}\n"),
        format!("{origin}\n08\n{root}\n"),
        format!("{origin}\n+8\n{root}\n"),
        format!("{origin}\n-8\n{root}\n"),
        format!("{origin}\n18446744073709551616\n{root}\n"),
        format!("{origin}\n8\n{}\n", &root[..40]),
        format!("{origin}\n8\n{}\n", root.replace("yg=", "yh=")),
    ] {
        assert!(matches!(open(text.clone()), Err(InvalidCheckpoint::Form(_))), "{text:?}");
    }
    let foreign = open(format!("another.example\n8\n{root}\n"));
    assert!(matches!(foreign, Err(InvalidCheckpoint::Origin { .. })), "{foreign:?}");
}

/// A log that a test can grow and fork.
#[derive(Clone)]
struct Log {
    leaves: Vec<String>,
}

impl Log {
    fn of(size: u64) -> Self {
        Self { leaves: (0..size).map(|i| format!("leaf {i}")).collect() }
    }

    fn note(&self) -> String {
        Checkpoint::sign(
            self.leaves.len() as u64,
            self.frontier(0, self.leaves.len()).root(),
            &log(),
        )
    }

    fn frontier(&self, start: usize, end: usize) -> Frontier {
        let mut frontier = Frontier::new();
        for leaf in &self.leaves[start..end] {
            frontier.append(leaf_hash(leaf.as_bytes()));
        }
        frontier
    }

    fn proof_from(&self, old: u64) -> Vec<Digest> {
        let node = |level: u32, index: u64| {
            let start = (index << level) as usize;
            Ok::<_, Infallible>(self.frontier(start, start + (1 << level)).root())
        };
        consistency_proof(old, self.leaves.len() as u64, &node).unwrap()
    }
}

#[test]
fn a_witness_follows_a_log_that_only_grows() {
    let mut witness = Witness::new(vkey());
    for size in [0, 1, 3, 3, 8, 21] {
        let log = Log::of(size);
        let proof = log.proof_from(witness.size());
        assert_eq!(witness.advance(&log.note(), &proof).unwrap().size, size);
        witness = Witness::from_json(&witness.to_json()).unwrap();
        assert_eq!(witness.size(), size);
    }
}

#[test]
fn a_witness_refuses_another_past_and_keeps_its_evidence() {
    let mut witness = Witness::new(vkey());
    witness.advance(&Log::of(5).note(), &[]).unwrap();
    let before = witness.clone();
    let mut refused = |note: &str, proof: &[Digest]| {
        let refusal = witness.advance(note, proof).unwrap_err();
        assert_eq!(witness, before);
        refusal
    };

    let old = refused(&Log::of(4).note(), &[]);
    assert_eq!(old, WitnessRefusal::Rollback { held: 5, offered: 4 });

    let mut fork = Log::of(5);
    fork.leaves[2] = "another leaf".into();
    let same_size = refused(&fork.note(), &[]);
    assert!(matches!(same_size, WitnessRefusal::Fork { held: 5, offered: 5, .. }), "{same_size:?}");
    fork.leaves.push("leaf 5".into());
    let longer = refused(&fork.note(), &fork.proof_from(5));
    let WitnessRefusal::Fork { held: 5, offered: 6, proof: InvalidProof::Root { .. } } = longer
    else {
        panic!("{longer:?}")
    };
    let unproven = refused(&Log::of(6).note(), &[]);
    assert!(matches!(unproven, WitnessRefusal::Fork { .. }), "{unproven:?}");

    let stranger = signer("fl.example/consortium-a", &"09".repeat(32));
    let note = Checkpoint::sign(6, Digest::of(b""), &stranger);
    assert!(matches!(refused(&note, &[]), WitnessRefusal::BadSignature(_)));
}

#[test]
fn a_witness_file_is_checked_when_read() {
    let mut witness = Witness::new(vkey());
    assert_eq!(Witness::from_json(&witness.to_json()).unwrap(), witness);
    witness.advance(&Log::of(5).note(), &[]).unwrap();
    let json = witness.to_json();
    let read = |from: &str, to: &str| Witness::from_json(&json.replace(from, to)).unwrap_err();
    assert!(matches!(read("\\n5\\n", "\\n4\\n"), InvalidWitness::Checkpoint(_)));
    assert!(matches!(
        read("\"schema_version\": 1", "\"schema_version\": 2"),
        InvalidWitness::Schema { found: 2 }
    ));
    assert!(matches!(read("\"note\"", "\"notes\""), InvalidWitness::Json(_)));
}

proptest! {
    /// One bit changed anywhere in a checkpoint's note: it is refused.
    #[test]
    fn a_flipped_bit_in_a_note_is_refused(size: u64, at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let note = Checkpoint::sign(size, Digest::of(&size.to_le_bytes()), &log());
        let mut bytes = note.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        // Bytes that are no text do not even come to be a note.
        if let Ok(note) = String::from_utf8(bytes) {
            prop_assert!(Checkpoint::open(&note, &vkey()).is_err(), "byte {} bit {}: {}", at, bit, note);
        }
    }

    /// The same of a consistency proof that a witness is given.
    #[test]
    fn a_flipped_bit_in_a_proof_is_refused(
        old in 1..40u64,
        more in 1..40u64,
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let mut witness = Witness::new(vkey());
        witness.advance(&Log::of(old).note(), &[]).unwrap();
        let log = Log::of(old + more);
        let mut bytes: Vec<u8> =
            log.proof_from(old).iter().flat_map(|hash| *hash.as_bytes()).collect();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let proof: Vec<Digest> =
            bytes.chunks(32).map(|hash| Digest::try_from(hash).unwrap()).collect();
        prop_assert!(witness.advance(&log.note(), &proof).is_err());
        prop_assert!(witness.advance(&log.note(), &log.proof_from(old)).is_ok());
    }
}
