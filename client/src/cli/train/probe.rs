//! `probe`: what a backbone's features are worth.

use std::path::PathBuf;

use serde_json::json;
use tributary_shared::dataset::Interpolation;
use tributary_shared::manifest::Task;
use tributary_shared::outcome::{Failure, chain};

use super::pretrain::PIXEL_CENTRE;
use super::progress::Display;
use super::{Images, Threads};
use crate::cli::{Format, print};
use crate::data::{Dataset, InputSpec};
use crate::model::{Backbone, Compute, random_backbone};
use crate::trainer::{Control, linear_probe};

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
    /// The backbone (safetensors)
    #[arg(long, value_name = "FILE")]
    backbone: PathBuf,
    #[command(flatten)]
    images: Images,
    /// The kind of labels
    #[arg(long, value_enum, default_value_t = Kind::Binary)]
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

pub(super) fn run(args: &ProbeArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let backbone = Backbone::open_described(&args.backbone)
        .map_err(|e| Failure::invalid("backbone", chain(&e)))?;
    let architecture = backbone.architecture();
    let input = InputSpec {
        image_size: architecture.image_size,
        channels: architecture.channels,
        mean: vec![PIXEL_CENTRE; architecture.channels],
        std: vec![PIXEL_CENTRE; architecture.channels],
        interpolation: Interpolation::Bilinear,
    };
    let classes = args.classes.clone();
    let task = match args.task {
        Kind::Binary => Task::Binary { classes },
        Kind::MultiClass => Task::MultiClass { classes },
        Kind::MultiLabel => Task::MultiLabel { classes },
    };
    let dataset =
        args.images.open(|source, reading| Dataset::open_as(source, &task, &input, reading))?;
    let split = dataset.split(args.holdout);
    let mut display = Display::new();
    let mut of = |backbone: &Backbone| {
        let mut show = |progress| display.show(progress);
        let (control, compute) = (Control::default(), Compute::cpu());
        linear_probe(backbone, &task, &dataset, &split, &compute, (&control, &mut show))
            .map_err(|e| Failure::invalid("probe", chain(&e)))
    };
    let (trained, untrained) = (of(&backbone)?, of(&random_backbone(architecture, args.seed))?);
    let data = json!({
        "digest": backbone.digest(),
        "train_cases": split.train.len(),
        "holdout_cases": split.holdout.len(),
        "auroc": trained,
        "auroc_untrained": untrained,
        "margin": trained.zip(untrained).map(|(a, b)| a - b),
    });
    print(format, data, || {
        println!("held-out cases      {}", split.holdout.len());
        println!("AUROC, this file    {}", super::shown(trained));
        println!("AUROC, untrained    {}", super::shown(untrained));
    });
    Ok(())
}
