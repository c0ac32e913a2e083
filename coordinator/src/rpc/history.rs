//! Reading the history and the blobs for members that may: checkpoints, log entries, exports.

use std::time::Duration;

use bytes::Bytes;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::chain;
use tributary_shared::tlog::recovery::{Head, RECOVERIES_MAX};

use super::status;
use crate::blobs::Blobs;
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;
use crate::round::event::RunEvent;
use crate::round::record::{self, Event, Record};

/// Time between the first head that shows this history to be old and the end of the service: other
/// sites may hold larger ones, which a recovery should name.
const LOST_GRACE: Duration = Duration::from_secs(5);
/// Leaves read from the store at once for one reader, of up to 64 KiB each.
pub(super) const LEAVES_AT_ONCE: u32 = 16;

/// The signed head of the log, and the proof that it continues the one of `old_size` leaves.
pub(super) async fn checkpoint(
    driver: &Driver,
    heads: &Heads,
    old_size: u64,
) -> Result<v1::CheckpointReply, Status> {
    let head = driver.store().head().await.map_err(|e| status(DriverError::Store(e)))?;
    if old_size > head.size {
        // The caller has seen a longer log than this: the sharpest thing to say of a log.
        let text = format!("old_size: {old_size} is beyond this log of {} leaves", head.size);
        return Err(Status::out_of_range(text));
    }
    let note = driver.sign_head(heads, head.size, head.root).map_err(status)?;
    continuation(driver, note, old_size, head.size).await
}

/// As [`checkpoint`], under the head that was signed a moment ago for another, where that has
/// `size_min` leaves.
async fn recent_checkpoint(
    driver: &Driver,
    heads: &Heads,
    old_size: u64,
    size_min: u64,
) -> Result<v1::CheckpointReply, Status> {
    let recent = heads.recent().filter(|head| head.size >= size_min.max(old_size));
    let Some(recent) = recent else { return checkpoint(driver, heads, old_size).await };
    continuation(driver, recent.note, old_size, recent.size).await
}

/// The signed head `note` of `size` leaves, with the proof that it continues the first `old_size`.
async fn continuation(
    driver: &Driver,
    note: String,
    old_size: u64,
    size: u64,
) -> Result<v1::CheckpointReply, Status> {
    let proof = driver.store().consistency_proof(old_size, size).await;
    let proof = proof.map_err(|e| status(DriverError::Store(e.into())))?;
    let consistency = proof.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect();
    Ok(v1::CheckpointReply { note, consistency, recoveries_json: Vec::new() })
}

/// [`recent_checkpoint`] for a site, which shows the head it holds. A head that this log has signed and
/// does not continue is answered by the statements that explain it. Without one it says that this
/// history is not the newest, and the coordinator must not go on.
pub(super) async fn witnessed(
    driver: &Driver,
    heads: &Heads,
    request: &v1::CheckpointRequest,
    size_min: u64,
) -> Result<v1::CheckpointReply, Status> {
    let store = driver.store();
    if request.held_note.is_empty() {
        return recent_checkpoint(driver, heads, request.old_size, size_min).await;
    }
    let held = Head::open(&request.held_note, &heads.signer().verifier_key())
        .map_err(|e| Status::invalid_argument(format!("held_note: {}", chain(&e))))?;
    let fault = |e| status(DriverError::Store(e));
    let head = store.head().await.map_err(fault)?;
    let continued =
        held.size <= head.size && store.root_at(held.size).await.map_err(fault)? == held.root;
    if continued {
        return recent_checkpoint(driver, heads, held.size, size_min).await;
    }
    let recoveries = driver.recoveries();
    let forks = recoveries.iter().filter(|r| r.statement.kept.size < held.size);
    let recoveries_json: Vec<Bytes> =
        forks.rev().take(RECOVERIES_MAX).map(|r| r.to_json().into()).collect();
    let covered = recoveries.iter().any(|r| r.statement.covers(&held.checkpoint()));
    // Beyond this history, a head may be of the branch that an older statement began: nothing says that it was lost.
    let unexplained = !covered && (recoveries_json.is_empty() || held.size > head.size);
    if !covered && heads.lose(&held, unexplained) {
        let stop = driver.stopping().clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOST_GRACE).await;
            stop.cancel();
        });
    }
    if unexplained {
        let text = format!(
            "this coordinator's history of {} leaves does not continue the {} leaves that it signed before; it stops until its operator has restored or recovered it",
            head.size, held.size
        );
        return Err(Status::failed_precondition(text));
    }
    let note = driver.sign_head(heads, head.size, head.root).map_err(status)?;
    Ok(v1::CheckpointReply { note, consistency: Vec::new(), recoveries_json })
}

/// A blob's bytes from `offset`, in pieces. One is read when the one before is being sent, and no
/// file stays open meanwhile: what a reader holds up is bounded however slow it is.
pub(super) fn blob_pieces(
    blobs: &Blobs,
    digest: Digest,
    mut offset: u64,
) -> impl Stream<Item = Result<Bytes, Status>> + Send + use<> {
    let io = move |e| status(DriverError::io(format!("reading blob {}", digest.short()))(e));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let (blobs, pieces) = (blobs.clone(), blobs.pieces());
    let most = pieces.bytes;
    tokio::spawn(async move {
        // An error here means that the receiver has hung up.
        while let Ok(place) = sender.reserve().await {
            let piece = blobs.piece(digest, offset, most).await;
            let count = piece.as_ref().map_or(0, Vec::len);
            if !matches!(&piece, Ok(piece) if piece.is_empty()) {
                place.send(piece.map(Bytes::from).map_err(io));
            }
            if count < most {
                return;
            }
            offset += count as u64;
        }
    });
    // The size of its pieces is the reader's as long as its stream lasts.
    ReceiverStream::new(receiver).map(move |piece| {
        let _ = &pieces;
        piece
    })
}

/// Records of `run` (or of everything) from leaf `from` on; waits for more when asked to follow,
/// until the run has ended, and not been resumed, or the coordinator stops.
pub(super) fn entries(
    driver: &Driver,
    run: Option<RunName>,
    from: u64,
    follow: bool,
) -> impl Stream<Item = Result<v1::LogEntry, Status>> + Send + use<> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let driver = driver.clone();
    tokio::spawn(async move {
        let sent = send_entries(&driver, run, from, follow, &sender).await;
        if let Err(error) = sent {
            // A receiver that went away has hung up.
            let _ = sender.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_entries(
    driver: &Driver,
    run: Option<RunName>,
    mut from: u64,
    follow: bool,
    sender: &tokio::sync::mpsc::Sender<Result<v1::LogEntry, Status>>,
) -> Result<(), Status> {
    let mut changes = driver.changes();
    let wanted = run.map(record::Stream::Run);
    // A run that ended may have been resumed: only the last word counts.
    let mut ended = false;
    loop {
        changes.mark_unchanged();
        loop {
            let leaves = driver.store().leaves(from, LEAVES_AT_ONCE).await;
            let leaves = leaves.map_err(|e| status(DriverError::Store(e)))?;
            let Some(last) = leaves.last().map(|leaf| leaf.index) else { break };
            for leaf in leaves {
                let record = Record::from_bytes(&leaf.bytes)
                    .map_err(|e| Status::internal(format!("leaf {}: {e}", leaf.index)))?;
                if wanted.as_ref().is_some_and(|wanted| record.stream != *wanted) {
                    continue;
                }
                ended = matches!(record.event, Event::Run(RunEvent::RunEnded { .. }));
                let entry = v1::LogEntry { leaf: leaf.index, record_json: leaf.bytes.into() };
                if sender.send(Ok(entry)).await.is_err() {
                    return Ok(());
                }
            }
            from = last + 1;
        }
        if !follow || (ended && wanted.is_some()) {
            return Ok(());
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = sender.closed() => return Ok(()),
            () = driver.stopping().cancelled() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before: a stream kept a buffer of its largest piece, and 128 sites took 76 MB.
    #[tokio::test]
    async fn a_reader_keeps_its_size_of_pieces_until_its_stream_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::at(root.path()).unwrap();
        let small = blobs.pieces().bytes.min(64 << 10);
        let mut streams: Vec<_> =
            (0..100).map(|_| blob_pieces(&blobs, Digest::of(b"gone"), 0)).collect();
        assert_eq!(blobs.pieces().bytes, small);
        for stream in &mut streams {
            assert!(stream.next().await.unwrap().is_err(), "there is no such blob");
            assert!(stream.next().await.is_none());
        }
        assert_eq!(blobs.pieces().bytes, small, "the transport may still hold its pieces");
        drop(streams);
        assert!(blobs.pieces().bytes > small);
    }
}
