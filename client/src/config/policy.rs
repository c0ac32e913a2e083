//! `policy.toml`: what the site will never agree to. It belongs to the site alone; the coordinator
//! reads the reason of a refusal and can change nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use tributary_shared::adaptation::Adaptation;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::{RunManifest, Strategy, Task};
use tributary_shared::outcome::Failure;
use tributary_shared::privacy::Reader;
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::timestamp::Timestamp;

use super::hours::{Window, utc_offset};
use super::{invalid, parse, read_text};

/// Where every key of the file is explained.
const SAMPLE: &str = "deploy/policy.toml";

/// `policy.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    backbones: BackbonesText,
    strategies: Vec<String>,
    adaptations: Option<Vec<String>>,
    tasks: Option<Vec<String>>,
    #[serde(default = "cohort_min")]
    cohort_min: u32,
    #[serde(default = "cases_min")]
    cases_min: u64,
    #[serde(default = "cases_min")]
    holdout_cases_min: u64,
    deltas_for: Option<BTreeSet<Reader>>,
    #[serde(default = "rounds_max")]
    rounds_max: u32,
    runs_max: Option<u64>,
    deltas_max: Option<u64>,
    #[serde(default = "epochs_max")]
    epochs_max: u32,
    #[serde(default = "batch_size_min")]
    batch_size_min: usize,
    learning_rate_max: Option<f64>,
    base_norm_max: Option<f64>,
    #[serde(default = "checks_per_day")]
    checks_per_day: u32,
    #[serde(default = "delta_norm_max")]
    delta_norm_max: f64,
    #[serde(default = "adapter_bytes_max")]
    adapter_bytes_max: u64,
    #[serde(default)]
    allow_rehearsal: bool,
    #[serde(default)]
    recovery: OnRecovery,
    #[serde(default)]
    hours: Vec<String>,
    utc_offset: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum BackbonesText {
    Word(String),
    Digests(Vec<String>),
}

fn cohort_min() -> u32 {
    2
}

/// The usual smallest count that a hospital tells.
fn cases_min() -> u64 {
    10
}

fn rounds_max() -> u32 {
    1_000
}

/// Checks answered in a day unless the policy says otherwise.
pub const CHECKS_PER_DAY: u32 = 20;

fn checks_per_day() -> u32 {
    CHECKS_PER_DAY
}

fn batch_size_min() -> usize {
    1
}

fn epochs_max() -> u32 {
    100
}

fn delta_norm_max() -> f64 {
    1_000.0
}

fn adapter_bytes_max() -> u64 {
    256 << 20
}

/// Which backbones the site trains on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backbones {
    /// Whatever the coordinator names, as long as the site holds the file.
    Any,
    /// These alone; none when empty.
    Listed(BTreeSet<Digest>),
}

/// The site's answer to a history that was restored from a backup and has lost what it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRecovery {
    /// It waits until its engineer has accepted the statement that explains it.
    #[default]
    Ask,
    /// It goes on when the log and an operator have both signed the statement.
    Accept,
}

/// What the site agrees to.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Which backbones it trains on.
    pub backbones: Backbones,
    /// Strategies it lets its deltas into, by name.
    pub strategies: BTreeSet<String>,
    /// Kinds of adaptation it trains, by name; any when `None`.
    pub adaptations: Option<BTreeSet<String>>,
    /// Kinds of task it learns, by name; any when `None`. Rehearsals have a switch of their own.
    pub tasks: Option<BTreeSet<String>>,
    /// Fewest sites in a cohort: in a small one, an aggregate says much of each site.
    pub cohort_min: u32,
    /// Fewest training cases behind a delta, bags where a run learns from bags.
    pub cases_min: u64,
    /// Fewest held-out cases from which a metric is sent.
    pub holdout_cases_min: u64,
    /// Members who may fetch single deltas from the coordinator, at most; any when `None`.
    pub deltas_for: Option<BTreeSet<Reader>>,
    /// Most rounds of one run, and most deltas of one run that this site makes: a round that ended
    /// below its quorum counts too.
    pub rounds_max: u32,
    /// Most runs that it makes a delta for; any when `None`.
    pub runs_max: Option<u64>,
    /// Most deltas that it makes, over all runs; any when `None`.
    pub deltas_max: Option<u64>,
    /// Most passes over the local cases per round.
    pub epochs_max: u32,
    /// Fewest cases of an optimiser step: a gradient of one case shows it.
    pub batch_size_min: usize,
    /// Largest peak learning rate; any when `None`.
    pub learning_rate_max: Option<f64>,
    /// Largest L2 distance of the adapter that a round starts from to the initial one; any when
    /// `None`.
    pub base_norm_max: Option<f64>,
    /// Most checks of an operator that are answered in 24 hours.
    pub checks_per_day: u32,
    /// Largest L2 norm of a delta that leaves, and the largest bound a run may declare.
    pub delta_norm_max: f64,
    /// Largest adapter, bytes of tensors.
    pub adapter_bytes_max: u64,
    /// Whether it takes part in rehearsals, which read no image.
    pub allow_rehearsal: bool,
    /// The answer to a history that was restored from a backup.
    pub recovery: OnRecovery,
    hours: Vec<Window>,
    utc_offset_minutes: i64,
}

/// Work of the site before a round, as its ledger counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Deltas that it made of the run.
    pub deltas_of_run: u64,
    /// Deltas that it made of all runs.
    pub deltas: u64,
    /// Other runs that it made deltas of.
    pub other_runs: u64,
}

/// Reasons for which the policy refuses, each one short line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PolicyRefusal {
    reasons: Vec<String>,
    class: RefusalClass,
    /// Size of the cohort and the smallest one allowed, where that is the only reason.
    cohort: Option<(u32, u32)>,
}

impl PolicyRefusal {
    /// The refusal as it is sent to the coordinator. It passes by itself where only the hour forbids the run; a cohort
    /// that is too small is named apart, because the coordinator may ask more sites.
    pub fn refusal(&self) -> Refusal {
        match self.cohort {
            Some((size, min)) => Refusal::Cohort { size, min },
            None => Refusal::Policy { reason: self.to_string(), class: self.class },
        }
    }
}

impl fmt::Display for PolicyRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

impl BackbonesText {
    fn read(&self) -> Result<Backbones, String> {
        match self {
            Self::Word(word) if word == "any" => Ok(Backbones::Any),
            Self::Word(word) => Err(format!("`{word}` is neither \"any\" nor a list of digests")),
            Self::Digests(digests) => {
                let digests = digests.iter().map(|d| d.parse::<Digest>());
                let digests = digests.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
                Ok(Backbones::Listed(digests))
            }
        }
    }
}

impl Policy {
    /// Reads and checks `policy.toml`.
    pub fn load(file: &Path) -> Result<Self, Failure> {
        let text = read_text(file, "site.toml's `policy` names this file; `enroll` writes one")?;
        Self::from_toml(file, &text)
    }

    /// Checks the text of `file`.
    pub fn from_toml(file: &Path, text: &str) -> Result<Self, Failure> {
        let written: PolicyFile = parse(file, text, SAMPLE)?;
        let bad = |key: &str, problem: &str, mend: &str| invalid(file, key, problem, mend);
        let backbones = written.backbones.read().map_err(|problem| {
            bad(
                "backbones",
                &problem,
                "write \"any\" or digests, which `tributary-client backbone import` prints",
            )
        })?;
        let kinds = |key: &str, asked: Option<Vec<String>>, known: &[&str]| {
            let unknown = asked.iter().flatten().find(|kind| !known.contains(&kind.as_str()));
            match unknown {
                Some(kind) => {
                    let mend = format!("known: {}", known.join(", "));
                    Err(bad(key, &format!("`{kind}` is no such kind"), &mend))
                }
                None => Ok(asked.map(BTreeSet::from_iter)),
            }
        };
        if written.cohort_min == 0 {
            return Err(bad("cohort_min", "0", "write 1 to train alone, 2 for company"));
        }
        let norm = written.delta_norm_max;
        if !(norm.is_finite() && norm > 0.0) {
            return Err(bad("delta_norm_max", &format!("{norm}"), "write a number above 0"));
        }
        let bounds = [
            ("learning_rate_max", written.learning_rate_max),
            ("base_norm_max", written.base_norm_max),
        ];
        for (key, bound) in bounds {
            if bound.is_some_and(|bound| !(bound.is_finite() && bound > 0.0)) {
                return Err(bad(key, "no bound", "write a number above 0, or leave it out"));
            }
        }
        let hours = written.hours.iter().map(|h| h.parse()).collect::<Result<Vec<Window>, _>>();
        let hours = hours.map_err(|e| bad("hours", &e, "times are HH:MM-HH:MM"))?;
        let offset = written.utc_offset.as_deref().map_or(Ok(0), utc_offset);
        let utc_offset_minutes =
            offset.map_err(|e| bad("utc_offset", &e, "it shifts `hours` from UTC"))?;
        Ok(Self {
            backbones,
            adaptations: kinds("adaptations", written.adaptations, &Adaptation::KINDS)?,
            tasks: kinds("tasks", written.tasks, &Task::KINDS)?,
            strategies: kinds("strategies", Some(written.strategies), &Strategy::KINDS)?
                .unwrap_or_default(),
            cohort_min: written.cohort_min,
            cases_min: written.cases_min,
            holdout_cases_min: written.holdout_cases_min,
            deltas_for: written.deltas_for,
            rounds_max: written.rounds_max,
            runs_max: written.runs_max,
            deltas_max: written.deltas_max,
            epochs_max: written.epochs_max,
            batch_size_min: written.batch_size_min,
            learning_rate_max: written.learning_rate_max,
            base_norm_max: written.base_norm_max,
            checks_per_day: written.checks_per_day,
            delta_norm_max: norm,
            adapter_bytes_max: written.adapter_bytes_max,
            allow_rehearsal: written.allow_rehearsal,
            recovery: written.recovery,
            hours,
            utc_offset_minutes,
        })
    }

    /// Judges at `now` a round of `manifest` that asks `cohort_size` sites, after what the site has
    /// done before.
    pub fn judge(
        &self,
        manifest: &RunManifest,
        cohort_size: u32,
        done: Done,
        now: Timestamp,
    ) -> Result<(), PolicyRefusal> {
        let mut reasons = Vec::new();
        self.judge_work(manifest, &mut reasons);
        let strategy = manifest.strategy.as_str();
        if !self.strategies.contains(strategy) {
            reasons.push(format!("strategy {strategy} is not among `strategies`"));
        }
        above("rounds", manifest.rounds.count, "rounds_max", self.rounds_max, &mut reasons);
        self.judge_done(done, &mut reasons);
        let norm = manifest.limits.delta_norm_max;
        if norm > self.delta_norm_max {
            let max = self.delta_norm_max;
            reasons.push(format!("delta norms up to {norm} are above delta_norm_max = {max}"));
        }
        let bytes = manifest.contract().map_or(u64::MAX, |c| c.layout.payload_bytes());
        above("adapter bytes", bytes, "adapter_bytes_max", self.adapter_bytes_max, &mut reasons);
        let class = match reasons.is_empty() {
            true => RefusalClass::Passing,
            false => RefusalClass::UntilChanged,
        };
        let offset = self.utc_offset_minutes;
        if !self.hours.is_empty() && !self.hours.iter().any(|window| window.holds(now, offset)) {
            reasons.push("outside the site's training `hours`".to_owned());
        }
        let cohort = (cohort_size < self.cohort_min).then_some((cohort_size, self.cohort_min));
        let alone = cohort.filter(|_| reasons.is_empty());
        if let Some((size, min)) = cohort {
            reasons.push(format!("a cohort of {size} is below cohort_min = {min}"));
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(PolicyRefusal { reasons, class, cohort: alone })
        }
    }

    /// Judges the work that was done before, beside the manifest's own numbers.
    fn judge_done(&self, done: Done, reasons: &mut Vec<String>) {
        if done.deltas_of_run >= u64::from(self.rounds_max) {
            let max = self.rounds_max;
            reasons.push(format!("as many deltas of this run as rounds_max = {max} were made"));
        }
        if let Some(max) = self.deltas_max.filter(|max| done.deltas >= *max) {
            reasons.push(format!("as many deltas as deltas_max = {max} were made"));
        }
        if let Some(max) = self.runs_max.filter(|max| done.other_runs >= *max) {
            reasons.push(format!("deltas of as many runs as runs_max = {max} were made"));
        }
    }

    fn judge_work(&self, manifest: &RunManifest, reasons: &mut Vec<String>) {
        if matches!(manifest.task, Task::Rehearsal { .. }) {
            if !self.allow_rehearsal {
                reasons.push("rehearsals are not allowed (allow_rehearsal)".to_owned());
            }
            return;
        }
        if let (Backbones::Listed(allowed), Some(backbone)) = (&self.backbones, &manifest.backbone)
            && !allowed.contains(&backbone.digest)
        {
            reasons.push(format!("backbone {} is not among `backbones`", backbone.digest));
        }
        let task = manifest.task.as_str();
        if self.tasks.as_ref().is_some_and(|tasks| !tasks.contains(task)) {
            reasons.push(format!("task {task} is not among `tasks`"));
        }
        let adaptation = manifest.adapter.as_ref().map_or("", Adaptation::name);
        if self.adaptations.as_ref().is_some_and(|kinds| !kinds.contains(adaptation)) {
            reasons.push(format!("adapter {adaptation} is not among `adaptations`"));
        }
        let allowed = |reader: &&Reader| {
            self.deltas_for.as_ref().is_none_or(|allowed| allowed.contains(reader))
        };
        if let Some(reader) = manifest.privacy.deltas_for.iter().find(|reader| !allowed(reader)) {
            let reader = reader.as_str();
            reasons.push(format!("single deltas for the {reader} are not among `deltas_for`"));
        }
        let epochs = manifest.training.as_ref().map_or(0, |t| t.epochs);
        above("epochs per round", epochs, "epochs_max", self.epochs_max, reasons);
        let Some(training) = &manifest.training else { return };
        if training.batch_size < self.batch_size_min {
            let (size, min) = (training.batch_size, self.batch_size_min);
            reasons.push(format!("a batch of {size} is below batch_size_min = {min}"));
        }
        let rate = training.learning_rate;
        let most = self.learning_rate_max.unwrap_or(f64::INFINITY);
        if rate > most {
            reasons.push(format!("a learning rate of {rate} is above learning_rate_max = {most}"));
        }
    }
}

fn above<N: PartialOrd + fmt::Display>(
    what: &str,
    value: N,
    key: &str,
    max: N,
    reasons: &mut Vec<String>,
) {
    if value > max {
        reasons.push(format!("{value} {what} are above {key} = {max}"));
    }
}

#[cfg(test)]
mod tests;
