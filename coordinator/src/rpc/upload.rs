//! Receiving a delta: announced, resumed, checked while it arrives, durable before it is
//! acknowledged.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Status, Streaming};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::Header;

use super::turns::{Turn, Turns};
use super::{digest, parse, status, unknown};
use crate::blobs::SpoolKey;
use crate::clock;
use crate::driver::{Driver, DriverError, Expected, NO_UPLOAD, Upload};

/// A sender that makes no progress for this long is cut off; it may resume.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that count as progress of a site: a trickle below this renews neither its lease nor its
/// time, however many messages it comes in.
const PROGRESS_BYTES: u64 = 64 * 1024;
/// Longest wait for a turn in one call; a site asks again, and keeps its place.
const TURN_WAIT: Duration = Duration::from_secs(20);
/// Time between two signs of life that a site's wait for its turn gives it.
const WAIT_TOUCH: Duration = Duration::from_secs(2);
/// Answer where the memory for uploads is taken.
const NO_TURN: &str = "other sites' deltas take the memory that the coordinator has for uploads; ask for the upload's status again, which waits for this site's turn";

/// What a site announces of a delta.
pub(super) struct Subject {
    site: SiteName,
    run: RunName,
    round: u32,
    digest: Digest,
    cases: u64,
    bytes: u64,
}

impl Subject {
    /// Reads an announcement of `site`.
    pub(super) fn read(site: SiteName, wire: v1::UploadStatusRequest) -> Result<Self, Status> {
        Ok(Self {
            site,
            run: parse("run", &wire.run)?,
            round: wire.round,
            digest: digest("digest", &wire.digest)?,
            cases: wire.cases,
            bytes: wire.bytes,
        })
    }

    /// The header the delta must have; `Err` is the whole answer already.
    async fn expected(&self, driver: &Driver) -> Result<Result<Header, Answer>, Status> {
        let Self { site, run, round, digest, cases, bytes } = self;
        match driver.expected_delta(site, run, *round, *digest, *cases).await {
            Ok(Expected::Header(header)) => Ok(Ok(header)),
            Ok(Expected::Verdict(Ok(()))) => Ok(Err((*bytes, None))),
            Ok(Expected::Verdict(Err(refusal))) | Err(DriverError::Refused(refusal)) => {
                Ok(Err((0, Some((&refusal).into()))))
            }
            Err(DriverError::UnknownRun(run)) => Ok(Err((0, Some((&unknown(&run)).into())))),
            Err(error) => Err(status(error)),
        }
    }

    fn key(&self) -> SpoolKey {
        let Self { site, run, round, digest, .. } = self;
        SpoolKey { run: run.clone(), round: *round, site: site.clone(), digest: *digest }
    }

    /// Bytes of the delta that are durable here.
    async fn offset(&self, driver: &Driver) -> Result<u64, Status> {
        let Self { site, run, round, digest, .. } = self;
        let offset =
            driver.uploads().durable_offset(driver.blobs(), site, run, *round, *digest).await;
        offset.map_err(DriverError::io("reading the spool")).map_err(status)
    }
}

/// The durable offset, and a refusal if there is one.
type Answer = (u64, Option<v1::Refusal>);

/// The offset at which a sender begins or goes on; answered when it is its turn to send.
pub(super) async fn durable_offset(
    driver: &Driver,
    turns: &Turns,
    subject: &Subject,
) -> Result<Answer, Status> {
    let header = match subject.expected(driver).await? {
        Ok(header) => header,
        Err(answer) => return Ok(answer),
    };
    let offset = subject.offset(driver).await?;
    if offset < subject.bytes {
        driver.check_room(NO_UPLOAD).map_err(status)?;
        // By the contract's size, which is no claim of the site.
        let missing = header.total_bytes().saturating_sub(offset);
        wait_for_turn(driver, turns, subject, missing).await?;
    }
    Ok((offset, None))
}

/// Waits for the site's turn. It is not the site's doing: its lease goes on meanwhile.
async fn wait_for_turn(
    driver: &Driver,
    turns: &Turns,
    subject: &Subject,
    missing: u64,
) -> Result<(), Status> {
    let live = driver.run(&subject.run).await.map_err(status)?;
    let wait = turns.wait(&subject.site, missing);
    tokio::pin!(wait);
    let give_up = Instant::now() + TURN_WAIT;
    let mut touch = tokio::time::interval(WAIT_TOUCH);
    loop {
        tokio::select! {
            biased;
            () = &mut wait => return Ok(()),
            () = driver.stopping().cancelled() => {
                return Err(Status::unavailable("the coordinator is stopping"));
            }
            _ = touch.tick() => live.touch(&subject.site, clock::now()),
            () = tokio::time::sleep_until(give_up) => {
                return Err(Status::resource_exhausted(NO_TURN));
            }
        }
    }
}

/// Receives one stream of chunks.
pub(super) async fn receive(
    driver: &Driver,
    turns: &Turns,
    site: SiteName,
    mut chunks: Streaming<v1::UploadChunk>,
) -> Result<Answer, Status> {
    let first = next(&mut chunks, Instant::now() + PROGRESS_TIMEOUT).await?;
    let first = first.ok_or_else(|| Status::invalid_argument("no chunk"))?;
    let announced = first.subject.clone();
    let announced = announced.ok_or_else(|| {
        Status::invalid_argument("subject: the first chunk must say what is sent")
    })?;
    let subject = Subject::read(site, announced)?;
    let header = match subject.expected(driver).await? {
        Ok(header) => header,
        Err(answer) => return Ok(answer),
    };
    if driver.uploads().is_whole(&subject.key(), &header) {
        return Ok((subject.bytes, None));
    }
    let missing = header.total_bytes().saturating_sub(subject.offset(driver).await?);
    let turn = turns.take(&subject.site, missing);
    let turn = turn.ok_or_else(|| Status::resource_exhausted(NO_TURN))?;
    match receive_checked(driver, &subject, &turn, header, first, &mut chunks).await {
        Ok(offset) => Ok((offset, None)),
        Err(ReceiveError::Status(status)) => Err(status),
        Err(ReceiveError::Refused(refusal)) => {
            // Damage in transit is nobody's fault and may be mended by sending again.
            if !matches!(refusal, Refusal::Digest { .. }) {
                let Subject { site, run, round, digest, .. } = &subject;
                let recorded = driver.refuse(site, run, *round, *digest, refusal.clone()).await;
                if let Err(error) = recorded
                    && !matches!(error, DriverError::Refused(_))
                {
                    return Err(status(error));
                }
            }
            Ok((0, Some((&refusal).into())))
        }
    }
}

/// Why bytes were not taken.
enum ReceiveError {
    /// They are not what the contract asks for.
    Refused(Refusal),
    /// The stream or the disk failed.
    Status(Status),
}

impl From<Status> for ReceiveError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

async fn receive_checked(
    driver: &Driver,
    subject: &Subject,
    turn: &Turn,
    header: Header,
    first: v1::UploadChunk,
    chunks: &mut Streaming<v1::UploadChunk>,
) -> Result<u64, ReceiveError> {
    let Subject { site, run, round, digest, bytes, .. } = subject;
    let failed = |error: DriverError| {
        if let DriverError::Refused(refusal) = error {
            ReceiveError::Refused(refusal)
        } else {
            ReceiveError::Status(status(error))
        }
    };
    let mut upload =
        Upload::begin(driver, site, run, *round, *digest, header, *bytes).await.map_err(failed)?;
    let live = driver.run(run).await.map_err(failed)?;
    let mut progress_at = upload.received();
    let mut give_up = Instant::now() + PROGRESS_TIMEOUT;
    let mut chunk = Some(first);
    while let Some(piece) = chunk {
        if piece.offset != upload.received() {
            // The sender is behind or ahead of what is durable here: it asks again and resumes.
            let (theirs, ours) = (piece.offset, upload.received());
            let text =
                format!("chunk at offset {theirs}, expected {ours}; ask for the durable offset");
            return Err(Status::aborted(text).into());
        }
        upload.push(piece.data).await.map_err(failed)?;
        if upload.received() >= progress_at + PROGRESS_BYTES {
            progress_at = upload.received();
            give_up = Instant::now() + PROGRESS_TIMEOUT;
            live.touch(site, clock::now());
        }
        if turn.is_over() && upload.received() < *bytes {
            upload.finish(driver).await.map_err(failed)?;
            return Err(Status::resource_exhausted(NO_TURN).into());
        }
        chunk = tokio::select! {
            next = next(chunks, give_up) => next?,
            () = upload.superseded() => {
                let text = "a newer stream took this one's place, or the round has closed; ask for \
                            the durable offset";
                return Err(Status::aborted(text).into());
            }
            () = driver.stopping().cancelled() => {
                return Err(Status::unavailable("the coordinator is stopping").into());
            }
        };
    }
    upload.finish(driver).await.map_err(failed)
}

/// The next chunk, or an error when it is not there in time.
async fn next(
    chunks: &mut Streaming<v1::UploadChunk>,
    give_up: Instant,
) -> Result<Option<v1::UploadChunk>, Status> {
    match tokio::time::timeout_at(give_up, chunks.message()).await {
        Ok(chunk) => chunk,
        Err(_) => Err(Status::deadline_exceeded(format!(
            "less than {PROGRESS_BYTES} bytes in {} s; resume from the durable offset",
            PROGRESS_TIMEOUT.as_secs()
        ))),
    }
}
