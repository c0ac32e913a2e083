//! `evaluate`: an adapter on local images.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tensors::{Header, Subject, decode};

use super::progress::Display;
use super::{Adapted, Images, Threads, shown};
use crate::cli::{Format, print};
use crate::data::Dataset;
use crate::model::{Compute, Values};
use crate::trainer::{Control, Evaluation, Inference, prediction_columns};
use tributary_proto::channel::write_durably;

/// Which cases to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    /// Patients that training never sees.
    Holdout,
    /// Patients that training sees.
    Train,
    /// All patients.
    All,
}

/// Said where the patients are divided otherwise than at a site that took part in a run.
const PUBLIC_SALT_NOTE: &str = "held out are the cases that `train` holds out; of an adapter that \
    a federation trained, name the site with --config, or its salt with --holdout-salt";

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct EvaluateArgs {
    #[command(flatten)]
    adapted: Adapted,
    #[command(flatten)]
    images: Images,
    /// Which patients
    #[arg(long, value_enum, default_value_t = Side::Holdout)]
    split: Side,
    /// Write each case's probabilities to this CSV; it stays at the site
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
}

pub(super) fn run(args: &EvaluateArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let manifest = args.adapted.manifest()?;
    if args.predictions.is_some() && matches!(manifest.task, Task::SelfSupervised { .. }) {
        let line = "--predictions: a self_supervised run says nothing of an image; leave it out";
        return Err(Failure::invalid("arguments", line));
    }
    let backbone = args.adapted.backbone.of_run(&args.images, &manifest)?;
    let values = read_adapter(&args.adapted.adapter, &manifest)?;
    let dataset = args.images.of_run(&manifest)?;
    let holdout = manifest.training.as_ref().map_or(0.0, |t| t.holdout);
    let split = args.images.split(&dataset, holdout)?;
    if args.images.secret_salt()?.is_none() && args.split != Side::All {
        aside!("{PUBLIC_SALT_NOTE}");
    }
    let indices = match args.split {
        Side::Holdout => split.holdout,
        Side::Train => split.train,
        Side::All => (0..dataset.len()).collect(),
    };
    let compute = Compute::cpu();
    let inference = Inference {
        backbone: &backbone,
        manifest: &manifest,
        values: &values,
        dataset: &dataset,
        compute: &compute,
    };
    let mut display = Display::new();
    let evaluation = inference
        .evaluate(&indices, &Control::default(), &mut |progress| display.show(progress))
        .map_err(|e| Failure::invalid("evaluation", chain(&e)))?;
    drop(display);
    if let Some(path) = &args.predictions {
        write_predictions(path, &evaluation, &dataset, &manifest)?;
    }
    report(&evaluation, &manifest.task, format);
    Ok(())
}

fn report(evaluation: &Evaluation, task: &Task, format: Format) {
    let classes = task.classes().iter().zip(&evaluation.dice_of_class);
    let dice_of_class: serde_json::Map<String, Value> =
        classes.map(|(class, dice)| (class.clone(), json!(dice))).collect();
    let data = json!({
        "cases": evaluation.cases,
        "loss": evaluation.loss,
        "auroc": evaluation.auroc,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "kappa": evaluation.kappa,
        "grade_error": evaluation.grade_error,
        "concordance": evaluation.concordance,
        "dice": evaluation.dice,
        "dice_of_class": dice_of_class,
    });
    print(format, data, || {
        say!("cases              {}", evaluation.cases);
        say!("loss               {}", shown(evaluation.loss));
        let of_task: &[(&str, Option<f64>)] = match task {
            Task::Survival {} => &[("concordance", evaluation.concordance)],
            Task::Segmentation { .. } => &[("Dice", evaluation.dice)],
            Task::Ordinal { .. } => &[
                ("AUROC", evaluation.auroc),
                ("balanced accuracy", evaluation.balanced_accuracy),
                ("quadratic kappa", evaluation.kappa),
                ("mean grade error", evaluation.grade_error),
            ],
            Task::SelfSupervised { .. } => &[],
            Task::Binary { .. }
            | Task::MultiClass { .. }
            | Task::MultiLabel { .. }
            | Task::Rehearsal { .. } => {
                &[("AUROC", evaluation.auroc), ("balanced accuracy", evaluation.balanced_accuracy)]
            }
        };
        for (name, value) in of_task {
            say!("{name:<18} {}", shown(*value));
        }
        for (class, dice) in task.classes().iter().zip(&evaluation.dice_of_class) {
            say!("Dice of {class}: {}", shown(*dice));
        }
    });
}

/// Reads an adapter of any version of the run; the word `initial` stands for version 0, which
/// everybody can compute.
pub(super) fn read_adapter(path: &Path, manifest: &RunManifest) -> Result<Values, Failure> {
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let invalid = |problem: String| {
        Failure::invalid("adapter", format!("adapter {}: {problem}", path.display()))
    };
    let initial = path == Path::new("initial") && !path.exists();
    let bytes = if initial {
        initial_adapter(manifest)
    } else {
        let size = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
        // Versions differ in their digits only.
        let expected = adapter_header(&manifest.name, u32::MAX, &contract).total_bytes();
        if size > expected {
            return Err(invalid(format!("{size} bytes; the contract allows {expected}")));
        }
        std::fs::read(path).map_err(|e| invalid(e.to_string()))?
    };
    let header = adapter_header(&manifest.name, version_of(&bytes), &contract);
    decode(&bytes, &header).map_err(|refusal| {
        invalid(refusal.to_string())
            .hint("give an adapter of this run, and --head-only if it was trained with --head-only")
    })
}

/// The version that the bytes say they are; whatever else they are, `decode` judges.
fn version_of(bytes: &[u8]) -> u32 {
    let header = || -> Option<Header> {
        let length = bytes.get(8..12)?.try_into().map(u32::from_le_bytes).ok()?;
        serde_json::from_slice(bytes.get(12..12 + usize::try_from(length).ok()?)?).ok()
    };
    match header().map(|header| header.subject) {
        Some(Subject::Adapter { version, .. }) => version,
        Some(Subject::Delta { .. }) | None => 0,
    }
}

fn write_predictions(
    path: &Path,
    evaluation: &Evaluation,
    dataset: &Dataset,
    manifest: &RunManifest,
) -> Result<(), Failure> {
    let task = &manifest.task;
    let failed =
        |problem: String| Failure::invalid("output", format!("{}: {problem}", path.display()));
    let mut table = csv::Writer::from_writer(Vec::new());
    // A bag has one row, whose case is its first image.
    let bags = manifest.bags.is_some().then(|| "bag".to_owned());
    let columns = ["case", "patient", "label"].into_iter().map(str::to_owned);
    let columns = bags.clone().into_iter().chain(columns);
    let header: Vec<String> = columns.chain(prediction_columns(task)).collect();
    let mut rows = vec![header];
    for (index, probabilities) in &evaluation.predictions {
        let case = &dataset.cases()[*index];
        let label = case.label.text(task.classes());
        let facts = [case.id.clone(), case.patient.clone(), label];
        let bag = bags.as_ref().map(|_| case.bag.clone());
        let numbers = probabilities.iter().map(f32::to_string);
        rows.push(bag.into_iter().chain(facts).chain(numbers).collect());
    }
    for row in rows {
        table.write_record(&row).map_err(|e| failed(e.to_string()))?;
    }
    let bytes = table.into_inner().map_err(|e| failed(e.to_string()))?;
    // Says what patients have: nobody else on the machine reads it.
    write_durably(path, &bytes, 0o600).map_err(|e| failed(e.to_string()))
}
