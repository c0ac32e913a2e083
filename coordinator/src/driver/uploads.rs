//! Deltas on their way in: one stream a site and run, what was learned of a delta that arrived
//! whole, and its end: a blob once it is counted, else removed. All of it can be learned again from
//! the disk after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Header, Reader};

use super::{Driver, DriverError, LiveRun};
use crate::blobs::{Blobs, SpoolKey};
use crate::clock;
use crate::ingest::{self, Admitted, Ingest, IngestError};
use crate::round::event::Unusable;
use crate::round::seat::Seat;
use crate::round::{Phase, Run};
use crate::space::Arriving;

/// Words for a site that is not allowed to upload yet.
pub const NO_UPLOAD: &str = "it takes the delta when there is room";

/// The uploads of one coordinator. Cheap to clone.
#[derive(Clone, Default)]
pub struct Uploads(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    lanes: BTreeMap<(SiteName, RunName), Lane>,
    /// The delta of each lane that arrived whole and is not counted yet.
    whole: BTreeMap<(SiteName, RunName), Whole>,
    /// The delta of each lane that arrived in part, and what is known of its bytes, so that the
    /// next stream need not read them again.
    partial: BTreeMap<(SiteName, RunName), (SpoolKey, Reader)>,
}

/// A delta that arrived whole: all that it was checked against, and what was learned.
struct Whole {
    key: SpoolKey,
    header: Header,
    admitted: Admitted,
}

/// The delta that a site wants counted, held still: no stream writes to it meanwhile.
pub(super) struct Held {
    pub(super) key: SpoolKey,
    _turn: OwnedMutexGuard<()>,
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
        let key = SpoolKey { run: run.clone(), round, site: site.clone(), digest };
        blobs.spooled(&key).await
    }

    /// Takes the turn of a delta that is to be counted; a stream of the same site and run is cut off.
    pub(super) async fn hold(&self, key: SpoolKey) -> Held {
        let lane = self.enter(&key.site, &key.run, key.round);
        Held { key, _turn: lane.turn.lock_owned().await }
    }

    /// Digest, norm and size of the delta, if it arrived whole and was checked against `header` and no other. It stays known
    /// until the seat is final: a commit that fails is tried again.
    fn whole(&self, key: &SpoolKey, header: &Header) -> Option<Admitted> {
        let table = self.lock();
        let whole = table.whole.get(&(key.site.clone(), key.run.clone()));
        let whole = whole.filter(|whole| whole.key == *key && whole.header == *header);
        whole.map(|whole| whole.admitted)
    }

    /// Says whether the delta of `key` arrived whole and was checked against `header`.
    pub fn is_whole(&self, key: &SpoolKey, header: &Header) -> bool {
        self.whole(key, header).is_some()
    }

    /// Forgets and cuts off what `run` has no use for any more.
    pub(super) fn forget(&self, run: &RunName, is_wanted: impl Fn(&SiteName, u32) -> bool) {
        let mut table = self.lock();
        table.whole.retain(|(site, of), whole| of != run || is_wanted(site, whole.key.round));
        table.partial.retain(|(site, of), (key, _)| of != run || is_wanted(site, key.round));
        for ((site, of), lane) in &table.lanes {
            if of == run && !is_wanted(site, lane.round) {
                lane.superseded.cancel();
            }
        }
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
    key: SpoolKey,
    header: Header,
    /// Absent while a thread works on it, and once the delta is whole.
    writing: Option<Writing>,
    lane: Lane,
    arriving: Arriving,
}

/// A part being written and the site's turn, in one: a stream that is cut off while a thread
/// still writes must not let the next stream in before that thread is done.
struct Writing {
    /// Absent once the stream has ended.
    ingest: Option<Ingest>,
    key: SpoolKey,
    uploads: Uploads,
    /// Given back last.
    _turn: OwnedMutexGuard<()>,
}

impl Writing {
    fn ingest(&mut self) -> &mut Ingest {
        self.ingest.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Writing {
    /// However the stream ended, the next one goes on with what is known of the bytes.
    fn drop(&mut self) {
        if let Some(reader) = self.ingest.take().and_then(Ingest::into_reader) {
            let lane = (self.key.site.clone(), self.key.run.clone());
            self.uploads.lock().partial.insert(lane, (self.key.clone(), reader));
        }
    }
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
        ingest::check_announced(&header, bytes)?;
        let lane = driver.uploads().enter(site, run, round);
        let turn = lane.turn.clone().lock_owned().await;
        let here = driver.uploads().durable_offset(driver.blobs(), site, run, round, digest).await;
        let missing = bytes.saturating_sub(here.map_err(DriverError::io("reading the spool"))?);
        let key = SpoolKey { run: run.clone(), round, site: site.clone(), digest };
        driver.check_unsettled(&key, bytes).await?;
        let accepted = driver.space().accept(clock::now(), site, run, missing);
        let arriving =
            accepted.map_err(|shortage| DriverError::Short { shortage, mend: NO_UPLOAD })?;
        // This stream may change what was checked.
        let known = {
            let mut table = driver.uploads().lock();
            let lane = (site.clone(), run.clone());
            table.whole.remove(&lane);
            table.partial.remove(&lane)
        };
        let known = known.filter(|(of, _)| *of == key).map(|(_, reader)| reader);
        let (blobs, part, expected) = (driver.blobs().clone(), key.clone(), header.clone());
        let uploads = driver.uploads().clone();
        let mut writing = blocking("opening the spool", move || {
            let ingest = Some(Ingest::begin(&blobs, part.clone(), expected, bytes, known)?);
            Ok::<_, IngestError>(Writing { ingest, key: part, uploads, _turn: turn })
        })
        .await??;
        lane.received.store(writing.ingest().received(), Ordering::Relaxed);
        Ok(Self { key, header, writing: Some(writing), lane, arriving })
    }

    /// Bytes taken so far, those of earlier streams included.
    pub fn received(&self) -> u64 {
        self.lane.received.load(Ordering::Relaxed)
    }

    /// Resolves when a newer stream takes this one's place, or the round needs it no more.
    pub async fn superseded(&self) {
        self.lane.superseded.cancelled().await;
    }

    /// Checks and spools the next bytes.
    pub async fn push(&mut self, data: Bytes) -> Result<(), DriverError> {
        let mut writing = self.writing.take().expect("bytes are pushed before the upload ends");
        let (mut writing, pushed) = blocking("writing the spool", move || {
            let pushed = writing.ingest().push(&data);
            (writing, pushed)
        })
        .await?;
        let received = writing.ingest().received();
        let before = self.lane.received.swap(received, Ordering::Relaxed);
        self.arriving.came(received.saturating_sub(before));
        self.writing = Some(writing);
        Ok(pushed?)
    }

    /// Makes the bytes durable and gives their number; with the last one, the delta can be counted.
    pub async fn finish(mut self, driver: &Driver) -> Result<u64, DriverError> {
        let mut writing = self.writing.take().expect("an upload ends once");
        let digest = self.key.digest;
        let ended =
            blocking("finishing the spool", move || (writing.ingest().finish(digest), writing));
        // The site's turn lasts until the outcome is remembered.
        let (ended, _writing) = ended.await?;
        let admitted = match ended {
            Ok(admitted) => admitted,
            Err(IngestError::Incomplete { received, .. }) => return Ok(received),
            Err(error) => return Err(error.into()),
        };
        let Self { key, header, .. } = self;
        let lane = (key.site.clone(), key.run.clone());
        driver.uploads().lock().whole.insert(lane, Whole { key, header, admitted });
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

impl Driver {
    /// Refuses a delta of `bytes` bytes beside those that its site has in the spool for other runs,
    /// where together they are too much. One alone is always taken.
    async fn check_unsettled(&self, key: &SpoolKey, bytes: u64) -> Result<(), DriverError> {
        let (blobs, key) = (self.blobs().clone(), key.clone());
        let most = self.0.keeping.unsettled_bytes_max;
        let others = blocking("reading the spool", move || {
            let parts = blobs.parts()?.into_iter();
            let others = parts.filter(|part| part.site == key.site && part.run != key.run);
            others.map(|part| blobs.part_bytes(&part)).sum::<std::io::Result<u64>>()
        });
        let others = others.await?.map_err(DriverError::io("reading the spool"))?;
        if others > 0 && others.saturating_add(bytes) > most {
            return Err(DriverError::Quota { held: others, most });
        }
        Ok(())
    }

    /// Removes what the spool holds of runs that the history does not have.
    pub(super) async fn remove_strange_parts(&self) -> Result<(), DriverError> {
        let runs = self.runs().await;
        let blobs = self.blobs().clone();
        let removed = blocking("tidying the spool", move || {
            let mut parts = blobs.parts()?.into_iter();
            parts.try_for_each(|key| match runs.iter().any(|run| *run.name() == key.run) {
                true => Ok(()),
                false => blobs.remove_part(&key),
            })
        });
        removed.await?.map_err(DriverError::io("tidying the spool"))
    }

    /// Gives what is known of a delta that arrived whole and has the header that it must have now:
    /// remembered, or read again. One that lost bytes on the disk has not arrived.
    pub(super) async fn checked(
        &self,
        held: &Held,
        header: Header,
    ) -> Result<Admitted, DriverError> {
        if let Some(admitted) = self.uploads().whole(&held.key, &header) {
            return Ok(admitted);
        }
        let (blobs, key) = (self.blobs().clone(), held.key.clone());
        let digest = key.digest;
        let not_uploaded = DriverError::NotUploaded(digest);
        let verified = blocking("checking a delta", move || {
            let Some(part) = blobs.open_part(&key)? else { return Ok(None) };
            if part.metadata()?.len() < header.total_bytes() {
                return Ok(None);
            }
            match ingest::verify(part, digest, header) {
                Err(IngestError::Refused(Refusal::Digest { .. })) => {
                    blobs.remove_part(&key)?;
                    Ok(None)
                }
                verified => verified.map(Some),
            }
        });
        verified.await??.ok_or(not_uploaded)
    }
}

impl LiveRun {
    /// Brings the files in line with the fold: a delta that is counted becomes a blob, one that may
    /// still be counted stays in the spool, any other goes, and so does a blob that is damaged or
    /// no longer kept. Gives the phase that the fold had: of it, every counted delta is a blob now.
    /// Calls that wait for one another are done as one.
    pub(super) async fn tidy(&self, driver: &Driver) -> Result<Phase, DriverError> {
        let request = self.tidy_requests.fetch_add(1, Ordering::SeqCst) + 1;
        // One at a time: another caller's half-made blob is not there yet.
        let mut turn = self.tidied.lock().await;
        if let Some(done) = turn.as_ref().filter(|done| done.requests >= request) {
            return Ok(done.phase.clone());
        }
        let requests = self.tidy_requests.load(Ordering::SeqCst);
        let blobs = driver.blobs().clone();
        // Listed before the fold is read: what is there now was begun under this fold or an older.
        let listed = blocking("reading the spool", move || blobs.parts()).await?;
        let parts = listed.map_err(DriverError::io("reading the spool"))?;
        let ours = parts.into_iter().filter(|key| key.run == *self.name());
        let before = self.removed_to.load(Ordering::SeqCst);
        let (phase, fates, useless, removed_to) = self.read(|run| {
            driver.uploads().forget(self.name(), |site, round| is_wanted(run, site, round));
            // A delta may have come and been counted since the spool was listed.
            let fates: BTreeMap<_, _> = ours
                .map(|key| (key.clone(), Fate::of(run, &key)))
                .chain(counted(run).map(|key| (key, Fate::Blob)))
                .collect();
            let useless = [damaged(run), removed(run, before)].concat();
            (run.phase().clone(), fates, useless, run.removed_to())
        });
        let blobs = driver.blobs().clone();
        let done = blocking("tidying the spool", move || {
            let mut counted = BTreeSet::new();
            for (key, fate) in fates {
                match fate {
                    Fate::Blob => {
                        counted.insert(key);
                    }
                    Fate::Stays => {}
                    Fate::Goes => blobs.remove_part(&key)?,
                }
            }
            blobs.promote(&counted)?;
            useless.into_iter().try_for_each(|digest| blobs.remove(digest))
        });
        done.await?.map_err(DriverError::io("tidying the spool"))?;
        self.removed_to.fetch_max(removed_to, Ordering::SeqCst);
        *turn = Some(Tidied { requests, phase: phase.clone() });
        Ok(phase)
    }
}

/// Outcome of the last pass that brought the files in line with the fold.
pub(super) struct Tidied {
    /// Requests made before it.
    requests: u64,
    /// The phase that the fold had.
    pub(super) phase: Phase,
}

/// The deltas that an owed aggregation folds.
fn counted(run: &Run) -> impl Iterator<Item = SpoolKey> {
    let aggregating = match run.phase() {
        Phase::Aggregating(aggregating) => Some(aggregating),
        Phase::Waiting | Phase::Collecting(_) | Phase::Ended { .. } => None,
    };
    aggregating.into_iter().flat_map(|aggregating| {
        aggregating.accepted.iter().map(|(site, accepted)| SpoolKey {
            run: run.manifest().name.clone(),
            round: aggregating.round,
            site: site.clone(),
            digest: accepted.digest,
        })
    })
}

/// The end of a part in the spool.
enum Fate {
    Blob,
    Stays,
    Goes,
}

impl Fate {
    fn of(run: &Run, key: &SpoolKey) -> Self {
        match run.seat(&key.site, key.round) {
            Some(Seat::Accepted(accepted)) if accepted.digest == key.digest => Self::Blob,
            Some(_) | None if is_wanted(run, &key.site, key.round) => Self::Stays,
            Some(_) | None => Self::Goes,
        }
    }
}

/// The counted deltas of the rounds after `before` that the history gives up.
fn removed(run: &Run, before: u32) -> Vec<Digest> {
    if run.removed_to() <= before {
        return Vec::new();
    }
    let rounds = run.past().range(before + 1..=run.removed_to());
    let accepted = rounds.flat_map(|(_, past)| past.accepted());
    accepted.map(|(_, accepted)| accepted.digest).collect()
}

/// The deltas of the newest closed round whose bytes are not those that were counted.
fn damaged(run: &Run) -> Vec<Digest> {
    let newest = run.past().last_key_value();
    let seats = newest.into_iter().flat_map(|(_, past)| past.seats.values());
    seats
        .filter_map(|seat| match seat {
            Seat::Excluded { accepted, reason: Unusable::Damaged } => Some(accepted.digest),
            Seat::Excluded { .. }
            | Seat::Asked
            | Seat::Training { .. }
            | Seat::Accepted(_)
            | Seat::Refused { .. }
            | Seat::Declined { .. }
            | Seat::Lost { .. } => None,
        })
        .collect()
}

/// Says whether a delta of `site` for `round` may still be counted.
fn is_wanted(run: &Run, site: &SiteName, round: u32) -> bool {
    let Phase::Collecting(collecting) = run.phase() else { return false };
    let seat = collecting.seats.get(site).filter(|_| collecting.round == round);
    seat.is_some_and(|seat| !seat.is_final() && !seat.is_withdrawn())
}
