//! A delta on its way in: checked while it arrives, and spooled. Nothing here decides whether it
//! counts; that is `round`.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Seek, SeekFrom};

use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Checked, Header, Reader};

use crate::blobs::{Blobs, Spool, SpoolKey};

/// How much more than the contract implies may be announced, bytes: a delta of another shape is
/// told the difference as long as it is not much larger.
const SLACK_BYTES: u64 = 1 << 20;
/// Piece in which a blob is read again, bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A whole delta that was checked, durable in the spool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admitted {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its L2 norm.
    pub norm: f64,
    /// Its size.
    pub bytes: u64,
}

/// Why a delta was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// It is not what the contract asks for. All but [`Refusal::Digest`], which is damage on the
    /// way, would be the same if it were sent again.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The stream ended early; what came is durable, and another stream may go on from there.
    #[error("{received} of {announced} bytes arrived; go on from there")]
    Incomplete {
        /// Bytes here.
        received: u64,
        /// Bytes announced.
        announced: u64,
    },
    /// The disk failed.
    #[error("the spool failed")]
    Io(#[from] io::Error),
}

/// Refuses a delta that is announced as larger than one with the header `expected` can be: before any disk or memory is
/// reserved for it.
pub fn check_announced(expected: &Header, announced: u64) -> Result<(), Refusal> {
    let bytes = expected.total_bytes();
    if announced > bytes + SLACK_BYTES { Err(size(bytes, announced)) } else { Ok(()) }
}

/// One delta being received. All methods block.
#[derive(Debug)]
pub struct Ingest {
    /// Absent once it has refused, and when the delta has ended.
    reader: Option<Reader>,
    spool: Spool,
    announced: u64,
}

impl Ingest {
    /// Goes on where an earlier stream of the same delta left off, or begins anew. The delta must
    /// have the header `expected`; it was announced as `announced` bytes, which [`check_announced`] allows. `known` is what
    /// [`Self::into_reader`] gave for the same part; without it the part is read again.
    pub fn begin(
        blobs: &Blobs,
        key: SpoolKey,
        expected: Header,
        announced: u64,
        known: Option<Reader>,
    ) -> Result<Self, IngestError> {
        let mut spool = blobs.spool(&key)?;
        let received = spool.received();
        let known = known.filter(|known| {
            received <= announced && known.seen_bytes() == received && *known.expected() == expected
        });
        let reader = match known {
            Some(known) => {
                spool.go_to_end()?;
                known
            }
            None => replay(&mut spool, expected, announced)?,
        };
        Ok(Self { reader: Some(reader), spool, announced })
    }

    /// All that is known of the bytes so far, for the stream that goes on from there; `None` when
    /// nothing may follow them, and before the header has passed: its bytes are read again and take no memory meanwhile.
    pub fn into_reader(self) -> Option<Reader> {
        self.reader.filter(Reader::has_header)
    }

    /// Bytes taken so far, those of earlier streams included: the offset of the next one.
    pub fn received(&self) -> u64 {
        self.spool.received()
    }

    /// Checks and spools the next bytes. A refusal is final for these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), IngestError> {
        let found = self.spool.received() + bytes.len() as u64;
        if found > self.announced {
            return Err(size(self.announced, found).into());
        }
        let mut reader = self.reader.take().ok_or_else(ended)?;
        reader.push(bytes)?;
        self.spool.append(bytes)?;
        self.reader = Some(reader);
        Ok(())
    }

    /// Ends the stream. A whole delta that hashes to `digest` is durable when this returns; one that
    /// does not is removed.
    pub fn finish(&mut self, digest: Digest) -> Result<Admitted, IngestError> {
        let (received, announced) = (self.spool.received(), self.announced);
        if received < announced {
            self.spool.sync()?;
            return Err(IngestError::Incomplete { received, announced });
        }
        match checked(self.reader.take().ok_or_else(ended)?, digest) {
            Ok(Checked { digest, norm }) => {
                self.spool.sync()?;
                Ok(Admitted { digest, norm, bytes: received })
            }
            Err(refusal) => {
                self.spool.discard()?;
                Err(refusal.into())
            }
        }
    }
}

/// Checks the bytes of a part again; a part that cannot be the beginning of the delta is emptied.
fn replay(spool: &mut Spool, expected: Header, announced: u64) -> Result<Reader, IngestError> {
    let mut reader = Reader::new(expected.clone());
    let replayed = spool.replay(|piece| Ok::<_, IngestError>(reader.push(piece)?));
    match replayed {
        Ok(()) if spool.received() <= announced => Ok(reader),
        // What was taken once is refused now: a power failure left a hole in the part. The
        // site is judged by what it sends, so it sends again from the beginning.
        Ok(()) | Err(IngestError::Refused(_)) => {
            spool.restart()?;
            Ok(Reader::new(expected))
        }
        Err(error @ (IngestError::Incomplete { .. } | IngestError::Io(_))) => Err(error),
    }
}

/// The error of a caller that goes on with a delta that was refused or has ended.
fn ended() -> IngestError {
    io::Error::other("the delta has ended").into()
}

/// Checks a whole delta once more, as after a restart: that it has the header `expected` and
/// hashes to `digest`. Bytes that do not are damaged, and nothing else is said of them. Blocks.
pub fn verify(
    mut file: impl Read + Seek,
    digest: Digest,
    expected: Header,
) -> Result<Admitted, IngestError> {
    let mut reader = Reader::new(expected);
    let read = in_pieces(&mut file, |piece| Ok(reader.push(piece)?));
    let bytes = reader.seen_bytes();
    match read.and_then(|()| Ok(checked(reader, digest)?)) {
        Ok(Checked { digest, norm }) => Ok(Admitted { digest, norm, bytes }),
        Err(IngestError::Refused(refusal)) => {
            file.seek(SeekFrom::Start(0))?;
            let mut hasher = Hasher::new();
            in_pieces(&mut file, |piece| {
                hasher.update(piece);
                Ok(())
            })?;
            same(digest, hasher.finish())?;
            Err(refusal.into())
        }
        Err(error) => Err(error),
    }
}

fn in_pieces(
    file: &mut impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn checked(reader: Reader, expected: Digest) -> Result<Checked, Refusal> {
    let checked = reader.finish()?;
    same(expected, checked.digest)?;
    Ok(checked)
}

fn same(expected: Digest, found: Digest) -> Result<(), Refusal> {
    if expected == found {
        return Ok(());
    }
    Err(Refusal::Digest { expected: expected.to_string(), found: found.to_string() })
}

fn size(expected: u64, found: u64) -> Refusal {
    Refusal::Size { expected, found }
}
