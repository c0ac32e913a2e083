//! Deltas on their way in: one stream a site, and what admission learned of those that are
//! whole. All of it can be learned again from the disk after a restart.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tensors::Header;

use super::{Driver, DriverError};
use crate::blobs::{Blobs, SpoolKey};
use crate::clock;
use crate::ingest::{self, Admitted, Ingest, IngestError};
use crate::space::Arriving;

/// Words for a site that is not allowed to upload yet.
pub const NO_UPLOAD: &str = "it takes the delta when there is room";

/// The uploads of one coordinator.
#[derive(Default)]
pub struct Uploads(Mutex<Table>);

#[derive(Default)]
struct Table {
    lanes: BTreeMap<(SiteName, RunName), Lane>,
    /// Deltas that arrived whole and are not counted yet.
    admitted: BTreeMap<(SiteName, Digest), Admitted>,
}

/// One site's way in for one run: the holder of `turn` writes; a newer stream cancels an older
/// one, which may be the dead half of a broken connection.
#[derive(Clone, Default)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    superseded: CancellationToken,
    /// The round that the last stream was for, and how much of it came.
    round: u32,
    received: Arc<AtomicU64>,
}

impl Uploads {
    /// Bytes of the current or last upload of `site` for `round` of `run`.
    pub fn received(&self, site: &SiteName, run: &RunName, round: u32) -> u64 {
        let key = (site.clone(), run.clone());
        let table = self.lock();
        let lane = table.lanes.get(&key).filter(|lane| lane.round == round);
        lane.map_or(0, |lane| lane.received.load(Ordering::Relaxed))
    }

    /// Bytes of a delta that are durable here.
    pub async fn durable_offset(
        &self,
        blobs: &Blobs,
        site: &SiteName,
        run: &RunName,
        round: u32,
        digest: Digest,
    ) -> std::io::Result<u64> {
        if blobs.exists(digest) {
            return blobs.size(digest).await;
        }
        let key = SpoolKey { run: run.clone(), round, site: site.clone(), digest };
        blobs.spooled(&key).await
    }

    /// What admission learned of a delta that arrived whole; told once, to the caller that counts it.
    pub(super) fn take_admitted(&self, site: &SiteName, digest: Digest) -> Option<Admitted> {
        self.lock().admitted.remove(&(site.clone(), digest))
    }

    /// Cuts an older stream of the same site and run off and takes its place.
    fn enter(&self, site: &SiteName, run: &RunName, round: u32) -> Lane {
        let mut table = self.lock();
        let lane = table.lanes.entry((site.clone(), run.clone())).or_default();
        lane.superseded.cancel();
        lane.superseded = CancellationToken::new();
        if lane.round != round {
            lane.round = round;
            lane.received = Arc::default();
        }
        lane.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The tables are valid after every single operation, also after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream of chunks into the spool.
pub struct Upload {
    site: SiteName,
    digest: Digest,
    /// Absent while a thread works on it, and once the delta is whole.
    writing: Option<Writing>,
    lane: Lane,
    arriving: Arriving,
}

/// A part being written and the site's turn, in one: a stream that is cut off while a thread
/// still writes must not let the next stream in before that thread is done.
struct Writing {
    ingest: Ingest,
    _turn: OwnedMutexGuard<()>,
}

impl Upload {
    /// Takes the site's turn, and the spool where an earlier stream left it. Refused before
    /// anything is written where the disk is short.
    pub async fn begin(
        driver: &Driver,
        site: &SiteName,
        run: &RunName,
        round: u32,
        digest: Digest,
        header: Header,
        bytes: u64,
    ) -> Result<Self, DriverError> {
        let lane = driver.uploads().enter(site, run, round);
        let turn = lane.turn.clone().lock_owned().await;
        let here = driver.uploads().durable_offset(driver.blobs(), site, run, round, digest).await;
        let missing = bytes.saturating_sub(here.map_err(DriverError::io("reading the spool"))?);
        let accepted = driver.space().accept(clock::now(), site, run, missing);
        let arriving =
            accepted.map_err(|shortage| DriverError::Short { shortage, mend: NO_UPLOAD })?;
        let key = SpoolKey { run: run.clone(), round, site: site.clone(), digest };
        let blobs = driver.blobs().clone();
        let writing = blocking("opening the spool", move || {
            let ingest = Ingest::begin(&blobs, key, header, bytes)?;
            Ok::<_, IngestError>(Writing { ingest, _turn: turn })
        })
        .await??;
        lane.received.store(writing.ingest.received(), Ordering::Relaxed);
        Ok(Self { site: site.clone(), digest, writing: Some(writing), lane, arriving })
    }

    /// Bytes taken so far, those of earlier streams included.
    pub fn received(&self) -> u64 {
        self.lane.received.load(Ordering::Relaxed)
    }

    /// Resolves when a newer stream takes this one's place.
    pub async fn superseded(&self) {
        self.lane.superseded.cancelled().await;
    }

    /// Checks and spools the next bytes.
    pub async fn push(&mut self, data: Bytes) -> Result<(), DriverError> {
        let mut writing = self.writing.take().expect("bytes are pushed before the upload ends");
        let (writing, pushed) = blocking("writing the spool", move || {
            let pushed = writing.ingest.push(&data);
            (writing, pushed)
        })
        .await?;
        let received = writing.ingest.received();
        let before = self.lane.received.swap(received, Ordering::Relaxed);
        self.arriving.came(received.saturating_sub(before));
        self.writing = Some(writing);
        Ok(pushed?)
    }

    /// Makes the bytes durable and gives their number; with the last one, the delta is admitted
    /// as a blob.
    pub async fn finish(mut self, driver: &Driver) -> Result<u64, DriverError> {
        let Writing { ingest, _turn } = self.writing.take().expect("an upload ends once");
        let digest = self.digest;
        let ended = blocking("finishing the spool", move || (ingest.finish(digest), _turn));
        let (ended, _turn) = ended.await?;
        let admitted = match ended {
            Ok(admitted) => admitted,
            Err(IngestError::Incomplete { received, .. }) => return Ok(received),
            Err(error) => return Err(error.into()),
        };
        driver.uploads().lock().admitted.insert((self.site, digest), admitted);
        Ok(admitted.bytes)
    }
}

/// Runs `work` where it may block; `what` names it when it panics.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DriverError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| DriverError::io(what)(std::io::Error::other(e)))
}

impl From<IngestError> for DriverError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Refused(refusal) => Self::Refused(refusal),
            incomplete @ IngestError::Incomplete { .. } => {
                let source = std::io::Error::other(incomplete.to_string());
                Self::Io { what: "reading a delta".to_owned(), source }
            }
            IngestError::Io(source) => Self::Io { what: "writing the spool".to_owned(), source },
        }
    }
}

/// Reads a whole blob again, as after a restart.
pub(super) fn verify_blob(
    blobs: &Blobs,
    digest: Digest,
    header: Header,
) -> Result<Admitted, DriverError> {
    if !blobs.exists(digest) {
        return Err(DriverError::NotUploaded(digest));
    }
    let file = blobs
        .open_blocking(digest)
        .map_err(DriverError::io(format!("opening {}", digest.short())))?;
    Ok(ingest::verify(file, digest, header)?)
}
