//! The adapter contract: which weights are trained, on which backbone, in which layout.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::digest::Digest;
use crate::layout::{Layout, TensorSpec};

/// A linear map inside a transformer block that LoRA can adapt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Attention query projection.
    Q,
    /// Attention key projection.
    K,
    /// Attention value projection.
    V,
    /// Attention output projection.
    Proj,
    /// First layer of the multilayer perceptron.
    Fc1,
    /// Second layer of the multilayer perceptron.
    Fc2,
}

impl Target {
    /// The module's dotted name inside a block, as tensor names use it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "attn.q",
            Self::K => "attn.k",
            Self::V => "attn.v",
            Self::Proj => "attn.proj",
            Self::Fc1 => "mlp.fc1",
            Self::Fc2 => "mlp.fc2",
        }
    }

    /// Input and output width of the map.
    pub fn widths(self, architecture: &Architecture) -> (usize, usize) {
        let Architecture { width, mlp_width, .. } = *architecture;
        match self {
            Self::Q | Self::K | Self::V | Self::Proj => (width, width),
            Self::Fc1 => (width, architecture.fc1_outputs()),
            Self::Fc2 => (mlp_width, width),
        }
    }
}

/// Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): y = W x + alpha/rank * B A x.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rank r of the factors A (r x in) and B (out x r); 0 trains the head alone.
    pub rank: usize,
    /// Scale numerator; the branch is multiplied by alpha / rank.
    pub alpha: f64,
    /// Dropout probability before A while training.
    #[serde(default)]
    pub dropout: f64,
    /// The adapted maps, in every block.
    pub targets: BTreeSet<Target>,
}

impl Lora {
    /// The factor on B A x; zero when only the head is trained.
    pub fn scale(&self) -> f64 {
        if self.rank == 0 { 0.0 } else { self.alpha / self.rank as f64 }
    }
}

/// What both sides hold fixed while a run lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterContract {
    /// Digest of the backbone file; absent in a rehearsal, which has no model.
    pub backbone: Option<Digest>,
    /// The adaptation; absent in a rehearsal.
    pub lora: Option<Lora>,
    /// Outputs of the linear head; 0 in a rehearsal.
    pub head_outputs: usize,
    /// Every tensor that travels.
    pub layout: Layout,
}

impl AdapterContract {
    /// The contract of LoRA factors and a linear head on `architecture`.
    pub fn lora(
        backbone: Digest,
        architecture: &Architecture,
        lora: Lora,
        head_outputs: usize,
    ) -> Self {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut tensors = vec![
            spec("head.weight".into(), &[head_outputs, architecture.features()]),
            spec("head.bias".into(), &[head_outputs]),
        ];
        if lora.rank > 0 {
            for block in 0..architecture.depth {
                for target in &lora.targets {
                    let module = format!("blocks.{block}.{}", target.module());
                    let (input, output) = target.widths(architecture);
                    tensors.push(spec(format!("{module}.lora_A"), &[lora.rank, input]));
                    tensors.push(spec(format!("{module}.lora_B"), &[output, lora.rank]));
                }
            }
        }
        Self {
            backbone: Some(backbone),
            lora: Some(lora),
            head_outputs,
            layout: Layout::new(tensors),
        }
    }

    /// The contract of a rehearsal: one tensor of `payload_bytes / 4` elements and no model.
    pub fn rehearsal(payload_bytes: u64) -> Self {
        let elements = usize::try_from(payload_bytes / 4).unwrap_or(usize::MAX);
        let payload = TensorSpec { name: "payload".to_owned(), shape: vec![elements] };
        Self { backbone: None, lora: None, head_outputs: 0, layout: Layout::new(vec![payload]) }
    }

    /// The digest that names the contract in headers and in the history.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a contract is plain data"))
    }

    /// How `found` differs from this contract; empty when it agrees.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |what: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
            let (a, b) = (format!("{a:?}"), format!("{b:?}"));
            if a != b {
                lines.push(format!("{what}: expected {a}, found {b}"));
            }
        };
        compare("backbone", &self.backbone, &found.backbone);
        compare("rank", &self.lora.as_ref().map(|l| l.rank), &found.lora.as_ref().map(|l| l.rank));
        compare(
            "alpha",
            &self.lora.as_ref().map(|l| l.alpha),
            &found.lora.as_ref().map(|l| l.alpha),
        );
        compare(
            "targets",
            &self.lora.as_ref().map(|l| &l.targets),
            &found.lora.as_ref().map(|l| &l.targets),
        );
        compare("head outputs", &self.head_outputs, &found.head_outputs);
        lines.extend(
            self.layout.differences(found.layout.tensors()).iter().map(ToString::to_string),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Mlp, Pool};

    #[test]
    fn lora_layout_is_sorted_and_shaped_like_peft() {
        let architecture =
            Architecture { channels: 1, mlp_width: 20, ..Architecture::plain(16, 8, 12, 11, 3) };
        let lora = Lora { rank: 2, alpha: 4.0, dropout: 0.0, targets: [Target::Fc2].into() };
        let contract = AdapterContract::lora(Digest::of(b""), &architecture, lora, 3);
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
        let lora = Lora { rank: 2, alpha: 4.0, dropout: 0.0, targets };
        let contract = AdapterContract::lora(Digest::of(b""), &architecture, lora, 3);
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
