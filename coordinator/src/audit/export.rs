//! Writes an export file piece by piece, to a file or a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};

use super::container::{END, LEAF, MAGIC, TENSORS, write_sized};
use crate::round::event::{RunEvent, Unusable};
use crate::round::record::{Event, Record, Stream};

const COPY_BYTES: usize = 256 << 10;

/// Why an export could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The bytes could not be written, or a tensor file not be read.
    #[error("cannot write the export")]
    Io(#[from] io::Error),
    /// The pieces do not make an export.
    #[error("cannot export: {0}")]
    Order(String),
}

/// An export being written: note, then every leaf in order, then tensor files, then the end.
#[derive(Debug)]
pub struct ExportWriter<W> {
    out: W,
    leaves_total: u64,
    leaves: u64,
    tensors: u64,
    /// Bytes owed to the tensor file that is being written.
    owed: u64,
}

impl<W: Write> ExportWriter<W> {
    /// Begins an export of the log's first `size` leaves, whose signed checkpoint `note` is.
    pub fn begin(mut out: W, note: &str, size: u64) -> Result<Self, ExportError> {
        out.write_all(MAGIC)?;
        write_sized(&mut out, note.as_bytes())?;
        Ok(Self { out, leaves_total: size, leaves: 0, tensors: 0, owed: 0 })
    }

    /// The next leaf and the hash that the tree holds of it.
    pub fn leaf(&mut self, bytes: &[u8], hash: Digest) -> Result<(), ExportError> {
        if self.leaves == self.leaves_total {
            return Err(order(format!("leaf {} is past the checkpoint", self.leaves)));
        }
        self.out.write_all(&[LEAF])?;
        write_sized(&mut self.out, bytes)?;
        self.out.write_all(hash.as_bytes())?;
        self.leaves += 1;
        Ok(())
    }

    /// Begins the tensor file `digest` of `bytes` bytes, which [`Self::tensor_data`] then gives.
    ///
    /// Each file once, after the last leaf; which ones, [`TensorFiles`] says.
    pub fn tensor(&mut self, digest: Digest, bytes: u64) -> Result<(), ExportError> {
        self.settled()?;
        self.out.write_all(&[TENSORS])?;
        self.out.write_all(digest.as_bytes())?;
        self.out.write_all(&bytes.to_le_bytes())?;
        self.tensors += 1;
        self.owed = bytes;
        Ok(())
    }

    /// The next bytes of the tensor file begun.
    pub fn tensor_data(&mut self, data: &[u8]) -> Result<(), ExportError> {
        self.owed = self
            .owed
            .checked_sub(data.len() as u64)
            .ok_or_else(|| order("a tensor file is longer than announced".to_owned()))?;
        self.out.write_all(data)?;
        Ok(())
    }

    /// A whole tensor file from where it is stored.
    pub fn tensor_from(
        &mut self,
        digest: Digest,
        bytes: u64,
        mut file: impl Read,
    ) -> Result<(), ExportError> {
        self.tensor(digest, bytes)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => return self.settled(),
                count => self.tensor_data(&buffer[..count])?,
            }
        }
    }

    /// The end marker; gives the output back.
    pub fn finish(mut self) -> Result<W, ExportError> {
        self.settled()?;
        self.out.write_all(&[END])?;
        self.out.write_all(&self.leaves.to_le_bytes())?;
        self.out.write_all(&self.tensors.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// The output, to take from it what a stream should carry next.
    pub fn output(&mut self) -> &mut W {
        &mut self.out
    }

    /// Every leaf written and no tensor file half-written.
    fn settled(&self) -> Result<(), ExportError> {
        if self.leaves != self.leaves_total {
            let (found, expected) = (self.leaves, self.leaves_total);
            return Err(order(format!("{found} leaves, the checkpoint says {expected}")));
        }
        if self.owed != 0 {
            return Err(order(format!("a tensor file ends {} bytes early", self.owed)));
        }
        Ok(())
    }
}

fn order(problem: String) -> ExportError {
    ExportError::Order(problem)
}

/// The tensor files that a history names and has not given up.
#[derive(Debug, Default)]
pub struct TensorFiles {
    adapters: BTreeSet<Digest>,
    /// By run, round and site.
    deltas: BTreeMap<(RunName, u32, SiteName), Digest>,
}

impl TensorFiles {
    /// Takes the next record of the history.
    pub fn take(&mut self, record: &Record) {
        let (Stream::Run(run), Event::Run(event)) = (&record.stream, &record.event) else {
            return;
        };
        if let RunEvent::DeltaAccepted { round, site, digest, .. } = event {
            self.deltas.insert((run.clone(), *round, site.clone()), *digest);
        } else if let RunEvent::DeltaExcluded { round, site, reason: Unusable::Damaged, .. } = event
        {
            self.deltas.remove(&(run.clone(), *round, site.clone()));
        } else if let RunEvent::DeltasRemoved { to } = event {
            self.deltas.retain(|(of, round, _), _| of != run || round > to);
        } else {
            self.adapters.extend(tensor_of_run(event));
        }
    }

    /// Every one of them.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.adapters.iter().chain(self.deltas.values()).copied().collect()
    }

    /// Says whether `digest` is an adapter's.
    pub fn is_adapter(&self, digest: &Digest) -> bool {
        self.adapters.contains(digest)
    }
}

/// The delta or adapter file that an event names.
pub(super) fn tensor_of_run(event: &RunEvent) -> Option<Digest> {
    match event {
        RunEvent::RunStarted { adapter, .. } | RunEvent::AdapterPublished { adapter, .. } => {
            Some(*adapter)
        }
        RunEvent::DeltaAccepted { digest, .. } => Some(*digest),
        RunEvent::RoundOpened { .. }
        | RunEvent::TermsAccepted { .. }
        | RunEvent::Declined { .. }
        | RunEvent::SiteLost { .. }
        | RunEvent::SiteReturned { .. }
        | RunEvent::DeltaRefused { .. }
        | RunEvent::SiteAvailable { .. }
        | RunEvent::RefusalChanged { .. }
        | RunEvent::RoundWithdrawn { .. }
        | RunEvent::RunResumed { .. }
        | RunEvent::RoundClosed { .. }
        | RunEvent::DeltaExcluded { .. }
        | RunEvent::DeltasRemoved { .. }
        | RunEvent::RoundsSkipped { .. }
        | RunEvent::RunEnded { .. } => None,
    }
}
