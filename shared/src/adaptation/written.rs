//! The table `[adapter]` as it is written; what it means is an [`Adaptation`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Adaptation, Lora, Scaling, Target};

/// Names for several targets at once.
const SETS: [(&str, &[Target]); 5] = [
    ("qv", &[Target::Q, Target::V]),
    ("qkv", &[Target::Q, Target::K, Target::V]),
    ("qkvo", &[Target::Q, Target::K, Target::V, Target::Proj]),
    ("mlp", &[Target::Fc1, Target::Fc2]),
    ("all_linear", &Target::ALL),
];

/// AdaptFormer's factor in its paper.
const ADAPTFORMER_SCALE: f64 = 0.1;

/// A table `[adapter]` whose keys do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTable {
    /// A key that its kind needs.
    #[error("[adapter] kind = \"{kind}\" needs the key `{key}`")]
    Missing {
        /// The kind.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A key of another kind.
    #[error("[adapter] kind = \"{kind}\" has no key `{key}`; remove it")]
    Foreign {
        /// The kind.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A target that no block has.
    #[error(
        "`{0}` is unknown; name q, k, v, proj, fc1, fc2 or one of the sets qv, qkv, qkvo, mlp, all_linear"
    )]
    Target(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Lora,
    Houlsby,
    #[serde(rename = "adaptformer")]
    AdaptFormer,
    Prompts,
    #[serde(rename = "bitfit")]
    BitFit,
    HeadOnly,
    LastBlocks,
    Full,
}

/// Every key of every kind. Defaults are filled in when it is read and written out again, so that
/// the canonical form keeps its meaning when a default changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterTable {
    #[serde(default)]
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<Scaling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dora: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<Targets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bottleneck: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompts: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deep: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_blocks: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "WrittenTargets")]
struct Targets(BTreeSet<Target>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "targets are a list of names, or one name")]
enum WrittenTargets {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<WrittenTargets> for Targets {
    type Error = InvalidTable;

    fn try_from(written: WrittenTargets) -> Result<Self, InvalidTable> {
        let names = match written {
            WrittenTargets::One(name) => vec![name],
            WrittenTargets::Many(names) => names,
        };
        let mut targets = BTreeSet::new();
        for name in names {
            if let Some((_, set)) = SETS.iter().find(|(set, _)| *set == name) {
                targets.extend(*set);
            } else if let Some(target) = Target::ALL.iter().find(|target| target.name() == name) {
                targets.insert(*target);
            } else {
                return Err(InvalidTable::Target(name.chars().take(40).collect()));
            }
        }
        Ok(Self(targets))
    }
}

impl TryFrom<AdapterTable> for Adaptation {
    type Error = InvalidTable;

    fn try_from(mut table: AdapterTable) -> Result<Self, InvalidTable> {
        let adaptation = table.take()?;
        // Whatever its kind did not take belongs to another kind.
        match table.first_key() {
            Some(key) => Err(InvalidTable::Foreign { kind: adaptation.name(), key }),
            None => Ok(adaptation),
        }
    }
}

impl AdapterTable {
    fn take(&mut self) -> Result<Adaptation, InvalidTable> {
        Ok(match self.kind {
            Kind::Lora => Adaptation::Lora(Lora {
                rank: needed("lora", "rank", self.rank.take())?,
                alpha: needed("lora", "alpha", self.alpha.take())?,
                scaling: self.scaling.take().unwrap_or_default(),
                dora: self.dora.take().unwrap_or_default(),
                dropout: self.dropout.take().unwrap_or_default(),
                targets: needed("lora", "targets", self.targets.take())?.0,
                last_blocks: self.last_blocks.take(),
            }),
            Kind::Houlsby => Adaptation::Houlsby {
                bottleneck: needed("houlsby", "bottleneck", self.bottleneck.take())?,
                last_blocks: self.last_blocks.take(),
            },
            Kind::AdaptFormer => Adaptation::AdaptFormer {
                bottleneck: needed("adaptformer", "bottleneck", self.bottleneck.take())?,
                scale: self.scale.take().unwrap_or(ADAPTFORMER_SCALE),
                last_blocks: self.last_blocks.take(),
            },
            Kind::Prompts => Adaptation::Prompts {
                prompts: needed("prompts", "prompts", self.prompts.take())?,
                deep: self.deep.take().unwrap_or_default(),
                last_blocks: self.last_blocks.take(),
            },
            Kind::BitFit => Adaptation::BitFit { last_blocks: self.last_blocks.take() },
            Kind::HeadOnly => Adaptation::HeadOnly,
            Kind::LastBlocks => Adaptation::LastBlocks {
                last_blocks: needed("last_blocks", "last_blocks", self.last_blocks.take())?,
            },
            Kind::Full => Adaptation::Full,
        })
    }

    fn first_key(&self) -> Option<&'static str> {
        let keys = [
            ("rank", self.rank.is_some()),
            ("alpha", self.alpha.is_some()),
            ("scaling", self.scaling.is_some()),
            ("dora", self.dora.is_some()),
            ("dropout", self.dropout.is_some()),
            ("targets", self.targets.is_some()),
            ("bottleneck", self.bottleneck.is_some()),
            ("scale", self.scale.is_some()),
            ("prompts", self.prompts.is_some()),
            ("deep", self.deep.is_some()),
            ("last_blocks", self.last_blocks.is_some()),
        ];
        keys.into_iter().find(|(_, written)| *written).map(|(key, _)| key)
    }
}

fn needed<T>(kind: &'static str, key: &'static str, value: Option<T>) -> Result<T, InvalidTable> {
    value.ok_or(InvalidTable::Missing { kind, key })
}

impl From<Adaptation> for AdapterTable {
    fn from(adaptation: Adaptation) -> Self {
        let empty = Self::default();
        match adaptation {
            Adaptation::Lora(lora) => Self {
                kind: Kind::Lora,
                rank: Some(lora.rank),
                alpha: Some(lora.alpha),
                scaling: Some(lora.scaling),
                dora: Some(lora.dora),
                dropout: Some(lora.dropout),
                targets: Some(Targets(lora.targets)),
                last_blocks: lora.last_blocks,
                ..empty
            },
            Adaptation::Houlsby { bottleneck, last_blocks } => {
                Self { kind: Kind::Houlsby, bottleneck: Some(bottleneck), last_blocks, ..empty }
            }
            Adaptation::AdaptFormer { bottleneck, scale, last_blocks } => Self {
                kind: Kind::AdaptFormer,
                bottleneck: Some(bottleneck),
                scale: Some(scale),
                last_blocks,
                ..empty
            },
            Adaptation::Prompts { prompts, deep, last_blocks } => Self {
                kind: Kind::Prompts,
                prompts: Some(prompts),
                deep: Some(deep),
                last_blocks,
                ..empty
            },
            Adaptation::BitFit { last_blocks } => Self { kind: Kind::BitFit, last_blocks, ..empty },
            Adaptation::HeadOnly => Self { kind: Kind::HeadOnly, ..empty },
            Adaptation::LastBlocks { last_blocks } => {
                Self { kind: Kind::LastBlocks, last_blocks: Some(last_blocks), ..empty }
            }
            Adaptation::Full => Self { kind: Kind::Full, ..empty },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Adaptation, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn every_kind_is_written_as_it_is_read() {
        for text in [
            "rank = 4\nalpha = 8\ntargets = [\"q\", \"v\"]",
            "kind = \"lora\"\nrank = 4\nalpha = 8.0\ntargets = \"all_linear\"\nscaling = \"rslora\"\nlast_blocks = 2",
            "rank = 4\nalpha = 8.0\ntargets = [\"qv\", \"fc2\"]\ndora = true",
            "kind = \"houlsby\"\nbottleneck = 8",
            "kind = \"adaptformer\"\nbottleneck = 8\nlast_blocks = 1",
            "kind = \"prompts\"\nprompts = 5\ndeep = true",
            "kind = \"bitfit\"",
            "kind = \"head_only\"",
            "kind = \"last_blocks\"\nlast_blocks = 3",
            "kind = \"full\"",
        ] {
            let read_once = read(text).unwrap();
            let written = toml::to_string(&read_once).unwrap();
            assert_eq!(read(&written), Ok(read_once.clone()), "{written}");
            let json = serde_json::to_string(&read_once).unwrap();
            assert_eq!(serde_json::from_str::<Adaptation>(&json).unwrap(), read_once);
        }
        let Adaptation::Lora(lora) = read("rank = 1\nalpha = 1\ntargets = \"qkvo\"").unwrap()
        else {
            panic!("lora is the kind when none is written")
        };
        assert_eq!(lora.targets, [Target::Q, Target::K, Target::V, Target::Proj].into());
    }

    /// The older way to write `head_only`: it became that kind unasked, under any alpha and targets.
    #[test]
    fn rank_zero_stays_the_number_that_was_written() {
        let Adaptation::Lora(lora) = read("rank = 0\nalpha = 1\ntargets = []").unwrap() else {
            panic!("lora is the kind when none is written")
        };
        assert_eq!(lora.rank, 0);
    }

    #[test]
    fn each_mistake_has_its_line() {
        for (text, line) in [
            ("rank = 4\nalpha = 1", "[adapter] kind = \"lora\" needs the key `targets`"),
            ("kind = \"prompts\"", "[adapter] kind = \"prompts\" needs the key `prompts`"),
            (
                "kind = \"bitfit\"\nrank = 4",
                "[adapter] kind = \"bitfit\" has no key `rank`; remove it",
            ),
            (
                "rank = 1\nalpha = 1\ntargets = [\"query\"]",
                "`query` is unknown; name q, k, v, proj, fc1, fc2 or one of the sets qv, qkv, qkvo, mlp, all_linear",
            ),
        ] {
            assert_eq!(read(text), Err(line.to_owned()), "{text}");
        }
        assert!(read("kind = \"lorra\"").unwrap_err().contains("unknown variant"));
        assert!(read("rnak = 4").unwrap_err().contains("unknown field"));
        assert!(read("targets = 3").unwrap_err().contains("targets are a list of names"));
    }
}
