//! Receiving a delta: announced, resumed, checked while it arrives, durable before it is
//! acknowledged.

use std::time::Duration;

use tonic::{Status, Streaming};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::Header;

use super::{digest, parse, status, unknown};
use crate::clock;
use crate::driver::{Driver, DriverError, Expected, NO_UPLOAD, Upload};

/// A sender that is silent for this long is cut off; it may resume.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that count as progress of a site: below this a trickle does not renew its lease.
const PROGRESS_BYTES: u64 = 64 * 1024;

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
}

/// The durable offset, and a refusal if there is one.
type Answer = (u64, Option<v1::Refusal>);

/// Where a sender should begin or go on.
pub(super) async fn durable_offset(driver: &Driver, subject: &Subject) -> Result<Answer, Status> {
    if let Err(answer) = subject.expected(driver).await? {
        return Ok(answer);
    }
    let uploads = driver.uploads();
    let offset = uploads
        .durable_offset(driver.blobs(), &subject.site, &subject.run, subject.round, subject.digest)
        .await
        .map_err(DriverError::io("reading the spool"))
        .map_err(status)?;
    if offset < subject.bytes {
        driver.check_room(NO_UPLOAD).map_err(status)?;
    }
    Ok((offset, None))
}

/// Receives one stream of chunks.
pub(super) async fn receive(
    driver: &Driver,
    site: SiteName,
    mut chunks: Streaming<v1::UploadChunk>,
) -> Result<Answer, Status> {
    let first = next(&mut chunks).await?.ok_or_else(|| Status::invalid_argument("no chunk"))?;
    let announced = first.subject.clone();
    let announced = announced.ok_or_else(|| {
        Status::invalid_argument("subject: the first chunk must say what is sent")
    })?;
    let subject = Subject::read(site, announced)?;
    let header = match subject.expected(driver).await? {
        Ok(header) => header,
        Err(answer) => return Ok(answer),
    };
    match receive_checked(driver, &subject, header, first, &mut chunks).await {
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
            live.touch(site, clock::now()).await;
        }
        chunk = tokio::select! {
            next = next(chunks) => next?,
            () = upload.superseded() => {
                return Err(Status::aborted("the same delta is being sent on a newer stream").into());
            }
            () = driver.stopping().cancelled() => {
                return Err(Status::unavailable("the coordinator is stopping").into());
            }
        };
    }
    upload.finish(driver).await.map_err(failed)
}

/// The next chunk, or an error when the sender is silent too long.
async fn next(chunks: &mut Streaming<v1::UploadChunk>) -> Result<Option<v1::UploadChunk>, Status> {
    match tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await {
        Ok(chunk) => chunk,
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no bytes for {} s; resume from the durable offset",
            CHUNK_TIMEOUT.as_secs()
        ))),
    }
}
