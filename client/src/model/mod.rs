//! The vision transformer in burn: frozen backbone, adapter, head.
//!
//! Values stay flat `Vec<f32>` at every border, in the order of a [`Layout`]; burn's types do not
//! leave `model` and `trainer`.
//!
//! [`Layout`]: tributary_shared::layout::Layout

#[cfg(test)]
mod adaptation_parity;
mod adapted;
mod adapter;
mod attention;
mod backbone;
mod compute;
mod fused;
mod head;
mod import;
mod merged;
mod preset;
#[cfg(test)]
mod tests;
mod trained;
mod untrained;
mod vit;

pub use adapted::{AdaptedVit, Gradient, NoSampleGradients, SampleGradients, Values};
pub use backbone::{Backbone, BackboneError, backbone_layout};
pub use compute::{Compute, ThreadsError, set_threads};
pub use import::{ImportError, ImportReport, Imported, import_backbone};
pub use merged::{NotMergeable, merged};
pub use preset::{Preset, preset, presets};
pub use untrained::random_backbone;

pub(crate) use adapted::{BlockAttention, HeadOf, Input, Level, Prefix};
pub(crate) use adapter::Dropout;
pub(crate) use backbone::write_whole;
pub(crate) use compute::{Shard, spread_over};
pub(crate) use import::Checkpoint;
pub(crate) use merged::{merges, row_lengths};
pub(crate) use trained::{Leaves, Placed};
pub(crate) use untrained::{positions, untrained};
pub(crate) use vit::{Trunk, linear_of, patchify};
