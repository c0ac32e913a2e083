//! Training without a federation: pretrain a backbone, train, evaluate, export, probe.

mod backbone;
mod cache;
mod evaluate;
mod explain;
mod export;
mod local;
mod overlay;
mod pretrain;
mod probe;
mod progress;

use std::path::{Path, PathBuf};

use tributary_shared::manifest::{MANIFEST_BYTES_MAX, RunManifest, Task};
use tributary_shared::outcome::{Failure, chain};

use self::local::train_head_alone;
use super::Format;
use crate::config::reading::Reading;
use crate::config::site::SiteConfig;
use crate::data::{DataError, DataSource, Dataset, HoldoutSalt, InputSpec, Split};
use crate::model::{Backbone, set_threads};
use crate::site::{salt, source};

/// Commands that compute at this site alone.
#[derive(Debug, clap::Subcommand)]
pub enum TrainCommand {
    /// Make a backbone from unlabelled images.
    Pretrain(pretrain::PretrainArgs),
    /// Train a run's adapter on local images alone, without a federation.
    Train(local::TrainArgs),
    /// Say how good an adapter is on local images.
    Evaluate(evaluate::EvaluateArgs),
    /// Show where an adapted model looked, as pictures that stay here.
    Explain(explain::ExplainArgs),
    /// Write an adapter for Python's `peft` or timm, or merge it into its backbone.
    Export(export::ExportArgs),
    /// Read an adapter that Python's `peft` wrote as one of a run.
    ImportAdapter(export::ImportAdapterArgs),
    /// Compare a backbone's features with an untrained one's by a linear probe.
    Probe(probe::ProbeArgs),
    /// Import published weights as a backbone, or look at one.
    #[command(subcommand)]
    Backbone(backbone::BackboneCommand),
    /// Look at what is kept of the frozen blocks' work, or remove it.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
}

/// Runs one command.
pub fn run(command: &TrainCommand, format: Format) -> Result<(), Failure> {
    match command {
        TrainCommand::Pretrain(args) => pretrain::run(args, format),
        TrainCommand::Train(args) => local::run(args, format),
        TrainCommand::Evaluate(args) => evaluate::run(args, format),
        TrainCommand::Explain(args) => explain::run(args, format),
        TrainCommand::Export(args) => export::run(args, format),
        TrainCommand::ImportAdapter(args) => export::import(args, format),
        TrainCommand::Probe(args) => probe::run(args, format),
        TrainCommand::Backbone(command) => backbone::run(command, format),
        TrainCommand::Cache(command) => cache::run(command, format),
    }
}

/// How many threads compute.
#[derive(Debug, clap::Args)]
struct Threads {
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl Threads {
    fn set(&self) -> Result<(), Failure> {
        match self.threads {
            None => Ok(()),
            Some(0) => Err(Failure::invalid("threads", "--threads 0: at least one is needed")),
            Some(threads) => {
                set_threads(threads).map_err(|e| Failure::invalid("threads", chain(&e)))
            }
        }
    }
}

fn read_manifest(path: &Path) -> Result<RunManifest, Failure> {
    let invalid =
        |problem: String| Failure::invalid("manifest", format!("{}: {problem}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
    if bytes > MANIFEST_BYTES_MAX as u64 {
        return Err(invalid(format!("{bytes} bytes; a manifest has at most {MANIFEST_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    let manifest = RunManifest::from_toml(&text).map_err(|e| invalid(e.to_string()))?;
    if let Task::Rehearsal { .. } = manifest.task {
        return Err(invalid("a rehearsal trains no model".to_owned()));
    }
    Ok(manifest)
}

/// The run's backbone, which must be the very file that the manifest names.
fn read_backbone(path: &Path, manifest: &RunManifest) -> Result<Backbone, Failure> {
    let asked = manifest.backbone.as_ref().ok_or_else(|| {
        Failure::invalid("manifest", "the run has no [backbone]; a rehearsal trains no model")
    })?;
    Backbone::open_for_run(path, asked).map_err(|e| Failure::invalid("backbone", chain(&e)))
}

/// Which backbone.
#[derive(Debug, clap::Args)]
struct BackboneArg {
    /// The backbone (safetensors) [default: that of --config]
    #[arg(long, required_unless_present = "config", value_name = "FILE")]
    backbone: Option<PathBuf>,
}

impl BackboneArg {
    /// The file that is named, else that of the `site.toml` of `images`.
    fn path(&self, images: &Images) -> Result<PathBuf, Failure> {
        if let Some(named) = &self.backbone {
            return Ok(named.clone());
        }
        images.site()?.and_then(|site| site.backbone).ok_or_else(|| {
            Failure::invalid("backbone", "the site.toml has no [backbone]").hint(
                "name the file with --backbone FILE, or in site.toml: [backbone] path = \"FILE\"",
            )
        })
    }

    /// As [`read_backbone`].
    fn of_run(&self, images: &Images, manifest: &RunManifest) -> Result<Backbone, Failure> {
        read_backbone(&self.path(images)?, manifest)
    }
}

/// An adapter with the run and the backbone that it was trained on.
#[derive(Debug, clap::Args)]
struct Adapted {
    /// The run's manifest
    #[arg(long, value_name = "run.toml")]
    run: PathBuf,
    #[command(flatten)]
    backbone: BackboneArg,
    /// The adapter in canonical bytes, or `initial`
    #[arg(long, value_name = "FILE|initial")]
    adapter: PathBuf,
    /// The adapter was trained with `train --head-only`
    #[arg(long)]
    head_only: bool,
}

impl Adapted {
    /// The run's manifest, as the adapter was trained.
    fn manifest(&self) -> Result<RunManifest, Failure> {
        let mut manifest = read_manifest(&self.run)?;
        if self.head_only {
            train_head_alone(&mut manifest)?;
        }
        Ok(manifest)
    }
}

/// Which images, and how they are read.
#[derive(Debug, clap::Args)]
struct Images {
    /// Images: a folder, a manifest or an `.npz`; several are pooled [default: those of --config]
    #[arg(long, required_unless_present = "config", value_name = "DIR|CSV|NPZ")]
    data: Vec<PathBuf>,
    /// This site.toml says where images and backbone are, and how files are read: window, slices,
    /// patches, slides [default: the usual way]
    #[arg(long, value_name = "site.toml")]
    config: Option<PathBuf>,
    /// The salt by which patients are held out [default: that of the site of --config, else one that
    /// all programs know]
    #[arg(long, value_name = "FILE")]
    holdout_salt: Option<PathBuf>,
}

/// Refusals that are named; the others are counted.
const REFUSALS_NAMED_MAX: usize = 20;

impl Images {
    /// Configuration from the file of `--config`, if one is given.
    fn site(&self) -> Result<Option<SiteConfig>, Failure> {
        let environment: Vec<_> = std::env::vars().collect();
        self.config.as_deref().map(|file| SiteConfig::read(file, &environment)).transpose()
    }

    /// The salt that divides the patients; none when all programs know it.
    fn secret_salt(&self) -> Result<Option<HoldoutSalt>, Failure> {
        if let Some(file) = &self.holdout_salt {
            let missing = || {
                Failure::invalid("holdout_salt", format!("{}: no such file", file.display()))
                    .hint("it lies in a site's directory, beside identity/")
            };
            return salt::read(file)?.ok_or_else(missing).map(Some);
        }
        match self.site()? {
            Some(site) => salt::read(&salt::salt_of(&site.directory)),
            None => Ok(None),
        }
    }

    /// Which cases of `dataset` a run trains on and which it holds out, at the site of `--config` as
    /// the site's rounds have it.
    fn split(&self, dataset: &Dataset, holdout: f64) -> Result<Split, Failure> {
        let salt = self.secret_salt()?.unwrap_or_else(HoldoutSalt::public);
        Ok(dataset.split(&salt, holdout))
    }

    /// The images as one data set, labelled for the run's task, as a site of the run reads them.
    fn of_run(&self, manifest: &RunManifest) -> Result<Dataset, Failure> {
        let asked = manifest.backbone.as_ref();
        let asked =
            asked.ok_or_else(|| Failure::invalid("manifest", "the run has no [backbone]"))?;
        let input = InputSpec::of(asked);
        self.open(|source, reading| {
            let reading = reading.clone().under(manifest.data.as_ref());
            Dataset::open_as(source, &manifest.task, &input, &reading)
        })
    }

    /// The images as one data set; what was refused is told on standard error.
    fn open(
        &self,
        open: impl Fn(&DataSource, &Reading) -> Result<Dataset, DataError>,
    ) -> Result<Dataset, Failure> {
        let place = self.site()?.and_then(|site| site.data);
        let failure = |e: DataError| Failure::invalid("data", chain(&e));
        let found = match (&place, self.data.is_empty()) {
            (Some(place), true) => vec![source(place)],
            (None, true) => {
                let message = "the site.toml has no [data]; name images with --data";
                return Err(Failure::invalid("data", message));
            }
            (_, false) => self.data.iter().map(|path| DataSource::detect(path)).collect(),
        };
        let reading = place.map(|place| place.reading).unwrap_or_default();
        let opened = found.into_iter().map(|source| open(&source?, &reading));
        let dataset = opened.collect::<Result<Vec<_>, _>>().and_then(Dataset::concat);
        let dataset = dataset.map_err(failure)?;
        let report = dataset.report();
        for line in report.lines().iter().take(REFUSALS_NAMED_MAX) {
            aside!("refused: {line}");
        }
        if report.refused() > REFUSALS_NAMED_MAX {
            aside!("refused: {} more", report.refused() - REFUSALS_NAMED_MAX);
        }
        Ok(dataset)
    }
}

/// A number as tables show it.
fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"))
}
