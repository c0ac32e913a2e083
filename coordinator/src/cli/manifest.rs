//! `run.toml` on the operator's side: read and checked before anything is sent.

use std::path::Path;

use tributary_shared::manifest::{InvalidManifest, MANIFEST_BYTES_MAX, RunManifest};
use tributary_shared::outcome::Failure;

use crate::config::{read_text, toml_failure};

/// Where every key is explained.
const SAMPLE: &str = "deploy/run.toml";

/// A manifest as written, and what it means.
#[derive(Debug)]
pub(super) struct Written {
    /// The file's text: what is sent.
    pub(super) text: String,
    /// What it means.
    pub(super) manifest: RunManifest,
}

/// Reads and checks `file`.
pub(super) fn load(file: &Path) -> Result<Written, Failure> {
    let mend = format!("name a manifest; {SAMPLE} is one to begin with");
    let text = read_text(file, MANIFEST_BYTES_MAX as u64, &mend)?;
    let manifest = parse(file, &text)?;
    Ok(Written { text, manifest })
}

fn parse(file: &Path, text: &str) -> Result<RunManifest, Failure> {
    let explains = format!("{SAMPLE} explains every key");
    RunManifest::from_toml(text).map_err(|e| match &e {
        InvalidManifest::Toml(e) => toml_failure(file, text, e, SAMPLE),
        InvalidManifest::Json(_) | InvalidManifest::TooLarge(_) | InvalidManifest::Value { .. } => {
            Failure::invalid("configuration", format!("{}: {e}", file.display())).hint(explains)
        }
    })
}

#[cfg(test)]
pub(super) fn sample() -> RunManifest {
    let text = include_str!("../../../deploy/run.toml");
    parse(Path::new("run.toml"), text).expect("the sample is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_json_of_the_sample_reads_back_as_the_same_terms() {
        let manifest = sample();
        assert_eq!(RunManifest::from_json(&manifest.to_json()).unwrap(), manifest);
    }
}
