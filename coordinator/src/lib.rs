//! The coordinator: admits deltas, aggregates them, publishes the next adapter, and keeps a
//! history that an auditor can verify without trusting it.
//!
//! Modules stand in the order data travels; a module uses only those of lower floors
//! (ARCHITECTURE.md has the table).

pub mod aggregate;
pub mod audit;
pub mod blobs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod driver;
pub mod heads;
pub mod ingest;
pub mod membership;
pub mod rate_limit;
pub mod recovery;
pub mod round;
pub mod rpc;
pub mod serve;
pub mod space;
pub mod store;
pub mod unbroken;
