//! What stays: the adapter for Python, and the proof of its history.

use std::path::PathBuf;

use super::plan::Plan;
use super::{HOSPITALS, Teller};
use crate::command::Failed;
use crate::federation::Federation;

/// What stays.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The adapter in PEFT's layout.
    pub(super) adapter_dir: PathBuf,
    /// The exported history.
    pub(super) history: PathBuf,
    /// Whether it holds, online and offline.
    pub(super) verified: bool,
    /// Its leaves.
    pub(super) leaves: u64,
    /// Published adapters that the auditor computed again, bit for bit.
    pub(super) recomputed: u64,
}

/// Exports the adapter and the history, and verifies the history twice.
pub(super) fn keep(
    plan: &Plan,
    federation: &Federation,
    teller: &mut Teller,
) -> Result<Kept, Failed> {
    teller.step("Exporting the adapter for Python's peft");
    let adapter_dir = plan.root.join("adapter");
    let (run, pulled) = (plan.run_toml(), plan.root.join("pulled/adapter.tensors"));
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let (run, pulled, out) = (text(&run), text(&pulled), text(&adapter_dir));
    federation.client(["export", "--run", &run, "--adapter", &pulled, "--out", &out])?;
    teller.note(&out);

    teller.step("Proving the history, online and offline");
    let online = federation.operator(["audit", "verify"])?;
    let history = plan.root.join("history.export");
    federation.operator(["audit", "export", "--with-tensors", "--out", &text(&history)])?;
    let key = text(&federation.operator_identity().join("log.vkey"));
    let mut verify = vec!["audit", "verify", "--file", "history.export", "--key", key.as_str()];
    // Every site kept the heads it saw: none of them may contradict the export.
    let witnesses: Vec<String> =
        HOSPITALS.iter().map(|name| format!("sites/{name}/witness.json")).collect();
    for witness in witnesses.iter().filter(|witness| plan.root.join(witness).is_file()) {
        verify.extend(["--witness", witness.as_str()]);
    }
    let offline = federation.operator(verify)?.data;
    let verified = |report: &serde_json::Value| report["verified"].as_bool() == Some(true);
    let kept = Kept {
        adapter_dir,
        history,
        verified: verified(&online.data) && verified(&offline),
        leaves: offline["leaves"].as_u64().unwrap_or(0),
        recomputed: offline["adapters_recomputed"].as_u64().unwrap_or(0),
    };
    teller.note(&format!(
        "{} leaves proven, {} adapters recomputed bit for bit",
        kept.leaves, kept.recomputed
    ));
    Ok(kept)
}
