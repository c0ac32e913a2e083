//! Deltas to the next adapter, bit for bit reproducible: the same inputs in the same order give
//! the same bytes on every machine, so that anybody who holds them can replay a round.
//!
//! Pure over readers and one writer. Memory is one block an input, and smaller blocks of many inputs.
//! The inputs are read and hashed in parallel, which costs more than the sums.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use rayon::prelude::*;
use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::manifest::Strategy;
use tributary_shared::tensors::Header;

/// Values folded at a time, unless there are many inputs. The outcome does not depend on it.
const BLOCK_VALUES: usize = 64 << 10;
/// Memory for the blocks of all inputs, bytes.
const BLOCKS_BYTES: usize = 4 << 20;
/// Fewest values folded at a time, however many inputs there are.
const BLOCK_VALUES_MIN: usize = 256;

/// Canonical bytes that go into an aggregate.
#[derive(Debug)]
pub struct Input<R> {
    /// The header they must begin with.
    pub header: Header,
    /// Their SHA-256.
    pub digest: Digest,
    /// The bytes, from the first.
    pub bytes: R,
    /// The weight of a delta, in training cases. Nothing for the base.
    pub weight: u64,
}

/// Why there is no next adapter.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// Nothing to fold, or only deltas without weight.
    #[error("no delta has a weight")]
    Empty,
    /// The inputs are not of one layout.
    #[error("input {input} has other tensors than the next adapter")]
    Layout {
        /// 0 for the base, then the deltas from 1.
        input: usize,
    },
    /// An input does not begin with its header.
    #[error("input {input} does not begin with its header")]
    Header {
        /// 0 for the base, then the deltas from 1.
        input: usize,
    },
    /// An input is longer than its header says.
    #[error("input {input} does not end where its header says")]
    Trailing {
        /// 0 for the base, then the deltas from 1.
        input: usize,
    },
    /// An input is shorter than its header says.
    #[error("input {input} ends too early")]
    Short {
        /// 0 for the base, then the deltas from 1.
        input: usize,
    },
    /// An input does not hash to its digest.
    #[error("input {input} does not hash to its digest")]
    Digest {
        /// 0 for the base, then the deltas from 1.
        input: usize,
    },
    /// An input cannot be read.
    #[error("cannot read input {input}")]
    Read {
        /// 0 for the base, then the deltas from 1.
        input: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A sum left the range of f32.
    #[error("value {index} of the next adapter is {value}")]
    NotFinite {
        /// The flat index over all tensors.
        index: u64,
        /// What it became.
        value: f32,
    },
    /// The threads cannot be started.
    #[error("cannot start the threads of the aggregation")]
    Threads(#[source] io::Error),
    /// The output cannot be written.
    #[error("cannot write the next adapter")]
    Write(#[source] io::Error),
}

impl AggregateError {
    /// The input whose bytes are not what they should be, or not there: 0 for the base, then the deltas from 1.
    pub fn damaged(&self) -> Option<usize> {
        match self {
            Self::Layout { input }
            | Self::Header { input }
            | Self::Trailing { input }
            | Self::Short { input }
            | Self::Digest { input } => Some(*input),
            Self::Read { input, source } if source.kind() == io::ErrorKind::NotFound => {
                Some(*input)
            }
            Self::Empty
            | Self::Read { .. }
            | Self::NotFinite { .. }
            | Self::Threads(_)
            | Self::Write(_) => None,
        }
    }
}

/// Writes the next adapter, `base` changed by `deltas` as `strategy` combines them, under the
/// header `next`; gives its digest. The order of `deltas` is part of the outcome: by site name.
/// Every input is hashed while it is read; what was written before an error is of no use.
pub fn run<R: Read + Send>(
    strategy: &Strategy,
    base: Input<R>,
    deltas: Vec<Input<R>>,
    next: &Header,
    out: &mut (impl Write + Send + ?Sized),
) -> Result<Digest, AggregateError> {
    match strategy {
        Strategy::FedAvg => {
            let block_values = BLOCKS_BYTES / size_of::<f32>() / (deltas.len() + 1);
            let block_values = block_values.clamp(BLOCK_VALUES_MIN, BLOCK_VALUES);
            // Threads of its own: two aggregations at once share the cores and wait for no part of
            // one another.
            let pool = rayon::ThreadPoolBuilder::new()
                .build()
                .map_err(|error| AggregateError::Threads(io::Error::other(error)))?;
            pool.install(|| fedavg(base, deltas, next, out, block_values))
        }
    }
}

/// Federated averaging (McMahan et al. 2017, arXiv:1602.05629): next = base + sum(n_i d_i) /
/// sum(n_i), for every value by itself: products and sums in f64, in the order of the deltas, one
/// division, one addition, one rounding to f32. A product is exact below 2^29 cases, so splitting
/// a site in two changes nothing beyond the sum's own rounding.
fn fedavg<R: Read + Send>(
    base: Input<R>,
    deltas: Vec<Input<R>>,
    next: &Header,
    out: &mut (impl Write + Send + ?Sized),
    block_values: usize,
) -> Result<Digest, AggregateError> {
    let weight: u64 = deltas.iter().map(|d| d.weight).sum();
    if weight == 0 {
        return Err(AggregateError::Empty);
    }
    let weight = weight as f64;
    let inputs = [base].into_iter().chain(deltas).enumerate();
    let sources = inputs.map(|(i, input)| Source::begin(i, input, next));
    let mut sources = sources.collect::<Result<Vec<_>, _>>()?;
    let mut out = Output { out, hasher: Hasher::new() };
    let mut folded = next.to_bytes();
    let values: usize = next.tensors.iter().map(|t| t.elements()).sum();
    let mut sums = vec![0.0; block_values.min(values)];
    let (mut done, mut not_finite) = (0, None);
    while done < values {
        let count = block_values.min(values - done);
        // The next blocks are read while the one before is written.
        let (filled, written) = rayon::join(
            || sources.par_iter_mut().map(|source| source.fill(4 * count)).collect::<Vec<_>>(),
            || out.write(&folded),
        );
        // Of several faults the first input's, whichever thread was first.
        filled.into_iter().collect::<Result<(), _>>()?;
        written?;
        let Some((base, deltas)) = sources.split_first_mut() else { break };
        let sums = &mut sums[..count];
        sums.fill(0.0);
        for delta in deltas {
            add_weighted(sums, &delta.block, delta.weight as f64);
        }
        if let Err((at, value)) = change(&mut base.block, sums, weight) {
            // The rest is read all the same: an input may be damaged.
            let index = (done + at) as u64;
            not_finite.get_or_insert(AggregateError::NotFinite { index, value });
        }
        std::mem::swap(&mut folded, &mut base.block);
        done += count;
    }
    out.write(&folded)?;
    for source in sources {
        source.end()?;
    }
    match not_finite {
        Some(error) => Err(error),
        None => Ok(out.hasher.finish()),
    }
}

/// sums += weight * values, the values being little-endian f32.
fn add_weighted(sums: &mut [f64], values: &[u8], weight: f64) {
    for (sum, value) in sums.iter_mut().zip(values.as_chunks::<4>().0) {
        *sum += weight * f64::from(f32::from_le_bytes(*value));
    }
}

/// values += sums / weight, the values being little-endian f32; the first that is not finite, and
/// its place, is an error.
fn change(values: &mut [u8], sums: &[f64], weight: f64) -> Result<(), (usize, f32)> {
    let mut finite = true;
    for (value, sum) in values.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        let changed = (f64::from(f32::from_le_bytes(*value)) + sum / weight) as f32;
        finite &= changed.is_finite();
        *value = changed.to_le_bytes();
    }
    if finite {
        return Ok(());
    }
    let values = values.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v));
    let first = values.enumerate().find(|(_, value)| !value.is_finite());
    Err(first.unwrap_or((0, f32::NAN)))
}

/// An input behind its checked header.
struct Source<R> {
    input: usize,
    bytes: R,
    weight: u64,
    digest: Digest,
    hasher: Hasher,
    /// The bytes read last.
    block: Vec<u8>,
}

impl<R: Read> Source<R> {
    fn begin(input: usize, from: Input<R>, next: &Header) -> Result<Self, AggregateError> {
        if from.header.tensors != next.tensors {
            return Err(AggregateError::Layout { input });
        }
        let Input { bytes, weight, digest, .. } = from;
        let (hasher, block) = (Hasher::new(), Vec::new());
        let mut source = Self { input, bytes, weight, digest, hasher, block };
        let expected = from.header.to_bytes();
        source.fill(expected.len())?;
        if source.block == expected { Ok(source) } else { Err(AggregateError::Header { input }) }
    }

    /// Reads the next `count` bytes into the block, and hashes them.
    fn fill(&mut self, count: usize) -> Result<(), AggregateError> {
        let input = self.input;
        self.block.resize(count, 0);
        match self.bytes.read_exact(&mut self.block) {
            Ok(()) => {
                self.hasher.update(&self.block);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(AggregateError::Short { input })
            }
            Err(source) => Err(AggregateError::Read { input, source }),
        }
    }

    /// The input must end here, and hash to its digest.
    fn end(mut self) -> Result<(), AggregateError> {
        let input = self.input;
        let found = self.hasher.clone().finish();
        match self.fill(1) {
            Err(AggregateError::Short { .. }) if found == self.digest => Ok(()),
            Err(AggregateError::Short { .. }) => Err(AggregateError::Digest { input }),
            Err(error) => Err(error),
            Ok(()) => Err(AggregateError::Trailing { input }),
        }
    }
}

/// Writes and hashes.
struct Output<'w, W: ?Sized> {
    out: &'w mut W,
    hasher: Hasher,
}

impl<W: Write + ?Sized> Output<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), AggregateError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(AggregateError::Write)
    }
}
