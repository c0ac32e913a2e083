//! What the demo trains: the run's manifest, and where its parts lie.

use std::fs;
use std::path::{Path, PathBuf};

use tributary_shared::adaptation::{Adaptation, Lora, Scaling, Target};
use tributary_shared::dataset::Interpolation;
use tributary_shared::head::Head;
use tributary_shared::manifest::{
    Backbone, Limits, Quorum, Rounds, RunManifest, SCHEMA_VERSION, Strategy, Training,
};
use tributary_shared::privacy::Privacy;
use tributary_shared::training::Precision;

use super::hospitals::Images;
use super::{DemoOptions, HOSPITALS, RUN};
use crate::command::Failed;
use crate::federation::Federation;

/// Mean and standard deviation of pixels in [0, 1] that the backbone was pretrained with.
const PIXEL_CENTRE: f64 = 0.5;

/// What the demo trains.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The demo's folder.
    pub(super) root: PathBuf,
    /// The terms.
    pub(super) manifest: RunManifest,
    /// The backbone's file.
    pub(super) backbone: PathBuf,
    /// Who holds what.
    pub(super) images: Images,
    /// Processor cores.
    pub(super) cores: usize,
}

impl Plan {
    /// Looks at the backbone and writes `run.toml`.
    pub(super) fn make(
        options: &DemoOptions,
        federation: &Federation,
        images: Images,
    ) -> Result<Self, Failed> {
        let backbone = match &options.backbone {
            Some(file) => file.canonicalize().map_err(|e| Failed::file(file, &e))?,
            None => committed_backbone()?,
        };
        let path = backbone.to_string_lossy().into_owned();
        let shown = federation.client(["backbone", "show", &path])?;
        let read = |e: serde_json::Error| Failed::new(&path, None, &e.to_string());
        let described = Backbone {
            digest: serde_json::from_value(shown.data["digest"].clone()).map_err(read)?,
            architecture: serde_json::from_value(shown.data["architecture"].clone())
                .map_err(read)?,
            mean: Vec::new(),
            std: Vec::new(),
            interpolation: Interpolation::default(),
            crop_pct: None,
        };
        let manifest = manifest(options, described, &images)?;
        let plan = Self {
            root: federation.root().to_path_buf(),
            manifest,
            backbone,
            images,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let text = toml::to_string(&plan.manifest)
            .map_err(|e| Failed::new("writing run.toml", None, &e.to_string()))?;
        fs::write(plan.run_toml(), text).map_err(|e| Failed::file(&plan.run_toml(), &e))?;
        Ok(plan)
    }

    /// The manifest's file.
    pub(super) fn run_toml(&self) -> PathBuf {
        self.root.join("run.toml")
    }

    /// Threads of one of the sites' programs, which train at the same time.
    pub(super) fn threads_of_a_site(&self) -> Option<usize> {
        Some((self.cores / HOSPITALS.len()).max(1))
    }
}

fn manifest(
    options: &DemoOptions,
    mut backbone: Backbone,
    images: &Images,
) -> Result<RunManifest, Failed> {
    let channels = backbone.architecture.channels;
    backbone.mean = vec![PIXEL_CENTRE; channels];
    backbone.std = vec![PIXEL_CENTRE; channels];
    let targets = [Target::Q, Target::V, Target::Fc1, Target::Fc2].into();
    let name = RUN.parse().map_err(|e| Failed::new("naming the run", None, &format!("{e}")))?;
    let manifest = RunManifest {
        schema_version: SCHEMA_VERSION,
        name,
        task: images.task.clone(),
        backbone: Some(backbone),
        adapter: Some(Adaptation::Lora(Lora {
            rank: 8,
            alpha: 16.0,
            scaling: Scaling::Lora,
            dora: false,
            dropout: 0.0,
            targets,
            last_blocks: None,
        })),
        head: Head::default(),
        training: Some(Training {
            epochs: options.epochs,
            batch_size: 16,
            learning_rate: 3e-3,
            weight_decay: 0.01,
            // Below all steps of the shortest demo, or its own check would warn.
            warmup_steps: (options.rounds * options.epochs - 1).min(10),
            gradient_clip: 1.0,
            holdout: 0.6,
            seed: options.seed,
            micro_batch: None,
            class_weights: None,
            label_smoothing: 0.0,
            early_stop: None,
            augment: None,
            precision: Precision::F32,
        }),
        data: None,
        bags: None,
        rounds: Rounds {
            count: options.rounds,
            round_deadline_s: 3600,
            stall_timeout_s: 300,
            lease_s: 30,
            void_max: 2,
            void_pause_s: 60,
            answer_timeout_s: 30,
        },
        cohort: None,
        quorum: Quorum { sites: 3, share_of_cases: None },
        strategy: Strategy::FedAvg,
        limits: Limits { delta_norm_max: 100.0, cases_max: 1_000_000, share_max: None },
        privacy: Privacy::default(),
    };
    manifest.check().map_err(|e| Failed::new("the demo's run.toml", None, &e.to_string()))?;
    Ok(manifest)
}

/// The one safetensors file in `deploy/backbone`.
fn committed_backbone() -> Result<PathBuf, Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("backbone");
    let entries = fs::read_dir(&folder).map_err(|e| Failed::file(&folder, &e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    files.into_iter().next().ok_or_else(|| {
        let problem = "no .safetensors file; make one with `tributary-client pretrain`, or name one with --backbone";
        Failed::new(&folder.display().to_string(), None, problem)
    })
}
