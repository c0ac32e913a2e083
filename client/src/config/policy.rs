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
    /// Fewest held-out cases of which a number is told, and fewest training cases in a mean loss
    /// that is told while a round is trained.
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

/// What the site has done before a round, as its ledger counts it.
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
    /// The refusal as the coordinator is told it. It passes by itself where only the hour forbids the run; a cohort
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
                    let mend = format!("write some of {}", known.join(", "));
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

    /// What is done counts, beside what a manifest declares.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPEN: &str = "backbones = \"any\"\nstrategies = [\"fedavg\"]\nallow_rehearsal = true\n";

    fn policy(more: &str) -> Policy {
        Policy::from_toml(Path::new("policy.toml"), &format!("{OPEN}{more}")).unwrap()
    }

    fn manifest() -> RunManifest {
        RunManifest::from_toml(&format!(
            r#"
            schema_version = 1
            name = "r"
            task = {{ kind = "binary", classes = ["no", "yes"] }}
            quorum = {{ sites = 2 }}
            rounds = {{ count = 10, round_deadline_s = 60, stall_timeout_s = 60 }}
            limits = {{ delta_norm_max = 5.0 }}
            adapter = {{ kind = "head_only" }}
            [training]
            epochs = 3
            batch_size = 4
            learning_rate = 0.1
            holdout = 0.2
            seed = 1
            [backbone]
            digest = "{}"
            mean = [0.5]
            std = [0.5]
            architecture = {{ image_size = 16, patch_size = 8, channels = 1, width = 12, depth = 1, heads = 3, mlp_width = 20 }}
            "#,
            Digest::of(b"backbone")
        ))
        .unwrap()
    }

    fn rehearsal() -> RunManifest {
        RunManifest::from_toml(
            r#"
            schema_version = 1
            name = "r"
            task = { kind = "rehearsal", payload_bytes = 4096 }
            quorum = { sites = 2 }
            rounds = { count = 10, round_deadline_s = 60, stall_timeout_s = 60 }
            "#,
        )
        .unwrap()
    }

    /// The refusal of noon, 1970-01-01 UTC, as one line; empty when it agrees.
    fn judged(policy: &Policy, manifest: &RunManifest) -> String {
        judged_after(policy, manifest, Done::default())
    }

    fn judged_after(policy: &Policy, manifest: &RunManifest, done: Done) -> String {
        let noon = Timestamp::from_millis(12 * 3_600_000);
        policy.judge(manifest, 3, done, noon).map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn each_rule_refuses_just_above_its_bound_and_names_itself() {
        let cases = [
            ("cohort_min = 3", "cohort_min = 4", "a cohort of 3 is below cohort_min = 4"),
            ("rounds_max = 10", "rounds_max = 9", "10 rounds are above rounds_max = 9"),
            ("epochs_max = 3", "epochs_max = 2", "3 epochs per round are above epochs_max = 2"),
            (
                "delta_norm_max = 5.0",
                "delta_norm_max = 4.99",
                "delta norms up to 5 are above delta_norm_max = 4.99",
            ),
            (
                "adapter_bytes_max = 52",
                "adapter_bytes_max = 51",
                "52 adapter bytes are above adapter_bytes_max = 51",
            ),
            (
                "adaptations = [\"head_only\"]",
                "adaptations = [\"bitfit\", \"full\"]",
                "adapter head_only is not among `adaptations`",
            ),
            ("tasks = [\"ordinal\", \"binary\"]", "tasks = []", "task binary is not among `tasks`"),
            (
                "batch_size_min = 4",
                "batch_size_min = 5",
                "a batch of 4 is below batch_size_min = 5",
            ),
            (
                "learning_rate_max = 0.1",
                "learning_rate_max = 0.09",
                "a learning rate of 0.1 is above learning_rate_max = 0.09",
            ),
            (
                "deltas_for = [\"auditor\", \"operator\"]",
                "deltas_for = [\"auditor\"]",
                "single deltas for the operator are not among `deltas_for`",
            ),
            (
                "hours = [\"11:00-13:00\"]",
                "hours = [\"13:00-11:00\"]",
                "outside the site's training `hours`",
            ),
            (
                "hours = [\"14:00-14:01\"]\nutc_offset = \"+02:00\"",
                "hours = [\"14:00-14:01\"]\nutc_offset = \"+01:00\"",
                "outside the site's training `hours`",
            ),
        ];
        for (agrees, refuses, reason) in cases {
            assert_eq!(judged(&policy(agrees), &manifest()), "", "{agrees}");
            assert_eq!(judged(&policy(refuses), &manifest()), reason, "{refuses}");
        }
    }

    /// A8. Failed before: a run of one round with void_max = 4294967295 got a delta for every round
    /// that it offered, and nothing counted the deltas of all runs.
    #[test]
    fn what_was_done_counts_beside_what_is_declared() {
        let bounds = policy("rounds_max = 10\nruns_max = 2\ndeltas_max = 30");
        let done = |deltas_of_run, deltas, other_runs| {
            judged_after(&bounds, &manifest(), Done { deltas_of_run, deltas, other_runs })
        };
        assert_eq!(done(9, 29, 1), "");
        assert!(done(10, 29, 1).contains("rounds_max = 10"), "{}", done(10, 29, 1));
        assert!(done(9, 30, 1).contains("deltas_max = 30"), "{}", done(9, 30, 1));
        assert!(done(9, 29, 2).contains("runs_max = 2"), "{}", done(9, 29, 2));
    }

    /// Names unknown to a manifest would forbid nothing, or everything, unnoticed.
    #[test]
    fn every_kind_of_a_manifest_is_a_kind_here_and_no_other_is() {
        let kinds = |known: &[&str]| format!("{known:?}");
        let (adaptations, tasks) = (kinds(&Adaptation::KINDS), kinds(&Task::KINDS));
        let all = policy(&format!("adaptations = {adaptations}\ntasks = {tasks}"));
        assert_eq!(judged(&all, &manifest()), "");
        for kind in Task::KINDS {
            // A kind that the manifest does not know is refused by its name alone.
            let text = format!(
                "kind = {kind:?}\nclasses = [\"a\", \"b\"]\nobjective = {{ kind = \"mae\" }}"
            );
            let error =
                toml::from_str::<Task>(&text).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(!error.contains("unknown variant"), "{error}");
        }
        for kind in Adaptation::KINDS {
            let text = format!("kind = {kind:?}");
            let error = toml::from_str::<Adaptation>(&text)
                .map_or_else(|e| e.to_string(), |_| String::new());
            assert!(!error.contains("unknown variant"), "{kind}: {error}");
        }
        for more in ["adaptations = [\"lorra\"]", "tasks = [\"rehearsal\"]"] {
            let text = format!("{OPEN}{more}");
            let refused = Policy::from_toml(Path::new("policy.toml"), &text).unwrap_err();
            assert!(refused.to_string().contains("is no such kind"), "{refused}");
        }
    }

    /// A refusal that only the hour causes ends by itself; no other refusal does.
    #[test]
    fn a_no_of_the_hour_alone_is_passing_and_any_other_stands_until_changed() {
        let noon = Timestamp::from_millis(12 * 3_600_000);
        for (text, class) in [
            ("hours = [\"20:00-06:00\"]", RefusalClass::Passing),
            ("rounds_max = 1", RefusalClass::UntilChanged),
            ("hours = [\"20:00-06:00\"]\nrounds_max = 1", RefusalClass::UntilChanged),
            ("hours = [\"20:00-06:00\"]\ncohort_min = 4", RefusalClass::Passing),
        ] {
            let no = policy(text).judge(&manifest(), 3, Done::default(), noon).unwrap_err();
            assert_eq!(no.refusal().class(), class, "{text}: {no}");
        }
        let no = policy("cohort_min = 4").judge(&manifest(), 3, Done::default(), noon).unwrap_err();
        assert_eq!(no.refusal(), Refusal::Cohort { size: 3, min: 4 });
    }

    #[test]
    fn only_listed_backbones_and_strategies_are_trained() {
        let read = |backbones: &str, strategies: &str| {
            let text = format!("backbones = {backbones}\nstrategies = {strategies}");
            Policy::from_toml(Path::new("policy.toml"), &text).unwrap()
        };
        let digest = Digest::of(b"backbone");
        assert_eq!(judged(&read(&format!("[\"{digest}\"]"), "[\"fedavg\"]"), &manifest()), "");
        assert_eq!(
            judged(&read("[]", "[]"), &manifest()),
            format!(
                "backbone {digest} is not among `backbones`; \
                 strategy fedavg is not among `strategies`"
            )
        );
    }

    #[test]
    fn a_rehearsal_needs_its_own_yes() {
        assert_eq!(judged(&policy(""), &rehearsal()), "");
        let text = "backbones = \"any\"\nstrategies = [\"fedavg\"]";
        let closed = Policy::from_toml(Path::new("policy.toml"), text).unwrap();
        assert_eq!(judged(&closed, &rehearsal()), "rehearsals are not allowed (allow_rehearsal)");
    }

    #[test]
    fn a_policy_that_says_nothing_clear_is_refused() {
        for (text, part) in [
            ("strategies = []", "missing field `backbones`"),
            ("backbones = \"all\"\nstrategies = []", "neither \"any\""),
            ("backbones = [\"abc\"]\nstrategies = []", "not a digest"),
            ("backbones = []\nstrategies = []\nhours = [\"night\"]", "not a window"),
            ("backbones = []\nstrategies = []\ndelta_norm_max = nan", "above 0"),
            // A typo of either would refuse every run, or none, without a word.
            ("backbones = []\nstrategies = [\"fedavgg\"]", "`fedavgg` is no such kind"),
            ("backbones = []\nstrategies = []\ncohort_min = 0", "write 1 to train alone"),
            ("backbones = []\nstrategies = []\ncohort_max = 1", "unknown field `cohort_max`"),
        ] {
            let error = Policy::from_toml(Path::new("p.toml"), text).unwrap_err().to_string();
            assert!(error.starts_with("p.toml:") && error.contains(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn tightening_never_turns_a_no_into_a_yes(
            cohort in 1u32..6, rounds in 0u32..20, epochs in 0u32..6, tighter in 0u32..4,
        ) {
            let read = |cohort: u32, rounds: u32, epochs: u32| policy(&format!(
                "cohort_min = {cohort}\nrounds_max = {rounds}\nepochs_max = {epochs}"
            ));
            let loose = read(cohort, rounds, epochs);
            let tight = read(
                cohort + tighter,
                rounds.saturating_sub(tighter),
                epochs.saturating_sub(tighter),
            );
            if judged(&tight, &manifest()).is_empty() {
                prop_assert_eq!(judged(&loose, &manifest()), "");
            }
        }
    }
}
