//! A federation on one machine, of the real programs: for the demo, the bench and the tests.
//!
//! [`Federation`] founds a consortium, enrols sites with their startup kits, and starts, kills and
//! restarts any of its processes. Nothing it started outlives it, however it ends.

pub mod bench;
pub mod binaries;
pub mod command;
pub mod demo;
pub mod events;
pub mod federation;
pub mod guard;
pub mod lines;
pub mod process;
pub mod program;
pub mod relay;
pub mod resources;
pub mod trainer_bench;

// Cargo.toml says why.
use tributary_coordinator as _;

pub use binaries::Binaries;
pub use command::{Failed, Outcome};
pub use events::Follow;
pub use federation::{Federation, Rehearsal, Site, SiteOptions};
pub use process::Process;
