//! `train`: a run's rounds at one site, as a federation of one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tributary_shared::adaptation::Adaptation;
use tributary_shared::digest::Digest;
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tensors::{decode, encode};

use super::progress::Display;
use super::{BackboneArg, Images, Threads, read_manifest, shown};
use crate::cli::{Format, print};
use crate::config::cache::{BYTES_MAX, Precision};
use crate::data::{Dataset, Split};
use crate::model::{Backbone, Compute, Values, write_whole};
use crate::trainer::{Control, LocalTraining, PrefixCache, TrainError, train};

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct TrainArgs {
    /// The run's manifest
    #[arg(long, value_name = "run.toml")]
    run: PathBuf,
    #[command(flatten)]
    backbone: BackboneArg,
    #[command(flatten)]
    images: Images,
    /// Adapter to write, in canonical bytes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Train the head alone, on the frozen backbone's features
    #[arg(long)]
    head_only: bool,
    /// Another peak learning rate than the manifest's
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Keep there what the frozen blocks make of images, for later epochs and runs (docs/cache.md)
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The name that shuffles and dropout masks are drawn for
    #[arg(long, default_value = "local")]
    site: String,
    #[command(flatten)]
    threads: Threads,
}

pub(super) fn run(args: &TrainArgs, format: Format) -> Result<(), Failure> {
    args.threads.set()?;
    let mut manifest = read_manifest(&args.run)?;
    if args.head_only {
        train_head_alone(&mut manifest)?;
    }
    if let (Some(rate), Some(training)) = (args.learning_rate, &mut manifest.training) {
        training.learning_rate = rate;
        manifest.check().map_err(|e| Failure::invalid("arguments", e.to_string()))?;
    }
    let backbone = args.backbone.of_run(&args.images, &manifest)?;
    let dataset = args.images.of_run(&manifest)?;
    let holdout = manifest.training.as_ref().map_or(0.0, |t| t.holdout);
    let holds_out = dataset.check_patients(holdout);
    holds_out.map_err(|e| Failure::invalid("data", e.to_string()))?;
    let split = args.images.split(&dataset, holdout)?;
    let cache = args.cache.as_deref().map(open_cache).transpose()?;
    let began = Instant::now();
    let site = Site { backbone: &backbone, dataset: &dataset, split: &split, cache };
    let done =
        all_rounds(args, &manifest, &site).map_err(|e| Failure::invalid("training", chain(&e)))?;
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let header = adapter_header(&manifest.name, manifest.rounds.count, &contract);
    let bytes = encode(&header, &done.values);
    write_whole(&args.out, &bytes)
        .map_err(|e| Failure::invalid("output", format!("{}: {e}", args.out.display())))?;
    let data = json!({
        "adapter": args.out,
        "digest": Digest::of(&bytes),
        "cases": done.cases,
        "rounds": manifest.rounds.count,
        "steps": done.steps,
        "train_loss": done.losses,
        "wall_s": began.elapsed().as_secs_f64(),
    });
    print(format, data, || {
        say!("{}", args.out.display());
        say!("digest  {}", Digest::of(&bytes));
        say!("cases   {}, {} steps in {} rounds", done.cases, done.steps, done.losses.len());
        let loss = |l: Option<&f64>| shown(l.copied());
        say!("loss    {} -> {}", loss(done.losses.first()), loss(done.losses.last()));
    });
    Ok(())
}

/// The run without anything trained below its head.
pub(super) fn train_head_alone(manifest: &mut RunManifest) -> Result<(), Failure> {
    manifest.adapter = Some(Adaptation::HeadOnly);
    manifest.check().map_err(|e| Failure::invalid("arguments", format!("--head-only: {e}")))
}

struct Done {
    values: Values,
    cases: u64,
    steps: u64,
    losses: Vec<f64>,
}

fn open_cache(dir: &Path) -> Result<PrefixCache, Failure> {
    let opened = PrefixCache::open(dir, BYTES_MAX, Precision::default());
    opened.map_err(|e| Failure::invalid("arguments", format!("--cache {}: {e}", dir.display())))
}

/// What this site alone has.
struct Site<'a> {
    backbone: &'a Backbone,
    dataset: &'a Dataset,
    split: &'a Split,
    cache: Option<PrefixCache>,
}

/// Round after round, each from the last one's adapter: what a federation of this site alone does.
fn all_rounds(
    args: &TrainArgs,
    manifest: &RunManifest,
    site: &Site<'_>,
) -> Result<Done, TrainError> {
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let header = adapter_header(&manifest.name, 0, &contract);
    let values = decode(&initial_adapter(manifest), &header).expect("the initial adapter fits");
    let mut done = Done { values, cases: 0, steps: 0, losses: Vec::new() };
    // Between rounds nobody asks for held-out metrics; `evaluate` gives them at the end.
    let split = Split { train: site.split.train.clone(), holdout: Vec::new() };
    let (control, compute) = (Control::default(), Compute::cpu());
    let mut display = Display::new();
    for round in 1..=manifest.rounds.count {
        display.prefix(format!("round {round}/{} ", manifest.rounds.count));
        let work = LocalTraining {
            backbone: site.backbone,
            manifest,
            base: &done.values,
            dataset: site.dataset,
            split: &split,
            round,
            site: &args.site,
            compute: &compute,
            cache: site.cache.as_ref(),
        };
        let update = train(&work, &control, &mut |progress| display.show(progress))?;
        done.values = update.values;
        done.cases = update.cases;
        done.steps += update.metrics.steps;
        done.losses.extend(update.metrics.train_loss);
    }
    Ok(done)
}
