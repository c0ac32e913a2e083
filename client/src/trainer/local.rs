//! One round's training at one site.

use std::ops::ControlFlow;
use std::time::Instant;

use tributary_shared::manifest::{RunManifest, Task, Training};
use tributary_shared::terms::SiteMetrics;
use tributary_shared::training::EarlyStop;

use super::ahead::{Reader, each_step};
use super::batch::{Draws, Source, Step};
use super::cache::PrefixCache;
use super::descent::{Descent, Path};
use super::loss::Weighing;
use super::optimizer::{AdamW, decayed};
use super::self_supervised;
use super::session::{Session, TrainError, shuffled};
use super::units::{Unit, units};
use super::{Control, Inference, Meter, Phase, Progress};
use crate::data::{Dataset, Split};
use crate::model::{Backbone, Compute, Values};

/// What one round's training starts from.
#[derive(Clone, Copy)]
pub struct LocalTraining<'a> {
    /// The frozen weights.
    pub backbone: &'a Backbone,
    /// The run.
    pub manifest: &'a RunManifest,
    /// The round's base adapter, in the order of the contract's layout.
    pub base: &'a [Vec<f32>],
    /// The site's images.
    pub dataset: &'a Dataset,
    /// Which of them to train on and which to hold out.
    pub split: &'a Split,
    /// The round, from 1.
    pub round: u32,
    /// The site: its shuffles and dropout masks are its own.
    pub site: &'a str,
    /// Where to compute.
    pub compute: &'a Compute,
    /// Where the frozen part of the work is kept.
    pub cache: Option<&'a PrefixCache>,
}

/// What one round's training gave.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalUpdate {
    /// The trained adapter, in the order of the base.
    pub values: Values,
    /// Labelled training cases, or bags of them, behind it.
    pub cases: u64,
    /// What the site says of it.
    pub metrics: SiteMetrics,
}

/// Measures the base adapter on the held-out cases, then trains it for the manifest's epochs, or
/// for fewer where the manifest's early stop says so.
///
/// Every round is stateless: optimiser moments start at zero, the place on the learning rate's
/// path over the whole run follows from the round's number.
pub fn train(
    work: &LocalTraining<'_>,
    control: &Control,
    progress: &mut dyn FnMut(Progress),
) -> Result<LocalUpdate, TrainError> {
    if let Task::SelfSupervised { objective } = &work.manifest.task {
        return self_supervised::train(work, objective, (control, progress));
    }
    let mut session = Session::new(work.backbone, work.manifest, work.compute)?;
    session.check(work.base, work.dataset)?;
    let cases = units(work.manifest, work.dataset, &work.split.train)?;
    if cases.is_empty() {
        return Err(TrainError::NoCases);
    }
    if let Some(cache) = work.cache {
        let images = work.split.train.len() + work.split.holdout.len();
        session.keep(cache, work.dataset, (work.backbone, work.compute), images);
    }
    let mut metrics = holdout_metrics(&session, work, control, progress)?;
    let began = Instant::now();
    let features = match session.trains_head_alone() {
        true => Some(frozen_features(&session, work, &cases, (control, progress))?),
        false => None,
    };
    let source = match &features {
        Some(rows) => Source::Prefix(work.dataset, rows),
        None => Source::Images(work.dataset),
    };
    let round = Round::of(work, &session, cases)?;
    let done = round.run(&session, &source, work.compute.readers(), (control, progress))?;
    metrics.steps = done.steps;
    metrics.train_loss = Some(done.loss_sum / done.steps as f64);
    metrics.train_s = began.elapsed().as_secs_f64();
    Ok(LocalUpdate { values: done.values, cases: round.cases.len() as u64, metrics })
}

fn holdout_metrics(
    session: &Session<'_>,
    work: &LocalTraining<'_>,
    control: &Control,
    progress: &mut dyn FnMut(Progress),
) -> Result<SiteMetrics, TrainError> {
    let inference = Inference {
        backbone: work.backbone,
        manifest: work.manifest,
        values: work.base,
        dataset: work.dataset,
        compute: work.compute,
    };
    let evaluation = inference.evaluate_in(session, &work.split.holdout, control, progress)?;
    Ok(SiteMetrics {
        holdout_cases: evaluation.cases,
        holdout_loss: evaluation.loss,
        holdout_auroc: evaluation.auroc,
        holdout_kappa: evaluation.kappa,
        holdout_grade_error: evaluation.grade_error,
        holdout_concordance: evaluation.concordance,
        holdout_dice: evaluation.dice,
        ..SiteMetrics::default()
    })
}

/// A row of features for each of the cases of `units`; empty rows for the data set's others.
fn frozen_features(
    session: &Session<'_>,
    work: &LocalTraining<'_>,
    units: &[Unit],
    watch: (&Control, &mut dyn FnMut(Progress)),
) -> Result<Vec<Vec<f32>>, TrainError> {
    let cases: Vec<usize> = units.iter().flat_map(|unit| unit.cases.clone()).collect();
    let found = session.pooled_features(work.dataset, &cases, watch)?;
    let mut rows = vec![Vec::new(); work.dataset.len()];
    for (index, row) in cases.iter().zip(found) {
        rows[*index] = row;
    }
    Ok(rows)
}

/// The steps of one round.
struct Round<'a> {
    base: &'a [Vec<f32>],
    cases: Vec<Unit>,
    /// Looked at after each epoch where there is an early stop.
    held: Vec<Unit>,
    weighing: Weighing,
    /// Prefix of the names of this round's random streams.
    name: String,
    number: u64,
    rounds: u64,
}

/// What the steps of a round made.
struct Trained {
    values: Values,
    steps: u64,
    loss_sum: f64,
}

impl<'a> Round<'a> {
    fn of(
        work: &LocalTraining<'a>,
        session: &Session<'_>,
        cases: Vec<Unit>,
    ) -> Result<Self, TrainError> {
        let labels = cases.iter().map(|unit| &work.dataset.cases()[unit.first()].label);
        let held = match session.training.early_stop {
            Some(_) => units(work.manifest, work.dataset, &work.split.holdout)?,
            None => Vec::new(),
        };
        Ok(Self {
            base: work.base,
            held,
            weighing: Weighing::of(session.training, session.task, labels),
            cases,
            name: format!("{}\n{}\n{}", session.training.seed, work.site, work.round),
            number: u64::from(work.round.max(1)),
            rounds: u64::from(work.manifest.rounds.count),
        })
    }

    /// Every step in order.
    fn steps<'r>(&'r self, training: &'r Training) -> impl Iterator<Item = Planned> + 'r {
        let of_epoch = self.cases.len().div_ceil(training.batch_size);
        (0..training.epochs).flat_map(move |epoch| {
            let order = shuffled(&self.cases, &format!("{}\nshuffle {epoch}", self.name));
            let before = u64::from(epoch) * of_epoch as u64;
            let batches: Vec<Vec<Unit>> =
                order.chunks(training.batch_size).map(<[Unit]>::to_vec).collect();
            batches.into_iter().enumerate().map(move |(at, batch)| Planned {
                epoch,
                number: before + at as u64,
                batch,
                ends_epoch: at + 1 == of_epoch,
            })
        })
    }

    fn draws<'r>(&'r self, session: &'r Session<'_>, planned: &Planned) -> Draws<'r> {
        Draws {
            place: Some((&self.name, planned.epoch, planned.number)),
            dropout: session.dropout,
            augment: session.training.augment.as_ref(),
        }
    }

    /// Epoch after epoch; the values are those of the best one where there is an early stop.
    fn run(
        &self,
        session: &Session<'_>,
        source: &Source<'_>,
        readers: usize,
        (control, progress): (&Control, &mut dyn FnMut(Progress)),
    ) -> Result<Trained, TrainError> {
        let training = session.training;
        let steps_of_epoch = self.cases.len().div_ceil(training.batch_size) as u64;
        let mut meter = Meter::new(Phase::Training, steps_of_epoch * u64::from(training.epochs));
        let decayed = decayed(session.model.layout().tensors());
        let optimizer = AdamW::new(self.base, decayed, training.weight_decay);
        let path = path(training, self.number, self.rounds, steps_of_epoch);
        let mut descent = Descent::new(optimizer, path, training.gradient_clip);
        let mut done = Trained { values: self.base.to_vec(), steps: 0, loss_sum: 0.0 };
        let mut best = Best::default();
        let dataset = source.dataset();
        let reader = Reader {
            cases: Box::new(|planned: &Planned| {
                session.looked_at(&planned.batch, &self.draws(session, planned))
            }),
            read: Box::new(|planned: &Planned, case| {
                session.read(dataset, &self.draws(session, planned), case)
            }),
            bytes: session.read_bytes(dataset),
            // Features are there already.
            threads: if let Source::Images(_) = source { readers } else { 0 },
            control,
        };
        each_step(self.steps(training), &reader, |planned, ahead, waited| {
            let (weighing, draws) = (&self.weighing, self.draws(session, planned));
            let step = Step { source, weighing, draws, ahead: Some(ahead) };
            let mut gradient = session.gradient(&done.values, &step, &planned.batch, control)?;
            descent.step(&mut done.values, &mut gradient)?;
            done.steps += 1;
            done.loss_sum += gradient.loss;
            let (reading_s, waited_s) = (session.reading_s(), waited.as_secs_f64());
            let told = meter.advance(planned.batch.len(), Some(gradient.loss));
            progress(Progress { reading_s, waited_s, ..told });
            let Some(stop) = training.early_stop.as_ref().filter(|_| planned.ends_epoch) else {
                return Ok(ControlFlow::Continue(()));
            };
            let quiet: &mut dyn FnMut(Progress) = &mut |_| {};
            let outputs = session.outputs(&done.values, dataset, &self.held, (control, quiet))?;
            let loss = session.mean_loss(dataset, &self.held, &outputs)?;
            Ok(loss.map_or(ControlFlow::Continue(()), |loss| best.hear(stop, loss, &done.values)))
        })?;
        if let Some((_, values)) = best.epoch {
            done.values = values;
        }
        Ok(done)
    }
}

/// One step to come.
struct Planned {
    epoch: u32,
    /// Steps before it in the round.
    number: u64,
    batch: Vec<Unit>,
    ends_epoch: bool,
}

/// The best epoch so far, under an early stop.
#[derive(Default)]
struct Best {
    /// Its held-out loss and what it made.
    epoch: Option<(f64, Values)>,
    /// Epochs since.
    worse: u32,
}

impl Best {
    /// After another epoch; breaks when there were enough that were no better.
    fn hear(&mut self, stop: &EarlyStop, loss: f64, values: &Values) -> ControlFlow<()> {
        if self.epoch.as_ref().is_none_or(|(least, _)| loss < least - stop.min_delta) {
            self.epoch = Some((loss, values.clone()));
            self.worse = 0;
            return ControlFlow::Continue(());
        }
        self.worse += 1;
        if self.worse >= stop.patience { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// True when the learning rate would still be rising after a site of `cases` training cases has
/// taken all of the run's steps.
pub fn warmup_outlasts(manifest: &RunManifest, cases: u64) -> bool {
    let Some(training) = &manifest.training else { return false };
    let batch = u64::try_from(training.batch_size).unwrap_or(u64::MAX).max(1);
    let Path { warmup, total, .. } =
        path(training, 1, u64::from(manifest.rounds.count), cases.div_ceil(batch));
    warmup > 0 && warmup >= total
}

/// The learning rate's path over all of the run's rounds, at the start of round `number`.
pub(super) fn path(training: &Training, number: u64, rounds: u64, steps_of_epoch: u64) -> Path {
    let steps = steps_of_epoch * u64::from(training.epochs);
    Path {
        peak: training.learning_rate,
        warmup: u64::from(training.warmup_steps),
        done: (number - 1) * steps,
        total: rounds * steps,
    }
}
