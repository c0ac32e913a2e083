//! What a round asks of the machine: training, or a rehearsal of it. Runs on a thread of its own,
//! so that heartbeats go out whatever it does.

use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::{oneshot, watch};
use tributary_shared::check::CheckAnswer;
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::name::SiteName;
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::tensors::{Checked, Header, Subject};
use tributary_shared::terms::SiteMetrics;

use super::activity::{Activity, Phase};
use super::adapters::{self, FetchError};
use super::disclosure;
use super::failure::{WorkFailure, backbone_failure, data_failure, training_failure};
use super::outbox::{BLOCK_VALUES, DeltaError, DeltaWriter, Outbox};
use super::terms::Asked;
use crate::config::cache::CacheConfig;
use crate::config::site::{DataPlace, DeviceKind, Rehearsal, SiteConfig};
use crate::data::{DataError, DataSource, Dataset, HoldoutSalt, InputSpec, Split};
use crate::model::{Backbone, Compute};
use crate::trainer::{self, Control, LocalTraining, PrefixCache, Progress, TrainError};

/// What a run asks of this machine, ready to begin.
pub(super) enum Work {
    /// Images, backbone and device.
    Training(Box<Training>),
    /// A constant.
    Rehearsal(Rehearsal),
}

/// All that training needs and rounds of one run share.
pub(super) struct Training {
    backbone: Backbone,
    dataset: Dataset,
    split: Split,
    cases: u64,
    compute: Compute,
    cache: Option<PrefixCache>,
}

impl Work {
    /// Reads what `manifest` asks for. Blocks for as long as reading all images takes.
    pub(super) fn prepare(
        config: &SiteConfig,
        salt: &HoldoutSalt,
        manifest: &RunManifest,
    ) -> Result<Self, WorkFailure> {
        if let Task::Rehearsal { payload_bytes } = manifest.task {
            let rehearsal = config.rehearsal;
            let elements = payload_bytes / 4;
            return match rehearsal.coordinate {
                Some(at) if at >= elements => {
                    let text = format!("rehearsal.coordinate {at} is not below {elements}");
                    Err(WorkFailure::open(text).of_class(RefusalClass::UntilChanged))
                }
                Some(_) | None => Ok(Self::Rehearsal(rehearsal)),
            };
        }
        let asked = manifest.backbone.as_ref().expect("a checked manifest names a backbone");
        let path = config.backbone.as_ref().ok_or_else(|| {
            let detail = "site.toml has no [backbone]; a run asks for one";
            let failure = WorkFailure::new("no backbone file", detail);
            failure.of_class(RefusalClass::UntilChanged).about(CheckAnswer::Backbone)
        })?;
        let backbone = Backbone::open_for_run(path, asked).map_err(|e| backbone_failure(&e))?;
        let place = config.data.as_ref().ok_or_else(|| {
            let detail = "site.toml has no [data]; a run asks for images";
            let failure = WorkFailure::new("no local data", detail);
            failure.of_class(RefusalClass::UntilChanged).about(CheckAnswer::Data)
        })?;
        let input = InputSpec::of(asked);
        let holdout = manifest.training.as_ref().map_or(0.0, |t| t.holdout);
        let dataset = source(place)
            .and_then(|source| {
                let reading = place.reading.clone().under(manifest.data.as_ref());
                Dataset::open_as(&source, &manifest.task, &input, &reading)
            })
            .and_then(|dataset| {
                let contract = manifest.data.as_ref();
                contract.map_or(Ok(()), |c| dataset.check_contract(c, &manifest.task))?;
                dataset.check_patients(holdout)?;
                Ok(dataset)
            })
            .map_err(|e| data_failure(&e))?;
        for line in dataset.report().lines() {
            tracing::warn!("not trained on: {line}");
        }
        if let Some(patient) = dataset.only_patient() {
            tracing::warn!("all cases have one patient id, `{patient}`; no case is held out");
        }
        let split = dataset.split(salt, holdout);
        let cases = trainer::trainable(manifest, &dataset, &split.train)
            .map_err(|e| training_failure(&e).of_class(RefusalClass::UntilChanged))
            .map_err(|failure| failure.about(CheckAnswer::Data))?;
        let compute = compute(config.device.kind);
        let cache = open_cache(&config.cache);
        Ok(Self::Training(Box::new(Training { backbone, dataset, split, cases, compute, cache })))
    }

    /// Says whether the images that were read are still where `site.toml` says: a network folder that
    /// is gone leaves an empty one, or none.
    pub(super) fn still_there(&self, config: &SiteConfig) -> bool {
        match self {
            Self::Rehearsal(_) => true,
            Self::Training(_) => config.data.as_ref().is_some_and(|place| {
                let path = &place.path;
                let listed = std::fs::read_dir(path).is_ok_and(|mut found| found.next().is_some());
                listed || path.is_file()
            }),
        }
    }

    /// A reason why a run that takes at most `most` cases is not for this site, which trains on no
    /// fewer than `least`. It tells no count of the site. Cases of a rehearsal are made up.
    pub(super) fn unfit_cases(&self, least: u64, most: u64) -> Option<String> {
        match self {
            Self::Training(training) => unfit(training.cases, least.max(1), most),
            Self::Rehearsal(rehearsal) => unfit(rehearsal.cases, 0, most),
        }
    }

    /// Training cases behind a delta.
    pub(super) fn cases(&self) -> u64 {
        match self {
            Self::Training(training) => training.cases,
            Self::Rehearsal(rehearsal) => rehearsal.cases,
        }
    }
}

fn unfit(cases: u64, least: u64, most: u64) -> Option<String> {
    if cases < least {
        return Some(format!("fewer training cases than the site's cases_min = {least}"));
    }
    let above = || format!("more training cases than the run's limits.cases_max = {most}");
    (cases > most).then(above)
}

/// A site whose cache cannot be used takes part all the same, and says why it is slow.
fn open_cache(config: &CacheConfig) -> Option<PrefixCache> {
    let dir = config.dir.as_ref().filter(|_| config.bytes_max > 0)?;
    let opened = PrefixCache::open(dir, config.bytes_max, config.precision);
    opened.map_err(|e| tracing::warn!("{}: {e}; computing without a cache", dir.display())).ok()
}

/// Where `site.toml` says the images are.
pub fn source(place: &DataPlace) -> Result<DataSource, DataError> {
    match &place.manifest {
        Some(manifest) => {
            Ok(DataSource::Folder { root: place.path.clone(), manifest: PathBuf::from(manifest) })
        }
        None => DataSource::detect(&place.path),
    }
}

fn compute(kind: DeviceKind) -> Compute {
    match kind {
        // `site.toml` is refused when it names LibTorch to a program without it.
        DeviceKind::Cpu | DeviceKind::Libtorch => Compute::cpu(),
        #[cfg(feature = "tch")]
        DeviceKind::Cuda => Compute::cuda(),
        #[cfg(not(feature = "tch"))]
        DeviceKind::Cuda => Compute::cpu(),
    }
}

/// One round's work, for its thread.
pub(super) struct Job {
    /// Shared by the rounds of a run.
    pub(super) work: std::sync::Arc<Work>,
    /// The round.
    pub(super) asked: Asked,
    /// This site.
    pub(super) site: SiteName,
    /// The base adapter's file.
    pub(super) base: PathBuf,
    /// Where the delta goes.
    pub(super) outbox: Outbox,
    /// Largest norm that may leave.
    pub(super) norm_max: f64,
    /// Largest distance of the base from the initial adapter.
    pub(super) base_norm_max: Option<f64>,
    /// Fewest held-out cases of which a number may leave.
    pub(super) holdout_cases_min: u64,
}

/// A delta in the outbox.
#[derive(Debug)]
pub(super) struct Finished {
    /// Its digest and norm.
    pub(super) checked: Checked,
    /// Its size.
    pub(super) bytes: u64,
    /// What is said of it.
    pub(super) metrics: SiteMetrics,
}

/// How the work ended without a delta.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// It was told to.
    Stopped,
    /// It could not.
    Failed(WorkFailure),
    /// The outbox cannot be written now; the same work may go well later.
    Disk(std::io::Error),
}

/// Work under way; dropping it tells the thread to end.
pub(super) struct Running {
    control: Control,
    result: oneshot::Receiver<Result<Finished, Unfinished>>,
}

impl Running {
    /// Begins on a new thread.
    pub(super) fn begin(job: Job, activity: watch::Sender<Activity>) -> std::io::Result<Self> {
        let control = Control::default();
        let (send, result) = oneshot::channel();
        let thread_control = control.clone();
        std::thread::Builder::new().name("training".to_owned()).spawn(move || {
            // Nobody listens any more when the program is leaving.
            let _ = send.send(job.carry_out(&thread_control, &activity));
        })?;
        Ok(Self { control, result })
    }

    /// Tells it to end; [`Self::finished`] tells when it has.
    pub(super) fn stop(&self) {
        self.control.stop();
    }

    /// Waits for the end.
    pub(super) async fn finished(&mut self) -> Result<Finished, Unfinished> {
        let crashed = || {
            let detail = "the training thread panicked; this is a bug, its message stands above";
            Err(Unfinished::Failed(WorkFailure::new("a bug of the client; see its log", detail)))
        };
        (&mut self.result).await.unwrap_or_else(|_| crashed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.stop();
    }
}

impl Job {
    fn carry_out(
        &self,
        control: &Control,
        activity: &watch::Sender<Activity>,
    ) -> Result<Finished, Unfinished> {
        let began = Instant::now();
        match &*self.work {
            Work::Rehearsal(rehearsal) => {
                let mut metrics = SiteMetrics::default();
                let mut writer = self.begin_delta(rehearsal.cases)?;
                activity.send_modify(|a| a.enter(Phase::Writing, writer.total_bytes()));
                rehearse(rehearsal, self.elements(), &mut writer, control, activity)
                    .map_err(delta_unfinished)?;
                metrics.train_s = began.elapsed().as_secs_f64();
                self.finish(writer, metrics)
            }
            Work::Training(training) => self.train(training, control, activity),
        }
    }

    fn train(
        &self,
        training: &Training,
        control: &Control,
        activity: &watch::Sender<Activity>,
    ) -> Result<Finished, Unfinished> {
        let base =
            adapters::read_values(&self.base, &self.asked).map_err(|e| base_unfinished(&e))?;
        if let Some(most) = self.base_norm_max {
            adapters::check_norm(&base, &self.asked, most)
                .map_err(|text| Unfinished::Failed(WorkFailure::open(text)))?;
        }
        let local = LocalTraining {
            backbone: &training.backbone,
            manifest: &self.asked.manifest,
            base: &base,
            dataset: &training.dataset,
            split: &training.split,
            round: self.asked.terms.round,
            site: self.site.as_str(),
            compute: &training.compute,
            cache: training.cache.as_ref(),
        };
        let mut tell = |progress: Progress| activity.send_modify(|a| a.follow(&progress));
        let declared = self.work.cases();
        let mut writer = self.begin_delta(declared)?;
        let trained = trainer::train(&local, control, &mut tell).map_err(|e| train_unfinished(&e));
        let trained = trained.and_then(|update| {
            if update.cases == declared {
                return Ok(update);
            }
            let text = format!("trained on {} cases, declared {declared}; a bug", update.cases);
            Err(Unfinished::Failed(WorkFailure::open(text)))
        });
        let update = match trained {
            Ok(update) => update,
            Err(unfinished) => {
                writer.abandon();
                return Err(unfinished);
            }
        };
        activity.send_modify(|a| a.enter(Phase::Writing, writer.total_bytes()));
        for (trained, base) in update.values.iter().zip(&base) {
            let delta: Vec<f32> = trained.iter().zip(base).map(|(t, b)| t - b).collect();
            writer.push(&delta).map_err(delta_unfinished)?;
        }
        self.finish(writer, update.metrics)
    }

    fn elements(&self) -> u64 {
        self.asked.contract.layout.payload_bytes() / 4
    }

    fn begin_delta(&self, cases: u64) -> Result<DeltaWriter, Unfinished> {
        let Asked { terms, contract, .. } = &self.asked;
        let subject = Subject::Delta {
            run: terms.run.clone(),
            round: terms.round,
            site: self.site.clone(),
            base: terms.base,
            cases,
        };
        let header = Header::new(subject, contract.digest(), &contract.layout);
        self.outbox.begin(&terms.run, terms.round, &header).map_err(Unfinished::Disk)
    }

    fn finish(&self, writer: DeltaWriter, metrics: SiteMetrics) -> Result<Finished, Unfinished> {
        let bytes = writer.written_bytes();
        let checked = writer.finish(self.norm_max).map_err(delta_unfinished)?;
        let metrics = disclosure::metrics(metrics, self.holdout_cases_min);
        Ok(Finished { checked, bytes, metrics })
    }
}

/// Writes the constant of a rehearsal, block by block.
fn rehearse(
    rehearsal: &Rehearsal,
    elements: u64,
    writer: &mut DeltaWriter,
    control: &Control,
    activity: &watch::Sender<Activity>,
) -> Result<(), DeltaError> {
    const BLOCK: u64 = BLOCK_VALUES as u64;
    let everywhere = if rehearsal.coordinate.is_some() { 0.0 } else { rehearsal.add };
    let mut block = vec![everywhere; BLOCK_VALUES];
    for (index, start) in (0..elements).step_by(BLOCK_VALUES).enumerate() {
        if control.is_stopped() {
            return Err(DeltaError::Stopped);
        }
        let length = BLOCK.min(elements - start) as usize;
        let within = rehearsal.coordinate.and_then(|at| at.checked_sub(start));
        match within.filter(|at| *at < BLOCK) {
            Some(at) => {
                block[at as usize] = rehearsal.add;
                writer.push(&block[..length])?;
                block[at as usize] = 0.0;
            }
            None => writer.push(&block[..length])?,
        }
        if index % 64 == 0 {
            activity.send_modify(|a| a.step = writer.written_bytes());
        }
    }
    Ok(())
}

fn delta_unfinished(error: DeltaError) -> Unfinished {
    match error {
        DeltaError::Stopped => Unfinished::Stopped,
        DeltaError::Refused(refusal) => {
            // The norm itself is the site's own.
            let told = if let Refusal::OverNorm { norm_max, .. } = refusal {
                format!("the delta's norm is above the bound of {norm_max}")
            } else {
                refusal.to_string()
            };
            Unfinished::Failed(WorkFailure::new(told, refusal.to_string()))
        }
        DeltaError::Disk(error) => Unfinished::Disk(error),
    }
}

fn base_unfinished(error: &FetchError) -> Unfinished {
    let failure =
        WorkFailure::new("the base adapter cannot be read", format!("the base adapter: {error}"));
    Unfinished::Failed(failure)
}

fn train_unfinished(error: &TrainError) -> Unfinished {
    if matches!(error, TrainError::Stopped) {
        return Unfinished::Stopped;
    }
    Unfinished::Failed(training_failure(error))
}

#[cfg(test)]
mod tests {
    use tributary_shared::contract::AdapterContract;
    use tributary_shared::digest::Digest;
    use tributary_shared::tensors::decode;

    use super::*;
    use crate::model::BackboneError;

    /// What a rehearsal writes for a payload of `elements`.
    fn rehearsed(rehearsal: Rehearsal, elements: u64) -> Vec<f32> {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path().to_path_buf());
        let run = "run".parse().unwrap();
        let contract = AdapterContract::rehearsal(elements * 4);
        let subject = Subject::Delta {
            run: "run".parse().unwrap(),
            round: 1,
            site: "site".parse().unwrap(),
            base: Digest::of(b"base"),
            cases: 3,
        };
        let header = Header::new(subject, contract.digest(), &contract.layout);
        let mut writer = outbox.begin(&run, 1, &header).unwrap();
        let activity = watch::Sender::new(Activity::default());
        rehearse(&rehearsal, elements, &mut writer, &Control::default(), &activity).unwrap();
        writer.finish(f64::MAX).unwrap();
        let bytes = std::fs::read(outbox.path(&run, 1)).unwrap();
        decode(&bytes, &header).unwrap().remove(0)
    }

    #[test]
    fn a_rehearsal_adds_its_constant_everywhere_or_at_one_place() {
        let elements = BLOCK_VALUES as u64 * 2 + 5;
        let everywhere = Rehearsal { add: 0.25, cases: 3, coordinate: None };
        assert!(rehearsed(everywhere, elements).iter().all(|v| *v == 0.25));
        for at in [0, BLOCK_VALUES as u64 - 1, BLOCK_VALUES as u64, elements - 1] {
            let values = rehearsed(Rehearsal { coordinate: Some(at), ..everywhere }, elements);
            assert_eq!(values[usize::try_from(at).unwrap()], 0.25, "{at}");
            assert_eq!(values.iter().sum::<f32>(), 0.25, "{at}");
            assert_eq!(values.len() as u64, elements);
        }
    }

    /// A5. Failed before: the number of cases was told with the refusal.
    #[test]
    fn a_number_of_cases_that_does_not_fit_is_not_told() {
        assert_eq!(unfit(10, 10, 12), None);
        let reasons = [unfit(9, 10, 12), unfit(1, 10, 12)];
        assert_eq!(reasons[0], reasons[1]);
        assert!(reasons[0].as_deref().is_some_and(|reason| reason.contains("cases_min = 10")));
        assert_eq!(unfit(13, 10, 12), unfit(4711, 10, 12));
        let problem = DataError::OnePatient { cases: 17, patient: "ANONYMOUS".to_owned() };
        let failure = data_failure(&problem);
        assert!(!failure.told.contains("17") && !failure.told.contains("ANON"), "{}", failure.told);
    }

    #[test]
    fn what_the_coordinator_is_told_names_no_path_and_no_case() {
        let path = "/home/dr-x/patients".to_owned();
        let data = data_failure(&DataError::Empty { path: path.clone() });
        let backbone = backbone_failure(&BackboneError::Read {
            path: path.clone().into(),
            source: std::io::Error::other("x"),
        });
        for failure in [data, backbone] {
            assert!(!failure.told.contains(&path), "{}", failure.told);
            assert!(failure.detail.contains(&path), "{}", failure.detail);
        }
        let label = train_unfinished(&TrainError::Label { case: "mueller-01.png".to_owned() });
        let Unfinished::Failed(failure) = label else { panic!("{label:?}") };
        assert!(!failure.told.contains("mueller"), "{}", failure.told);
    }
}
