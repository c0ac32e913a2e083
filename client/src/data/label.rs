//! What is known about one image.

use std::path::PathBuf;

/// What one image shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// The index of its one class or grade.
    Class(usize),
    /// For each class, whether it applies.
    Many(Vec<bool>),
    /// How long its patient was followed.
    FollowUp {
        /// Until the event or, without one, until the patient was last seen; any unit, above 0.
        time: f64,
        /// Whether the event was seen.
        event: bool,
    },
    /// A picture of class indices, read when it is needed.
    Mask {
        /// The file.
        path: PathBuf,
        /// Classes of the task.
        classes: usize,
    },
    /// Opened without labels.
    Unlabelled,
}

impl Label {
    /// Whether `class` applies; never for a label that is no class.
    pub fn shows(&self, class: usize) -> bool {
        match self {
            Self::Class(own) => *own == class,
            Self::Many(marks) => marks.get(class).copied().unwrap_or(false),
            Self::FollowUp { .. } | Self::Mask { .. } | Self::Unlabelled => false,
        }
    }

    /// The first class that applies.
    pub fn first_class(&self) -> Option<usize> {
        match self {
            Self::Class(class) => Some(*class),
            Self::Many(marks) => marks.iter().position(|mark| *mark),
            Self::FollowUp { .. } | Self::Mask { .. } | Self::Unlabelled => None,
        }
    }

    /// As a manifest's columns write it, class names joined by `;`.
    pub fn text(&self, classes: &[String]) -> String {
        match self {
            Self::Class(class) => classes.get(*class).cloned().unwrap_or_default(),
            Self::Many(marks) => {
                let marked = classes.iter().zip(marks).filter(|(_, mark)| **mark);
                marked.map(|(class, _)| class.as_str()).collect::<Vec<_>>().join(";")
            }
            Self::FollowUp { time, event } => format!("{time};{}", u8::from(*event)),
            Self::Mask { path, .. } => {
                path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            Self::Unlabelled => String::new(),
        }
    }
}

/// One image.
#[derive(Clone, PartialEq)]
pub struct Case {
    /// The file's path as the manifest writes it, or `split/index` in an npz.
    pub id: String,
    /// Whom it shows; all images of a patient fall on one side of a split.
    pub patient: String,
    /// What it belongs to where a run learns from bags: the slide or examination, or else the
    /// patient.
    pub bag: String,
    /// What it shows.
    pub label: Label,
}

impl Case {
    /// An image in the bag of its patient.
    pub fn new(id: String, patient: String, label: Label) -> Self {
        Self { id, bag: patient.clone(), patient, label }
    }
}
