//! Every published adapter computed again from the deltas that were counted.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use tributary_shared::digest::Digest;
use tributary_shared::initial::adapter_header;
use tributary_shared::name::{RunName, SiteName};

use super::finding::Finding;
use super::history::History;
use crate::aggregate::{self, AggregateError, Input};
use crate::round::Run;
use crate::round::seat::Accepted;
use crate::round::weights::weigh;

/// Where an export holds the bytes of a tensor file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Rounds whose adapter was computed again, and why the others' was not.
#[derive(Debug, Default)]
pub(super) struct Replays(HashMap<(RunName, u32), Result<(), String>>);

impl Replays {
    /// `Ok` when the round's adapter came out bit for bit.
    pub(super) fn of(&self, run: &RunName, round: u32) -> Option<&Result<(), String>> {
        self.0.get(&(run.clone(), round))
    }
}

/// Computes every published adapter whose inputs are in the export.
pub(super) fn replay<R: Read + Seek + Send>(
    file: R,
    history: &History,
    extents: &HashMap<Digest, Extent>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Replays, Finding> {
    let file = Mutex::new(file);
    let mut replays = Replays::default();
    let published: Vec<_> = history
        .runs()
        .values()
        .flat_map(|run| rounds(run).map(move |round| (run, round)))
        .collect();
    for (done, (run, round)) in published.iter().enumerate() {
        progress(done as u64, published.len() as u64);
        let outcome = replay_round(&file, run, round, history, extents)?;
        replays.0.insert((run.manifest().name.clone(), round.round), outcome);
    }
    progress(published.len() as u64, published.len() as u64);
    Ok(replays)
}

/// A published round: what went in and what came out.
struct Published<'h> {
    round: u32,
    version: u32,
    base: Digest,
    /// In the order they are aggregated: by site name.
    accepted: Vec<(&'h SiteName, &'h Accepted)>,
    adapter: Digest,
}

fn rounds(run: &Run) -> impl Iterator<Item = Published<'_>> {
    run.past()
        .iter()
        .filter_map(|(round, past)| past.published.map(|(adapter, _)| (round, past, adapter)))
        .zip(1..)
        .map(|((round, past, adapter), version)| Published {
            round: *round,
            version,
            base: past.base,
            accepted: past.accepted().collect(),
            adapter,
        })
}

/// The inner result says why the round could not be computed again.
fn replay_round<R: Read + Seek + Send>(
    file: &Mutex<R>,
    run: &Run,
    published: &Published<'_>,
    history: &History,
    extents: &HashMap<Digest, Extent>,
) -> Result<Result<(), String>, Finding> {
    // The header is the one that the history makes; the file's was compared with it before.
    let input = |digest, weight| {
        let (_, header) = history.named(digest)?;
        let bytes = Section::new(file, *extents.get(&digest)?);
        Some(Input { header, digest, bytes, weight })
    };
    let Some(base) = input(published.base, 0) else {
        return Ok(Err(format!("the export does not hold its base {}", published.base.short())));
    };
    let mut deltas = Vec::new();
    let accepted = || published.accepted.iter().map(|(site, delta)| (*site, *delta));
    let weights = weigh(accepted(), run.manifest().limits.share_max);
    for ((site, delta), weight) in accepted().zip(weights) {
        let Some(input) = input(delta.digest, weight.used) else {
            if published.round <= run.removed_to() {
                let why = "the coordinator removed its deltas by [retention], as the history says";
                return Ok(Err(why.to_owned()));
            }
            return Ok(Err(format!("the export does not hold the delta of {site}")));
        };
        deltas.push(input);
    }
    let name = &run.manifest().name;
    let next = adapter_header(name, published.version, run.contract());
    let strategy = &run.manifest().strategy;
    let recomputed = aggregate::run(strategy, base, deltas, &next, &mut io::sink());
    let (run, round) = (name.clone(), published.round);
    match recomputed {
        Ok(recomputed) if recomputed == published.adapter => Ok(Ok(())),
        Ok(recomputed) => {
            Err(Finding::Aggregate { run, round, recomputed, published: published.adapter })
        }
        Err(AggregateError::Read { source, .. }) => Err(Finding::Unreadable(source)),
        Err(source) => Err(Finding::NoAggregate { run, round, source }),
    }
}

/// Part of a file that several readers share.
struct Section<'f, R> {
    file: &'f Mutex<R>,
    next: u64,
    end: u64,
}

impl<'f, R> Section<'f, R> {
    fn new(file: &'f Mutex<R>, extent: Extent) -> Self {
        Self { file, next: extent.offset, end: extent.offset + extent.bytes }
    }
}

impl<R: Read + Seek> Read for Section<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.next))?;
        let count = file.read(&mut buffer[..wanted])?;
        self.next += count as u64;
        Ok(count)
    }
}
