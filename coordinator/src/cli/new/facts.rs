//! Facts from a backbone's file and the card beside it: digest, shape, and how images are prepared.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use tributary_shared::architecture::Architecture;
use tributary_shared::dataset::Interpolation;
use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::layout::TensorSpec;
use tributary_shared::manifest::Backbone;
use tributary_shared::outcome::Failure;
use tributary_shared::problems::Problems;

use crate::config::read_text;

/// The metadata key that holds the architecture as JSON.
const ARCHITECTURE_KEY: &str = "tributary.architecture";
/// Largest header of a safetensors file read, bytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Largest card read, bytes.
const CARD_BYTES_MAX: u64 = 1 << 20;
/// Bytes read at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Hint that mends a file that is no backbone.
const IMPORT: &str = "`tributary-client backbone import` makes one of a published checkpoint";

/// Numbers of the preprocessing that the operator gives where no card does.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    /// Per-channel means.
    pub(super) mean: Vec<f64>,
    /// Per-channel standard deviations.
    pub(super) std: Vec<f64>,
}

/// The card that is written beside a backbone, as far as a manifest needs it.
#[derive(Debug, Deserialize)]
struct Card {
    digest: Digest,
    mean: Vec<f64>,
    std: Vec<f64>,
    #[serde(default)]
    interpolation: Interpolation,
    #[serde(default)]
    crop_pct: Option<f64>,
}

/// The table `[backbone]` of the file at `path`.
pub(super) fn read(path: &Path, given: &Given) -> Result<Backbone, Failure> {
    let (digest, architecture) = read_file(path)?;
    let card = match given.mean.is_empty() && given.std.is_empty() {
        true => read_card(path, digest)?,
        false => Card {
            digest,
            mean: given.mean.clone(),
            std: given.std.clone(),
            interpolation: Interpolation::default(),
            crop_pct: None,
        },
    };
    let Card { mean, std, interpolation, crop_pct, .. } = card;
    Ok(Backbone { digest, architecture, mean, std, interpolation, crop_pct })
}

fn invalid(path: &Path, problem: impl std::fmt::Display) -> Failure {
    Failure::invalid("backbone", format!("{}: {problem}", path.display()))
}

/// Hashes the file and reads its header; its tensors must be those of the shape that it names.
fn read_file(path: &Path) -> Result<(Digest, Architecture), Failure> {
    let unread = |e: std::io::Error| invalid(path, e).hint("name the backbone's safetensors file");
    let not_one = |problem: String| invalid(path, problem).hint(IMPORT);
    let mut file = File::open(path).map_err(unread)?;
    let bytes = file.metadata().map_err(unread)?.len();
    let mut hasher = Hasher::new();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| not_one("not a safetensors file".to_owned()))?;
    hasher.update(&length);
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX.min(bytes.saturating_sub(8)) {
        return Err(not_one("not a safetensors file".to_owned()));
    }
    let mut header = Vec::new();
    (&mut file).take(header_bytes).read_to_end(&mut header).map_err(unread)?;
    hasher.update(&header);
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| not_one(format!("not a safetensors file: {e}")))?;
    let architecture = architecture(&metadata).map_err(not_one)?;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block).map_err(unread)? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    let payload = architecture.layout().payload_bytes();
    if bytes != 8 + header_bytes + payload {
        let problem = format!("{bytes} bytes; its header tells of {}", 8 + header_bytes + payload);
        return Err(not_one(format!("{problem}; copy it again")));
    }
    Ok((hasher.finish(), architecture))
}

/// The shape that the header names, when its tensors have it.
fn architecture(metadata: &Metadata) -> Result<Architecture, String> {
    let named = metadata.metadata().as_ref().and_then(|m| m.get(ARCHITECTURE_KEY));
    let json = named
        .ok_or_else(|| format!("names no architecture (metadata key `{ARCHITECTURE_KEY}`)"))?;
    let shape: Architecture = serde_json::from_str(json)
        .map_err(|e| format!("metadata key `{ARCHITECTURE_KEY}`: {e}"))?;
    Problems::of(|found| shape.check(found)).map_err(|e| e.to_string())?;
    let tensors = metadata.tensors();
    if let Some((name, _)) = tensors.iter().find(|(_, info)| info.dtype != Dtype::F32) {
        return Err(format!("{name} is not F32"));
    }
    let spec = |(name, info): (&String, &&safetensors::tensor::TensorInfo)| TensorSpec {
        name: name.clone(),
        shape: info.shape.clone(),
    };
    let mut found: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    match shape.layout().differences(&found).first() {
        Some(difference) => Err(format!("does not fit its architecture: {difference}")),
        None => Ok(shape),
    }
}

fn read_card(path: &Path, digest: Digest) -> Result<Card, Failure> {
    let file = path.with_extension("json");
    let mend = "`tributary-client backbone import` and `pretrain` write it beside the backbone; \
                or say how its images are prepared: --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5";
    let text = read_text(&file, CARD_BYTES_MAX, mend)?;
    let card: Card =
        serde_json::from_str(&text).map_err(|e| invalid(&file, e).hint(mend.to_owned()))?;
    if card.digest != digest {
        let problem = format!("is the card of {}, not of this file, {digest}", card.digest);
        return Err(invalid(&file, problem).hint(mend));
    }
    Ok(card)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/backbone/backbone.safetensors")
    }

    #[test]
    fn the_committed_backbone_and_its_card_make_the_table_of_a_manifest() {
        let backbone = read(&committed(), &Given::default()).unwrap();
        let expected = "sha256:a3c965bc22ce1f6146c7a44581fb1aefc243e8ec051f4cf3888a5b4100536f81";
        assert_eq!(backbone.digest.to_string(), expected);
        assert_eq!(backbone.architecture, Architecture::plain(64, 8, 128, 6, 4));
        assert_eq!((backbone.mean, backbone.std), (vec![0.5; 3], vec![0.5; 3]));
    }

    #[test]
    fn a_file_cut_short_or_of_another_card_is_refused_with_its_mend() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let whole = std::fs::read(committed()).unwrap();
        let refused = |bytes: &[u8], card: Option<&str>| {
            std::fs::write(&path, bytes).unwrap();
            let beside = path.with_extension("json");
            match card {
                Some(card) => std::fs::write(beside, card).unwrap(),
                None => drop(std::fs::remove_file(beside)),
            }
            read(&path, &Given::default()).unwrap_err().to_string()
        };
        assert!(refused(&whole[..whole.len() - 4], None).contains("copy it again"));
        assert!(refused(b"PK", None).contains("not a safetensors file"));
        assert!(refused(&whole, None).contains("--mean"));
        let zero = format!("sha256:{}", "0".repeat(64));
        let card = format!("{{\"digest\": \"{zero}\", \"mean\": [0.5], \"std\": [0.5]}}");
        assert!(refused(&whole, Some(&card)).contains("not of this file"));
    }
}
