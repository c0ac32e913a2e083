//! Proof that a round stands in the history: the leaves that name it, under a signed head.

use bytes::Bytes;
use tonic::Status;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tlog::recovery::Head;

use super::{digest, history, parse, status};
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;
use crate::round::Phase;
use crate::round::event::RunEvent;
use crate::round::record::{Event, Record, Stream};
use crate::store::Leaf;

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
    let leaves = leaves(driver, site, run, round, base).await?;
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

/// The run's start, the opening of its open round, and the publication of `base` unless the run began
/// with it. Anything else than the round that `site` has a seat in now is refused out of memory: the
/// leaves of that round are the newest of its run, and no more than these are read.
async fn leaves(
    driver: &Driver,
    site: &SiteName,
    run: RunName,
    round: u32,
    base: Digest,
) -> Result<Vec<Leaf>, Status> {
    let missing =
        |what: &str| Status::not_found(format!("the run has no {what} for this site now"));
    let open = driver.run(&run).await.map_err(status)?.read(|run| match run.phase() {
        Phase::Collecting(open) => {
            open.round == round && open.base == base && open.seats.contains_key(site)
        }
        Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => false,
    });
    if !open {
        return Err(missing("such round"));
    }
    let (store, stream) = (driver.store(), Stream::Run(run));
    let fault = |e| status(DriverError::Store(e));
    let started = store.first(&stream).await.map_err(fault)?.ok_or_else(|| missing("start"))?;
    let opened = store.newest(&stream, |event| match event {
        Event::Run(RunEvent::RoundOpened { round: opened, .. }) => (*opened == round).then_some(()),
        Event::Run(_) | Event::Registry(_) => None,
    });
    let (opened, ()) = opened.await.map_err(fault)?.ok_or_else(|| missing("such round"))?;
    let record = Record::from_bytes(&started.bytes).map_err(|e| Status::internal(e.to_string()))?;
    if matches!(record.event, Event::Run(RunEvent::RunStarted { adapter, .. }) if adapter == base) {
        return Ok(vec![started, opened]);
    }
    let published = store.newest(&stream, |event| match event {
        Event::Run(RunEvent::AdapterPublished { adapter, .. }) => (*adapter == base).then_some(()),
        Event::Run(_) | Event::Registry(_) => None,
    });
    let (published, ()) = published.await.map_err(fault)?.ok_or_else(|| missing("such base"))?;
    Ok(vec![started, opened, published])
}
