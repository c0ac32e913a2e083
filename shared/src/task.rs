//! What the sites of a run learn: the `[task]` table.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::layout::TensorSpec;
use crate::manifest::PAYLOAD_BYTES_MAX;
use crate::objective::Objective;
use crate::problems::Problems;

/// What the sites do in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// One of two classes; one logit, sigmoid. `classes[1]` is the positive class.
    Binary {
        /// The two class names, negative first.
        classes: Vec<String>,
    },
    /// One of several classes; softmax.
    MultiClass {
        /// The class names in the order of the logits.
        classes: Vec<String>,
    },
    /// Any subset of the classes; one sigmoid each.
    MultiLabel {
        /// The class names in the order of the logits.
        classes: Vec<String>,
    },
    /// One of several grades in an order. Logit k is the log odds of going beyond grade k given
    /// that it is reached (Shi et al. 2021, arXiv:2111.08851), so the probabilities of exceeding
    /// each grade can only fall.
    Ordinal {
        /// The names of the grades, least first.
        classes: Vec<String>,
    },
    /// Time to an event that may not have been seen; one logit, the log of the relative hazard
    /// (Cox 1972).
    Survival {},
    /// One of several classes for each pixel.
    Segmentation {
        /// The class names in the order of the mask's indices, background first.
        classes: Vec<String>,
        /// From patch tokens to logits.
        #[serde(default)]
        decoder: Decoder,
    },
    /// Images without labels: the adapter learns what the site's pictures are like before anybody
    /// has said what is on them.
    SelfSupervised {
        /// What it learns them by.
        objective: Objective,
    },
    /// No images, no model: each site adds the constant that its own `site.toml` names to a
    /// payload of this size. Exercises network, storage and aggregation.
    Rehearsal {
        /// Size of the one tensor that travels, bytes; a multiple of 4.
        payload_bytes: u64,
    },
}

/// How a segmentation's head makes logits of patch tokens. What it gives is stretched
/// bilinearly to the mask's grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decoder {
    /// One linear map: one logit a class and patch.
    Linear {},
    /// A residual 3x3 convolution between two linear maps, then a linear map to 2x2 logits a class
    /// and patch.
    Convolutional {
        /// Channels of the convolution.
        #[serde(default = "decoder_channels")]
        channels: usize,
    },
}

fn decoder_channels() -> usize {
    32
}

impl Default for Decoder {
    fn default() -> Self {
        Self::Linear {}
    }
}

impl Decoder {
    fn check(&self, found: &mut Problems) {
        if let Self::Convolutional { channels } = self {
            found.require((1..=1_024).contains(channels), "task.decoder.channels", || {
                format!("{channels} is not between 1 and 1024")
            });
        }
    }

    /// Logits along one side of a patch, for each class.
    pub fn cells(&self) -> usize {
        match self {
            Self::Linear {} => 1,
            Self::Convolutional { .. } => 2,
        }
    }
}

impl Task {
    /// The names of all kinds that train a model.
    pub const KINDS: [&str; 7] = [
        "binary",
        "multi_class",
        "multi_label",
        "ordinal",
        "survival",
        "segmentation",
        "self_supervised",
    ];

    /// The class names; none where there are no classes.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Binary { classes }
            | Self::MultiClass { classes }
            | Self::MultiLabel { classes }
            | Self::Ordinal { classes }
            | Self::Segmentation { classes, .. } => classes,
            Self::Survival {} | Self::SelfSupervised { .. } | Self::Rehearsal { .. } => &[],
        }
    }

    /// Outputs of the head.
    pub fn head_outputs(&self) -> usize {
        match self {
            Self::Binary { .. } | Self::Survival {} => 1,
            Self::MultiClass { classes } | Self::MultiLabel { classes } => classes.len(),
            Self::Ordinal { classes } => classes.len().saturating_sub(1),
            Self::Segmentation { classes, decoder } => classes.len() * decoder.cells().pow(2),
            Self::SelfSupervised { objective } => objective.head_outputs(),
            Self::Rehearsal { .. } => 0,
        }
    }

    /// The name in manifests, policies and tables.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Binary { .. } => "binary",
            Self::MultiClass { .. } => "multi_class",
            Self::MultiLabel { .. } => "multi_label",
            Self::Ordinal { .. } => "ordinal",
            Self::Survival {} => "survival",
            Self::Segmentation { .. } => "segmentation",
            Self::SelfSupervised { .. } => "self_supervised",
            Self::Rehearsal { .. } => "rehearsal",
        }
    }

    /// The tensors that the task's head has beside `head.weight` and `head.bias`, over tokens of
    /// `width`.
    pub(crate) fn head_tensors(&self, width: usize) -> Vec<TensorSpec> {
        let Self::Segmentation { decoder: Decoder::Convolutional { channels }, .. } = self else {
            return Vec::new();
        };
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: format!("head.decoder.{name}"),
            shape: shape.to_vec(),
        };
        vec![
            spec("down.weight", &[*channels, width]),
            spec("down.bias", &[*channels]),
            spec("convolution.weight", &[*channels, *channels, 3, 3]),
            spec("convolution.bias", &[*channels]),
            spec("up.weight", &[width, *channels]),
            spec("up.bias", &[width]),
        ]
    }

    /// Refuses classes and sizes that make no task.
    pub(crate) fn check(&self, found: &mut Problems) {
        let (fewest, most) = match self {
            Self::Binary { .. } => (2, 2),
            Self::MultiClass { .. } => (2, 10_000),
            Self::MultiLabel { .. } => (1, 10_000),
            Self::Ordinal { .. } => (2, 1_000),
            Self::Segmentation { decoder, .. } => {
                decoder.check(found);
                (2, 255)
            }
            Self::Survival {} | Self::SelfSupervised { .. } => return,
            Self::Rehearsal { payload_bytes } => return check_payload(*payload_bytes, found),
        };
        let classes = self.classes();
        found.require((fewest..=most).contains(&classes.len()), "task.classes", || {
            let (count, task) = (classes.len(), self.as_str());
            match fewest == most {
                true => format!("{count} classes do not fit a {task} task, which has {most}"),
                false => {
                    format!(
                        "{count} classes do not fit a {task} task, which has {fewest} to {most}"
                    )
                }
            }
        });
        let unique: BTreeSet<_> = classes.iter().collect();
        let named = unique.len() == classes.len()
            && classes
                .iter()
                .all(|c| !c.is_empty() && c.len() <= 200 && !c.contains(char::is_control));
        found.require(named, "task.classes", || {
            "class names must be distinct, printable and not empty".to_owned()
        });
    }
}

fn check_payload(payload_bytes: u64, found: &mut Problems) {
    let sized = payload_bytes.is_multiple_of(4) && (4..=PAYLOAD_BYTES_MAX).contains(&payload_bytes);
    found.require(sized, "task.payload_bytes", || {
        format!("{payload_bytes} is not a multiple of 4 between 4 and {PAYLOAD_BYTES_MAX}")
    });
}
