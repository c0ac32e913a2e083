//! The channel over real TLS on loopback: who gets in, who does not, and what each side is told.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod door;
mod enrolment;
mod fixture;
mod handshake;
mod identity;
mod live;
mod proxy;
