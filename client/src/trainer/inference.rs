//! What an adapter says of images, and how good it is.

use tributary_shared::manifest::RunManifest;

use super::loss::{case_loss, probabilities};
use super::session::{Session, Source, TrainError};
use super::{Control, Phase, Progress};
use crate::data::{Dataset, Label};
use crate::metrics::{balanced_accuracy, macro_auroc};
use crate::model::{Backbone, Compute, Dropout, Gradient};

/// A trained adapter with images to look at.
#[derive(Clone, Copy)]
pub struct Inference<'a> {
    /// The frozen weights.
    pub backbone: &'a Backbone,
    /// The run.
    pub manifest: &'a RunManifest,
    /// The adapter, in the order of the contract's layout.
    pub values: &'a [Vec<f32>],
    /// The images.
    pub dataset: &'a Dataset,
    /// Where to compute.
    pub compute: &'a Compute,
}

/// How good an adapter is on some cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Labelled cases.
    pub cases: u64,
    /// Mean loss; `None` without cases.
    pub loss: Option<f64>,
    /// AUROC, macro over classes; `None` when no class occurs and is absent.
    pub auroc: Option<f64>,
    /// Mean recall over classes; `None` without cases.
    pub balanced_accuracy: Option<f64>,
    /// Each labelled case's index and probabilities, in the order asked for.
    pub predictions: Vec<(usize, Vec<f32>)>,
}

impl Inference<'_> {
    /// Each case's probabilities, in the order of `indices`.
    pub fn predict(
        &self,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let session = self.session()?;
        let logits = self.logits(&session, indices, control, progress)?;
        Ok(logits.iter().map(|logits| probabilities(session.task, logits)).collect())
    }

    /// Loss and metrics over the labelled cases of `indices`.
    pub fn evaluate(
        &self,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Evaluation, TrainError> {
        let session = self.session()?;
        let cases = session.labelled(self.dataset, indices)?;
        let logits = self.logits(&session, &cases, control, progress)?;
        let labels: Vec<Label> =
            cases.iter().map(|i| self.dataset.cases()[*i].label.clone()).collect();
        let losses = logits.iter().zip(&labels).filter_map(|(x, y)| case_loss(session.task, x, y));
        let loss_sum: f64 = losses.map(|loss| loss.value).sum();
        let said: Vec<Vec<f32>> = logits.iter().map(|x| probabilities(session.task, x)).collect();
        Ok(Evaluation {
            cases: cases.len() as u64,
            loss: (!cases.is_empty()).then(|| loss_sum / cases.len() as f64),
            auroc: macro_auroc(&said, &labels),
            balanced_accuracy: balanced_accuracy(&said, &labels),
            predictions: cases.into_iter().zip(said).collect(),
        })
    }

    /// The mean loss over the labelled cases of `indices` and its exact gradient, without
    /// dropout: what one full-batch step of plain gradient descent needs.
    pub fn gradient(&self, indices: &[usize]) -> Result<Gradient, TrainError> {
        let session = self.session()?;
        let cases = session.labelled(self.dataset, indices)?;
        let source = Source::Images(self.dataset);
        session.gradient(self.values, &source, &cases, &Control::default(), &|_| Dropout::off())
    }

    fn session(&self) -> Result<Session<'_>, TrainError> {
        let session = Session::new(self.backbone, self.manifest, self.compute)?;
        session.check(self.values, self.dataset)?;
        Ok(session)
    }

    fn logits(
        &self,
        session: &Session<'_>,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let of_shard =
            |rows: &[f32], images: usize| session.model.logits(self.values, rows, images);
        session.map_cases(self.dataset, indices, Phase::Evaluating, (control, progress), &of_shard)
    }
}
