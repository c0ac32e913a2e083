//! Ed25519 keys as C2SP signed notes name them.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::digest::Hasher;

/// Signature type byte of plain Ed25519 (C2SP signed-note, "Signature types").
const ED25519_TYPE: u8 = 1;
const PUBLIC_KEY_BYTES: usize = 32;
const NAME_BYTES_MAX: usize = 255;
const TEXT_BYTES_MAX: usize = NAME_BYTES_MAX + 64;

/// The public key of a log and its name: `NAME+KEYID+BASE64`, one line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifierKey {
    name: String,
    public_key: [u8; PUBLIC_KEY_BYTES],
}

/// A text that is not a verifier key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a verifier key: {0}; expected one line NAME+KEYID+BASE64")]
pub struct InvalidKey(&'static str);

impl VerifierKey {
    /// The log's name, which is also the origin of its checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of SHA-256 over name, newline, type and key.
    pub fn id(&self) -> [u8; 4] {
        let mut hasher = Hasher::new();
        hasher.update(self.name.as_bytes());
        hasher.update(&[b'\n', ED25519_TYPE]);
        hasher.update(&self.public_key);
        let digest = hasher.finish();
        let [a, b, c, d, ..] = *digest.as_bytes();
        [a, b, c, d]
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public_key).verify(message, signature).is_ok()
    }
}

impl FromStr for VerifierKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvalidKey("too long"));
        }
        // The key's base64 may itself hold a `+`.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidKey("it has fewer than three parts"));
        };
        check_name(name)?;
        let bytes = STANDARD.decode(key).map_err(|_| InvalidKey("the key is not base64"))?;
        let (kind, public_key) = bytes.split_first().ok_or(InvalidKey("the key is empty"))?;
        if *kind != ED25519_TYPE {
            return Err(InvalidKey("its algorithm is not Ed25519"));
        }
        let public_key =
            public_key.try_into().map_err(|_| InvalidKey("an Ed25519 key has 32 bytes"))?;
        let parsed = Self { name: name.to_owned(), public_key };
        if id != hex::encode(parsed.id()) {
            return Err(InvalidKey("its key id does not fit name and key"));
        }
        Ok(parsed)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ED25519_TYPE], &self.public_key[..]].concat();
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for VerifierKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<VerifierKey> for String {
    fn from(key: VerifierKey) -> Self {
        key.to_string()
    }
}

/// Why a signing key was refused.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The name cannot stand in a note.
    #[error("the log's name cannot be used")]
    Name(#[source] InvalidKey),
    /// Not an Ed25519 key in PKCS#8.
    #[error("not an Ed25519 private key in PKCS#8")]
    Key,
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Random,
}

/// A log's private key and name.
pub struct Signer {
    name: String,
    keypair: Ed25519KeyPair,
}

impl Signer {
    /// Takes a key made by [`Signer::generate`].
    pub fn from_pkcs8(name: &str, pkcs8: &[u8]) -> Result<Self, SignerError> {
        let keypair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| SignerError::Key)?;
        Self::new(name, keypair)
    }

    /// Takes a key as ring holds it.
    pub fn new(name: &str, keypair: Ed25519KeyPair) -> Result<Self, SignerError> {
        check_name(name).map_err(SignerError::Name)?;
        Ok(Self { name: name.to_owned(), keypair })
    }

    /// A new private key, PKCS#8 version 2.
    pub fn generate(random: &dyn SecureRandom) -> Result<Vec<u8>, SignerError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(random).map_err(|_| SignerError::Random)?;
        Ok(pkcs8.as_ref().to_vec())
    }

    /// The log's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that verifies what this one signs.
    pub fn verifier_key(&self) -> VerifierKey {
        let mut public_key = [0; PUBLIC_KEY_BYTES];
        public_key.copy_from_slice(self.keypair.public_key().as_ref());
        VerifierKey { name: self.name.clone(), public_key }
    }

    /// The Ed25519 signature over `message`.
    pub(super) fn signature(&self, message: &[u8]) -> Vec<u8> {
        self.keypair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifier_key())
    }
}

/// A key name: not empty, and without spaces, control characters and `+`.
pub(super) fn check_name(name: &str) -> Result<(), InvalidKey> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) {
        return Err(InvalidKey("the name is empty, too long, or has spaces or `+`"));
    }
    Ok(())
}
