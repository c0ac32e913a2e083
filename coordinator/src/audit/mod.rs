//! The audit: the export file, and the proof that nothing in it was changed, left out or made up.
//!
//! A reader apart from the service: it believes the log's public key, the rules of a run
//! ([`crate::round`]) and arithmetic, and nothing else. `docs/audit.md` has the file's format and
//! the list of what is proven.

mod container;
pub mod export;
pub mod finding;
mod history;
mod recoveries;
mod replay;
pub mod report;
mod verify;

#[cfg(test)]
mod tests;

pub use export::{ExportError, ExportWriter, TensorFiles};
pub use finding::Finding;
pub use recoveries::RecoveryReport;
pub use report::Report;
pub use verify::{Progress, verify, verify_file};
