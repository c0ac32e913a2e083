//! Who belongs to the consortium: its private authority, invitations and enrolment.
//!
//! Pure but for the files of the authority's directory: which invitations exist and which are
//! used is the store's to know.

mod authority;
mod certificate;
mod init;
mod invitation;
mod server;

use std::time::Duration;

pub use authority::{Authority, AuthorityError, MEMBER_VALID, server_identity};
pub use certificate::{CertificateRequest, InvalidRequest};
pub use init::{Founded, Founding, InitError, ServerNames, init, renew_server};
pub use invitation::{Admission, EnrolmentRefused, admit, new_kit, token_digest};
pub use server::{EXPIRY_WARNING, ServerCertificate, Unworkable, mismatch};

/// Longest validity of an invitation.
pub const INVITATION_VALID_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// The authority's private key. Its holder can act as any member.
pub const ROOT_KEY: &str = "root-key.pem";
/// The authority's certificate.
pub const ROOT: &str = "root.pem";
/// The server's certificate and key in one file, so that renewal is one rename.
pub const SERVER: &str = "server.pem";
/// The certificate of the operator that `init` made: the one member no invitation precedes.
pub const FOUNDER: &str = "founder.pem";
/// The log's Ed25519 key, PKCS #8 PEM.
pub const LOG_KEY: &str = "log-key.pem";
/// The log's public key in C2SP verifier form.
pub const LOG_VERIFIER_KEY: &str = "log.vkey";
/// The largest head that the log's key has signed: a signed note. A database with fewer leaves is
/// an older one.
pub const SIGNED_HEAD: &str = "signed-head";
/// The largest head that a site showed and the database does not continue, until it is recovered.
pub const LOST_HEAD: &str = "lost-head";
/// The coordinator's configuration.
pub const CONFIG: &str = "coordinator.toml";
/// The manifest of a rehearsal, to try a new consortium with.
pub const REHEARSAL: &str = "rehearsal.toml";
/// The first operator's identity, to be moved to the operator's machine.
pub const OPERATOR: &str = "operator";

#[cfg(test)]
mod tests;
