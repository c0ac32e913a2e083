//! Tensors in and out: streams in pieces, resumable at any byte, in constant memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tributary_proto::channel::CHUNK_BYTES;
use tributary_proto::v1;

use super::{CallError, Coordinator};
use crate::ledger::{Delta, Released};

/// A transfer in which nothing moves for this long has broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An adapter on its way in.
#[derive(Debug)]
pub struct Download {
    address: String,
    chunks: Streaming<v1::Chunk>,
}

impl Download {
    /// The next piece; `None` when the coordinator has sent its last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        match timeout(STALL_TIMEOUT, self.chunks.message()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|c| c.data)),
            Ok(Err(status)) => Err(CallError::from_status(&self.address, &status)),
            Err(_) => Err(CallError::timeout(&self.address)),
        }
    }
}

/// What to send, and from where.
#[derive(Debug)]
pub struct Upload<'a> {
    /// The delta.
    pub delta: &'a Released<Delta>,
    /// Its file.
    pub file: &'a Path,
    /// The first byte that the coordinator still needs.
    pub offset: u64,
}

impl Coordinator {
    /// Begins to fetch an adapter at byte `offset`.
    pub async fn fetch_adapter(&self, request: v1::FetchRequest) -> Result<Download, CallError> {
        let mut site = self.site.clone();
        let chunks = self.answer(STALL_TIMEOUT, site.fetch_adapter(request)).await?;
        Ok(Download { address: self.address.clone(), chunks })
    }

    /// Sends a delta from its file; `sent` hears how many bytes are on their way.
    ///
    /// The outer error is the disk's.
    pub async fn upload(
        &self,
        upload: Upload<'_>,
        mut sent: impl FnMut(u64),
    ) -> io::Result<Result<v1::UploadReply, CallError>> {
        let mut file = File::open(upload.file)?;
        file.seek(SeekFrom::Start(upload.offset))?;
        let (chunks, stream) = mpsc::channel(2);
        let (moved, mut moves) = watch::channel(upload.offset);
        let reading = feed(file, upload, chunks, moved);
        let mut site = self.site.clone();
        let call = site.upload(ReceiverStream::new(stream));
        let stalled = async {
            // Ends when nothing moved for long: neither a piece taken nor an answer given.
            loop {
                match timeout(STALL_TIMEOUT, moves.changed()).await {
                    Ok(Ok(())) => sent(*moves.borrow_and_update()),
                    Ok(Err(_)) => return tokio::time::sleep(STALL_TIMEOUT).await,
                    Err(_) => return,
                }
            }
        };
        // The answer may come before the last piece is taken: a refusal ends the stream early.
        let answered = async {
            let reading = async {
                match reading.await {
                    Ok(()) => std::future::pending().await,
                    Err(e) => e,
                }
            };
            tokio::select! {
                reply = call => Ok(reply),
                e = reading => Err(e),
            }
        };
        tokio::select! {
            reply = answered => Ok(match reply? {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(CallError::from_status(&self.address, &status)),
            }),
            () = stalled => Ok(Err(CallError::timeout(&self.address))),
        }
    }
}

/// Reads the file piece by piece, as fast as the connection takes them.
async fn feed(
    mut file: File,
    upload: Upload<'_>,
    chunks: mpsc::Sender<v1::UploadChunk>,
    moved: watch::Sender<u64>,
) -> io::Result<()> {
    let mut offset = upload.offset;
    let subject = Some(upload.delta.get().subject.clone());
    let mut next = v1::UploadChunk { subject, offset, data: Bytes::new() };
    // A closed channel means that the call is over; its answer says why.
    while chunks.send(next).await.is_ok() {
        moved.send_replace(offset);
        let data = tokio::task::block_in_place(|| {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut data).map(|_| data)
        })?;
        if data.is_empty() {
            break;
        }
        let length = data.len() as u64;
        next = v1::UploadChunk { subject: None, offset, data: Bytes::from(data) };
        offset += length;
    }
    Ok(())
}
