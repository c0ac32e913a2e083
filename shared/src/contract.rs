//! The adapter contract: which weights are trained, on which backbone, in which layout.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adaptation::Adaptation;
use crate::architecture::Architecture;
use crate::digest::Digest;
use crate::head::Head;
use crate::layout::{Layout, TensorSpec};

/// What both sides hold fixed while a run lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterContract {
    /// Digest of the backbone file; absent in a rehearsal, which has no model.
    pub backbone: Option<Digest>,
    /// The adaptation; absent in a rehearsal.
    pub adaptation: Option<Adaptation>,
    /// The head over an image's features; absent in a rehearsal, and where an objective decodes
    /// tokens instead.
    pub head: Option<Head>,
    /// Outputs of the head; 0 in a rehearsal.
    pub head_outputs: usize,
    /// Every tensor that travels.
    pub layout: Layout,
}

impl AdapterContract {
    /// The contract of an adaptation and, where there is one, a head on `architecture`.
    pub fn new(
        backbone: Digest,
        architecture: &Architecture,
        adaptation: Adaptation,
        head: Option<Head>,
        head_outputs: usize,
    ) -> Self {
        let mut tensors = adaptation.tensors(architecture);
        let of_head = head.as_ref().map(|head| head.tensors(architecture, head_outputs));
        tensors.extend(of_head.unwrap_or_default());
        Self {
            backbone: Some(backbone),
            adaptation: Some(adaptation),
            head,
            head_outputs,
            layout: Layout::new(tensors),
        }
    }

    /// With more tensors in the layout.
    #[must_use]
    pub fn with_tensors(mut self, more: Vec<TensorSpec>) -> Self {
        if !more.is_empty() {
            let mut tensors = self.layout.tensors().to_vec();
            tensors.extend(more);
            self.layout = Layout::new(tensors);
        }
        self
    }

    /// The contract of a rehearsal: one tensor of `payload_bytes / 4` elements and no model.
    pub fn rehearsal(payload_bytes: u64) -> Self {
        let elements = usize::try_from(payload_bytes / 4).unwrap_or(usize::MAX);
        let payload = TensorSpec { name: "payload".to_owned(), shape: vec![elements] };
        Self {
            backbone: None,
            adaptation: None,
            head: None,
            head_outputs: 0,
            layout: Layout::new(vec![payload]),
        }
    }

    /// The digest that names the contract in headers and in the history.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a contract is plain data"))
    }

    /// How `found` differs from this contract; empty when it agrees.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut lines = table_differences("backbone", &self.backbone, &found.backbone);
        lines.extend(table_differences("adapter", &self.adaptation, &found.adaptation));
        lines.extend(table_differences("head", &self.head, &found.head));
        lines.extend(table_differences("head outputs", &self.head_outputs, &found.head_outputs));
        lines.extend(
            self.layout.differences(found.layout.tensors()).iter().map(ToString::to_string),
        );
        lines
    }
}

/// A line for each key in which two values differ; for their kind alone when that differs.
fn table_differences(what: &str, expected: &impl Serialize, found: &impl Serialize) -> Vec<String> {
    let json = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    let expected = serde_json::to_value(expected).expect("a contract is plain data");
    let found = serde_json::to_value(found).expect("a contract is plain data");
    let (expected, found) = match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => (expected, found),
        (expected, found) if expected == found => return Vec::new(),
        (expected, found) => {
            return vec![format!("{what}: expected {}, found {}", json(&expected), json(&found))];
        }
    };
    let line = |key: &str| {
        let of = |table: &Map<String, Value>| table.get(key).cloned().unwrap_or_default();
        let (expected, found) = (of(&expected), of(&found));
        let text = format!("{what}.{key}: expected {}, found {}", json(&expected), json(&found));
        (expected != found).then_some(text)
    };
    if let Some(kind) = line("kind") {
        return vec![kind];
    }
    let keys: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    keys.into_iter().filter_map(|key| line(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::adaptation::{Lora, Scaling, Target};
    use crate::architecture::{Mlp, Pool};

    fn lora(rank: usize, targets: BTreeSet<Target>) -> Adaptation {
        let (scaling, dora, last_blocks) = (Scaling::Lora, false, None);
        Adaptation::Lora(Lora {
            rank,
            alpha: 4.0,
            scaling,
            dora,
            dropout: 0.0,
            targets,
            last_blocks,
        })
    }

    fn contract(architecture: &Architecture, adaptation: Adaptation) -> AdapterContract {
        AdapterContract::new(Digest::of(b""), architecture, adaptation, Some(Head::default()), 3)
    }

    #[test]
    fn differences_are_said_in_words() {
        let architecture = Architecture::plain(16, 8, 12, 1, 3);
        let asked = contract(&architecture, lora(2, [Target::Q].into()));
        assert_eq!(asked.differences(&asked), Vec::<String>::new());
        let other = contract(&architecture, lora(4, [Target::Q, Target::V].into()));
        let lines = asked.differences(&other);
        assert_eq!(lines[0], "adapter.rank: expected 2, found 4");
        assert_eq!(lines[1], r#"adapter.targets: expected ["q"], found ["q","v"]"#);
        let mut other = contract(&architecture, Adaptation::BitFit { last_blocks: None });
        other.head = Some(Head::Mlp { hidden: 4 });
        let lines = asked.differences(&other);
        assert_eq!(lines[0], "adapter.kind: expected lora, found bitfit");
        assert_eq!(lines[1], "head.kind: expected linear, found mlp");
        assert!(lines[2].starts_with("missing blocks.0.attn.q.lora_A"), "{lines:?}");
    }

    #[test]
    fn lora_layout_is_sorted_and_shaped_like_peft() {
        let architecture =
            Architecture { channels: 1, mlp_width: 20, ..Architecture::plain(16, 8, 12, 11, 3) };
        let contract = contract(&architecture, lora(2, [Target::Fc2].into()));
        let names: Vec<_> = contract.layout.tensors().iter().map(ToString::to_string).collect();
        assert_eq!(names[0], "blocks.0.mlp.fc2.lora_A [2, 20]");
        assert_eq!(names[1], "blocks.0.mlp.fc2.lora_B [12, 2]");
        assert!(names[4].starts_with("blocks.10."), "bytewise order: {}", names[4]);
        assert_eq!(names.last().map(String::as_str), Some("head.weight [3, 12]"));
    }
    #[test]
    fn head_and_gated_perceptron_have_the_widths_that_the_backbone_has() {
        let architecture = Architecture {
            mlp: Mlp::Swiglu,
            mlp_width: 20,
            pool: Pool::ClassTokenAndMean,
            ..Architecture::plain(16, 8, 12, 1, 3)
        };
        let targets = [Target::Fc1, Target::Fc2].into();
        let contract = contract(&architecture, lora(2, targets));
        let names: Vec<_> = contract.layout.tensors().iter().map(ToString::to_string).collect();
        let expected = [
            "blocks.0.mlp.fc1.lora_A [2, 12]",
            "blocks.0.mlp.fc1.lora_B [40, 2]",
            "blocks.0.mlp.fc2.lora_A [2, 20]",
            "blocks.0.mlp.fc2.lora_B [12, 2]",
            "head.bias [3]",
            "head.weight [3, 24]",
        ];
        assert_eq!(names, expected);
    }
}
