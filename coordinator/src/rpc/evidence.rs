//! The proof that a round stands in the history: the leaves that name it, under a signed head.

use bytes::Bytes;
use tonic::Status;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tlog::recovery::Head;

use super::{digest, history, parse, status};
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;
use crate::round::event::RunEvent;
use crate::round::record::{Event, Stream};
use crate::store::{Leaf, Store};

/// The round that `site` asks about, proved under the log's head.
pub(super) async fn evidence(
    driver: &Driver,
    heads: &Heads,
    site: &SiteName,
    request: v1::EvidenceRequest,
) -> Result<v1::EvidenceReply, Status> {
    let v1::EvidenceRequest { run, round, base_digest, old_size, held_note } = request;
    let run: RunName = parse("run", &run)?;
    let base = digest("base_digest", &base_digest)?;
    // Found before the head is signed, so that the head holds them.
    let leaves = leaves(driver.store(), site, &Stream::Run(run), round, base).await?;
    let asked = v1::CheckpointRequest { old_size, held_note };
    let checkpoint = history::witnessed(driver, heads, &asked).await?;
    let mut reply = v1::EvidenceReply { checkpoint: Some(checkpoint), leaves: Vec::new() };
    let Some(checkpoint) = reply.checkpoint.as_ref().filter(|c| c.recoveries_json.is_empty())
    else {
        return Ok(reply);
    };
    let head = Head::open(&checkpoint.note, &heads.signer().verifier_key())
        .map_err(|e| Status::internal(format!("the head just signed: {e}")))?;
    for leaf in leaves {
        let proof = driver.store().inclusion_proof(leaf.index, head.size).await;
        let proof = proof.map_err(|e| status(DriverError::Store(e.into())))?;
        let inclusion = proof.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes()));
        reply.leaves.push(v1::ProvenLeaf {
            leaf: leaf.index,
            record_json: leaf.bytes.into(),
            inclusion: inclusion.collect(),
        });
    }
    Ok(reply)
}

/// The run's start, the round's opening, and the publication of `base` unless the run began with
/// it. Nothing of a round that `site` is not in.
async fn leaves(
    store: &Store,
    site: &SiteName,
    run: &Stream,
    round: u32,
    base: Digest,
) -> Result<Vec<Leaf>, Status> {
    let missing = |what: &str| Status::not_found(format!("the history has no {what}"));
    let fault = |e| status(DriverError::Store(e));
    let opened = store.newest(run, |event| match event {
        Event::Run(RunEvent::RoundOpened { round: opened, cohort, passed_over, .. })
            if *opened == round =>
        {
            let asked = cohort.contains(site) || passed_over.iter().any(|p| p.site == *site);
            asked.then_some(())
        }
        Event::Run(_) | Event::Registry(_) => None,
    });
    let (opened, ()) = opened.await.map_err(fault)?.ok_or_else(|| missing("such round"))?;
    let started = store.newest(run, |event| match event {
        Event::Run(RunEvent::RunStarted { adapter, .. }) => Some(*adapter),
        Event::Run(_) | Event::Registry(_) => None,
    });
    let (started, initial) = started.await.map_err(fault)?.ok_or_else(|| missing("such run"))?;
    if initial == base {
        return Ok(vec![started, opened]);
    }
    let published = store.newest(run, |event| match event {
        Event::Run(RunEvent::AdapterPublished { adapter, .. }) => (*adapter == base).then_some(()),
        Event::Run(_) | Event::Registry(_) => None,
    });
    let (published, ()) = published.await.map_err(fault)?.ok_or_else(|| missing("such base"))?;
    Ok(vec![started, opened, published])
}
