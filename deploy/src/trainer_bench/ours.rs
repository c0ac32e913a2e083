//! Our side: a site's own training on synthetic images, timed step by step.

use std::time::Instant;

use tributary_client::data::synth::{Modality, SynthSpec};
use tributary_client::data::{DataSource, Dataset, InputSpec, synth};
use tributary_client::model::{Compute, random_backbone, set_threads};
use tributary_client::trainer::{Control, LocalTraining, Phase, Progress, train};
use tributary_shared::dataset::Interpolation;
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::decode;

use super::{Measured, TrainerBenchOptions};
use crate::command::Failed;
use crate::resources;

/// Images held out, whose evaluation is the forward pass that is timed.
const HOLDOUT: f64 = 0.5;

/// Trains as a site does and says what it took.
pub fn run(options: &TrainerBenchOptions) -> Result<Measured, Failed> {
    let failed = |what: &'static str| {
        move |e: &dyn std::error::Error| {
            Failed::new(what, None, &tributary_shared::outcome::chain(e))
        }
    };
    set_threads(options.threads.into()).map_err(|e| failed("setting the threads")(&e))?;
    let backbone = random_backbone(&options.architecture(), 1);
    let text = manifest(options, &backbone.digest().to_string());
    let manifest = RunManifest::from_toml(&text).map_err(|e| failed("the bench's run")(&e))?;
    let folder = tempfile::tempdir().map_err(|e| Failed::io("making a folder", &e))?;
    let dataset = images(options, folder.path())?;
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let header = adapter_header(&manifest.name, 0, &contract);
    let base = decode(&initial_adapter(&manifest), &header).expect("the initial adapter fits");
    let split = dataset.split(HOLDOUT);
    let local = LocalTraining {
        backbone: &backbone,
        manifest: &manifest,
        base: &base,
        dataset: &dataset,
        split: &split,
        round: 1,
        site: "bench",
        compute: &Compute::cpu(),
    };
    let mut clock = StepClock::new(options);
    let trained = train(&local, &clock.control.clone(), &mut |progress| clock.hear(&progress));
    // The clock stops the training once it has seen enough.
    if let (Err(error), true) = (trained, clock.step_s.len() < clock.steps) {
        return Err(failed("training")(&error));
    }
    let usage = resources::usage(std::process::id());
    let peak_bytes = usage.map_or(0, |usage| usage.rss_peak);
    Ok(Measured { step_s: clock.step_s, forward_s: clock.forward_s, peak_bytes })
}

/// Times what a training tells of itself.
struct StepClock {
    batch: f64,
    steps: usize,
    control: Control,
    last: Option<Instant>,
    step_s: Vec<f64>,
    forward_s: f64,
}

impl StepClock {
    fn new(options: &TrainerBenchOptions) -> Self {
        Self {
            batch: f64::from(options.batch),
            steps: options.steps.into(),
            control: Control::default(),
            last: None,
            step_s: Vec::new(),
            forward_s: f64::NAN,
        }
    }

    fn hear(&mut self, progress: &Progress) {
        match progress.phase {
            Phase::Evaluating => self.forward_s = self.batch / progress.images_per_s,
            Phase::Training => {
                let now = Instant::now();
                // The first step warms up: it only starts the clock.
                if let Some(last) = self.last.replace(now) {
                    self.step_s.push((now - last).as_secs_f64());
                }
                if self.step_s.len() == self.steps {
                    self.control.stop();
                }
            }
            Phase::Features => {}
        }
    }
}

/// Synthetic tissue of enough patients for one epoch of all steps.
fn images(options: &TrainerBenchOptions, folder: &std::path::Path) -> Result<Dataset, Failed> {
    let failed = |e| Failed::new("the bench's images", None, &tributary_shared::outcome::chain(&e));
    let spec = SynthSpec {
        modality: Modality::Histology,
        sites: 1,
        patients: 64,
        images_per_patient: 1,
        seed: 1,
        size: 64,
        label_skew: 0.0,
        site_shift: 0.0,
    };
    let out = folder.join("images");
    let card = synth::write(&spec, &out, &|| {}).map_err(failed)?;
    let site = card.sites.first().map_or(out.clone(), |site| out.join(&site.site));
    let image_size = options.image_size.into();
    let input = InputSpec {
        image_size,
        channels: 3,
        mean: vec![0.5; 3],
        std: vec![0.5; 3],
        interpolation: Interpolation::Bilinear,
    };
    DataSource::detect(&site)
        .and_then(|source| Dataset::open(&source, &Modality::Histology.task(), &input))
        .map_err(failed)
}

fn manifest(options: &TrainerBenchOptions, digest: &str) -> String {
    let architecture =
        toml::to_string(&options.architecture()).expect("an architecture is plain data");
    let TrainerBenchOptions { batch, steps, rank, .. } = options;
    // Enough epochs for every step even if all patients but one are held out.
    let epochs = (u32::from(*steps) + 1) * u32::from(*batch);
    format!(
        "schema_version = 1\nname = \"trainer-bench\"\n\
         task = {{ kind = \"binary\", classes = [\"benign\", \"malignant\"] }}\n\
         adapter = {{ rank = {rank}, alpha = {rank}.0, targets = [\"q\", \"v\"] }}\n\
         rounds = {{ count = 1, round_deadline_s = 3600, stall_timeout_s = 3600 }}\n\
         quorum = {{ sites = 1 }}\n\
         [training]\nepochs = {epochs}\nbatch_size = {batch}\nlearning_rate = 1e-4\n\
         holdout = {HOLDOUT:?}\nseed = 1\n\
         [backbone]\ndigest = \"{digest}\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n\
         [backbone.architecture]\n{architecture}"
    )
}
