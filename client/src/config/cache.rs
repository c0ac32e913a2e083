//! `[cache]` of `site.toml`: what of images is kept between epochs, rounds and runs.

use std::path::PathBuf;

use serde::Deserialize;

/// Disk used when `bytes_max` is not written, bytes.
pub(crate) const BYTES_MAX: u64 = 4 << 30;

/// The folder's name inside the site's directory.
pub(super) const FOLDER: &str = "cache";

/// Where the frozen part of the model's work is kept, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// The folder; `cache` in the site's directory when absent.
    pub dir: Option<PathBuf>,
    /// Most bytes in it; 0 keeps nothing.
    pub bytes_max: u64,
    /// How numbers are kept.
    pub precision: Precision,
}

/// How the numbers of a cache are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As they were computed: training gives the same bits as without a cache.
    #[default]
    F32,
    /// Half the disk; a relative error of 2^-11 in what enters the first trained block.
    F16,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { dir: None, bytes_max: BYTES_MAX, precision: Precision::default() }
    }
}
