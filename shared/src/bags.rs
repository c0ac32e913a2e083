//! Learning from bags of images under one label: the `[bags]` table.

use serde::{Deserialize, Serialize};

use crate::layout::TensorSpec;
use crate::problems::Problems;
use crate::task::Task;

/// Attention-based multiple-instance learning with a gate (Ilse et al. 2018, arXiv:1802.04712): all
/// images of a bag (a slide, an examination, a patient) are weighed by what they show, and their
/// weighed mean has the label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bags {
    /// Width of the attention's hidden layer.
    #[serde(default = "attention_width")]
    pub attention_width: usize,
    /// Most images of one bag that a training step looks at, drawn anew each epoch; an evaluation
    /// looks at all.
    #[serde(default = "instances_max")]
    pub instances_max: usize,
}

fn attention_width() -> usize {
    64
}

fn instances_max() -> usize {
    512
}

impl Bags {
    /// Refuses sizes that make no attention, and tasks whose truth is no bag's.
    pub(crate) fn check(&self, task: &Task, found: &mut Problems) {
        let whole = match task {
            Task::Binary { .. }
            | Task::MultiClass { .. }
            | Task::MultiLabel { .. }
            | Task::Ordinal { .. }
            | Task::Survival {} => true,
            Task::Segmentation { .. } | Task::SelfSupervised { .. } | Task::Rehearsal { .. } => {
                false
            }
        };
        found.require(whole, "bags", || format!("a {} task has no bags; remove it", task.as_str()));
        for (key, value, high) in [
            ("bags.attention_width", self.attention_width, 8_192),
            ("bags.instances_max", self.instances_max, 1_000_000),
        ] {
            found.require((1..=high).contains(&value), key, || {
                format!("{value} is not between 1 and {high}")
            });
        }
    }

    /// The attention's tensors over features of `width`.
    pub fn tensors(&self, width: usize) -> Vec<TensorSpec> {
        let hidden = self.attention_width;
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: format!("head.attention.{name}"),
            shape: shape.to_vec(),
        };
        vec![
            spec("content.weight", &[hidden, width]),
            spec("content.bias", &[hidden]),
            spec("gate.weight", &[hidden, width]),
            spec("gate.bias", &[hidden]),
            spec("score.weight", &[1, hidden]),
            spec("score.bias", &[1]),
        ]
    }
}
