//! One round of learning without labels at one site, and what its adapter is worth there.

use std::time::{Duration, Instant};

use tributary_shared::objective::Objective;
use tributary_shared::terms::SiteMetrics;

use super::{Learner, Passes, Views};
use crate::model::Compute;
use crate::trainer::descent::Descent;
use crate::trainer::local::path;
use crate::trainer::optimizer::{AdamW, decayed};
use crate::trainer::session::{Session, TrainError};
use crate::trainer::{Control, Inference, LocalTraining, LocalUpdate, Meter, Phase, Progress};

fn learner<'a>(
    session: &'a Session<'_>,
    objective: &'a Objective,
    compute: &Compute,
) -> Learner<'a> {
    Learner {
        model: &session.model,
        objective,
        shard_images: session.shard_images,
        dropout: session.dropout,
        readers: compute.readers(),
    }
}

/// As [`train`](crate::trainer::train), by `objective`, on every training image.
pub(in crate::trainer) fn train(
    work: &LocalTraining<'_>,
    objective: &Objective,
    (control, progress): (&Control, &mut dyn FnMut(Progress)),
) -> Result<LocalUpdate, TrainError> {
    let session = Session::new(work.backbone, work.manifest, work.compute)?;
    session.check(work.base, work.dataset)?;
    let cases = &work.split.train;
    if cases.is_empty() {
        return Err(TrainError::NoCases);
    }
    let held = Inference {
        backbone: work.backbone,
        manifest: work.manifest,
        values: work.base,
        dataset: work.dataset,
        compute: work.compute,
    };
    let holdout_loss =
        mean_loss(&held, &session, objective, &work.split.holdout, (control, progress))?;
    let began = Instant::now();
    let training = session.training;
    let name = format!("{}\n{}\n{}\n", training.seed, work.site, work.round);
    let views = Views {
        dataset: work.dataset,
        augment: training.augment.as_ref(),
        name: &name,
        mirrored: false,
        epoch: 0,
        ahead: None,
    };
    let (epochs, batch_size) = (training.epochs, training.batch_size);
    let passes = Passes { views, cases, epochs, batch_size };
    let steps_of_epoch = cases.len().div_ceil(batch_size) as u64;
    let decayed = decayed(session.model.layout().tensors());
    let optimizer = AdamW::new(work.base, decayed, training.weight_decay);
    let rounds = u64::from(work.manifest.rounds.count);
    let path = path(training, u64::from(work.round.max(1)), rounds, steps_of_epoch);
    let mut descent = Descent::new(optimizer, path, training.gradient_clip);
    let mut meter = Meter::new(Phase::Training, steps_of_epoch * u64::from(epochs));
    let mut tell = |images, loss, waited: Duration| {
        let waited_s = waited.as_secs_f64();
        progress(Progress { waited_s, ..meter.advance(images, Some(loss)) });
    };
    let mut values = work.base.to_vec();
    let learnt = learner(&session, objective, work.compute).learn(
        &mut values,
        &passes,
        &mut descent,
        control,
        &mut tell,
    )?;
    let metrics = SiteMetrics {
        holdout_cases: work.split.holdout.len() as u64,
        holdout_loss,
        steps: learnt.steps,
        train_loss: Some(learnt.losses.iter().sum::<f64>() / learnt.losses.len() as f64),
        train_s: began.elapsed().as_secs_f64(),
        ..SiteMetrics::default()
    };
    Ok(LocalUpdate { values, cases: cases.len() as u64, metrics })
}

/// The objective's mean loss over `indices` under views that are the same for every adapter.
pub(in crate::trainer) fn mean_loss(
    of: &Inference<'_>,
    session: &Session<'_>,
    objective: &Objective,
    indices: &[usize],
    (control, progress): (&Control, &mut dyn FnMut(Progress)),
) -> Result<Option<f64>, TrainError> {
    let training = session.training;
    let name = format!("{}\nlooking ", training.seed);
    let views = Views {
        dataset: of.dataset,
        augment: training.augment.as_ref(),
        name: &name,
        mirrored: false,
        epoch: 0,
        ahead: None,
    };
    let batch_size = training.batch_size;
    let passes = Passes { views, cases: indices, epochs: 1, batch_size };
    let mut meter = Meter::new(Phase::Evaluating, indices.len().div_ceil(batch_size) as u64);
    let values = of.values.to_vec();
    let mut tell = |images| progress(meter.advance(images, None));
    learner(session, objective, of.compute).mean_loss(&values, &passes, control, &mut tell)
}
