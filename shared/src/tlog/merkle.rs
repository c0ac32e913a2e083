//! Hashes and proofs of the RFC 6962 Merkle tree (verification as in RFC 9162, section 2.1).

use crate::digest::{Digest, Hasher};

/// Prefix bytes that keep a leaf from passing for a node (RFC 6962, section 2.1).
const LEAF_PREFIX: &[u8] = &[0];
const NODE_PREFIX: &[u8] = &[1];

/// The hash of a leaf's bytes.
pub fn leaf_hash(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(LEAF_PREFIX);
    hasher.update(bytes);
    hasher.finish()
}

/// The hash over two subtrees.
pub fn node_hash(left: Digest, right: Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(NODE_PREFIX);
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    hasher.finish()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// Why a proof could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E> {
    /// The tree has no such leaf or no such earlier size.
    #[error("{asked} lies outside a tree of {size} leaves")]
    OutOfRange {
        /// The leaf index or the old size.
        asked: u64,
        /// The tree's size.
        size: u64,
    },
    /// A node could not be read.
    #[error("cannot read a tree node")]
    Node(#[source] E),
}

/// Why a proof is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProof {
    /// The leaf index or the old size does not fit the tree.
    #[error("the index or the old size does not fit the tree's size")]
    OutOfRange,
    /// Too few or too many hashes.
    #[error("the proof has {found} hashes, which do not fit the sizes")]
    Length {
        /// Hashes in the proof.
        found: usize,
    },
    /// The hashes lead to another root.
    #[error("the proof leads to root {found}, not to {expected}")]
    Root {
        /// The root that was claimed.
        expected: Digest,
        /// The root that the proof leads to.
        found: Digest,
    },
}

/// The hashes that prove leaf `index` to be in the tree of the first `size` leaves, lowest first.
///
/// `node(level, index)` is the hash of the complete subtree over leaves
/// `index * 2^level .. (index + 1) * 2^level`; only subtrees within `size` are asked for.
pub fn inclusion_proof<E>(
    index: u64,
    size: u64,
    node: &impl Fn(u32, u64) -> Result<Digest, E>,
) -> Result<Vec<Digest>, ProofError<E>> {
    if index >= size {
        return Err(ProofError::OutOfRange { asked: index, size });
    }
    let mut proof = Vec::new();
    let (mut start, mut count) = (0, size);
    while count > 1 {
        let left = left_leaves(count);
        if index - start < left {
            proof.push(range_hash(start + left, count - left, node)?);
            count = left;
        } else {
            proof.push(range_hash(start, left, node)?);
            (start, count) = (start + left, count - left);
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The hashes that prove the tree of `old` leaves to be the beginning of the one of `new` leaves.
///
/// Empty for an empty old tree, of which every tree is a continuation. `node` is as for
/// [`inclusion_proof`].
pub fn consistency_proof<E>(
    old: u64,
    new: u64,
    node: &impl Fn(u32, u64) -> Result<Digest, E>,
) -> Result<Vec<Digest>, ProofError<E>> {
    if old > new {
        return Err(ProofError::OutOfRange { asked: old, size: new });
    }
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    let (mut start, mut count) = (0, new);
    while old != start + count {
        let left = left_leaves(count);
        if old - start <= left {
            proof.push(range_hash(start + left, count - left, node)?);
            count = left;
        } else {
            proof.push(range_hash(start, left, node)?);
            (start, count) = (start + left, count - left);
        }
    }
    // The old tree itself is known to the verifier; a subtree of it is not.
    if start > 0 {
        proof.push(range_hash(start, count, node)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that `leaf` (a leaf hash) is leaf `index` of the tree of `size` leaves under `root`.
pub fn verify_inclusion(
    leaf: Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: Digest,
) -> Result<(), InvalidProof> {
    if index >= size {
        return Err(InvalidProof::OutOfRange);
    }
    let wrong_length = InvalidProof::Length { found: proof.len() };
    let (mut position, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return Err(wrong_length);
        }
        if position % 2 == 1 || position == last {
            hash = node_hash(*sibling, hash);
            // A right edge without a sibling on these levels rises unchanged.
            while position != 0 && position % 2 == 0 {
                (position, last) = (position >> 1, last >> 1);
            }
        } else {
            hash = node_hash(hash, *sibling);
        }
        (position, last) = (position >> 1, last >> 1);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    same_root(root, hash)
}

/// Checks that the tree of `old` leaves under `old_root` is the beginning of the one of `new`
/// leaves under `new_root`.
pub fn verify_consistency(
    old: u64,
    new: u64,
    old_root: Digest,
    new_root: Digest,
    proof: &[Digest],
) -> Result<(), InvalidProof> {
    if old > new {
        return Err(InvalidProof::OutOfRange);
    }
    let wrong_length = InvalidProof::Length { found: proof.len() };
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(wrong_length);
        }
        let expected = if old == 0 { empty_root() } else { new_root };
        return same_root(expected, old_root);
    }
    // A complete old tree is itself the first hash.
    let whole = old.is_power_of_two().then_some(old_root);
    let mut hashes = whole.iter().chain(proof);
    let first = *hashes.next().ok_or(wrong_length)?;
    let (mut position, mut last) = (old - 1, new - 1);
    let complete = position.trailing_ones();
    (position, last) = (position >> complete, last >> complete);
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in hashes {
        if last == 0 {
            return Err(wrong_length);
        }
        if position % 2 == 1 || position == last {
            old_hash = node_hash(*sibling, old_hash);
            new_hash = node_hash(*sibling, new_hash);
            while position != 0 && position % 2 == 0 {
                (position, last) = (position >> 1, last >> 1);
            }
        } else {
            new_hash = node_hash(new_hash, *sibling);
        }
        (position, last) = (position >> 1, last >> 1);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    same_root(old_root, old_hash)?;
    same_root(new_root, new_hash)
}

fn same_root(expected: Digest, found: Digest) -> Result<(), InvalidProof> {
    if expected == found { Ok(()) } else { Err(InvalidProof::Root { expected, found }) }
}

/// Leaves of the left subtree: the largest power of two below `count`, which is above 1.
fn left_leaves(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root over leaves `start .. start + count`, of which `start` is aligned as the tree aligns
/// its subtrees.
fn range_hash<E>(
    start: u64,
    count: u64,
    node: &impl Fn(u32, u64) -> Result<Digest, E>,
) -> Result<Digest, ProofError<E>> {
    let mut end = start + count;
    let mut root = None;
    // Complete subtrees from the smallest, which lies rightmost, to the largest.
    for level in (0..u64::BITS).filter(|level| count >> level & 1 == 1) {
        end -= 1 << level;
        let left = node(level, end >> level).map_err(ProofError::Node)?;
        root = Some(root.map_or(left, |right| node_hash(left, right)));
    }
    Ok(root.unwrap_or_else(empty_root))
}
