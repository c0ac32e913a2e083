//! The order, names and shapes of the tensors that travel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// One tensor's name and shape; every tensor is f32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Dotted name, e.g. `blocks.0.attn.q.lora_A`: 1 to 200 visible ASCII characters.
    #[serde(deserialize_with = "tensor_name")]
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

/// Longest name of a tensor, characters.
const NAME_CHARS_MAX: usize = 200;

fn tensor_name<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(name);
    }
    Err(serde::de::Error::custom("a tensor's name is not 1 to 200 visible ASCII characters"))
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extents: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "{} [{}]", self.name, extents.join(", "))
    }
}

/// The tensors of an adapter in their one order: by name, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layout(Vec<TensorSpec>);

impl Layout {
    /// Sorts `tensors` into the canonical order.
    pub fn new(mut tensors: Vec<TensorSpec>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self(tensors)
    }

    /// The tensors in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.0
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> usize {
        self.0.iter().map(TensorSpec::elements).sum()
    }

    /// Bytes of all tensors together, f32.
    pub fn payload_bytes(&self) -> u64 {
        self.elements() as u64 * 4
    }

    /// What `found` has that this layout does not ask for, and the other way round.
    pub fn differences(&self, found: &[TensorSpec]) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut by_name: BTreeMap<&str, &TensorSpec> = BTreeMap::new();
        for f in found {
            by_name.entry(&f.name).or_insert(f);
        }
        for expected in &self.0 {
            match by_name.get(expected.name.as_str()) {
                None => differences.push(Difference::Missing(expected.clone())),
                Some(f) if f.shape != expected.shape => {
                    differences.push(Difference::Shape {
                        name: expected.name.clone(),
                        expected: expected.shape.clone(),
                        found: f.shape.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        let asked: BTreeSet<&str> = self.0.iter().map(|e| e.name.as_str()).collect();
        for f in found {
            if !asked.contains(f.name.as_str()) {
                differences.push(Difference::Unexpected(f.clone()));
            }
        }
        if differences.is_empty() && self.0 != found {
            differences.push(Difference::Order);
        }
        differences
    }
}

/// One way in which tensors differ from a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Asked for and not there.
    Missing(TensorSpec),
    /// There and not asked for.
    Unexpected(TensorSpec),
    /// There in another shape; shapes that would broadcast are no exception.
    Shape {
        /// The tensor.
        name: String,
        /// Its extents in the contract.
        expected: Vec<usize>,
        /// Its extents as found.
        found: Vec<usize>,
    },
    /// The right tensors in another order, or one of them twice.
    Order,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(spec) => write!(f, "missing {spec}"),
            Self::Unexpected(spec) => write!(f, "unexpected {spec}"),
            Self::Shape { name, expected, found } => {
                write!(f, "{name}: expected {expected:?}, found {found:?}")
            }
            Self::Order => f.write_str("tensors repeated or not in the order of their names"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_name_is_1_to_200_visible_ascii_characters() {
        let read = |name: &str| {
            let json = serde_json::json!({ "name": name, "shape": [1] });
            serde_json::from_value::<TensorSpec>(json).is_ok()
        };
        assert!(read("blocks.0.attn.q.lora_A") && read(&"x".repeat(200)));
        let bad = ["", "two words", "tab\t", "line\n", "\u{1b}[2J", "\u{202e}", "gr\u{f6}sse"];
        assert!(bad.iter().all(|name| !read(name)));
        assert!(!read(&"x".repeat(201)));
    }
}
