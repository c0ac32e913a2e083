//! The site's own durable record: what was agreed, refused, trained, and what left the building.
//!
//! One JSON object a line in `ledger.jsonl`, each made durable before the site acts on it. The
//! round loop folds it at start to know what it still owes; `tributary-client ledger` prints it.
//! What a site says of its work is built from it, by the release step alone ([`Released`]).

mod entry;
mod release;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tributary_shared::check::CheckAnswer;
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::refusal::Refusal;
use tributary_shared::timestamp::Timestamp;

use crate::config::policy::Done;

pub use entry::{Entry, Event, Standing, Trained};
pub use release::{Delta, Released};

/// The file's name inside the site's directory.
pub const FILE_NAME: &str = "ledger.jsonl";
/// Longest line read, bytes; the longest written holds a refusal of at most 64 KiB.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Checks remembered for counting; a policy that allows more in a day counts none of them.
const CHECKS_KEPT: usize = 100_000;

/// Most runs that the coordinator is told of.
const KNOWN_RUNS_MAX: usize = 500;

/// Why a ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk said no.
    #[error("{}: cannot {what}", file.display())]
    Io {
        /// The ledger.
        file: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The disk's words.
        #[source]
        source: io::Error,
    },
    /// A line inside the file is not one that this program wrote.
    #[error("{}:{line}: not a ledger entry; restore the file from a backup, or move it away and keep it", file.display())]
    Damaged {
        /// The ledger.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why it does not parse.
        #[source]
        source: serde_json::Error,
    },
    /// A message was to leave before the ledger held what it says.
    #[error("{}: no `{missing}` entry for {subject}; nothing leaves before its entry is on the disk. This is a bug of the client: report it", file.display())]
    NotRecorded {
        /// The ledger.
        file: PathBuf,
        /// The kind of the entry.
        missing: &'static str,
        /// What the message is about.
        subject: String,
    },
}

/// The ledger, open for writing by the one program that holds the site's directory.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines; whatever lies behind them was never acted upon.
    length: u64,
    standings: BTreeMap<(RunName, u32), Standing>,
    manifests: BTreeMap<RunName, Digest>,
    /// The place in the ledger at which each run was last written: a larger number is later.
    written: BTreeMap<RunName, u64>,
    entries: u64,
    /// When checks were answered, and whether that was above the limit.
    checks: VecDeque<(Timestamp, bool)>,
    /// The last entry of a check.
    last_check: Option<Entry>,
    torn_bytes: u64,
    /// True when the last append failed. The bytes after `length` are unknown until it is mended.
    in_doubt: bool,
}

/// Checks of one span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Those that were looked at.
    pub answered: usize,
    /// Those that were above the limit since the last that was looked at, as far as they were
    /// written down.
    pub over: usize,
}

impl Ledger {
    /// Opens or begins the ledger; a last line cut off by a crash is removed, and reported by
    /// [`Self::torn_bytes`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed =
            |what| move |source| LedgerError::Io { file: path.to_path_buf(), what, source };
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let file = options.open(path).map_err(failed("open"))?;
        crate::durable::sync_folder_of(path).map_err(failed("open"))?;
        let mut ledger = Self {
            path: path.to_path_buf(),
            file,
            length: 0,
            standings: BTreeMap::new(),
            manifests: BTreeMap::new(),
            written: BTreeMap::new(),
            entries: 0,
            checks: VecDeque::new(),
            last_check: None,
            torn_bytes: 0,
            in_doubt: false,
        };
        let reading = ledger.file.try_clone().map_err(failed("open"))?;
        let read = scan(path, &reading, |entry| ledger.fold(&entry))?;
        (ledger.length, ledger.torn_bytes) = (read.whole_bytes, read.torn_bytes);
        if read.torn_bytes > 0 {
            ledger.cut_back().map_err(failed("remove its torn last line"))?;
        }
        // A program that was killed may have written lines that it had not synced yet.
        ledger.file.sync_data().map_err(failed("sync"))?;
        Ok(ledger)
    }

    /// Bytes of a last line that a crash had cut off when the ledger was opened.
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// Makes `entry` durable. After an error the entry does not count, and the file is cut back and
    /// read again before the next one is written: of a write that failed it is not known how much
    /// is on the disk.
    pub fn append(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        if self.in_doubt {
            self.mend()?;
        }
        let mut line = serde_json::to_vec(entry).expect("an entry is plain data");
        line.push(b'\n');
        let written = self
            .file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(&line))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            self.in_doubt = true;
            // At once where that is possible: another program may look.
            let _ = self.mend();
            return Err(LedgerError::Io { file: self.path.clone(), what: "append", source });
        }
        self.length += line.len() as u64;
        self.fold(entry);
        Ok(())
    }

    /// As [`Self::append`], unless the round stands as `entry` says already: what is said again is
    /// not written again.
    pub fn append_news(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        let before = self.standing(&entry.run, entry.round);
        let is_news =
            before.is_none_or(|known| Standing::after(Some(known.clone()), &entry.event) != *known);
        if is_news { self.append(entry) } else { Ok(()) }
    }

    /// Takes away what the failed append may have left, and begins anew with what the file says.
    fn mend(&mut self) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Io {
            file: self.path.clone(),
            what: "cut off an entry that failed",
            source,
        };
        let file = OpenOptions::new().write(true).open(&self.path).map_err(failed)?;
        file.set_len(self.length).and_then(|()| file.sync_all()).map_err(failed)?;
        let torn_bytes = self.torn_bytes;
        *self = Self { torn_bytes, ..Self::open(&self.path)? };
        Ok(())
    }

    /// Where the site stands in a round; `None` when it has never heard of it.
    pub fn standing(&self, run: &RunName, round: u32) -> Option<&Standing> {
        self.standings.get(&(run.clone(), round))
    }

    /// The newest round of `run`, if the site has declined it: its number, the manifest that was
    /// judged, and the last answer, `None` where the site has said yes since.
    pub fn declined(&self, run: &RunName) -> Option<(u32, Option<Digest>, Option<&Refusal>)> {
        let rounds = (run.clone(), 0)..=(run.clone(), u32::MAX);
        let ((_, round), standing) = self.standings.range(rounds).next_back()?;
        match standing {
            Standing::Declined { manifest, reason } => Some((*round, *manifest, Some(reason))),
            Standing::Willing { manifest } => Some((*round, Some(*manifest), None)),
            Standing::Agreed { .. }
            | Standing::Stopped
            | Standing::Owed { .. }
            | Standing::Answered { .. } => None,
        }
    }

    /// The manifest that the site agreed to for `run`, if it ever did.
    pub fn manifest_of(&self, run: &RunName) -> Option<Digest> {
        self.manifests.get(run).copied()
    }

    /// The checks of the last `span` before `now`.
    pub fn checks_within(&self, now: Timestamp, span: Duration) -> Checks {
        let recent = self.checks.iter().filter(|(at, _)| now.since(*at) < span);
        let mut checks = Checks::default();
        for (_, over) in recent {
            if *over {
                checks.over += 1;
            } else {
                checks.answered += 1;
                checks.over = 0;
            }
        }
        checks
    }

    /// Rounds that were trained and have no answer yet, in the order of runs and rounds.
    pub fn owed(&self) -> Vec<(RunName, u32)> {
        let pending = |((run, round), standing): (&(RunName, u32), &Standing)| match standing {
            Standing::Owed { .. } => Some((run.clone(), *round)),
            Standing::Agreed { .. }
            | Standing::Declined { .. }
            | Standing::Willing { .. }
            | Standing::Stopped
            | Standing::Answered { .. } => None,
        };
        self.standings.iter().filter_map(pending).collect()
    }

    /// The deltas that the site has made, of `run` and of all.
    pub fn done(&self, run: &RunName) -> Done {
        let mut done = Done::default();
        let mut last_other = None;
        for ((of, _), standing) in &self.standings {
            if !matches!(standing, Standing::Owed { .. } | Standing::Answered { .. }) {
                continue;
            }
            done.deltas += 1;
            if of == run {
                done.deltas_of_run += 1;
            } else if last_other.replace(of) != Some(of) {
                done.other_runs += 1;
            }
        }
        done
    }

    /// The highest round of each run of which the site holds an answered delta, and the highest of
    /// which it owes one: run, round, whether it was answered. The runs last written alone.
    pub fn known_rounds(&self) -> Vec<(RunName, u32, bool)> {
        let mut runs: Vec<(&RunName, &u64)> = self.written.iter().collect();
        runs.sort_by_key(|(_, place)| std::cmp::Reverse(**place));
        let mut known = Vec::new();
        for (run, _) in runs.into_iter().take(KNOWN_RUNS_MAX) {
            let rounds = self.standings.range((run.clone(), 0)..=(run.clone(), u32::MAX));
            let (mut answered, mut owed) = (None, None);
            for ((_, round), standing) in rounds {
                match standing {
                    Standing::Answered { .. } => answered = Some(*round),
                    Standing::Owed { .. } => owed = Some(*round),
                    Standing::Agreed { .. }
                    | Standing::Declined { .. }
                    | Standing::Willing { .. }
                    | Standing::Stopped => {}
                }
            }
            known.extend(answered.map(|round| (run.clone(), round, true)));
            known.extend(owed.map(|round| (run.clone(), round, false)));
        }
        known
    }

    fn fold(&mut self, entry: &Entry) {
        if let Event::Checked { answer, .. } = &entry.event {
            self.checks.push_back((entry.at, *answer == CheckAnswer::ChecksPerDay));
            if self.checks.len() > CHECKS_KEPT {
                self.checks.pop_front();
            }
            self.last_check = Some(entry.clone());
            return;
        }
        self.entries += 1;
        self.written.insert(entry.run.clone(), self.entries);
        if let Event::Agreed { manifest, .. } = &entry.event {
            self.manifests.entry(entry.run.clone()).or_insert(*manifest);
        }
        let key = (entry.run.clone(), entry.round);
        let before = self.standings.remove(&key);
        self.standings.insert(key, Standing::after(before, &entry.event));
    }

    fn cut_back(&self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.sync_all()
    }
}

/// Every entry of the ledger at `path`, for printing; none when there is no file. A torn last line
/// is left out: the program that writes it may be alive.
pub fn read(path: &Path) -> Result<Vec<Entry>, LedgerError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(LedgerError::Io { file: path.to_path_buf(), what: "open", source });
        }
    };
    let mut entries = Vec::new();
    scan(path, &file, |entry| entries.push(entry))?;
    Ok(entries)
}

struct Scanned {
    whole_bytes: u64,
    torn_bytes: u64,
}

fn scan(path: &Path, file: &File, mut each: impl FnMut(Entry)) -> Result<Scanned, LedgerError> {
    let failed = |source| LedgerError::Io { file: path.to_path_buf(), what: "read", source };
    let mut reader = BufReader::new(file);
    let mut whole_bytes = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limited = &mut io::Read::take(&mut reader, LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() != Some(&b'\n') && (read as u64) < LINE_BYTES_MAX {
            return Ok(Scanned { whole_bytes, torn_bytes: read as u64 });
        }
        let entry = serde_json::from_slice(&line).map_err(|source| LedgerError::Damaged {
            file: path.to_path_buf(),
            line: number,
            source,
        })?;
        each(entry);
        whole_bytes += read as u64;
    }
    unreachable!("the loop ends with the file")
}

#[cfg(test)]
mod tests;
