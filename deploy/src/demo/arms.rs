//! The comparison: what each hospital learns alone, together, and with all images in one place.
//! Every arm is judged on the same held-out patients.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::ProgressBar;
use serde::Serialize;
use tributary_client::data::Label;
use tributary_client::metrics::{balanced_accuracy, macro_auroc};
use tributary_shared::manifest::Task;

use super::plan::Plan;
use super::{HOSPITALS, RUN, Teller};
use crate::command::{self, Failed};
use crate::federation::Federation;

/// How an adapter came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Arm {
    /// Each hospital trains a linear head alone on the frozen backbone.
    HeadOnlyLocal,
    /// Each hospital trains LoRA and a head alone.
    LoraLocal,
    /// The hospitals train LoRA and a head together.
    LoraFederated,
    /// LoRA and a head on all images in one place: the ceiling.
    LoraPooled,
}

impl Arm {
    /// From the least to the most.
    pub(super) const ALL: [Self; 4] =
        [Self::HeadOnlyLocal, Self::LoraLocal, Self::LoraFederated, Self::LoraPooled];

    /// Whether each hospital has an adapter of its own.
    fn is_local(self) -> bool {
        matches!(self, Self::HeadOnlyLocal | Self::LoraLocal)
    }

    /// The key in the JSON result.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::HeadOnlyLocal => "head_only_local",
            Self::LoraLocal => "lora_local",
            Self::LoraFederated => "lora_federated",
            Self::LoraPooled => "lora_pooled",
        }
    }

    /// The row in tables.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::HeadOnlyLocal => "head only, each alone",
            Self::LoraLocal => "LoRA, each alone",
            Self::LoraFederated => "LoRA, federated",
            Self::LoraPooled => "LoRA, images pooled",
        }
    }
}

/// How good some predictions are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Score {
    /// Held-out cases.
    pub(super) cases: usize,
    /// Area under the ROC curve, the mean over classes.
    pub(super) auroc: Option<f64>,
    /// Mean recall of the classes.
    pub(super) balanced_accuracy: Option<f64>,
}

impl Score {
    /// The mean of several adapters' scores on the same cases.
    fn mean(scores: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> Option<f64>| {
            let sum: Option<f64> = scores.iter().map(of).sum();
            sum.map(|sum| sum / scores.len() as f64)
        };
        Self {
            cases: scores.first().map_or(0, |score| score.cases),
            auroc: mean(|score| score.auroc),
            balanced_accuracy: mean(|score| score.balanced_accuracy),
        }
    }
}

/// One arm at every hospital and over all of their patients.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ArmScores {
    /// Which.
    pub(super) arm: Arm,
    /// In the order of the hospitals.
    pub(super) sites: Vec<Score>,
    /// Over the patients of all hospitals. Of arms with an adapter a hospital, the mean over the
    /// adapters, each judged on every hospital's patients.
    pub(super) pooled: Score,
}

/// Trains the baselines and judges every arm.
pub(super) fn compare(
    plan: &Plan,
    federation: &Federation,
    teller: &mut Teller,
) -> Result<Vec<ArmScores>, Failed> {
    teller.step("Training for comparison: each hospital alone, and all images in one place");
    for folder in ["baselines", "predictions"] {
        let folder = plan.root.join(folder);
        fs::create_dir_all(&folder).map_err(|e| Failed::file(&folder, &e))?;
    }
    let bar = teller.bar(0);
    at_once(plan, federation, trainings(plan), &bar)?;
    bar.finish_and_clear();
    teller.step("Judging every adapter on the same held-out patients");
    let pulled = plan.root.join("pulled");
    federation.operator(["run", "pull", RUN, "--out", &pulled.to_string_lossy()])?;
    let bar = teller.bar(0);
    at_once(plan, federation, evaluations(plan), &bar)?;
    bar.finish_and_clear();
    Arm::ALL.iter().map(|arm| score(plan, *arm)).collect()
}

/// Arguments of one `tributary-client` command, and how much work it is.
struct Job {
    arguments: Vec<String>,
    weight: usize,
}

fn trainings(plan: &Plan) -> Vec<Job> {
    let train = |arm: Arm, sites: &[usize]| {
        let name = if let [site] = sites { HOSPITALS[*site] } else { "pooled" };
        let mut arguments = words(plan, "train");
        arguments.extend(["--site".into(), name.to_owned(), "--out".into()]);
        arguments.push(shown(&adapter(plan, arm, sites[0])));
        for site in sites {
            arguments.extend(["--data".into(), shown(&plan.images.folders[*site])]);
        }
        arguments.extend((arm == Arm::HeadOnlyLocal).then(|| "--head-only".to_owned()));
        let weight = if arm == Arm::HeadOnlyLocal { 1 } else { 10 * sites.len() };
        Job { arguments, weight }
    };
    let sites = 0..HOSPITALS.len();
    let mut jobs = vec![train(Arm::LoraPooled, &sites.clone().collect::<Vec<_>>())];
    jobs.extend(sites.clone().map(|site| train(Arm::LoraLocal, &[site])));
    jobs.extend(sites.map(|site| train(Arm::HeadOnlyLocal, &[site])));
    jobs
}

fn evaluations(plan: &Plan) -> Vec<Job> {
    // The adapter of the first hospital, on the patients of all that are named.
    let evaluate = |arm: Arm, of: &[usize], predictions: PathBuf| {
        let mut arguments = words(plan, "evaluate");
        arguments.extend(["--adapter".into(), shown(&adapter(plan, arm, of[0]))]);
        for site in of {
            arguments.extend(["--data".into(), shown(&plan.images.folders[*site])]);
        }
        arguments.extend(["--predictions".into(), shown(&predictions)]);
        arguments.extend((arm == Arm::HeadOnlyLocal).then(|| "--head-only".to_owned()));
        Job { arguments, weight: of.len() }
    };
    let sites = 0..HOSPITALS.len();
    let mut jobs = Vec::new();
    for arm in Arm::ALL {
        jobs.extend(sites.clone().map(|site| evaluate(arm, &[site], predictions(plan, arm, site))));
        if arm.is_local() {
            jobs.extend(sites.clone().map(|site| {
                let mut all: Vec<usize> = sites.clone().collect();
                all.rotate_left(site);
                evaluate(arm, &all, everywhere(plan, arm, site))
            }));
        }
    }
    jobs
}

fn words(plan: &Plan, command: &str) -> Vec<String> {
    let (run, backbone) = (shown(&plan.run_toml()), shown(&plan.backbone));
    vec![command.to_owned(), "--run".into(), run, "--backbone".into(), backbone]
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The adapter that `site` uses in `arm`.
fn adapter(plan: &Plan, arm: Arm, site: usize) -> PathBuf {
    match arm {
        Arm::HeadOnlyLocal | Arm::LoraLocal => {
            plan.root.join(format!("baselines/{}-{}.tensors", arm.key(), HOSPITALS[site]))
        }
        Arm::LoraPooled => plan.root.join(format!("baselines/{}.tensors", arm.key())),
        Arm::LoraFederated => plan.root.join("pulled/adapter.tensors"),
    }
}

fn predictions(plan: &Plan, arm: Arm, site: usize) -> PathBuf {
    plan.root.join(format!("predictions/{}-{}.csv", arm.key(), HOSPITALS[site]))
}

/// What the adapter of one hospital says of every hospital's patients.
fn everywhere(plan: &Plan, arm: Arm, site: usize) -> PathBuf {
    plan.root.join(format!("predictions/{}-{}-everywhere.csv", arm.key(), HOSPITALS[site]))
}

/// Runs `jobs` as processes, as many at once as there are cores, the long ones first.
fn at_once(
    plan: &Plan,
    federation: &Federation,
    mut jobs: Vec<Job>,
    bar: &ProgressBar,
) -> Result<(), Failed> {
    jobs.sort_by_key(|job| std::cmp::Reverse(job.weight));
    bar.set_length(jobs.len() as u64);
    let workers = plan.cores.clamp(1, jobs.len());
    let threads = (plan.cores / jobs.len()).max(1).to_string();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let arguments = job.arguments.iter().map(String::as_str);
                    let arguments = arguments.chain(["--threads", &threads]);
                    let mut command = federation.client_command(arguments);
                    federation.guard().enlist(&mut command);
                    match command::run(&mut command) {
                        Ok(_) => bar.inc(1),
                        Err(e) => {
                            next.store(jobs.len(), Ordering::Relaxed);
                            *failed.lock().unwrap_or_else(|p| p.into_inner()) = Some(e);
                        }
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
}

fn score(plan: &Plan, arm: Arm) -> Result<ArmScores, Failed> {
    let task = &plan.manifest.task;
    let mut all = Predictions::default();
    let (mut sites, mut abroad) = (Vec::new(), Vec::new());
    for site in 0..HOSPITALS.len() {
        let read = Predictions::read(&predictions(plan, arm, site), task)?;
        sites.push(read.score());
        all.labels.extend(read.labels);
        all.probabilities.extend(read.probabilities);
        if arm.is_local() {
            abroad.push(Predictions::read(&everywhere(plan, arm, site), task)?.score());
        }
    }
    let pooled = if arm.is_local() { Score::mean(&abroad) } else { all.score() };
    Ok(ArmScores { arm, sites, pooled })
}

/// Held-out cases with what an adapter says of them.
#[derive(Default)]
struct Predictions {
    labels: Vec<Label>,
    probabilities: Vec<Vec<f32>>,
}

impl Predictions {
    /// Reads what `tributary-client evaluate --predictions` wrote.
    fn read(file: &Path, task: &Task) -> Result<Self, Failed> {
        let broken = |problem: String| Failed::new(&file.display().to_string(), None, &problem);
        let mut reader = csv::Reader::from_path(file).map_err(|e| broken(e.to_string()))?;
        let mut all = Self::default();
        for row in reader.records() {
            let row = row.map_err(|e| broken(e.to_string()))?;
            let label = row.get(2).and_then(|text| label(text, task));
            all.labels.push(label.ok_or_else(|| broken(format!("no label: {row:?}")))?);
            let numbers: Result<Vec<f32>, _> = row.iter().skip(3).map(str::parse).collect();
            all.probabilities.push(numbers.map_err(|e| broken(format!("{e}: {row:?}")))?);
        }
        Ok(all)
    }

    fn score(&self) -> Score {
        Score {
            cases: self.labels.len(),
            auroc: macro_auroc(&self.probabilities, &self.labels),
            balanced_accuracy: balanced_accuracy(&self.probabilities, &self.labels),
        }
    }
}

fn label(text: &str, task: &Task) -> Option<Label> {
    let classes = task.classes();
    if let Task::MultiLabel { .. } = task {
        let marked: Vec<&str> = text.split(';').collect();
        return Some(Label::Many(classes.iter().map(|c| marked.contains(&c.as_str())).collect()));
    }
    classes.iter().position(|class| class == text).map(Label::Class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_scored_as_the_client_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.csv");
        fs::write(&file, "case,patient,label,p(yes)\na,1,no,0.1\nb,2,yes,0.9\nc,3,yes,0.3\n")
            .unwrap();
        let task = Task::Binary { classes: vec!["no".into(), "yes".into()] };
        let score = Predictions::read(&file, &task).unwrap().score();
        assert_eq!((score.cases, score.auroc, score.balanced_accuracy), (3, Some(1.0), Some(0.75)));
        fs::write(&file, "case,patient,label,p(yes)\na,1,maybe,0.1\n").unwrap();
        assert!(Predictions::read(&file, &task).is_err());
    }
}
