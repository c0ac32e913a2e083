//! `site.toml`: where the site keeps its state, its data and its backbone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tributary_shared::outcome::Failure;

use super::cache::{self, CacheConfig};
use super::policy::Policy;
use super::reading::Reading;
use super::{invalid, parse_overridden, read_text};

/// Where every key of the file is explained.
const SAMPLE: &str = "deploy/site.toml";

/// `site.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteFile {
    directory: PathBuf,
    policy: PathBuf,
    address: Option<String>,
    proxy: Option<String>,
    data: Option<DataPlace>,
    backbone: Option<BackboneFile>,
    #[serde(default)]
    device: Device,
    #[serde(default)]
    cache: CacheConfig,
    #[serde(default)]
    rehearsal: Rehearsal,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackboneFile {
    path: PathBuf,
}

/// Where the local images are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlace {
    /// A `.npz` file, or a folder of images with a manifest, CSV or Parquet.
    pub path: PathBuf,
    /// The manifest's name inside the folder, when it is not the usual one.
    pub manifest: Option<String>,
    /// How files become pictures.
    #[serde(default)]
    pub reading: Reading,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The processor through LibTorch; only in a program built with `--features tch`.
    Libtorch,
    /// The first CUDA device through LibTorch; only in a program built with `--features tch`.
    Cuda,
}

/// What computes, and on how many threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What computes.
    #[serde(default)]
    pub kind: DeviceKind,
    /// Threads; every core when absent.
    pub threads: Option<usize>,
}

/// What this site adds to the payload of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// The constant.
    #[serde(default)]
    pub add: f32,
    /// The cases it declares: its weight in the mean.
    #[serde(default = "one")]
    pub cases: u64,
    /// Adds to this one element (flat index) alone.
    pub coordinate: Option<u64>,
}

fn one() -> u64 {
    1
}

impl Default for Rehearsal {
    fn default() -> Self {
        Self { add: 0.0, cases: 1, coordinate: None }
    }
}

/// `site.toml` as meant; every path is absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteConfig {
    /// The file it came from.
    pub file: PathBuf,
    /// Identity, ledger, outbox, adapters, status.
    pub directory: PathBuf,
    /// `policy.toml`; read again for every assignment, so that a change needs no restart.
    pub policy: PathBuf,
    /// `host:port` instead of the one in the startup kit.
    pub address: Option<String>,
    /// `http://[user:password@]host:port` of a proxy that allows CONNECT.
    pub proxy: Option<String>,
    /// The local images; a site without them takes part in rehearsals alone.
    pub data: Option<DataPlace>,
    /// The backbone's safetensors file.
    pub backbone: Option<PathBuf>,
    /// What computes.
    pub device: Device,
    /// What of images is kept, with its folder.
    pub cache: CacheConfig,
    /// What it adds in a rehearsal.
    pub rehearsal: Rehearsal,
}

impl SiteConfig {
    /// Reads and checks `site.toml` and the policy it names.
    pub fn load(file: &Path, environment: &[(String, String)]) -> Result<Self, Failure> {
        let config = Self::read(file, environment)?;
        Policy::load(&config.policy)?;
        Ok(config)
    }

    /// Reads and checks `site.toml` alone.
    pub fn read(file: &Path, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mend = "name it with --config, or let `tributary-client enroll KIT` write one";
        Self::from_toml(file, &read_text(file, mend)?, environment)
    }

    /// Checks the text of `file`; relative paths start at the file's own folder.
    pub fn from_toml(
        file: &Path,
        text: &str,
        environment: &[(String, String)],
    ) -> Result<Self, Failure> {
        let written: SiteFile = parse_overridden(file, text, SAMPLE, environment)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let bad = |key: &str, problem: &str, mend: &str| Err(invalid(file, key, problem, mend));
        if let Some(address) = &written.address
            && !is_address(address)
        {
            return bad("address", &format!("`{address}`"), "write host:port");
        }
        // The rest is the channel's to check; the value stays unprinted, it may hold a password.
        if written.proxy.as_ref().is_some_and(|proxy| !proxy.starts_with("http://")) {
            return bad("proxy", "not a proxy's address", "write http://host:port");
        }
        if written.device.threads.is_some_and(|t| !(1..=1024).contains(&t)) {
            return bad("device.threads", "out of range", "write 1 to 1024, or leave it out");
        }
        if written.device.kind != DeviceKind::Cpu && !cfg!(feature = "tch") {
            let mend = "use kind = \"cpu\", or a program built with --features tch";
            return bad("device.kind", "this program has no LibTorch in it", mend);
        }
        if !written.rehearsal.add.is_finite() {
            return bad("rehearsal.add", "not a finite number", "write e.g. 0.5");
        }
        if !(1..=1 << 40).contains(&written.rehearsal.cases) {
            return bad("rehearsal.cases", "out of range", "write a whole number above 0");
        }
        let reading = written.data.as_ref().map_or(Ok(()), |data| data.reading.check());
        if let Err((key, problem)) = reading {
            return bad(key, &problem, "see docs/data.md");
        }
        // Collected from components, `alpha/.` is `alpha`.
        let resolve = |path: PathBuf| folder.join(path).components().collect::<PathBuf>();
        let directory = resolve(written.directory);
        let kept = written.cache.dir.map_or_else(|| directory.join(cache::FOLDER), resolve);
        Ok(Self {
            file: file.to_path_buf(),
            directory,
            cache: CacheConfig { dir: Some(kept), ..written.cache },
            policy: resolve(written.policy),
            address: written.address,
            proxy: written.proxy,
            data: written.data.map(|mut data| {
                data.reading.openslide = data.reading.openslide.map(resolve);
                DataPlace { path: resolve(data.path), ..data }
            }),
            backbone: written.backbone.map(|b| resolve(b.path)),
            device: written.device,
            rehearsal: written.rehearsal,
        })
    }
}

/// Whether `text` is `host:port`, with a name, an IPv4 address or `[an IPv6 address]`.
pub(crate) fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
    let host_fits = bracketed || (!host.is_empty() && host.chars().all(plain));
    host_fits && port.parse::<u16>().is_ok_and(|p| p > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<SiteConfig, String> {
        let text = format!("directory = \".\"\npolicy = \"policy.toml\"\n{more}");
        SiteConfig::from_toml(Path::new("/etc/site/site.toml"), &text, &[])
            .map_err(|e| e.to_string())
    }

    #[test]
    fn paths_start_at_the_files_folder() {
        let config = read("[data]\npath = \"../images\"\n[backbone]\npath = \"/b.st\"").unwrap();
        assert_eq!(config.policy, Path::new("/etc/site/policy.toml"));
        assert_eq!(config.data.unwrap().path, Path::new("/etc/site/../images"));
        assert_eq!(config.backbone.unwrap(), Path::new("/b.st"));
        assert_eq!(config.rehearsal.cases, 1);
        assert_eq!(config.cache.dir.unwrap(), Path::new("/etc/site/./cache"));
        let config = read("[cache]\ndir = \"/scratch\"\nprecision = \"f16\"").unwrap();
        assert_eq!(config.cache.dir.unwrap(), Path::new("/scratch"));
    }

    #[test]
    fn values_without_meaning_are_refused_with_the_key() {
        for (text, key) in [
            ("address = \"coordinator\"", "address"),
            ("address = \"a b:1\"", "address"),
            ("proxy = \"ftp://x:1\"", "proxy"),
            ("device = { threads = 0 }", "device.threads"),
            ("device = { kind = \"tpu\" }", "device"),
            ("rehearsal = { add = inf }", "rehearsal.add"),
            ("rehearsal = { cases = 0 }", "rehearsal.cases"),
            ("cache = { precision = \"f8\" }", "cache"),
            ("cache = { bytes_max = -1 }", "cache"),
            ("salt = 1", "salt"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("/etc/site/site.toml"), "{error}");
            assert!(error.contains(key), "{error}");
        }
        for good in ["127.0.0.1:7000", "[::1]:7000", "coordinator.example.org:443"] {
            assert!(read(&format!("address = \"{good}\"")).is_ok(), "{good}");
        }
    }
}
