//! How the frozen backbone is adapted: one choice a run, and the tensors that follow from it.

mod written;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::layout::TensorSpec;
use crate::problems::Problems;
use written::AdapterTable;

pub use written::InvalidTable;

/// Most prompt tokens put before a block.
const PROMPTS_MAX: usize = 1_000;

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
    /// Every map of a block.
    pub const ALL: [Self; 6] = [Self::Q, Self::K, Self::V, Self::Proj, Self::Fc1, Self::Fc2];

    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Proj => "proj",
            Self::Fc1 => "fc1",
            Self::Fc2 => "fc2",
        }
    }

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

/// How LoRA's branch is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// alpha / rank (Hu et al. 2021).
    #[default]
    Lora,
    /// alpha / sqrt(rank), which keeps the branch's size at any rank (Kalajdzievski 2023,
    /// arXiv:2312.03732).
    Rslora,
}

/// Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): y = W x + s B A x.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Rank r of the factors A (r x in) and B (out x r).
    pub rank: usize,
    /// Numerator of the scale s.
    pub alpha: f64,
    /// Denominator of the scale s.
    pub scaling: Scaling,
    /// Trains the length of every row of W + s B A apart from its direction (Liu et al. 2024,
    /// arXiv:2402.09353); the tensor is the change of the frozen rows' lengths.
    pub dora: bool,
    /// Dropout probability before A while training.
    pub dropout: f64,
    /// The adapted maps.
    pub targets: BTreeSet<Target>,
    /// Adapts this many of the last blocks alone; every block when absent.
    pub last_blocks: Option<usize>,
}

impl Lora {
    /// The factor s on B A x.
    pub fn scale(&self) -> f64 {
        match self.scaling {
            Scaling::Lora => self.alpha / self.rank as f64,
            Scaling::Rslora => self.alpha / (self.rank as f64).sqrt(),
        }
    }
}

/// What is trained below the head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AdapterTable", into = "AdapterTable")]
pub enum Adaptation {
    /// Low-rank factors beside linear maps.
    Lora(Lora),
    /// A bottleneck after the attention and after the multilayer perceptron, each with a skip
    /// connection (Houlsby et al. 2019, arXiv:1902.00751): h + up(gelu(down(h))).
    Houlsby {
        /// Width of the bottleneck.
        bottleneck: usize,
        /// The last blocks that have one; every block when absent.
        last_blocks: Option<usize>,
    },
    /// A bottleneck beside the multilayer perceptron (AdaptFormer, Chen et al. 2022,
    /// arXiv:2205.13535): scale * up(relu(down(norm2(x)))).
    AdaptFormer {
        /// Width of the bottleneck.
        bottleneck: usize,
        /// Factor on what it adds.
        scale: f64,
        /// The last blocks that have one; every block when absent.
        last_blocks: Option<usize>,
    },
    /// Visual prompt tuning (Jia et al. 2022, arXiv:2203.12119): learned tokens among an image's.
    Prompts {
        /// Tokens.
        prompts: usize,
        /// New ones before every block instead of before the first alone.
        deep: bool,
        /// The last blocks that see them; every block when absent.
        last_blocks: Option<usize>,
    },
    /// Every bias of the blocks (Ben Zaken et al. 2022, arXiv:2106.10199); the tensors are changes
    /// added to the frozen biases.
    BitFit {
        /// The last blocks; every block when absent.
        last_blocks: Option<usize>,
    },
    /// Nothing: the head alone.
    HeadOnly,
    /// Every weight of the last blocks and of the final norm; the tensors are changes added to
    /// the frozen weights.
    LastBlocks {
        /// How many.
        last_blocks: usize,
    },
    /// Every weight of the backbone, as changes added to the frozen ones.
    Full,
}

impl Adaptation {
    /// The names of all kinds.
    pub const KINDS: [&str; 8] =
        ["lora", "houlsby", "adaptformer", "prompts", "bitfit", "head_only", "last_blocks", "full"];

    /// The name in manifests, tables and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lora(_) => "lora",
            Self::Houlsby { .. } => "houlsby",
            Self::AdaptFormer { .. } => "adaptformer",
            Self::Prompts { .. } => "prompts",
            Self::BitFit { .. } => "bitfit",
            Self::HeadOnly => "head_only",
            Self::LastBlocks { .. } => "last_blocks",
            Self::Full => "full",
        }
    }

    /// Dropout probability while training.
    pub fn dropout(&self) -> f64 {
        if let Self::Lora(lora) = self { lora.dropout } else { 0.0 }
    }

    /// Whether the tensors are changes added to the backbone's tensors of the same names.
    pub fn changes_weights(&self) -> bool {
        matches!(self, Self::BitFit { .. } | Self::LastBlocks { .. } | Self::Full)
    }

    /// Blocks at the bottom that stay as the backbone has them; `None` when even the embedding
    /// below them is trained.
    pub fn prefix_blocks(&self, depth: usize) -> Option<usize> {
        let last = match self {
            Self::Lora(Lora { last_blocks, .. })
            | Self::Houlsby { last_blocks, .. }
            | Self::AdaptFormer { last_blocks, .. }
            | Self::Prompts { last_blocks, .. }
            | Self::BitFit { last_blocks } => last_blocks.unwrap_or(depth),
            Self::HeadOnly => 0,
            Self::LastBlocks { last_blocks } => *last_blocks,
            Self::Full => return None,
        };
        Some(depth.saturating_sub(last))
    }

    /// Refuses numbers that make no sense, on a backbone of this shape where one is known.
    pub fn check(&self, architecture: Option<&Architecture>, found: &mut Problems) {
        let most = |of: fn(&Architecture) -> usize| architecture.map_or(usize::MAX, of);
        let (width, depth) = (most(|shape| shape.width), most(|shape| shape.depth));
        if let Some(last) = self.last_blocks() {
            within("last_blocks", last, depth, "the backbone's depth", found);
        }
        match self {
            Self::Lora(lora) => check_lora(lora, width, found),
            Self::Houlsby { bottleneck, .. } => {
                within("bottleneck", *bottleneck, width, "the backbone's width", found);
            }
            Self::AdaptFormer { bottleneck, scale, .. } => {
                within("bottleneck", *bottleneck, width, "the backbone's width", found);
                above_zero("scale", *scale, found);
            }
            Self::Prompts { prompts, .. } => {
                within("prompts", *prompts, PROMPTS_MAX, "the most allowed,", found);
            }
            Self::BitFit { .. } | Self::HeadOnly | Self::LastBlocks { .. } | Self::Full => {}
        }
    }

    fn last_blocks(&self) -> Option<usize> {
        match self {
            Self::Lora(Lora { last_blocks, .. })
            | Self::Houlsby { last_blocks, .. }
            | Self::AdaptFormer { last_blocks, .. }
            | Self::Prompts { last_blocks, .. }
            | Self::BitFit { last_blocks } => *last_blocks,
            Self::LastBlocks { last_blocks } => Some(*last_blocks),
            Self::HeadOnly | Self::Full => None,
        }
    }

    /// Every trained tensor below the head, in no particular order.
    pub fn tensors(&self, architecture: &Architecture) -> Vec<TensorSpec> {
        let Architecture { width, depth, .. } = *architecture;
        let blocks = self.prefix_blocks(depth).unwrap_or(0)..depth;
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(TensorSpec { name, shape: shape.to_vec() });
        };
        match self {
            Self::Lora(lora) => {
                for (block, target) in blocks.flat_map(|b| lora.targets.iter().map(move |t| (b, t)))
                {
                    let module = format!("blocks.{block}.{}", target.module());
                    let (input, output) = target.widths(architecture);
                    add(format!("{module}.lora_A"), &[lora.rank, input]);
                    add(format!("{module}.lora_B"), &[output, lora.rank]);
                    if lora.dora {
                        add(format!("{module}.lora_magnitude"), &[output]);
                    }
                }
            }
            Self::Houlsby { bottleneck, .. } => {
                for block in blocks {
                    add_bottleneck(&mut add, &format!("blocks.{block}.attn"), *bottleneck, width);
                    add_bottleneck(&mut add, &format!("blocks.{block}.mlp"), *bottleneck, width);
                }
            }
            Self::AdaptFormer { bottleneck, .. } => {
                for block in blocks {
                    add_bottleneck(&mut add, &format!("blocks.{block}.mlp"), *bottleneck, width);
                }
            }
            Self::Prompts { prompts, deep, .. } => {
                let count = if *deep { blocks.len() } else { 1 };
                for block in blocks.take(count) {
                    add(format!("blocks.{block}.prompts"), &[*prompts, width]);
                }
            }
            Self::HeadOnly => {}
            Self::BitFit { .. } | Self::LastBlocks { .. } | Self::Full => {
                let layout = architecture.layout();
                for spec in layout.tensors().iter().filter(|t| self.changes(&t.name, &blocks)) {
                    add(spec.name.clone(), &spec.shape);
                }
            }
        }
        tensors
    }

    /// Whether the backbone's tensor `name` is changed.
    fn changes(&self, name: &str, blocks: &std::ops::Range<usize>) -> bool {
        let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
        let inside = block.and_then(|b| b.parse().ok()).is_some_and(|b: usize| blocks.contains(&b));
        match self {
            Self::BitFit { .. } => inside && name.ends_with(".bias"),
            Self::LastBlocks { .. } => {
                inside || name.starts_with("norm.") || name.starts_with("fc_norm.")
            }
            Self::Full => true,
            Self::Lora(_)
            | Self::Houlsby { .. }
            | Self::AdaptFormer { .. }
            | Self::Prompts { .. }
            | Self::HeadOnly => false,
        }
    }
}

fn add_bottleneck(
    add: &mut dyn FnMut(String, &[usize]),
    sublayer: &str,
    narrow: usize,
    width: usize,
) {
    add(format!("{sublayer}.adapter.down.weight"), &[narrow, width]);
    add(format!("{sublayer}.adapter.down.bias"), &[narrow]);
    add(format!("{sublayer}.adapter.up.weight"), &[width, narrow]);
    add(format!("{sublayer}.adapter.up.bias"), &[width]);
}

fn check_lora(lora: &Lora, width: usize, found: &mut Problems) {
    if lora.rank == 0 {
        let mend = "0 trains no factor; to train the head alone write kind = \"head_only\"";
        found.add("adapter.rank", mend);
    } else {
        within("rank", lora.rank, width, "the backbone's width", found);
    }
    above_zero("alpha", lora.alpha, found);
    found.require(!lora.targets.is_empty(), "adapter.targets", || {
        "name at least one of q, k, v, proj, fc1, fc2".to_owned()
    });
    let dropout = lora.dropout;
    let share = found.require((0.0..1.0).contains(&dropout), "adapter.dropout", || {
        format!("{dropout} is not in [0, 1)")
    });
    found.require(!(share && lora.dora && dropout > 0.0), "adapter.dropout", || {
        "DoRA measures whole rows of W + s B A; set dropout = 0".to_owned()
    });
}

/// Refuses a count that is not from 1 to `high`, which is `what`.
fn within(key: &str, value: usize, high: usize, what: &str, found: &mut Problems) {
    found.require((1..=high).contains(&value), format!("adapter.{key}"), || {
        if value < 1 {
            format!("{value} is below 1")
        } else {
            format!("{value} is above {what} {high}")
        }
    });
}

fn above_zero(key: &str, value: f64, found: &mut Problems) {
    found.require(value.is_finite() && value > 0.0, format!("adapter.{key}"), || {
        format!("{value} is not above 0")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        Architecture { mlp_width: 20, ..Architecture::plain(16, 8, 12, 3, 3) }
    }

    fn problems(adaptation: &Adaptation) -> Vec<String> {
        let mut found = Problems::default();
        adaptation.check(Some(&architecture()), &mut found);
        found.lines()
    }

    fn names(adaptation: &Adaptation) -> Vec<String> {
        adaptation.tensors(&architecture()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tensors_follow_from_kind_and_blocks() {
        let last_blocks = Some(1);
        let parallel = Adaptation::AdaptFormer { bottleneck: 2, scale: 0.1, last_blocks };
        let expected = [
            "blocks.2.mlp.adapter.down.weight [2, 12]",
            "blocks.2.mlp.adapter.down.bias [2]",
            "blocks.2.mlp.adapter.up.weight [12, 2]",
            "blocks.2.mlp.adapter.up.bias [12]",
        ];
        assert_eq!(names(&parallel), expected);
        assert_eq!(names(&Adaptation::Houlsby { bottleneck: 2, last_blocks }).len(), 8);
        let prompts = |deep| Adaptation::Prompts { prompts: 5, deep, last_blocks: Some(2) };
        assert_eq!(names(&prompts(false)), ["blocks.1.prompts [5, 12]"]);
        assert_eq!(names(&prompts(true)).len(), 2);
        // Two norms and six maps a block.
        assert_eq!(names(&Adaptation::BitFit { last_blocks: None }).len(), 3 * 8);
        // Sixteen tensors a block, two of the final norm.
        assert_eq!(names(&Adaptation::LastBlocks { last_blocks: 2 }).len(), 2 * 16 + 2);
        let all = architecture().layout().tensors().len();
        assert_eq!(names(&Adaptation::Full).len(), all);
        assert!(names(&Adaptation::HeadOnly).is_empty());
    }

    #[test]
    fn what_no_backbone_of_this_shape_can_have_is_one_line() {
        let lora = |change: &dyn Fn(&mut Lora)| {
            let mut lora = Lora {
                rank: 4,
                alpha: 8.0,
                scaling: Scaling::Rslora,
                dora: false,
                dropout: 0.0,
                targets: [Target::Q].into(),
                last_blocks: None,
            };
            assert_eq!(lora.scale(), 4.0);
            change(&mut lora);
            Adaptation::Lora(lora)
        };
        for (adaptation, line) in [
            (lora(&|l| l.rank = 13), "adapter.rank: 13 is above the backbone's width 12"),
            (lora(&|l| l.alpha = 0.0), "adapter.alpha: 0 is not above 0"),
            (
                lora(&|l| l.last_blocks = Some(4)),
                "adapter.last_blocks: 4 is above the backbone's depth 3",
            ),
            (lora(&|l| l.last_blocks = Some(0)), "adapter.last_blocks: 0 is below 1"),
            (
                lora(&|l| l.targets.clear()),
                "adapter.targets: name at least one of q, k, v, proj, fc1, fc2",
            ),
            (lora(&|l| l.dropout = 1.0), "adapter.dropout: 1 is not in [0, 1)"),
            (
                Adaptation::Houlsby { bottleneck: 0, last_blocks: None },
                "adapter.bottleneck: 0 is below 1",
            ),
            (
                Adaptation::Prompts { prompts: 1_001, deep: true, last_blocks: None },
                "adapter.prompts: 1001 is above the most allowed, 1000",
            ),
            (
                Adaptation::AdaptFormer { bottleneck: 1, scale: f64::NAN, last_blocks: None },
                "adapter.scale: NaN is not above 0",
            ),
        ] {
            assert_eq!(problems(&adaptation), [line]);
        }
        assert!(problems(&lora(&|_| ())).is_empty());
        let worst = lora(&|l| {
            (l.rank, l.alpha, l.dropout) = (0, f64::INFINITY, 2.0);
            l.targets.clear();
        });
        assert_eq!(
            problems(&worst),
            [
                "adapter.rank: 0 trains no factor; to train the head alone write kind = \"head_only\"",
                "adapter.alpha: inf is not above 0",
                "adapter.targets: name at least one of q, k, v, proj, fc1, fc2",
                "adapter.dropout: 2 is not in [0, 1)",
            ]
        );
    }

    #[test]
    fn the_prefix_ends_where_training_begins() {
        assert_eq!(Adaptation::HeadOnly.prefix_blocks(12), Some(12));
        assert_eq!(Adaptation::LastBlocks { last_blocks: 4 }.prefix_blocks(12), Some(8));
        assert_eq!(Adaptation::BitFit { last_blocks: None }.prefix_blocks(12), Some(0));
        assert_eq!(Adaptation::Full.prefix_blocks(12), None);
    }
}
