//! The right edge of a growing tree: enough to append to it and to name its root.

use crate::digest::Digest;
use crate::tlog::merkle::{empty_root, node_hash};

/// The hash of a complete subtree, which never changes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Height: 0 is a leaf hash, the subtree covers `2^level` leaves.
    pub level: u32,
    /// Position among the subtrees of this level, from the left.
    pub index: u64,
    /// Its hash.
    pub hash: Digest,
}

/// The compact range from leaf 0: the complete subtrees that a tree of this size consists of.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// Largest subtree first: one for every set bit of `size`.
    edge: Vec<Digest>,
}

impl Frontier {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a stored tree of `size` leaves; `node(level, index)` reads its complete subtrees.
    pub fn load<E>(size: u64, node: impl Fn(u32, u64) -> Result<Digest, E>) -> Result<Self, E> {
        let edge = (0..u64::BITS)
            .rev()
            .filter(|level| size >> level & 1 == 1)
            // Left of the subtree at this level lie only larger ones.
            .map(|level| node(level, (size >> level) - 1))
            .collect::<Result<_, E>>()?;
        Ok(Self { size, edge })
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash; gives the subtrees that this completed, the leaf itself first.
    pub fn append(&mut self, leaf: Digest) -> Vec<Node> {
        let mut node = Node { level: 0, index: self.size, hash: leaf };
        let mut completed = vec![node];
        // As in binary counting: every set bit below the lowest zero carries.
        for _ in 0..self.size.trailing_ones() {
            let left = self.edge.pop().expect("one subtree for every set bit of the size");
            let hash = node_hash(left, node.hash);
            node = Node { level: node.level + 1, index: node.index >> 1, hash };
            completed.push(node);
        }
        self.edge.push(node.hash);
        self.size += 1;
        completed
    }

    /// The tree's root.
    pub fn root(&self) -> Digest {
        let smallest_first = self.edge.iter().rev().copied();
        smallest_first.reduce(|right, left| node_hash(left, right)).unwrap_or_else(empty_root)
    }
}
