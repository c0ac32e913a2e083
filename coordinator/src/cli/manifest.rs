//! `run.toml` on the operator's side: read and checked before anything is sent.

use std::path::Path;

use tributary_shared::manifest::{InvalidManifest, MANIFEST_BYTES_MAX, RunManifest};
use tributary_shared::outcome::Failure;
use tributary_shared::problems::Problems;

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
    /// Every value in it that makes no sense.
    pub(super) problems: Problems,
}

/// Reads `file`, which must parse; its values may make no sense yet.
pub(super) fn load(file: &Path) -> Result<Written, Failure> {
    let mend = format!("name a manifest; {SAMPLE} is one to begin with");
    let text = read_text(file, MANIFEST_BYTES_MAX as u64, &mend)?;
    let manifest = parse(file, &text)?;
    let problems = manifest.problems();
    Ok(Written { text, manifest, problems })
}

fn parse(file: &Path, text: &str) -> Result<RunManifest, Failure> {
    RunManifest::read_toml(text).map_err(|e| match &e {
        InvalidManifest::Toml(e) => toml_failure(file, text, e, SAMPLE),
        InvalidManifest::Values(problems) => problems_failure(file, problems),
        InvalidManifest::Json(_) | InvalidManifest::TooLarge(_) => {
            Failure::invalid("configuration", format!("{}: {e}", file.display())).hint(explains())
        }
    })
}

fn explains() -> String {
    format!("{SAMPLE} explains every key")
}

/// The failure of a manifest with `problems`: one of them in one line, several in a list.
pub(super) fn problems_failure(file: &Path, problems: &Problems) -> Failure {
    let lines = problems.lines();
    let message = match &lines[..] {
        [line] => format!("{}: {line}", file.display()),
        lines => format!("{}: {} problems", file.display(), lines.len()),
    };
    Failure::invalid("configuration", message).hint(explains()).details(lines)
}

#[cfg(test)]
pub(super) fn sample() -> RunManifest {
    let text = include_str!("../../../deploy/run.toml");
    let zero = format!("sha256:{}", "0".repeat(64));
    let text = text.replace(&zero, &format!("sha256:{}", "1".repeat(64)));
    let manifest = parse(Path::new("run.toml"), &text).expect("the sample parses");
    manifest.check().expect("with a digest the sample is valid");
    manifest
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
