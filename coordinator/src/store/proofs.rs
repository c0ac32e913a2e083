//! The log's proofs, from the stored tree.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use tributary_shared::digest::Digest;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::{ProofError, consistency_proof, inclusion_proof};

use super::read::digest;
use super::{Store, StoreError, int};

impl Store {
    /// The hash of the complete subtree `index` of `level`.
    pub async fn node(&self, level: u32, index: u64) -> Result<Digest, StoreError> {
        let hash: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT hash FROM node WHERE level = $1 AND idx = $2")
                .bind(level)
                .bind(int(index))
                .fetch_optional(&self.0.readers)
                .await
                .map_err(StoreError::sql("read the history's tree"))?;
        let what = || format!("tree node {level}/{index}");
        let missing = || StoreError::Corrupt(format!("{} is missing", what()));
        digest(&hash.ok_or_else(missing)?, what)
    }

    /// Proves leaf `index` to be in the tree of the first `size` leaves.
    pub async fn inclusion_proof(
        &self,
        index: u64,
        size: u64,
    ) -> Result<Vec<Digest>, ProofError<StoreError>> {
        self.prove(|node| inclusion_proof(index, size, &node)).await
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
        let mut edge = BTreeMap::new();
        for level in (0..u64::BITS).filter(|level| size >> level & 1 == 1) {
            let index = (size >> level) - 1;
            edge.insert((level, index), self.node(level, index).await?);
        }
        let node = |level, index| Ok::<_, Infallible>(edge[&(level, index)]);
        let Ok(frontier) = Frontier::load(size, node);
        Ok(frontier.root())
    }

    /// A proof asks for its nodes through a function that cannot wait for a database: ask once to
    /// learn which they are, and once again with their hashes at hand.
    async fn prove(
        &self,
        proof: impl Fn(
            &dyn Fn(u32, u64) -> Result<Digest, Infallible>,
        ) -> Result<Vec<Digest>, ProofError<Infallible>>,
    ) -> Result<Vec<Digest>, ProofError<StoreError>> {
        let asked = RefCell::new(Vec::new());
        proof(&|level, index| {
            asked.borrow_mut().push((level, index));
            Ok(Digest::from_bytes([0; 32]))
        })
        .map_err(outside)?;
        let mut hashes = BTreeMap::new();
        for (level, index) in asked.into_inner() {
            let hash = self.node(level, index).await.map_err(ProofError::Node)?;
            hashes.insert((level, index), hash);
        }
        proof(&|level, index| Ok(hashes[&(level, index)])).map_err(outside)
    }
}

fn outside(error: ProofError<Infallible>) -> ProofError<StoreError> {
    match error {
        ProofError::OutOfRange { asked, size } => ProofError::OutOfRange { asked, size },
        ProofError::Node(never) => match never {},
    }
}
