//! What an adapter says of images, and how good it is.

use tributary_shared::manifest::{RunManifest, Task};

use super::batch::{Source, Step};
use super::loss::{Weighing, probabilities};
use super::self_supervised;
use super::session::{Session, TrainError};
use super::units::{Unit, units, whole_bags};
use super::{Control, Progress};
use crate::data::{Dataset, Label};
use crate::metrics::{
    Overlap, balanced_accuracy, concordance, macro_auroc, mean_grade_error, median_grade,
    quadratic_kappa,
};
use crate::model::{Backbone, Compute, Gradient, SampleGradients};

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

/// How good an adapter is on some cases; what a task has no such number for is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Labelled cases, or bags of them.
    pub cases: u64,
    /// Mean loss, all classes weighed alike; `None` without cases.
    pub loss: Option<f64>,
    /// AUROC, macro over classes; `None` when no class occurs and is absent.
    pub auroc: Option<f64>,
    /// Mean recall over classes.
    pub balanced_accuracy: Option<f64>,
    /// Quadratic weighted kappa of the median grade.
    pub kappa: Option<f64>,
    /// Mean distance of the median grade, in grades.
    pub grade_error: Option<f64>,
    /// Harrell's concordance of risks and times.
    pub concordance: Option<f64>,
    /// Dice coefficient, mean over classes but the background.
    pub dice: Option<f64>,
    /// Dice coefficient of each class over all pixels.
    pub dice_of_class: Vec<Option<f64>>,
    /// For each labelled case, or each bag by its first case: its index and what is predicted, in
    /// the order asked for; see [`prediction_columns`].
    pub predictions: Vec<(usize, Vec<f32>)>,
}

/// What the numbers of a prediction are: probabilities, the logarithm of the relative hazard, or
/// each class's share of the pixels.
pub fn prediction_columns(task: &Task) -> Vec<String> {
    let each = |what: &str, classes: &[String]| {
        classes.iter().map(|class| format!("{what}({class})")).collect()
    };
    match task {
        Task::Binary { classes } => each("p", &classes[1..]),
        Task::MultiClass { classes } | Task::MultiLabel { classes } | Task::Ordinal { classes } => {
            each("p", classes)
        }
        Task::Survival {} => vec!["log_hazard".to_owned()],
        Task::Segmentation { classes, .. } => each("area", classes),
        Task::SelfSupervised { .. } | Task::Rehearsal { .. } => Vec::new(),
    }
}

impl Inference<'_> {
    /// What is predicted of each labelled case or bag of `indices`, see [`prediction_columns`];
    /// of every case where a run without bags has labels that are classes.
    pub fn predict(
        &self,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let session = self.session()?;
        let asked = match self.manifest.bags {
            Some(_) => units(self.manifest, self.dataset, indices)?,
            None => indices.iter().map(|case| Unit { cases: vec![*case] }).collect(),
        };
        let outputs = session.outputs(self.values, self.dataset, &asked, (control, progress))?;
        Ok(outputs.iter().map(|outputs| said(&session, outputs)).collect())
    }

    /// How much each image counts in its bag, as the run's attention weighs them: each case of the
    /// bags that hold any of `indices`, labelled or not, with its share; a bag's shares sum to 1.
    /// None of a run without bags.
    pub fn bag_shares(
        &self,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<(usize, f32)>, TrainError> {
        let Some(attention) = &self.manifest.bags else { return Ok(Vec::new()) };
        let bags = whole_bags(self.dataset, indices)?;
        let watch = (control, progress);
        let session = self.session()?;
        let shares = session.bag_shares(self.values, attention, self.dataset, &bags, watch)?;
        Ok(bags.into_iter().flat_map(|bag| bag.cases).zip(shares.concat()).collect())
    }

    /// Loss and metrics over the labelled cases, or bags of them, of `indices`.
    pub fn evaluate(
        &self,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Evaluation, TrainError> {
        self.evaluate_in(&self.session()?, indices, control, progress)
    }

    /// As [`Self::evaluate`], with the model where it already is.
    pub(super) fn evaluate_in(
        &self,
        session: &Session<'_>,
        indices: &[usize],
        control: &Control,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Evaluation, TrainError> {
        if let Task::SelfSupervised { objective } = &self.manifest.task {
            let watch = (control, progress);
            let loss = self_supervised::mean_loss(self, session, objective, indices, watch)?;
            return Ok(Evaluation { cases: indices.len() as u64, loss, ..Evaluation::default() });
        }
        let asked = units(self.manifest, self.dataset, indices)?;
        let outputs = session.outputs(self.values, self.dataset, &asked, (control, progress))?;
        let said: Vec<Vec<f32>> = outputs.iter().map(|outputs| said(session, outputs)).collect();
        let mut evaluation = Evaluation {
            cases: asked.len() as u64,
            loss: session.mean_loss(self.dataset, &asked, &outputs)?,
            ..Evaluation::default()
        };
        let labels: Vec<Label> =
            asked.iter().map(|unit| self.dataset.cases()[unit.first()].label.clone()).collect();
        match self.manifest.task {
            Task::Segmentation { .. } => {
                let overlap = self.overlap(session, &asked, &outputs)?;
                evaluation.dice = overlap.mean_dice();
                evaluation.dice_of_class = overlap.dice();
            }
            Task::Survival {} => evaluation.concordance = concordance_of(&said, &labels),
            Task::Binary { .. }
            | Task::MultiClass { .. }
            | Task::MultiLabel { .. }
            | Task::Ordinal { .. }
            | Task::SelfSupervised { .. }
            | Task::Rehearsal { .. } => {
                evaluation.auroc = macro_auroc(&said, &labels);
                evaluation.balanced_accuracy = balanced_accuracy(&said, &labels);
            }
        }
        if let Task::Ordinal { classes } = &self.manifest.task {
            let pairs: Vec<(usize, usize)> = labels
                .iter()
                .zip(&said)
                .filter_map(|(label, row)| Some((label.first_class()?, median_grade(row))))
                .collect();
            evaluation.kappa = quadratic_kappa(&pairs, classes.len());
            evaluation.grade_error = mean_grade_error(&pairs);
        }
        evaluation.predictions = asked.iter().map(Unit::first).zip(said).collect();
        Ok(evaluation)
    }

    fn overlap(
        &self,
        session: &Session<'_>,
        asked: &[Unit],
        outputs: &[Vec<f32>],
    ) -> Result<Overlap, TrainError> {
        let mut overlap = Overlap::new(self.manifest.task.classes().len());
        if let Some(stretch) = session.stretch() {
            for (unit, outputs) in asked.iter().zip(outputs) {
                overlap.add(&self.dataset.mask(unit.first())?, &stretch.classes_of(outputs));
            }
        }
        Ok(overlap)
    }

    /// The mean loss over the labelled cases of `indices` and its exact gradient, without
    /// dropout: what one full-batch step of plain gradient descent needs.
    pub fn gradient(&self, indices: &[usize]) -> Result<Gradient, TrainError> {
        let session = self.session()?;
        let asked = units(self.manifest, self.dataset, indices)?;
        let source = Source::Images(self.dataset);
        let weighing = Weighing::default();
        let step = Step::plain(&source, &weighing);
        session.gradient(self.values, &step, &asked, &Control::default())
    }

    /// Each labelled case's own gradient of its own loss, without dropout, several cases in one: what
    /// clipping image by image needs.
    pub fn sample_gradients(&self, indices: &[usize]) -> Result<Vec<SampleGradients>, TrainError> {
        let session = self.session()?;
        let asked = units(self.manifest, self.dataset, indices)?;
        let cases: Vec<usize> = asked.iter().map(Unit::first).collect();
        let source = Source::Images(self.dataset);
        let weighing = Weighing::default();
        let step = Step::plain(&source, &weighing);
        session.sample_gradients(self.values, &step, &cases)
    }

    fn session(&self) -> Result<Session<'_>, TrainError> {
        let session = Session::new(self.backbone, self.manifest, self.compute)?;
        session.check(self.values, self.dataset)?;
        Ok(session)
    }
}

/// One unit's outputs in the words of [`prediction_columns`].
fn said(session: &Session<'_>, outputs: &[f32]) -> Vec<f32> {
    let Some(stretch) = session.stretch() else { return probabilities(session.task, outputs) };
    let mut areas = vec![0u32; stretch.classes];
    let classes = stretch.classes_of(outputs);
    classes.iter().for_each(|class| areas[usize::from(*class)] += 1);
    areas.into_iter().map(|area| area as f32 / classes.len() as f32).collect()
}

fn concordance_of(said: &[Vec<f32>], labels: &[Label]) -> Option<f64> {
    let (mut risks, mut times, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for (row, label) in said.iter().zip(labels) {
        if let (Label::FollowUp { time, event }, [risk]) = (label, &row[..]) {
            risks.push(*risk);
            times.push(*time);
            events.push(*event);
        }
    }
    concordance(&risks, &times, &events)
}
