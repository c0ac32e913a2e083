//! Our side: a site's own training on synthetic images, timed step by step.

use std::path::Path;
use std::time::Instant;

use tributary_client::config::cache::Precision;
use tributary_client::config::reading::Reading;
use tributary_client::data::synth::{Modality, SynthSpec};
use tributary_client::data::{DataSource, Dataset, HoldoutSalt, InputSpec, synth};
use tributary_client::model::{Backbone, Compute, Values, random_backbone, set_threads};
use tributary_client::trainer::{
    Control, Inference, LocalTraining, Phase, PrefixCache, Progress, TrainError, train,
};
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::tensors::decode;

use super::{Files, Measured, Outcome, Samples, TrainerBenchOptions, Work};
use crate::command::Failed;
use crate::resources;

/// Images held out, whose evaluation is the forward pass that is timed.
const HOLDOUT: f64 = 0.5;
/// Large files; half of them are trained on.
const LARGE_FILES: usize = 24;
/// Trainings of either kind on them.
const FILES_TURNS: u16 = 2;
/// Room for what is kept of all images at any size.
const CACHE_BYTES_MAX: u64 = 1 << 30;

/// Does what one process does, and says what it took.
pub fn run(options: &TrainerBenchOptions, work: Work) -> Result<Outcome, Failed> {
    set_threads(options.threads.into()).map_err(|e| failed("setting the threads", &e))?;
    let backbone = random_backbone(&options.architecture(), 1);
    let text = manifest(options, work, &backbone.digest().to_string());
    let manifest = RunManifest::from_toml(&text).map_err(|e| failed("the bench's run", &e))?;
    let folder = tempfile::tempdir().map_err(|e| Failed::io("making a folder", &e))?;
    let contract = manifest.contract().expect("a checked manifest has a contract");
    let header = adapter_header(&manifest.name, 0, &contract);
    let base = decode(&initial_adapter(&manifest), &header).expect("the initial adapter fits");
    let (dataset, decoding_s) = images(options, work, folder.path())?;
    let bench = Bench { backbone, manifest, base, dataset, decoding_s };
    match work {
        Work::Samples => bench.samples(options).map(Outcome::Samples),
        Work::Files => bench.files(options).map(Outcome::Files),
        Work::Lora | Work::LastBlocks => {
            bench.train(options, work, folder.path()).map(Outcome::Training)
        }
    }
}

fn failed(what: &'static str, error: &dyn std::error::Error) -> Failed {
    Failed::new(what, None, &tributary_shared::outcome::chain(error))
}

/// A site with all it needs.
struct Bench {
    backbone: Backbone,
    manifest: RunManifest,
    base: Values,
    dataset: Dataset,
    decoding_s: f64,
}

impl Bench {
    /// Trains as a site does.
    fn train(
        &self,
        options: &TrainerBenchOptions,
        work: Work,
        folder: &Path,
    ) -> Result<Measured, Failed> {
        let kept = PrefixCache::open(&folder.join("cache"), CACHE_BYTES_MAX, Precision::F32)
            .map_err(|e| Failed::io("the bench's cache", &e))?;
        let train = self.dataset.split(&HoldoutSalt::public(), HOLDOUT).train.len();
        let warmup = match work.last_blocks() {
            // The first epoch fills the cache.
            Some(_) => train.div_ceil(options.batch.into()) + 1,
            None => 1,
        };
        let cache = work.last_blocks().map(|_| &kept);
        let clock = self.timed(options, warmup, &Compute::cpu(), cache)?;
        let usage = resources::usage(std::process::id());
        let peak_bytes = usage.map_or(0, |usage| usage.rss_peak);
        Ok(Measured {
            reading_s: Some(clock.a_step(|told| told.reading_s)),
            step_s: clock.step_s,
            forward_s: clock.forward_s,
            peak_bytes,
            decoding_s: Some(self.decoding_s),
        })
    }

    /// Trains until enough steps were timed.
    fn timed(
        &self,
        options: &TrainerBenchOptions,
        warmup: usize,
        compute: &Compute,
        cache: Option<&PrefixCache>,
    ) -> Result<StepClock, Failed> {
        let local = LocalTraining {
            backbone: &self.backbone,
            manifest: &self.manifest,
            base: &self.base,
            dataset: &self.dataset,
            split: &self.dataset.split(&HoldoutSalt::public(), HOLDOUT),
            round: 1,
            site: "bench",
            compute,
            cache,
        };
        let mut clock = StepClock::new(options, warmup);
        let trained = train(&local, &clock.control.clone(), &mut |progress| clock.hear(&progress));
        // The clock stops the training once it has seen enough.
        match trained {
            Err(error) if clock.step_s.len() < clock.steps => Err(failed("training", &error)),
            Ok(_) | Err(_) => Ok(clock),
        }
    }

    /// The same training, its files read inside the steps and ahead of them, by turns.
    fn files(&self, options: &TrainerBenchOptions) -> Result<Files, Failed> {
        let mut files = Files::default();
        for _ in 0..FILES_TURNS {
            let inside = Compute::cpu().reading_ahead(false);
            files.inside_s.extend(self.timed(options, 1, &inside, None)?.step_s);
            let clock = self.timed(options, 1, &Compute::cpu(), None)?;
            files.reading_s += clock.a_step(|told| told.reading_s) / f64::from(FILES_TURNS);
            files.waited_s += clock.a_step(|told| told.waited_s) / f64::from(FILES_TURNS);
            files.ahead_s.extend(clock.step_s);
        }
        Ok(files)
    }

    /// The same batch's gradient, whole and image by image.
    fn samples(&self, options: &TrainerBenchOptions) -> Result<Samples, Failed> {
        let compute = Compute::cpu();
        let inference = Inference {
            backbone: &self.backbone,
            manifest: &self.manifest,
            values: &self.base,
            dataset: &self.dataset,
            compute: &compute,
        };
        let batch: Vec<usize> = (0..usize::from(options.batch).min(self.dataset.len())).collect();
        let timed = |work: &dyn Fn() -> Result<(), TrainError>| -> Result<f64, Failed> {
            let began = Instant::now();
            work().map_err(|e| failed("a gradient", &e))?;
            Ok(began.elapsed().as_secs_f64())
        };
        let mut samples = Samples { plain_s: Vec::new(), samples_s: Vec::new() };
        for step in 0..=options.steps {
            let plain = timed(&|| inference.gradient(&batch).map(drop))?;
            let own = timed(&|| inference.sample_gradients(&batch).map(drop))?;
            // The first one warms up.
            if step > 0 {
                samples.plain_s.push(plain);
                samples.samples_s.push(own);
            }
        }
        Ok(samples)
    }
}

/// Times what a training tells of itself.
struct StepClock {
    batch: f64,
    steps: usize,
    /// Steps that only warm up; the last of them starts the clock.
    warmup: usize,
    control: Control,
    last: Option<Instant>,
    step_s: Vec<f64>,
    forward_s: f64,
    /// What was told when the clock started, and last.
    told: Option<(Progress, Progress)>,
}

impl StepClock {
    fn new(options: &TrainerBenchOptions, warmup: usize) -> Self {
        Self {
            batch: f64::from(options.batch),
            steps: options.steps.into(),
            warmup,
            control: Control::default(),
            last: None,
            step_s: Vec::new(),
            forward_s: f64::NAN,
            told: None,
        }
    }

    /// What a timed step added to a sum that is told.
    fn a_step(&self, of: impl Fn(&Progress) -> f64) -> f64 {
        let told = self.told.as_ref().map_or(0.0, |(first, last)| of(last) - of(first));
        told / self.step_s.len() as f64
    }

    fn hear(&mut self, progress: &Progress) {
        match progress.phase {
            Phase::Evaluating => self.forward_s = self.batch / progress.images_per_s,
            Phase::Training => {
                if progress.step < self.warmup as u64 {
                    return;
                }
                let now = Instant::now();
                if let Some(last) = self.last.replace(now) {
                    self.step_s.push((now - last).as_secs_f64());
                }
                let first = self.told.map_or(*progress, |(first, _)| first);
                self.told = Some((first, *progress));
                if self.step_s.len() == self.steps {
                    self.control.stop();
                }
            }
            Phase::Features => {}
        }
    }
}

/// Synthetic tissue as PNG files, opened, and the seconds that each took.
fn images(
    options: &TrainerBenchOptions,
    work: Work,
    folder: &Path,
) -> Result<(Dataset, f64), Failed> {
    let failed = |e| failed("the bench's images", &e);
    let large = work == Work::Files;
    let spec = SynthSpec {
        modality: Modality::Histology,
        sites: 1,
        patients: if large { LARGE_FILES } else { 64 },
        images_per_patient: 1,
        seed: 1,
        size: if large { options.file_size } else { options.image_size }.into(),
        label_skew: 0.0,
        site_shift: 0.0,
    };
    let out = folder.join("images");
    let card = synth::write(&spec, &out, &|| {}).map_err(failed)?;
    let site = card.sites.first().map_or(out.clone(), |site| out.join(&site.site));
    let image_size = options.image_size.into();
    let input = InputSpec::plain(image_size, 3, 0.5, 0.5);
    let began = Instant::now();
    let dataset = DataSource::detect(&site)
        .and_then(|source| {
            let mut reading = Reading::default();
            if large {
                reading.kept_bytes_max = 0;
            }
            Dataset::open_as(&source, &Modality::Histology.task(), &input, &reading)
        })
        .map_err(failed)?;
    let decoding_s = began.elapsed().as_secs_f64() / dataset.len() as f64;
    Ok((dataset, decoding_s))
}

fn manifest(options: &TrainerBenchOptions, work: Work, digest: &str) -> String {
    let architecture =
        toml::to_string(&options.architecture()).expect("an architecture is plain data");
    let TrainerBenchOptions { batch, steps, rank, precision, .. } = options;
    let last_blocks = work.last_blocks().map_or(String::new(), |k| format!(", last_blocks = {k}"));
    let precision = precision.as_str();
    // Enough epochs for every step even if all patients but one are held out.
    let epochs = (u32::from(*steps) + 2) * u32::from(*batch);
    format!(
        "schema_version = 1\nname = \"trainer-bench\"\n\
         task = {{ kind = \"binary\", classes = [\"benign\", \"malignant\"] }}\n\
         adapter = {{ rank = {rank}, alpha = {rank}.0, targets = [\"q\", \"v\"]{last_blocks} }}\n\
         rounds = {{ count = 1, round_deadline_s = 3600, stall_timeout_s = 3600 }}\n\
         quorum = {{ sites = 1 }}\n\
         [training]\nepochs = {epochs}\nbatch_size = {batch}\nlearning_rate = 1e-4\n\
         holdout = {HOLDOUT:?}\nseed = 1\nprecision = \"{precision}\"\n\
         [backbone]\ndigest = \"{digest}\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n\
         [backbone.architecture]\n{architecture}"
    )
}
