//! Failures of a round's work: the words that are sent to the coordinator, those for the site's log, and the time
//! that each holds.

use tributary_shared::check::CheckAnswer;
use tributary_shared::outcome::chain;
use tributary_shared::refusal::{Refusal, RefusalClass};

use crate::data::DataError;
use crate::model::BackboneError;
use crate::trainer::TrainError;

/// Reason for which the site could not do the work of a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WorkFailure {
    /// Words that are sent to the coordinator; they name no path, no case and no patient.
    pub(super) told: String,
    /// Words for the site's own log.
    pub(super) detail: String,
    /// The time that it holds.
    pub(super) class: RefusalClass,
    /// Subject of the failure, all that an operator's check says.
    pub(super) about: CheckAnswer,
}

impl WorkFailure {
    /// A failure that holds for this round.
    pub(super) fn new(told: impl Into<String>, detail: impl Into<String>) -> Self {
        let (class, about) = (RefusalClass::Never, CheckAnswer::Other);
        Self { told: told.into(), detail: detail.into(), class, about }
    }

    /// A failure of this round whose detail may be sent.
    pub(super) fn open(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::new(text.clone(), text)
    }

    /// The same failure, which holds as long as `class` says.
    pub(super) fn of_class(self, class: RefusalClass) -> Self {
        Self { class, ..self }
    }

    /// The same failure, known to be about `about`.
    pub(super) fn about(self, about: CheckAnswer) -> Self {
        Self { about, ..self }
    }

    /// The refusal that is sent to the coordinator.
    pub(super) fn refusal(&self) -> Refusal {
        Refusal::SiteFailed { reason: self.told.clone(), class: self.class }
    }
}

pub(super) fn data_failure(error: &DataError) -> WorkFailure {
    // The contract speaks of rough counts and declared names alone; everything else may name a file.
    let told = if let DataError::Contract { .. } = error {
        error.to_string()
    } else {
        format!("the local data do not fit the run ({})", error.code())
    };
    WorkFailure::new(told, chain(error)).of_class(data_class(error)).about(CheckAnswer::Data)
}

/// Images that are away may be back in a moment; what is wrong with images, labels or the contract
/// stands until a person changes it.
fn data_class(error: &DataError) -> RefusalClass {
    match error {
        DataError::Read { .. }
        | DataError::UnknownSource { .. }
        | DataError::NoManifest { .. }
        | DataError::Empty { .. }
        | DataError::SourceChanged => RefusalClass::Passing,
        DataError::Write { .. }
        | DataError::TwoManifests { .. }
        | DataError::Image { .. }
        | DataError::Manifest { .. }
        | DataError::Row { .. }
        | DataError::Dicom { .. }
        | DataError::Volume { .. }
        | DataError::Slide { .. }
        | DataError::TooManyRefused { .. }
        | DataError::TooManyFiles { .. }
        | DataError::Contract { .. }
        | DataError::Npz { .. }
        | DataError::OnePatient { .. }
        | DataError::TooLargeToKeep { .. }
        | DataError::Rehearsal
        | DataError::TaskOfNpz { .. }
        | DataError::VolumesOfNpz { .. }
        | DataError::Bag { .. }
        | DataError::Input
        | DataError::InputsDiffer
        | DataError::NothingToConcat
        | DataError::NotEmpty { .. }
        | DataError::Argument { .. } => RefusalClass::UntilChanged,
    }
}

pub(super) fn backbone_failure(error: &BackboneError) -> WorkFailure {
    let told = match error {
        BackboneError::Read { .. } => "the backbone file cannot be read",
        BackboneError::Digest { .. } => "the backbone file is another than the run's",
        BackboneError::Write { .. }
        | BackboneError::TooLarge { .. }
        | BackboneError::Format { .. }
        | BackboneError::Architecture { .. }
        | BackboneError::Tensors { .. } => "the backbone file does not fit the run",
    };
    let failure = WorkFailure::new(told, chain(error)).of_class(RefusalClass::UntilChanged);
    failure.about(CheckAnswer::Backbone)
}

pub(super) fn training_failure(error: &TrainError) -> WorkFailure {
    let told = match error {
        TrainError::Data(error) => return data_failure(error),
        TrainError::Label { .. } => "a case has a label that the task does not have".to_owned(),
        TrainError::Stopped
        | TrainError::NoCases
        | TrainError::Rehearsal
        | TrainError::Backbone { .. }
        | TrainError::Adapter(_)
        | TrainError::Input { .. }
        | TrainError::NoSampleGradients(_)
        | TrainError::Diverged { .. } => error.to_string(),
    };
    WorkFailure::new(told, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_away_are_passing_trouble_and_a_wrong_backbone_stands() {
        let path = "/images".to_owned();
        let source = || std::io::Error::from(std::io::ErrorKind::NotFound);
        for (failure, class) in [
            (
                data_failure(&DataError::Read { path: path.clone(), source: source() }),
                RefusalClass::Passing,
            ),
            (data_failure(&DataError::Empty { path: path.clone() }), RefusalClass::Passing),
            (
                data_failure(&DataError::Contract { broken: vec!["x".to_owned()] }),
                RefusalClass::UntilChanged,
            ),
            (
                backbone_failure(&BackboneError::Read {
                    path: path.clone().into(),
                    source: source(),
                }),
                RefusalClass::UntilChanged,
            ),
            (training_failure(&TrainError::NoCases), RefusalClass::Never),
        ] {
            assert_eq!(failure.class, class, "{}", failure.detail);
        }
    }
}
