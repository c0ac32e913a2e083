//! The log's proofs, from the stored tree.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use sqlx::{QueryBuilder, Sqlite};
use tributary_shared::digest::Digest;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::{ProofError, consistency_proof, inclusion_proof};

use super::read::digest;
use super::{Store, StoreError, int};

/// Most tree nodes read by one statement, which binds two values a node.
const NODES_AT_ONCE: usize = 256;

/// Hashes of complete subtrees by level and index.
type Nodes = BTreeMap<(u32, u64), Digest>;

impl Store {
    /// Hashes of the complete subtrees `(level, index)`, read at once.
    async fn nodes(&self, wanted: &BTreeSet<(u32, u64)>) -> Result<Nodes, StoreError> {
        let mut nodes = Nodes::new();
        let wanted: Vec<_> = wanted.iter().copied().collect();
        for part in wanted.chunks(NODES_AT_ONCE) {
            let mut query = QueryBuilder::<Sqlite>::new(
                "SELECT level, idx, hash FROM node WHERE (level, idx) IN (",
            );
            query.push_values(part, |mut row, (level, index)| {
                row.push_bind(*level).push_bind(int(*index));
            });
            query.push(")");
            let rows: Vec<(u32, u64, Vec<u8>)> = query
                .build_query_as()
                .fetch_all(&self.0.readers)
                .await
                .map_err(StoreError::sql("read the history's tree"))?;
            for (level, index, hash) in rows {
                let hash = digest(&hash, || format!("tree node {level}/{index}"))?;
                nodes.insert((level, index), hash);
            }
        }
        let missing = wanted.iter().find(|place| !nodes.contains_key(place));
        match missing {
            Some((level, index)) => {
                Err(StoreError::Corrupt(format!("tree node {level}/{index} is missing")))
            }
            None => Ok(nodes),
        }
    }

    /// Proves each leaf of `indices` to be in the tree of the first `size` leaves.
    pub async fn inclusion_proofs(
        &self,
        indices: &[u64],
        size: u64,
    ) -> Result<Vec<Vec<Digest>>, ProofError<StoreError>> {
        self.prove(|node| {
            indices.iter().map(|index| inclusion_proof(*index, size, &node)).collect()
        })
        .await
    }

    /// Proves the first `old` leaves to be the beginning of the first `new` ones.
    pub async fn consistency_proof(
        &self,
        old: u64,
        new: u64,
    ) -> Result<Vec<Digest>, ProofError<StoreError>> {
        self.prove(|node| consistency_proof(old, new, &node)).await
    }

    /// The root over the first `size` leaves, of which there must be as many.
    pub async fn root_at(&self, size: u64) -> Result<Digest, StoreError> {
        let levels = (0..u64::BITS).filter(|level| size >> level & 1 == 1);
        let edge = self.nodes(&levels.map(|level| (level, (size >> level) - 1)).collect()).await?;
        let node = |level, index| Ok::<_, Infallible>(edge[&(level, index)]);
        let Ok(frontier) = Frontier::load(size, node);
        Ok(frontier.root())
    }

    /// A proof asks for its nodes through a function that cannot wait for a database: ask once to
    /// learn which they are, and once again with their hashes at hand.
    async fn prove<T>(
        &self,
        proof: impl Fn(
            &dyn Fn(u32, u64) -> Result<Digest, Infallible>,
        ) -> Result<T, ProofError<Infallible>>,
    ) -> Result<T, ProofError<StoreError>> {
        let asked = RefCell::new(BTreeSet::new());
        proof(&|level, index| {
            asked.borrow_mut().insert((level, index));
            Ok(Digest::from_bytes([0; 32]))
        })
        .map_err(outside)?;
        let hashes = self.nodes(&asked.into_inner()).await.map_err(ProofError::Node)?;
        proof(&|level, index| Ok(hashes[&(level, index)])).map_err(outside)
    }
}

fn outside(error: ProofError<Infallible>) -> ProofError<StoreError> {
    match error {
        ProofError::OutOfRange { asked, size } => ProofError::OutOfRange { asked, size },
        ProofError::Node(never) => match never {},
    }
}
