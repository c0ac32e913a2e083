//! The export file's bytes, read strictly: every byte is accounted for. `docs/audit.md` has the
//! layout.

use std::io::{self, BufReader, ErrorKind, Read};

use tributary_shared::digest::Digest;

use super::finding::Finding;

pub(super) const MAGIC: &[u8; 8] = b"TRIBAUD1";
/// What one item of the file begins with.
pub(super) const LEAF: u8 = b'L';
pub(super) const TENSORS: u8 = b'T';
pub(super) const END: u8 = b'E';

const BUFFER_BYTES: usize = 256 << 10;

/// Reads an export from its beginning and knows where it stands.
pub(super) struct Container<R> {
    input: BufReader<R>,
    offset: u64,
}

impl<R: Read> Container<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::with_capacity(BUFFER_BYTES, input), offset: 0 }
    }

    /// Bytes read.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn into_inner(self) -> R {
        self.input.into_inner()
    }

    /// Fills `buffer`; the file ending first is a finding `inside` what is being read.
    pub(super) fn fill(
        &mut self,
        buffer: &mut [u8],
        inside: impl Fn() -> String,
    ) -> Result<(), Finding> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => {
                    return Err(Finding::Truncated { offset: self.offset, inside: inside() });
                }
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Finding::Unreadable(error)),
            }
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        inside: impl Fn() -> String,
    ) -> Result<[u8; N], Finding> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, inside)?;
        Ok(bytes)
    }

    pub(super) fn tag(&mut self, inside: impl Fn() -> String) -> Result<u8, Finding> {
        self.array::<1>(inside).map(|[tag]| tag)
    }

    pub(super) fn u64(&mut self, inside: impl Fn() -> String) -> Result<u64, Finding> {
        self.array(inside).map(u64::from_le_bytes)
    }

    pub(super) fn digest(&mut self, inside: impl Fn() -> String) -> Result<Digest, Finding> {
        self.array(inside).map(Digest::from_bytes)
    }

    /// Bytes behind their u32 length, which may not pass `bytes_max`.
    pub(super) fn sized(
        &mut self,
        bytes_max: usize,
        inside: impl Fn() -> String,
    ) -> Result<Vec<u8>, Finding> {
        let start = self.offset;
        let length = u32::from_le_bytes(self.array(&inside)?) as usize;
        if length > bytes_max {
            let problem = format!("{}: {length} bytes, at most {bytes_max} are right", inside());
            return Err(malformed(start, problem));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, inside)?;
        Ok(bytes)
    }

    /// The file must end here.
    pub(super) fn end(&mut self) -> Result<(), Finding> {
        let mut more = [0];
        loop {
            return match self.input.read(&mut more) {
                Ok(0) => Ok(()),
                Ok(_) => Err(malformed(self.offset, "bytes after the end marker".to_owned())),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(Finding::Unreadable(error)),
            };
        }
    }
}

pub(super) fn malformed(offset: u64, problem: String) -> Finding {
    Finding::Malformed { offset, problem }
}

/// A tag as people read it in a finding.
pub(super) fn tag_name(tag: u8) -> String {
    format!("`{}`", tag.escape_ascii())
}

/// Writes the bytes of items; the counterpart of [`Container`].
pub(super) fn write_sized(out: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::new(ErrorKind::InvalidInput, "an item of 4 GiB or more"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)
}
