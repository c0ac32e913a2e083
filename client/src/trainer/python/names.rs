//! The names of a LoRA's tensors on transformers' `ViTForImageClassification`.

use tributary_shared::adaptation::Target;

/// The major version of transformers, which renamed the ViT's modules in 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transformers {
    /// `vit.encoder.layer.0.attention.attention.query`.
    #[value(name = "4")]
    V4,
    /// `vit.layers.0.attention.q_proj`.
    #[default]
    #[value(name = "5")]
    V5,
}

impl Transformers {
    const ALL: [Self; 2] = [Self::V4, Self::V5];

    /// A map's path below its layer.
    pub(super) fn module(self, target: Target) -> &'static str {
        match (self, target) {
            (Self::V4, Target::Q) => "attention.attention.query",
            (Self::V4, Target::K) => "attention.attention.key",
            (Self::V4, Target::V) => "attention.attention.value",
            (Self::V4, Target::Proj) => "attention.output.dense",
            (Self::V4, Target::Fc1) => "intermediate.dense",
            (Self::V4, Target::Fc2) => "output.dense",
            (Self::V5, Target::Q) => "attention.q_proj",
            (Self::V5, Target::K) => "attention.k_proj",
            (Self::V5, Target::V) => "attention.v_proj",
            (Self::V5, Target::Proj) => "attention.o_proj",
            (Self::V5, Target::Fc1) => "mlp.fc1",
            (Self::V5, Target::Fc2) => "mlp.fc2",
        }
    }

    pub(super) fn layers(self) -> &'static str {
        match self {
            Self::V4 => "vit.encoder.layer",
            Self::V5 => "vit.layers",
        }
    }
}

/// What stands before every name of a file that `peft` writes.
const PREFIX: &str = "base_model.model.";

/// The parts of an adapted map: ours, and peft's.
const PARTS: [(&str, &str); 3] = [
    ("lora_A", "lora_A.weight"),
    ("lora_B", "lora_B.weight"),
    ("lora_magnitude", "lora_magnitude_vector"),
];

/// `blocks.0.attn.q.lora_A` becomes `base_model.model.vit.layers.0.attention.q_proj.lora_A.weight`.
pub(super) fn theirs(name: &str, transformers: Transformers) -> String {
    if let Some(part) = name.strip_prefix("head.") {
        return format!("{PREFIX}classifier.{part}");
    }
    let (block, rest) =
        name.strip_prefix("blocks.").and_then(|n| n.split_once('.')).unwrap_or(("", name));
    let (module, part) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let module = Target::ALL
        .into_iter()
        .find(|target| target.module() == module)
        .map_or(module, |target| transformers.module(target));
    let part = PARTS.iter().find(|(ours, _)| *ours == part).map_or(part, |(_, theirs)| theirs);
    format!("{PREFIX}{}.{block}.{module}.{part}", transformers.layers())
}

/// Our name of a tensor of a peft file, whichever version's names it has; `None` for what no
/// LoRA of a ViT has.
pub(super) fn ours(name: &str) -> Option<String> {
    let name = name.strip_prefix(PREFIX)?;
    if let Some(part) = name.strip_prefix("classifier.") {
        return matches!(part, "weight" | "bias").then(|| format!("head.{part}"));
    }
    Transformers::ALL.into_iter().find_map(|version| {
        let (block, rest) =
            name.strip_prefix(version.layers())?.strip_prefix('.')?.split_once('.')?;
        let number: usize = block.parse().ok()?;
        let of = |target: Target| {
            let part = rest.strip_prefix(version.module(target))?.strip_prefix('.')?;
            let (part, _) = PARTS.iter().find(|(_, theirs)| *theirs == part)?;
            Some(format!("blocks.{number}.{}.{part}", target.module()))
        };
        Target::ALL.into_iter().find_map(of)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_under_both_versions() {
        for version in Transformers::ALL {
            for target in Target::ALL {
                for part in ["lora_A", "lora_B", "lora_magnitude"] {
                    let name = format!("blocks.11.{}.{part}", target.module());
                    assert_eq!(ours(&theirs(&name, version)), Some(name));
                }
            }
            assert_eq!(ours(&theirs("head.bias", version)).as_deref(), Some("head.bias"));
        }
        for other in [
            "vit.layers.0.attention.q_proj.lora_A.weight",
            "base_model.model.vit.layers.x.attention.q_proj.lora_A.weight",
            "base_model.model.vit.layers.0.attention.q_proj.weight",
            "base_model.model.classifier.extra",
            "base_model.model.vit.pooler.lora_A.weight",
        ] {
            assert_eq!(ours(other), None, "{other}");
        }
    }
}
