//! One round's training at one site.

use std::time::Instant;

use tributary_shared::manifest::RunManifest;
use tributary_shared::terms::SiteMetrics;

use super::optimizer::{AdamW, clip, learning_rate};
use super::session::{Session, Source, TrainError, check_stop, shuffled, stream};
use super::{Control, Inference, Meter, Phase, Progress};
use crate::data::{Dataset, Split};
use crate::model::{Backbone, Compute, Dropout, Values};

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
}

/// What one round's training gave.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalUpdate {
    /// The trained adapter, in the order of the base.
    pub values: Values,
    /// Labelled training cases behind it.
    pub cases: u64,
    /// What the site says of it.
    pub metrics: SiteMetrics,
}

/// Measures the base adapter on the held-out cases, then trains it for the manifest's epochs.
///
/// Every round is stateless: optimiser moments start at zero, the place on the learning rate's
/// path over the whole run follows from the round's number.
pub fn train(
    work: &LocalTraining<'_>,
    control: &Control,
    progress: &mut dyn FnMut(Progress),
) -> Result<LocalUpdate, TrainError> {
    let session = Session::new(work.backbone, work.manifest, work.compute)?;
    session.check(work.base, work.dataset)?;
    let cases = session.labelled(work.dataset, &work.split.train)?;
    if cases.is_empty() {
        return Err(TrainError::NoCases);
    }
    let mut metrics = holdout_metrics(work, control, progress)?;
    let began = Instant::now();
    let features = match session.model.prefix_is_pooled() {
        true => Some(frozen_features(&session, work, &cases, (control, progress))?),
        false => None,
    };
    let source = match &features {
        Some(rows) => Source::Prefix(work.dataset, rows),
        None => Source::Images(work.dataset),
    };
    let round = Round::of(work, &session, cases);
    let (values, steps, loss) = round.run(&session, &source, control, progress)?;
    metrics.steps = steps;
    metrics.train_loss = Some(loss);
    metrics.train_s = began.elapsed().as_secs_f64();
    Ok(LocalUpdate { values, cases: round.cases.len() as u64, metrics })
}

fn holdout_metrics(
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
    let evaluation = inference.evaluate(&work.split.holdout, control, progress)?;
    Ok(SiteMetrics {
        holdout_cases: evaluation.cases,
        holdout_loss: evaluation.loss,
        holdout_auroc: evaluation.auroc,
        ..SiteMetrics::default()
    })
}

/// A row of features for each of `cases`; empty rows for the other cases of the data set.
fn frozen_features(
    session: &Session<'_>,
    work: &LocalTraining<'_>,
    cases: &[usize],
    watch: (&Control, &mut dyn FnMut(Progress)),
) -> Result<Vec<Vec<f32>>, TrainError> {
    let of_shard = |rows: &[f32], images: usize| session.model.features(rows, images);
    let found = session.map_cases(work.dataset, cases, Phase::Features, watch, &of_shard)?;
    let mut rows = vec![Vec::new(); work.dataset.len()];
    for (index, row) in cases.iter().zip(found) {
        rows[*index] = row;
    }
    Ok(rows)
}

/// The steps of one round.
struct Round<'a> {
    base: &'a [Vec<f32>],
    cases: Vec<usize>,
    /// Prefix of the names of this round's random streams.
    name: String,
    number: u64,
    rounds: u64,
}

impl<'a> Round<'a> {
    fn of(work: &LocalTraining<'a>, session: &Session<'_>, cases: Vec<usize>) -> Self {
        Self {
            base: work.base,
            cases,
            name: format!("{}\n{}\n{}", session.training.seed, work.site, work.round),
            number: u64::from(work.round.max(1)),
            rounds: u64::from(work.manifest.rounds.count),
        }
    }

    /// The trained values, the steps taken and their mean loss.
    fn run(
        &self,
        session: &Session<'_>,
        source: &Source<'_>,
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Values, u64, f64), TrainError> {
        let training = session.training;
        let steps_of_epoch = self.cases.len().div_ceil(training.batch_size) as u64;
        let steps = steps_of_epoch * u64::from(training.epochs);
        let mut values = self.base.to_vec();
        let decayed =
            session.model.layout().tensors().iter().map(|t| !t.name.ends_with(".bias")).collect();
        let mut optimizer = AdamW::new(&values, decayed, training.weight_decay);
        let mut meter = Meter::new(Phase::Training, steps);
        let mut loss_sum = 0.0;
        let mut step = 0;
        for epoch in 0..training.epochs {
            let order = shuffled(&self.cases, &format!("{}\nshuffle {epoch}", self.name));
            for batch in order.chunks(training.batch_size) {
                check_stop(control)?;
                let dropout = |shard: usize| {
                    let name = format!("{}\ndropout {step} {shard}", self.name);
                    Dropout::seeded(session.dropout, stream(&name))
                };
                let mut gradient = session.gradient(&values, source, batch, control, &dropout)?;
                let norm = clip(&mut gradient.values, training.gradient_clip);
                check_finite(step + 1, gradient.loss, norm)?;
                let position = (self.number - 1) * steps + step;
                let warmup = u64::from(training.warmup_steps);
                let rate =
                    learning_rate(training.learning_rate, position, warmup, self.rounds * steps);
                optimizer.step(&mut values, &gradient.values, rate);
                step += 1;
                loss_sum += gradient.loss;
                progress(meter.advance(batch.len(), Some(gradient.loss)));
            }
        }
        Ok((values, steps, loss_sum / steps as f64))
    }
}

pub(super) fn check_finite(step: u64, loss: f64, norm: f64) -> Result<(), TrainError> {
    for (what, value) in [("the loss", loss), ("the gradient", norm)] {
        if !value.is_finite() {
            return Err(TrainError::Diverged { step, what });
        }
    }
    Ok(())
}
