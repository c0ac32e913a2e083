//! The log's tree against RFC 6962 vectors, a second implementation, and exhaustively below 65
//! leaves: what must hold holds, and everything else is refused.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::HashMap;
use std::convert::Infallible;

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use serde::Deserialize;
use tributary_shared::digest::Digest;
use tributary_shared::tlog::frontier::{Frontier, Node};
use tributary_shared::tlog::merkle::{
    InvalidProof, ProofError, consistency_proof, empty_root, inclusion_proof, leaf_hash,
    verify_consistency, verify_inclusion,
};

const EXHAUSTIVE: u64 = 64;

#[derive(Deserialize)]
struct Golden {
    leaves_hex: Vec<String>,
    empty_root: String,
    roots: Vec<String>,
    inclusion: Vec<GoldenInclusion>,
    consistency: Vec<GoldenConsistency>,
    tiles_70000: GoldenTiles,
}

#[derive(Deserialize)]
struct GoldenInclusion {
    index: u64,
    size: u64,
    proof: Vec<String>,
}

#[derive(Deserialize)]
struct GoldenConsistency {
    old: u64,
    new: u64,
    proof: Vec<String>,
}

#[derive(Deserialize)]
struct GoldenTiles {
    root: String,
    full_l0: u64,
    partial_l0: u64,
    full_l1: u64,
    partial_l1: u64,
    partial_l2: u64,
    tile_0_000_sha256: String,
    tile_1_000_first: String,
    tile_1_000_sha256: String,
    tile_1_001_p17_sha256: String,
    tile_2_000_p1: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/tlog.json")).unwrap()
}

fn digest(hex_digits: &str) -> Digest {
    format!("sha256:{hex_digits}").parse().unwrap()
}

fn digests(hex_digits: &[String]) -> Vec<Digest> {
    hex_digits.iter().map(|text| digest(text)).collect()
}

/// A stored tree as a store keeps it: the nodes that `append` gave out.
#[derive(Default)]
struct Tree {
    frontier: Frontier,
    nodes: HashMap<(u32, u64), Digest>,
    roots: Vec<Digest>,
}

impl Tree {
    fn of(leaves: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut tree = Self { roots: vec![empty_root()], ..Self::default() };
        for leaf in leaves {
            for Node { level, index, hash } in tree.frontier.append(leaf_hash(&leaf)) {
                let before = tree.nodes.insert((level, index), hash);
                assert_eq!(before, None, "a complete subtree never changes");
            }
            tree.roots.push(tree.frontier.root());
        }
        tree
    }

    /// Leaves `i` as the text of the number.
    fn counting(size: u64) -> Self {
        Self::of((0..size).map(|i| i.to_string().into_bytes()))
    }

    fn node(&self, level: u32, index: u64) -> Result<Digest, Infallible> {
        Ok(self.nodes[&(level, index)])
    }

    fn leaf(&self, index: u64) -> Digest {
        self.nodes[&(0, index)]
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<Digest> {
        inclusion_proof(index, size, &|level, index| self.node(level, index)).unwrap()
    }

    fn consistency(&self, old: u64, new: u64) -> Vec<Digest> {
        consistency_proof(old, new, &|level, index| self.node(level, index)).unwrap()
    }

    fn root(&self, size: u64) -> Digest {
        self.roots[size as usize]
    }
}

#[test]
fn golden_roots_and_proofs() {
    let golden = golden();
    let tree = Tree::of(golden.leaves_hex.iter().map(|leaf| hex::decode(leaf).unwrap()));
    assert_eq!(tree.roots[0], digest(&golden.empty_root));
    assert_eq!(tree.roots[1..], digests(&golden.roots)[..]);
    for GoldenInclusion { index, size, proof } in golden.inclusion {
        let proof = digests(&proof);
        assert_eq!(tree.inclusion(index, size), proof, "leaf {index} of {size}");
        assert_eq!(
            verify_inclusion(tree.leaf(index), index, size, &proof, tree.root(size)),
            Ok(())
        );
    }
    for GoldenConsistency { old, new, proof } in golden.consistency {
        let proof = digests(&proof);
        assert_eq!(tree.consistency(old, new), proof, "{old} to {new}");
        assert_eq!(verify_consistency(old, new, tree.root(old), tree.root(new), &proof), Ok(()));
    }
}

/// C2SP tlog-tiles: 70,000 leaves as tiles of 256 hashes, eight levels of the tree apart.
#[test]
fn golden_tiles_of_70_000_leaves() {
    let golden = golden().tiles_70000;
    let tree = Tree::of((0..70_000).map(|i| format!("round {i}").into_bytes()));
    assert_eq!(tree.root(70_000), digest(&golden.root));
    let tile = |tile_level: u32, tile: u64, width: u64| -> Vec<u8> {
        let hash = |i| tree.nodes[&(tile_level * 8, tile * 256 + i)];
        (0..width).flat_map(|i| *hash(i).as_bytes()).collect()
    };
    let hashes_on =
        |level: u32| tree.nodes.keys().filter(|(found, _)| *found == level).count() as u64;
    assert_eq!(hashes_on(0), golden.full_l0 * 256 + golden.partial_l0);
    assert_eq!(hashes_on(8), golden.full_l1 * 256 + golden.partial_l1);
    assert_eq!(hashes_on(16), golden.partial_l2);
    assert_eq!(Digest::of(&tile(0, 0, 256)), digest(&golden.tile_0_000_sha256));
    assert_eq!(tree.nodes[&(8, 0)], digest(&golden.tile_1_000_first));
    assert_eq!(Digest::of(&tile(1, 0, 256)), digest(&golden.tile_1_000_sha256));
    assert_eq!(Digest::of(&tile(1, 1, 17)), digest(&golden.tile_1_001_p17_sha256));
    assert_eq!(tree.nodes[&(16, 0)], digest(&golden.tile_2_000_p1));
}

#[test]
fn a_loaded_frontier_goes_on_like_the_one_that_grew() {
    let tree = Tree::counting(EXHAUSTIVE);
    for size in 0..EXHAUSTIVE {
        let mut loaded = Frontier::load(size, |level, index| tree.node(level, index)).unwrap();
        assert_eq!((loaded.size(), loaded.root()), (size, tree.root(size)));
        loaded.append(tree.leaf(size));
        assert_eq!(loaded.root(), tree.root(size + 1));
    }
}

/// Every proof of every tree below 65 leaves holds for its own leaf, index, size and root, and for
/// no other.
#[test]
fn inclusion_exhaustively() {
    let tree = Tree::counting(EXHAUSTIVE);
    for size in 1..=EXHAUSTIVE {
        let root = tree.root(size);
        for index in 0..size {
            let proof = tree.inclusion(index, size);
            let leaf = tree.leaf(index);
            let verify =
                |leaf, index, size, root| verify_inclusion(leaf, index, size, &proof, root);
            assert_eq!(verify(leaf, index, size, root), Ok(()), "leaf {index} of {size}");
            for other in (0..=EXHAUSTIVE).filter(|other| *other != index) {
                assert!(verify(leaf, other, size, root).is_err(), "{index} as {other} of {size}");
            }
            for other in (0..EXHAUSTIVE).filter(|other| *other != index) {
                assert!(verify(tree.leaf(other), index, size, root).is_err());
            }
            for other in (0..=EXHAUSTIVE).filter(|other| *other != size) {
                assert!(verify(leaf, index, other, tree.root(other)).is_err());
                assert!(verify(leaf, index, size, tree.root(other)).is_err());
            }
            refuses_other_proofs(&proof, |proof| verify_inclusion(leaf, index, size, proof, root));
        }
    }
}

/// The same of consistency between all pairs of sizes.
#[test]
fn consistency_exhaustively() {
    let tree = Tree::counting(EXHAUSTIVE);
    for new in 0..=EXHAUSTIVE {
        for old in 0..=new {
            let (old_root, new_root) = (tree.root(old), tree.root(new));
            let proof = tree.consistency(old, new);
            let verify = |old, new, old_root, new_root| {
                verify_consistency(old, new, old_root, new_root, &proof)
            };
            assert_eq!(verify(old, new, old_root, new_root), Ok(()), "{old} to {new}");
            for other in 0..=EXHAUSTIVE {
                let other_root = tree.root(other);
                if other != old {
                    assert!(verify(old, new, other_root, new_root).is_err());
                }
                // Every tree continues the empty one.
                if other != new && old != 0 {
                    assert!(verify(old, new, old_root, other_root).is_err());
                }
            }
            refuses_other_proofs(&proof, |proof| {
                verify_consistency(old, new, old_root, new_root, proof)
            });
        }
    }
}

/// Cut, longer, swapped or changed by one bit, a proof proves nothing.
fn refuses_other_proofs(proof: &[Digest], verify: impl Fn(&[Digest]) -> Result<(), InvalidProof>) {
    assert!(verify(&[proof, &[Digest::of(b"more")]].concat()).is_err());
    for at in 0..proof.len() {
        assert!(verify(&proof[..at]).is_err(), "cut at {at}");
        let mut swapped = proof.to_vec();
        swapped.swap(at, 0);
        assert!(at == 0 || verify(&swapped).is_err(), "swapped {at}");
        let mut bytes = *proof[at].as_bytes();
        bytes[at % 32] ^= 1 << (at % 8);
        let mut flipped = proof.to_vec();
        flipped[at] = Digest::from_bytes(bytes);
        assert!(verify(&flipped).is_err(), "flipped {at}");
    }
}

#[test]
fn what_lies_outside_the_tree_has_no_proof() {
    let tree = Tree::counting(4);
    let node = |level, index| tree.node(level, index);
    let outside = |asked| ProofError::OutOfRange { asked, size: 4 };
    assert_eq!(inclusion_proof(4, 4, &node), Err(outside(4)));
    assert_eq!(consistency_proof(5, 4, &node), Err(outside(5)));
    assert_eq!(inclusion_proof(0, 2, &|_, _| Err("disk")), Err(ProofError::Node("disk")));
}

proptest! {
    /// `ct-merkle` gives the same roots and proofs on trees of any shape.
    #[test]
    fn agrees_with_ct_merkle(
        leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..400),
        at in any::<prop::sample::Index>(),
        old in any::<prop::sample::Index>(),
    ) {
        let mut oracle = MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
        for leaf in &leaves {
            oracle.push(leaf.clone());
        }
        let size = leaves.len() as u64;
        let tree = Tree::of(leaves.clone());
        prop_assert_eq!(tree.root(size).as_bytes()[..].to_vec(), oracle.root().as_bytes().to_vec());
        let joined = |proof: &[Digest]| -> Vec<u8> {
            proof.iter().flat_map(|hash| *hash.as_bytes()).collect()
        };
        let index = at.index(leaves.len());
        prop_assert_eq!(
            joined(&tree.inclusion(index as u64, size)),
            oracle.prove_inclusion(index).as_bytes().to_vec()
        );
        let old = 1 + old.index(leaves.len());
        let added = leaves.len() - old;
        prop_assert_eq!(
            joined(&tree.consistency(old as u64, size)),
            oracle.prove_consistency(added).as_bytes().to_vec()
        );
    }
}
