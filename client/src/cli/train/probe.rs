//! `probe`: what a backbone's features are worth.

use std::path::PathBuf;

use serde_json::json;
use tributary_shared::dataset::Interpolation;
use tributary_shared::manifest::Task;
use tributary_shared::outcome::{Failure, chain};

use super::evaluate::read_adapter;
use super::pretrain::PIXEL_CENTRE;
use super::progress::Display;
use super::{BackboneArg, Images, Threads, read_backbone, read_manifest};
use crate::cli::{Format, print};
use crate::data::{Dataset, InputSpec};
use crate::model::{Backbone, Compute, random_backbone};
use crate::trainer::{Control, Probed, linear_probe};

/// The kind of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// One of two classes.
    Binary,
    /// One of several classes.
    MultiClass,
    /// Any subset of the classes.
    MultiLabel,
}

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    backbone: BackboneArg,
    #[command(flatten)]
    images: Images,
    /// Look at the features under an adapter of the run that this manifest declares
    #[arg(long, value_name = "run.toml", requires = "adapter")]
    run: Option<PathBuf>,
    /// The adapter in canonical bytes
    #[arg(long, value_name = "FILE", requires = "run")]
    adapter: Option<PathBuf>,
    /// The kind of labels: binary, multi-class or multi-label
    #[arg(long, default_value = "binary", value_parser = kind)]
    task: Kind,
    /// The class names in order, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    classes: Vec<String>,
    /// Share of patients held out
    #[arg(long, default_value_t = 0.3)]
    holdout: f64,
    /// Seed of the untrained backbone
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    threads: Threads,
}

/// A kind of labels that a probe can tell apart; what to do instead with the others.
fn kind(text: &str) -> Result<Kind, String> {
    <Kind as clap::ValueEnum>::from_str(text, true).map_err(|_| {
        let instead = match text {
            "ordinal" => "; probe grades as --task multi-class, or train an ordinal run",
            "survival" | "segmentation" | "self-supervised" | "self_supervised" | "bags" => {
                "; train a run of that task with `train` and judge it with `evaluate`"
            }
            _ => "",
        };
        format!("a probe is judged on binary, multi-class or multi-label labels{instead}")
    })
}

pub(super) fn run(args: &ProbeArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let run = args.run.as_deref().map(read_manifest).transpose()?;
    let file = args.backbone.path(&args.images)?;
    let backbone = match &run {
        Some(run) => read_backbone(&file, run)?,
        None => {
            Backbone::open_described(&file).map_err(|e| Failure::invalid("backbone", chain(&e)))?
        }
    };
    let adapter = match (&run, &args.adapter) {
        (Some(run), Some(path)) => run.contract().zip(Some(read_adapter(path, run)?)),
        (Some(_), None) | (None, _) => None,
    };
    let architecture = backbone.architecture();
    let asked = run.as_ref().and_then(|run| run.backbone.as_ref());
    let centre = || vec![PIXEL_CENTRE; architecture.channels];
    let input = InputSpec {
        image_size: architecture.image_size,
        channels: architecture.channels,
        mean: asked.map_or_else(centre, |asked| asked.mean.clone()),
        std: asked.map_or_else(centre, |asked| asked.std.clone()),
        interpolation: asked.map_or_else(Interpolation::default, |asked| asked.interpolation),
        crop_pct: asked.and_then(|asked| asked.crop_pct),
    };
    let classes = args.classes.clone();
    let task = match args.task {
        Kind::Binary => Task::Binary { classes },
        Kind::MultiClass => Task::MultiClass { classes },
        Kind::MultiLabel => Task::MultiLabel { classes },
    };
    let dataset =
        args.images.open(|source, reading| Dataset::open_as(source, &task, &input, reading))?;
    let split = args.images.split(&dataset, args.holdout)?;
    let mut display = Display::new();
    let mut of = |probed: Probed<'_>| {
        let mut show = |progress| display.show(progress);
        let (control, compute) = (Control::default(), Compute::cpu());
        linear_probe(probed, &task, &dataset, &split, &compute, (&control, &mut show))
            .map_err(|e| Failure::invalid("probe", chain(&e)))
    };
    let frozen = of(Probed { backbone: &backbone, adapter: None })?;
    let adapted = match &adapter {
        Some((contract, values)) => {
            of(Probed { backbone: &backbone, adapter: Some((contract, values)) })?
        }
        None => None,
    };
    let random = random_backbone(architecture, args.seed);
    let untrained = of(Probed { backbone: &random, adapter: None })?;
    let data = json!({
        "digest": backbone.digest(),
        "train_cases": split.train.len(),
        "holdout_cases": split.holdout.len(),
        "auroc": frozen,
        "auroc_adapted": adapted,
        "auroc_untrained": untrained,
        "margin": frozen.zip(untrained).map(|(a, b)| a - b),
    });
    print(format, data, || {
        say!("held-out cases      {}", split.holdout.len());
        say!("AUROC, this file    {}", super::shown(frozen));
        if adapter.is_some() {
            say!("AUROC, adapted      {}", super::shown(adapted));
        }
        say!("AUROC, untrained    {}", super::shown(untrained));
    });
    Ok(())
}
