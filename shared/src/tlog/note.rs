//! C2SP signed notes (c2sp.org/signed-note): a text and, under it, who signed it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::tlog::key::{Signer, VerifierKey, check_name};

/// Largest note read, bytes.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// Most signatures on one note; the specification asks verifiers for no fewer.
const SIGNATURES_MAX: usize = 16;
/// Largest signature read, bytes: an ML-DSA-44 cosignature with its time.
const SIGNATURE_BYTES_MAX: usize = 4 << 10;
const KEY_ID_BYTES: usize = 4;
/// What a signature line begins with: an em dash and a space.
const SIGNATURE_MARK: &str = "\u{2014} ";

/// Why a signed note is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNote {
    /// Larger than any note we read.
    #[error("the note is longer than {NOTE_BYTES_MAX} bytes")]
    TooLong,
    /// Not the form of a signed note.
    #[error("not a signed note: {0}")]
    Form(&'static str),
    /// Nothing under the text is by the key that was asked for.
    #[error("the note has no signature by the expected key")]
    NoSignature,
    /// Under the expected key's name, but not by it.
    #[error("the expected key did not make this signature: the note was changed")]
    BadSignature,
}

/// `text` with one signature under it.
///
/// # Panics
/// When `text` does not end with a newline: a note is lines.
pub fn sign(text: &str, signer: &Signer) -> String {
    assert!(text.ends_with('\n'), "a note's text ends with a newline");
    let key = signer.verifier_key();
    let signature = [&key.id()[..], &signer.signature(text.as_bytes())].concat();
    format!("{text}\n{SIGNATURE_MARK}{} {}\n", key.name(), STANDARD.encode(signature))
}

/// The text of `note` if `key` signed it; signatures by other keys are not looked at.
pub fn open<'n>(note: &'n str, key: &VerifierKey) -> Result<&'n str, InvalidNote> {
    let (text, signatures) = split(note)?;
    let (name, id) = (key.name(), key.id());
    let mut signed = false;
    for line in signatures.lines() {
        let signature = parse_signature(line)?;
        if signature.name == name && signature.bytes.starts_with(&id) {
            // Every one under this key must hold, not merely one of them.
            if !key.verifies(text.as_bytes(), &signature.bytes[KEY_ID_BYTES..]) {
                return Err(InvalidNote::BadSignature);
            }
            signed = true;
        }
    }
    if signed { Ok(text) } else { Err(InvalidNote::NoSignature) }
}

/// Text with its last newline, and signature lines.
fn split(note: &str) -> Result<(&str, &str), InvalidNote> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(InvalidNote::TooLong);
    }
    if note.chars().any(|c| c.is_ascii_control() && c != '\n') {
        return Err(InvalidNote::Form("it has control characters"));
    }
    let blank = note.rfind("\n\n").ok_or(InvalidNote::Form("no empty line before signatures"))?;
    let (text, signatures) = (&note[..=blank], &note[blank + 2..]);
    if !signatures.ends_with('\n') {
        return Err(InvalidNote::Form("the last signature line is cut"));
    }
    if signatures.lines().count() > SIGNATURES_MAX {
        return Err(InvalidNote::Form("more than 16 signatures"));
    }
    Ok((text, signatures))
}

struct Signature<'n> {
    name: &'n str,
    /// Key id, then the signature itself.
    bytes: Vec<u8>,
}

fn parse_signature(line: &str) -> Result<Signature<'_>, InvalidNote> {
    let form = InvalidNote::Form;
    let rest = line.strip_prefix(SIGNATURE_MARK).ok_or(form("a signature line has no dash"))?;
    let (name, encoded) = rest.split_once(' ').ok_or(form("a signature line has no signature"))?;
    check_name(name).map_err(|_| form("a signature line has no key name"))?;
    // The engine takes one spelling only: padded, and with no stray bits at the end.
    let bytes = STANDARD.decode(encoded).map_err(|_| form("a signature is not base64"))?;
    if bytes.len() <= KEY_ID_BYTES || bytes.len() > SIGNATURE_BYTES_MAX {
        return Err(form("a signature has an impossible length"));
    }
    Ok(Signature { name, bytes })
}
