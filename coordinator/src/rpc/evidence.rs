//! Proof that a round stands in the history: the leaves that name it, under a signed head.

use bytes::Bytes;
use tonic::Status;
use tributary_proto::v1;
use tributary_shared::name::SiteName;
use tributary_shared::tlog::recovery::Head;

use super::{digest, history, parse, status};
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;

/// The round that `site` asks about, proved under the log's head.
pub(super) async fn evidence(
    driver: &Driver,
    heads: &Heads,
    site: &SiteName,
    request: v1::EvidenceRequest,
) -> Result<v1::EvidenceReply, Status> {
    let v1::EvidenceRequest { run, round, base_digest, old_size, held_note } = request;
    let run = parse("run", &run)?;
    let base = digest("base_digest", &base_digest)?;
    // Read before the head is chosen, so that it holds them. Other rounds are refused from memory.
    let run = driver.run(&run).await.map_err(status)?;
    let leaves = run.proof_leaves(site, round, base);
    let leaves =
        leaves.ok_or_else(|| Status::not_found("the run has no such round for this site now"))?;
    let store = driver.store();
    let fault = |e| status(DriverError::Store(e));
    let leaves = store.leaves_at(&leaves).await.map_err(fault)?;
    let asked = v1::CheckpointRequest { old_size, held_note };
    let size_min = leaves.last().map_or(0, |leaf| leaf.index + 1);
    let checkpoint = history::witnessed(driver, heads, &asked, size_min).await?;
    let mut reply = v1::EvidenceReply { checkpoint: Some(checkpoint), leaves: Vec::new() };
    let Some(checkpoint) = reply.checkpoint.as_ref().filter(|c| c.recoveries_json.is_empty())
    else {
        return Ok(reply);
    };
    let head = Head::open(&checkpoint.note, &heads.signer().verifier_key())
        .map_err(|e| Status::internal(format!("the head just signed: {e}")))?;
    let indices: Vec<u64> = leaves.iter().map(|leaf| leaf.index).collect();
    let proofs = store.inclusion_proofs(&indices, head.size).await;
    let proofs = proofs.map_err(|e| fault(e.into()))?;
    let proven = leaves.into_iter().zip(proofs).map(|(leaf, proof)| {
        let inclusion = proof.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes()));
        v1::ProvenLeaf {
            leaf: leaf.index,
            record_json: leaf.bytes.into(),
            inclusion: inclusion.collect(),
        }
    });
    reply.leaves = proven.collect();
    Ok(reply)
}
