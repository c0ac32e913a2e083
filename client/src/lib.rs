//! The site's side of a federation: enrolment, local data, training, release.
//!
//! Modules stand in the order data travels; a module uses only those of lower floors
//! (ARCHITECTURE.md has the table).

pub mod cli;
pub mod clock;
pub mod config;
pub mod data;
pub mod durable;
#[cfg(test)]
mod full_disk;
pub mod ledger;
pub mod metrics;
pub mod model;
pub mod site;
pub mod trainer;
pub mod transport;
