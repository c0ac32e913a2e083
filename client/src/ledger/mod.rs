//! The site's own durable record: what was agreed, refused, trained, and what left the building.
//!
//! One JSON object a line in `ledger.jsonl`, each made durable before the site acts on it. The
//! round loop folds it at start to know what it still owes; `tributary-client ledger` prints it.

mod entry;

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
    torn_bytes: u64,
    /// True when the last append failed. The bytes after `length` are unknown until it is mended.
    in_doubt: bool,
}

/// Checks of one span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Those that were looked at.
    pub answered: usize,
    /// Those that were above the limit, as far as they were written down.
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
            torn_bytes: 0,
            in_doubt: false,
        };
        let reading = ledger.file.try_clone().map_err(failed("open"))?;
        let read = scan(path, &reading, |entry| ledger.fold(&entry))?;
        (ledger.length, ledger.torn_bytes) = (read.whole_bytes, read.torn_bytes);
        if read.torn_bytes > 0 {
            ledger.cut_back().map_err(failed("remove its torn last line"))?;
        }
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

    /// The newest round of `run`, if the site has declined it: its number, the manifest that was judged, the answer.
    pub fn declined(&self, run: &RunName) -> Option<(u32, Option<Digest>, &Refusal)> {
        let rounds = (run.clone(), 0)..=(run.clone(), u32::MAX);
        match self.standings.range(rounds).next_back() {
            Some(((_, round), Standing::Declined { manifest, reason })) => {
                Some((*round, *manifest, reason))
            }
            Some(_) | None => None,
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
            }
        }
        checks
    }

    /// Rounds that were trained and have no answer yet, in the order of runs and rounds.
    pub fn owed(&self) -> Vec<(RunName, u32)> {
        let pending = |((run, round), standing): (&(RunName, u32), &Standing)| match standing {
            Standing::Owed { .. } => Some((run.clone(), *round)),
            Standing::Agreed
            | Standing::Declined { .. }
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
                    Standing::Agreed | Standing::Declined { .. } | Standing::Stopped => {}
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
mod tests {
    use super::*;

    fn entry(round: u32, event: Event) -> Entry {
        Entry { at: Timestamp::from_millis(1), run: "run".parse().unwrap(), round, event }
    }

    fn trained(round: u32) -> Entry {
        let trained = Trained {
            base: Digest::of(b"base"),
            digest: Digest::of(&[u8::try_from(round).unwrap()]),
            bytes: 9,
            norm: 0.1,
            cases: u64::MAX,
            metrics: tributary_shared::terms::SiteMetrics {
                train_loss: Some(0.1 + 0.2),
                ..Default::default()
            },
        };
        entry(round, Event::Trained(trained))
    }

    fn counted(round: u32) -> Entry {
        let digest = Digest::of(&[u8::try_from(round).unwrap()]);
        entry(round, Event::Answered { digest, refusal: None })
    }

    #[test]
    fn what_was_appended_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let all = [
            trained(1),
            counted(1),
            trained(2),
            entry(3, Event::Declined { manifest: None, reason: Refusal::Suspended }),
        ];
        let mut ledger = Ledger::open(&path).unwrap();
        for entry in &all {
            ledger.append(entry).unwrap();
        }
        drop(ledger);
        assert_eq!(read(&path).unwrap(), all);
        let ledger = Ledger::open(&path).unwrap();
        let run = "run".parse().unwrap();
        let declined = Standing::Declined { manifest: None, reason: Refusal::Suspended };
        assert_eq!(ledger.standing(&run, 3), Some(&declined));
        assert_eq!(ledger.owed(), [("run".parse().unwrap(), 2)]);
    }

    #[test]
    fn only_a_refusal_of_the_newest_round_is_one_to_ask_about() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&folder.path().join(FILE_NAME)).unwrap();
        let (run, other) = ("run".parse().unwrap(), "runs".parse().unwrap());
        let reason = Refusal::Suspended;
        let manifest = Some(Digest::of(b"manifest"));
        let declined = Event::Declined { manifest, reason: reason.clone() };
        ledger.append(&entry(2, declined)).unwrap();
        assert_eq!(ledger.declined(&run), Some((2, manifest, &reason)));
        assert_eq!(ledger.declined(&other), None);
        ledger.append(&trained(3)).unwrap();
        assert_eq!(ledger.declined(&run), None, "it took part since");
    }

    #[test]
    fn a_line_cut_off_anywhere_is_dropped_and_reported_and_writing_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut whole = Ledger::open(&path).unwrap();
        whole.append(&trained(1)).unwrap();
        let kept = std::fs::read(&path).unwrap();
        whole.append(&counted(1)).unwrap();
        drop(whole);
        let bytes = std::fs::read(&path).unwrap();
        for cut in kept.len()..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(read(&path).unwrap(), [trained(1)], "cut at {cut}");
            let mut ledger = Ledger::open(&path).unwrap();
            assert_eq!(ledger.torn_bytes(), (cut - kept.len()) as u64);
            assert_eq!(ledger.owed().len(), 1);
            ledger.append(&counted(1)).unwrap();
            drop(ledger);
            assert_eq!(read(&path).unwrap(), [trained(1), counted(1)], "cut at {cut}");
        }
    }

    /// Failed before: the handle that had failed was used again, for good.
    #[test]
    fn after_a_failed_entry_the_ledger_is_opened_anew_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.append(&trained(1)).unwrap();
        ledger.file = File::open(&path).unwrap();
        let failed = ledger.append(&counted(1)).unwrap_err();
        assert!(failed.to_string().contains("cannot append"), "{failed}");
        assert_eq!(ledger.owed().len(), 1, "a failed entry does not count");
        ledger.append(&counted(1)).unwrap();
        assert_eq!(ledger.owed(), []);
        assert_eq!(read(&path).unwrap(), [trained(1), counted(1)]);
    }

    /// Failed before: a line that could not be cut off stayed behind the next, shorter one.
    #[test]
    fn what_a_failed_entry_left_is_cut_off_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.append(&trained(1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let left =
            [&whole[..], &b"{\"half of a line that is longer than the next\"".repeat(50)[..]];
        std::fs::write(&path, left.concat()).unwrap();
        ledger.in_doubt = true;
        ledger.append(&counted(1)).unwrap();
        assert_eq!(read(&path).unwrap(), [trained(1), counted(1)]);
        drop(ledger);
        assert_eq!(Ledger::open(&path).unwrap().torn_bytes(), 0);
    }

    #[test]
    fn the_highest_answered_and_owed_rounds_of_each_run_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut ledger = Ledger::open(&path).unwrap();
        for line in [trained(1), counted(1), trained(2), counted(2), trained(5)] {
            ledger.append(&line).unwrap();
        }
        let run: RunName = "other".parse().unwrap();
        ledger.append(&Entry { run: run.clone(), ..trained(9) }).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        let first: RunName = "run".parse().unwrap();
        let known = [(run, 9, false), (first.clone(), 2, true), (first.clone(), 5, false)];
        assert_eq!(ledger.known_rounds(), known);
        let done = Done { deltas_of_run: 3, deltas: 4, other_runs: 1 };
        assert_eq!(ledger.done(&first), done);
    }

    #[test]
    fn checks_are_counted_over_a_span_after_a_restart_too_and_leave_every_round_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let mut ledger = Ledger::open(&path).unwrap();
        let checked = |at, answer| Entry {
            at: Timestamp::from_millis(at),
            run: "run".parse().unwrap(),
            round: 0,
            event: Event::Checked { manifest: Digest::of(b"m"), answer, warnings: Vec::new() },
        };
        for (at, answer) in [
            (1_000, CheckAnswer::Ready),
            (2_000, CheckAnswer::Policy),
            (3_000, CheckAnswer::ChecksPerDay),
        ] {
            ledger.append(&checked(at, answer)).unwrap();
        }
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        let within = |span_ms| {
            ledger.checks_within(Timestamp::from_millis(3_500), Duration::from_millis(span_ms))
        };
        assert_eq!(within(5_000), Checks { answered: 2, over: 1 });
        assert_eq!(within(2_000), Checks { answered: 1, over: 1 });
        assert_eq!(ledger.standing(&"run".parse().unwrap(), 0), None);
        assert!(ledger.owed().is_empty());
    }

    #[test]
    fn a_damaged_line_inside_stops_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, "{}\n{}\n").unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(error.to_string().contains("ledger.jsonl:1: not a ledger entry"), "{error}");
        std::fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Damaged { line: 1, .. })));
    }
}
