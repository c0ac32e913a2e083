//! The proof itself, in the order of the file: signature, leaves, tree, tensor files, replay.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use tributary_shared::digest::Digest;
use tributary_shared::tensors;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::merkle::leaf_hash;
use tributary_shared::tlog::note::NOTE_BYTES_MAX;

use super::container::{Container, END, LEAF, MAGIC, TENSORS, malformed, tag_name};
use super::finding::{Finding, Place};
use super::history::History;
use super::replay::{Extent, replay};
use super::report::Report;
use crate::round::record::LEAF_BYTES_MAX;

const READ_BYTES: usize = 256 << 10;

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Leaves read.
    Leaves {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Bytes of the file read; its size is the caller's to know.
    Bytes {
        /// So far.
        done: u64,
    },
    /// Published rounds computed again.
    Rounds {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// [`verify`] of the file at `path`.
pub fn verify_file(
    path: &Path,
    key: &VerifierKey,
    known: &[Checkpoint],
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Finding> {
    let file = File::open(path).map_err(Finding::Unreadable)?;
    verify(file, key, known, progress)
}

/// Proves an export against the log's public key, and against heads that were seen before
/// (`known`, of a site's witness file or an earlier export).
///
/// Memory does not grow with the tensor files; of the leaves, the runs they add up to are kept.
pub fn verify<R: Read + Seek + Send>(
    export: R,
    key: &VerifierKey,
    known: &[Checkpoint],
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Finding> {
    let mut input = Container::new(export);
    let checkpoint = read_checkpoint(&mut input, key)?;
    let history = read_leaves(&mut input, &checkpoint, key, progress)?;
    let recoveries = history.recoveries().judge(known)?;
    let extents = read_tensors(&mut input, &checkpoint, &history, progress)?;
    let replays = replay(input.into_inner(), &history, &extents, |done, total| {
        progress(Progress::Rounds { done, total });
    })?;
    Ok(Report::new(&checkpoint, &history, recoveries, &replays, extents.len()))
}

fn read_checkpoint<R: Read>(
    input: &mut Container<R>,
    key: &VerifierKey,
) -> Result<Checkpoint, Finding> {
    if input.array(|| "the file's first bytes".to_owned())? != *MAGIC {
        return Err(malformed(0, "not an export of an audit log".to_owned()));
    }
    let offset = input.offset();
    let note = input.sized(NOTE_BYTES_MAX, || "the checkpoint".to_owned())?;
    let note = String::from_utf8(note)
        .map_err(|_| malformed(offset, "the checkpoint is not text".to_owned()))?;
    let checkpoint = Checkpoint::open(&note, key)?;
    // Other signatures cannot be checked with the one key, so none may ride along unchecked.
    let log_alone = checkpoint.to_string().lines().count() + 2;
    if note.lines().count() != log_alone {
        let problem = "the checkpoint has more than the log's own signature";
        return Err(malformed(offset, problem.to_owned()));
    }
    Ok(checkpoint)
}

fn read_leaves<R: Read>(
    input: &mut Container<R>,
    checkpoint: &Checkpoint,
    key: &VerifierKey,
    progress: &mut dyn FnMut(Progress),
) -> Result<History, Finding> {
    let mut history = History::new(key.clone());
    let mut frontier = Frontier::new();
    let total = checkpoint.size;
    for leaf in 0..total {
        progress(Progress::Leaves { done: leaf, total });
        let bytes = read_leaf(input, leaf, total)?;
        frontier.append(leaf_hash(&bytes));
        history.take(&bytes, frontier.root())?;
    }
    progress(Progress::Leaves { done: total, total });
    let (found, signed) = (frontier.root(), checkpoint.root);
    if found != signed {
        return Err(Finding::Root { size: total, found, signed });
    }
    Ok(history)
}

fn read_leaf<R: Read>(input: &mut Container<R>, leaf: u64, total: u64) -> Result<Vec<u8>, Finding> {
    let inside = || format!("leaf {leaf} of {total}");
    let offset = input.offset();
    let tag = input.tag(inside)?;
    if tag != LEAF {
        let problem = format!("{} in place of {}", tag_name(tag), inside());
        return Err(malformed(offset, problem));
    }
    let bytes = input.sized(LEAF_BYTES_MAX, inside)?;
    let recorded = input.digest(inside)?;
    let found = leaf_hash(&bytes);
    if found != recorded {
        return Err(Finding::LeafHash { place: Place::read(leaf, &bytes), found, recorded });
    }
    Ok(bytes)
}

/// Tensor files, each checked as it passes by, and the end marker.
fn read_tensors<R: Read>(
    input: &mut Container<R>,
    checkpoint: &Checkpoint,
    history: &History,
    progress: &mut dyn FnMut(Progress),
) -> Result<HashMap<Digest, Extent>, Finding> {
    let mut extents = HashMap::new();
    loop {
        let offset = input.offset();
        let tag = input.tag(|| "what follows the leaves".to_owned())?;
        match tag {
            TENSORS => {
                let (digest, extent) = read_tensor(input, history, progress)?;
                if extents.insert(digest, extent).is_some() {
                    return Err(malformed(offset, format!("{digest} is here twice")));
                }
            }
            END => {
                read_end(input, checkpoint.size, extents.len() as u64)?;
                return Ok(extents);
            }
            other => {
                let problem = format!("{} in place of a tensor file or the end", tag_name(other));
                return Err(malformed(offset, problem));
            }
        }
    }
}

fn read_tensor<R: Read>(
    input: &mut Container<R>,
    history: &History,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Digest, Extent), Finding> {
    let start = input.offset();
    let digest = input.digest(|| "the digest of a tensor file".to_owned())?;
    let bytes = input.u64(|| format!("the size of {digest}"))?;
    let (named, header) = history.named(digest).ok_or_else(|| {
        malformed(start, format!("tensor file {digest}, which no event of the history names"))
    })?;
    let what = named.describe(digest);
    let wrong = |problem: String| Finding::Tensors { what: what.clone(), problem };
    let mut check = tensors::Reader::new(header);
    if bytes != check.total_bytes() {
        return Err(wrong(format!("{bytes} bytes, its contract makes {}", check.total_bytes())));
    }
    let extent = Extent { offset: input.offset(), bytes };
    let mut buffer = vec![0; READ_BYTES];
    let mut left = bytes;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
        input.fill(&mut buffer[..take], || what.clone())?;
        check.push(&buffer[..take]).map_err(|refusal| wrong(refusal.to_string()))?;
        left -= take as u64;
        progress(Progress::Bytes { done: input.offset() });
    }
    let checked = check.finish().map_err(|refusal| wrong(refusal.to_string()))?;
    if checked.digest != digest {
        return Err(wrong(format!("its bytes hash to {}", checked.digest)));
    }
    if let Some((recorded_bytes, norm)) = named.recorded
        && (recorded_bytes, norm.to_bits()) != (bytes, checked.norm.to_bits())
    {
        let found = checked.norm;
        let problem = format!(
            "{bytes} bytes of norm {found}, recorded were {recorded_bytes} bytes of norm {norm}"
        );
        return Err(wrong(problem));
    }
    Ok((digest, extent))
}

fn read_end<R: Read>(input: &mut Container<R>, leaves: u64, tensors: u64) -> Result<(), Finding> {
    let start = input.offset();
    let inside = || "the end marker".to_owned();
    let counted = (input.u64(inside)?, input.u64(inside)?);
    if counted != (leaves, tensors) {
        let (said_leaves, said_tensors) = counted;
        let problem = format!(
            "the end marker counts {said_leaves} leaves and {said_tensors} tensor files, the file has {leaves} and {tensors}"
        );
        return Err(malformed(start, problem));
    }
    input.end()
}
