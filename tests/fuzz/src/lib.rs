//! Fuzz targets: one function for every decoder of bytes from outside.
//!
//! A target hands bytes to the function that the programs call on such bytes, under the same limits.
//! `docs/security-testing.md` says how they are run; `tests/replay.rs` runs the kept corpora.

mod images;
mod log;
mod replies;
mod scratch;
mod weights;
mod wire;

use std::panic::PanicHookInfo;

pub use log::signer;
pub use replies::{HELD_LEAVES, MANIFEST, SITE_SEED, assignment, base, kit_file, signed_head};
pub use wire::{Spoken, spoken};

/// What a decoder made of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They were read.
    Accepted,
    /// They were refused by an error.
    Refused,
}

impl Outcome {
    fn of<T, E>(result: Result<T, E>) -> Self {
        if result.is_ok() { Self::Accepted } else { Self::Refused }
    }

    /// Accepted if either is.
    fn or(self, other: Self) -> Self {
        if self == Self::Accepted { self } else { other }
    }
}

/// A target.
pub type Target = fn(&[u8]) -> Outcome;

/// Every target by its name, which is also the name of its corpus.
pub const TARGETS: [(&str, Target); 16] = [
    ("wire", wire::wire),
    ("tensors", log::tensors),
    ("manifest", log::manifest),
    ("kit", wire::kit),
    ("record", log::record),
    ("note", log::note),
    ("export", log::export),
    ("safetensors", weights::safetensors),
    ("checkpoint", weights::checkpoint),
    ("pickle", weights::pickle),
    ("npz", images::npz),
    ("csv", images::csv),
    ("parquet", images::parquet),
    ("dicom", images::dicom),
    ("nifti", images::nifti),
    ("tiff", images::tiff),
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Crates whose panics are findings wherever they are caught.
const OWN: [&str; 5] = ["shared/", "proto/", "coordinator/", "client/", "tests/fuzz/"];

/// Calls `react` at every panic in this project's own code.
///
/// The client catches panics of the decoders that it uses and refuses the file; such a panic in a
/// dependency is no finding. One in our code is a bug, caught or not.
pub fn on_own_panic(react: fn()) {
    let own = |info: &PanicHookInfo<'_>| {
        info.location().is_none_or(|at| OWN.iter().any(|part| at.file().starts_with(part)))
    };
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if own(info) {
            default(info);
            react();
        }
    }));
}
