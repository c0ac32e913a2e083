//! What a step counts: single cases, or bags of them under one label.

use std::collections::{BTreeMap, BTreeSet};

use tributary_shared::manifest::{RunManifest, Task};

use super::loss::case_loss;
use super::session::TrainError;
use crate::data::{DataError, Dataset, Label};

/// Cases under one label, never none: one, or a bag's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) cases: Vec<usize>,
}

impl Unit {
    /// The case whose label is the unit's.
    pub(super) fn first(&self) -> usize {
        self.cases[0]
    }
}

/// What a site may train on among `indices`: labelled cases or, where the run has bags, bags of
/// them; every case where labels are not looked at. This is the number that a site declares.
pub fn trainable(
    manifest: &RunManifest,
    dataset: &Dataset,
    indices: &[usize],
) -> Result<u64, TrainError> {
    Ok(units(manifest, dataset, indices)?.len() as u64)
}

/// The units among `indices`, in the order of their first cases; an error names a case whose label
/// is not the task's, or a bag that is none.
pub(super) fn units(
    manifest: &RunManifest,
    dataset: &Dataset,
    indices: &[usize],
) -> Result<Vec<Unit>, TrainError> {
    if let Task::SelfSupervised { .. } = manifest.task {
        return Ok(indices.iter().map(|case| Unit { cases: vec![*case] }).collect());
    }
    let cases = labelled(&manifest.task, dataset, indices)?;
    if manifest.bags.is_none() {
        return Ok(cases.into_iter().map(|case| Unit { cases: vec![case] }).collect());
    }
    let bags = gathered(dataset, &cases)?;
    let label = |index: &usize| &dataset.cases()[*index].label;
    match bags.iter().find(|bag| bag.cases.iter().any(|case| label(case) != label(&bag.first()))) {
        Some(bag) => Err(unfit_bag(dataset, bag.first(), "labels")),
        None => Ok(bags),
    }
}

/// All cases of each bag that holds any of `indices`, whatever their labels.
pub(super) fn whole_bags(dataset: &Dataset, indices: &[usize]) -> Result<Vec<Unit>, TrainError> {
    let bag = |index: usize| dataset.cases()[index].bag.as_str();
    let asked: BTreeSet<&str> = indices.iter().map(|index| bag(*index)).collect();
    let cases: Vec<usize> = (0..dataset.len()).filter(|&case| asked.contains(bag(case))).collect();
    gathered(dataset, &cases)
}

/// The bags of `cases`, in the order of their first cases; each has one patient.
fn gathered(dataset: &Dataset, cases: &[usize]) -> Result<Vec<Unit>, TrainError> {
    let mut bags: Vec<Unit> = Vec::new();
    let mut of_bag = BTreeMap::new();
    for &index in cases {
        let case = &dataset.cases()[index];
        let at = *of_bag.entry(case.bag.as_str()).or_insert(bags.len());
        let Some(bag) = bags.get_mut(at) else {
            bags.push(Unit { cases: vec![index] });
            continue;
        };
        if dataset.cases()[bag.first()].patient != case.patient {
            return Err(unfit_bag(dataset, index, "patients"));
        }
        bag.cases.push(index);
    }
    Ok(bags)
}

fn unfit_bag(dataset: &Dataset, case: usize, what: &'static str) -> TrainError {
    DataError::Bag { bag: dataset.cases()[case].bag.clone(), what }.into()
}

fn labelled(task: &Task, dataset: &Dataset, indices: &[usize]) -> Result<Vec<usize>, TrainError> {
    let zeros = vec![0.0; task.head_outputs()];
    let mut labelled = Vec::with_capacity(indices.len());
    for &index in indices {
        let case = &dataset.cases()[index];
        let fits = match (task, &case.label) {
            (_, Label::Unlabelled) => continue,
            (Task::Survival {}, Label::FollowUp { .. }) => true,
            (Task::Segmentation { classes: all, .. }, Label::Mask { classes, .. }) => {
                *classes == all.len()
            }
            (task, label) => case_loss(task, &zeros, label).is_some(),
        };
        if !fits {
            return Err(TrainError::Label { case: case.id.clone() });
        }
        labelled.push(index);
    }
    Ok(labelled)
}
