//! The channel between a member of the consortium and its coordinator: TLS 1.3 with certificates
//! of the consortium's own authority, and the identity that a certificate carries.
//!
//! One port serves everybody. A client certificate is optional in the handshake, so that
//! enrolment can be reached without one; every other service asks [`Guard`] who is calling.
//! A certificate that is presented but not good ends the handshake.

pub mod access;
mod client;
mod connections;
mod door;
mod enroll;
mod failure;
mod identity;
mod kit;
mod member;
mod proxy;
mod refusals;
mod server;
mod verify;
mod vouch;
mod words;

pub use client::{ConnectOptions, connect, host_of, presented};
pub use connections::{Conn, ConnectInfo, Connections};
pub use door::{Limits, Origin};
pub use enroll::{EnrollError, EnrollOptions, check_enrolment, enroll};
pub use failure::{ConnectError, connect_failure, status_failure};
pub use identity::{
    Identity, IdentityError, certificate_pem, exists, private_key_pem, read_secret, write_durably,
    write_secret,
};
pub use kit::{KIT_BYTES_MAX, KitError, StartupKit};
pub use member::{
    Certified, InvalidCertificate, Member, Peer, Role, authority_consortium, authority_uri,
    certified,
};
pub use server::{Acceptor, Check, Guard, ServerIdentity, Windows, peer, require, server_builder};
pub use verify::{ServerFault, judge_server};
pub use vouch::{VouchError, check_recovery, sign_recovery};
pub use words::{Broken, Untimely};

/// Most bytes of tensor data in one message of an upload. Each side holds a few of them for every
/// transfer, so twice the size is hardly faster and costs the coordinator a megabyte a site.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Most bytes of one gRPC message, tonic's own default written down.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The metadata key under which a site's program sends the random nonce that it drew at its start:
/// two programs with one identity have two.
pub const SESSION: &str = "tributary-session";

/// The one protocol spoken inside TLS.
const ALPN: &[u8] = b"h2";

/// The cryptography of every handshake, chosen here and not by a process-wide default.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}
