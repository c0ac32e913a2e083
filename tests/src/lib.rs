//! What the federation tests share: a federation in a temporary folder, manifests of rehearsals,
//! and published adapters as numbers.

pub mod images;
pub mod impostor;
pub mod member;
pub mod small_disk;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tributary_deploy::{Binaries, Federation, Rehearsal, SiteOptions};
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::decode;

/// Longest wait for anything: a bound on a hang, not an expectation.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The programs, built once for all tests of a binary.
pub fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES.get_or_init(|| Binaries::build().expect("the programs build"))
}

/// A federation that is gone with its folder.
pub struct Scratch {
    /// The federation; dropped, and so killed, before its folder.
    pub federation: Federation,
    /// Its folder.
    pub folder: TempDir,
}

impl Scratch {
    /// A coordinator that serves, and nobody else.
    pub fn found() -> Self {
        Self::found_in(TempDir::new().expect("a temporary folder"), |text| text)
    }

    /// As [`Self::found`], in a folder at hand and with an edited `coordinator.toml`.
    pub fn found_in(folder: TempDir, edit: impl FnOnce(String) -> String) -> Self {
        let mut federation = Federation::found(binaries(), folder.path()).expect("founding");
        let file = federation.coordinator_directory().join("coordinator.toml");
        let text = std::fs::read_to_string(&file).expect("init wrote it");
        std::fs::write(&file, edit(text)).expect("it is written");
        federation.start_coordinator().expect("the coordinator starts");
        Self { federation, folder }
    }

    /// Enrols sites `site-0`, `site-1`, ..., not started. Site k adds 2^k to element 0 alone and
    /// declares 100 (k + 1) cases, so that a lost, doubled or mis-weighted delta shows in the sum.
    pub fn with_powers_of_two(sites: usize) -> Self {
        let mut scratch = Self::found();
        for k in 0..sites {
            scratch.enroll(&format!("site-{k}"), 2f32.powi(k as i32), 100 * (k as u64 + 1));
        }
        scratch
    }

    /// Enrols one more site; its index.
    pub fn enroll(&mut self, name: &str, add: f32, cases: u64) -> usize {
        let rehearsal = Rehearsal { add, cases, coordinate: Some(0) };
        let options = SiteOptions { rehearsal: Some(rehearsal), ..SiteOptions::default() };
        self.federation.enroll(name, &options).expect("enrolment")
    }

    /// Starts every enrolled site and waits until all are connected.
    pub fn start_sites(&mut self) {
        for index in 0..self.federation.sites().len() {
            self.federation.start_site(index).expect("the site starts");
        }
        self.federation.wait_connected().expect("the sites connect");
    }

    /// Submits a manifest, whether its sites would take part or not.
    pub fn start_run(&self, manifest: &str) {
        let path = self.folder.path().join("run.toml");
        std::fs::write(&path, manifest).expect("the manifest is written");
        let path = path.to_str().expect("a temporary folder has a UTF-8 path");
        self.federation.operator(["run", "start", path, "--anyway"]).expect("the run starts");
    }

    /// Waits for a run's end; `run show` then.
    pub fn finish(&self, run: &str) -> Value {
        let mut wait = self.federation.operator_command(["run", "wait", run, "--timeout", "120s"]);
        // Its exit code says how the run ended, which is the caller's to judge.
        let _ = tributary_deploy::command::run(&mut wait);
        self.show(run)
    }

    /// `run show`.
    pub fn show(&self, run: &str) -> Value {
        self.federation.operator(["run", "show", run]).expect("run show").data
    }

    /// The payload of version `version` of a rehearsal's adapter.
    pub fn payload(&self, run: &str, version: u32) -> Vec<f32> {
        let out = self.folder.path().join(format!("pulled-{run}-{version}"));
        let (number, path) = (version.to_string(), out.to_string_lossy().into_owned());
        let pull = ["run", "pull", run, "--version", number.as_str(), "--out", path.as_str()];
        self.federation.operator(pull).expect("run pull");
        read_adapter(&out, version).swap_remove(0)
    }

    /// `audit verify` over the line, tensors and all.
    pub fn audit(&self) -> Value {
        self.federation.operator(["audit", "verify"]).expect("the audit finds nothing").data
    }
}

/// The tensors of a pulled adapter.
pub fn read_adapter(folder: &Path, version: u32) -> Vec<Vec<f32>> {
    let manifest = std::fs::read(folder.join("manifest.json")).expect("manifest.json");
    let manifest = RunManifest::from_json(&manifest).expect("a manifest");
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let bytes = std::fs::read(folder.join("adapter.tensors")).expect("adapter.tensors");
    let header = adapter_header(&manifest.name, version, &contract);
    decode(&bytes, &header).expect("the adapter fits its contract")
}

/// The manifest of a rehearsal.
pub struct RehearsalRun {
    /// Its name.
    pub name: String,
    /// Rounds asked for.
    pub rounds: u32,
    /// Accepted deltas needed.
    pub quorum: u32,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Further lines of the `[rounds]` table.
    pub timeouts: String,
    /// Further tables.
    pub more: String,
}

impl RehearsalRun {
    /// A small one of `rounds` rounds that needs `quorum` sites.
    pub fn new(name: &str, rounds: u32, quorum: u32) -> Self {
        Self {
            name: name.to_owned(),
            rounds,
            quorum,
            payload_bytes: 64 * 1024,
            timeouts: "round_deadline_s = 100\nstall_timeout_s = 60\nlease_s = 30".to_owned(),
            more: String::new(),
        }
    }

    /// Its `run.toml`.
    pub fn to_toml(&self) -> String {
        let Self { name, rounds, quorum, payload_bytes, timeouts, more } = self;
        format!(
            "schema_version = 1\nname = \"{name}\"\n\
             [task]\nkind = \"rehearsal\"\npayload_bytes = {payload_bytes}\n\
             [rounds]\ncount = {rounds}\n{timeouts}\n[quorum]\nsites = {quorum}\n{more}\n"
        )
    }
}

/// Every site's state in a closed round of `run show`, by site name.
pub fn seats(show: &Value, round: u32) -> Vec<(String, String, String)> {
    let empty = Vec::new();
    let rounds = show["rounds"].as_array().unwrap_or(&empty);
    let found = rounds.iter().find(|r| r["round"] == round).expect("the round is closed");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |c: &Value| (text(&c["site"]), text(&c["state"]), text(&c["detail"]));
    found["contributions"].as_array().unwrap_or(&empty).iter().map(row).collect()
}
