//! What a step counts: single cases, or bags of them under one label.

use std::collections::BTreeMap;

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
    let mut units: Vec<Unit> = Vec::new();
    let mut of_bag = BTreeMap::new();
    for index in cases {
        let case = &dataset.cases()[index];
        let Some(at) = of_bag.get(case.bag.as_str()).copied() else {
            of_bag.insert(case.bag.as_str(), units.len());
            units.push(Unit { cases: vec![index] });
            continue;
        };
        let unit: &mut Unit = &mut units[at];
        let first = &dataset.cases()[unit.first()];
        let differs = |what| Err(DataError::Bag { bag: case.bag.clone(), what }.into());
        if first.label != case.label {
            return differs("labels");
        }
        if first.patient != case.patient {
            return differs("patients");
        }
        unit.cases.push(index);
    }
    Ok(units)
}

/// All cases of each bag that holds any of `indices`, whatever their labels.
pub(super) fn whole_bags(dataset: &Dataset, indices: &[usize]) -> Vec<Unit> {
    let cases = dataset.cases();
    let mut of_bag: BTreeMap<&str, Vec<usize>> =
        indices.iter().map(|&index| (cases[index].bag.as_str(), Vec::new())).collect();
    for (index, case) in cases.iter().enumerate() {
        if let Some(bag) = of_bag.get_mut(case.bag.as_str()) {
            bag.push(index);
        }
    }
    of_bag.into_values().map(|cases| Unit { cases }).collect()
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
