//! The transparency log's format: what a coordinator appends, an auditor recomputes and a site
//! witnesses.
//!
//! The tree is RFC 6962's, heads are C2SP checkpoints in C2SP signed notes, so that other people's
//! tools can read them. Nothing here stores or fetches: nodes come through a closure.

pub mod checkpoint;
pub mod frontier;
pub mod key;
pub mod merkle;
pub mod note;
pub mod recovery;
pub mod witness;
