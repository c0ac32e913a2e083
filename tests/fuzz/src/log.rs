//! What is signed, hashed and kept: manifests, tensors, records, heads, exports.

use std::io::Cursor;
use std::sync::LazyLock;

use ring::signature::Ed25519KeyPair;
use tributary_coordinator::audit::{ExportWriter, verify};
use tributary_coordinator::round::record::Record;
use tributary_shared::contract::AdapterContract;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::{self, Header, Reader};
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::key::Signer;
use tributary_shared::tlog::merkle::leaf_hash;
use tributary_shared::tlog::note as notes;
use tributary_shared::tlog::recovery::{Head, Recovery};
use tributary_shared::tlog::witness::Witness;

use crate::Outcome;

/// First bytes of an export file.
const EXPORT_MAGIC: &[u8] = b"TRIB";

/// Signs the heads of all targets: a known key, so that what stands under a signature is reached.
pub fn signer() -> &'static Signer {
    static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes");
        Signer::new("log.example/consortium", pair).expect("a name that a key may have")
    });
    &SIGNER
}

/// Canonical bytes against the header that they must have, whole and in two pieces. What passes is
/// spelt in the one way.
pub(crate) fn tensors(data: &[u8]) -> Outcome {
    static HEADER: LazyLock<Header> = LazyLock::new(|| {
        let run = "demo".parse().expect("a name");
        adapter_header(&run, 0, &AdapterContract::rehearsal(12))
    });
    let whole = tensors::decode(data, &HEADER);
    let middle = data.len() / 2;
    let mut reader = Reader::new(HEADER.clone());
    let pieces = reader.push(&data[..middle]).and_then(|()| reader.push(&data[middle..]));
    let pieces = pieces.and_then(|()| reader.finish());
    assert_eq!(whole.is_ok(), pieces.is_ok(), "pieces are judged as the whole is");
    if let Ok(values) = &whole {
        assert_eq!(tensors::encode(&HEADER, values), data, "another spelling of the same tensors");
    }
    Outcome::of(whole)
}

/// A manifest as written (TOML) and as it travels (JSON).
pub(crate) fn manifest(data: &[u8]) -> Outcome {
    let travelled = RunManifest::from_json(data);
    let written = std::str::from_utf8(data).ok().and_then(|text| RunManifest::from_toml(text).ok());
    for manifest in travelled.iter().chain(&written) {
        let again = RunManifest::from_json(&manifest.to_json()).expect("what was written is read");
        assert_eq!(again.digest(), manifest.digest(), "the digest names the terms");
        manifest.contract();
    }
    Outcome::of(travelled).or(Outcome::of(written.ok_or(())))
}

/// One leaf of the history.
pub(crate) fn record(data: &[u8]) -> Outcome {
    let record = Record::from_bytes(data);
    if let Ok(record) = &record
        && let bytes = record.to_bytes()
        && let Ok(again) = Record::from_bytes(&bytes)
    {
        assert_eq!(&again, record, "what was written is read");
    }
    Outcome::of(record)
}

/// A signed head as it comes, one whose text is signed here, a statement of recovery, a witness.
pub(crate) fn note(data: &[u8]) -> Outcome {
    let key = signer().verifier_key();
    let mut outcome = Outcome::of(Recovery::from_json(data, &key));
    if let Ok(text) = std::str::from_utf8(data) {
        outcome = outcome.or(Outcome::of(Witness::from_json(text)));
        outcome = outcome.or(Outcome::of(Head::open(text, &key)));
        outcome = outcome.or(Outcome::of(Checkpoint::open(text, &key)));
        if text.ends_with('\n') {
            let read = Checkpoint::open(&notes::sign(text, signer()), &key);
            if let Ok(checkpoint) = &read {
                assert_eq!(checkpoint.to_string(), text, "another spelling of the same head");
            }
            outcome = outcome.or(Outcome::of(read));
        }
    }
    outcome
}

/// An export file as it comes; any other bytes are the lines of a history that is signed here.
pub(crate) fn export(data: &[u8]) -> Outcome {
    let signed;
    let export = if data.starts_with(EXPORT_MAGIC) {
        data
    } else {
        let Ok(made) = signed_export(data) else { return Outcome::Refused };
        signed = made;
        &signed
    };
    let key = signer().verifier_key();
    Outcome::of(verify(Cursor::new(export), &key, &[], &mut |_| {}))
}

fn signed_export(lines: &[u8]) -> Result<Vec<u8>, tributary_coordinator::audit::ExportError> {
    let leaves: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).collect();
    let mut frontier = Frontier::new();
    for leaf in &leaves {
        frontier.append(leaf_hash(leaf));
    }
    let note = Checkpoint::sign(frontier.size(), frontier.root(), signer());
    let mut writer = ExportWriter::begin(Vec::new(), &note, frontier.size())?;
    for leaf in leaves {
        writer.leaf(leaf, leaf_hash(leaf))?;
    }
    writer.finish()
}
