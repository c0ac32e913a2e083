//! Lines of a process as they come: kept in a file, waited for without polling.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Newest lines held in memory; the file has all.
const HELD_MAX: usize = 8192;

/// What a process wrote to one of its outputs.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    written: Mutex<Written>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    /// Lines before the first held one.
    dropped: usize,
    held: VecDeque<String>,
    closed: bool,
}

/// What came of waiting for a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The line, and where to go on looking.
    Line(String, usize),
    /// The process closed its output before.
    Closed,
    /// It took too long.
    TimedOut,
}

impl Lines {
    /// Reads `source` to its end on a thread of its own, with a copy to `file`.
    pub fn read(source: impl Read + Send + 'static, mut file: Option<File>) -> Self {
        let lines = Self(Arc::new(Shared {
            written: Mutex::new(Written::default()),
            changed: Condvar::new(),
        }));
        let writer = lines.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            while source.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                // A full disk must not stop the process behind the pipe.
                file = file.take().filter(|file| (&mut &*file).write_all(&bytes).is_ok());
                writer.push(String::from_utf8_lossy(&bytes).trim_end().to_owned());
                bytes.clear();
            }
            writer.lock().closed = true;
            writer.0.changed.notify_all();
        });
        lines
    }

    /// Waits for a line after the first `from` ones that `wanted` takes.
    pub fn wait(&self, from: usize, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Next {
        let deadline = Instant::now() + timeout;
        let mut at = from;
        let mut written = self.lock();
        loop {
            at = at.max(written.dropped);
            while let Some(line) = written.held.get(at - written.dropped) {
                at += 1;
                if wanted(line) {
                    return Next::Line(line.clone(), at);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.closed {
                return Next::Closed;
            }
            if left.is_zero() {
                return Next::TimedOut;
            }
            let woken = self.0.changed.wait_timeout(written, left);
            written = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many lines there are by now.
    pub fn count(&self) -> usize {
        let written = self.lock();
        written.dropped + written.held.len()
    }

    /// Waits until the process closed its output.
    pub fn wait_closed(&self) {
        let mut written = self.lock();
        while !written.closed {
            written = self.0.changed.wait(written).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The newest `count` lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let written = self.lock();
        let skip = written.held.len().saturating_sub(count);
        written.held.iter().skip(skip).cloned().collect()
    }

    fn push(&self, line: String) {
        let mut written = self.lock();
        if written.held.len() == HELD_MAX {
            written.held.pop_front();
            written.dropped += 1;
        }
        written.held.push_back(line);
        drop(written);
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_is_found_from_a_place_on_and_the_end_is_told_apart() {
        let lines = Lines::read(&b"one\ntwo\none"[..], None);
        assert_eq!(lines.wait(0, LONG, |l| l == "one"), Next::Line("one".into(), 1));
        assert_eq!(lines.wait(1, LONG, |l| l == "one"), Next::Line("one".into(), 3));
        assert_eq!(lines.wait(3, LONG, |_| true), Next::Closed);
        assert_eq!(lines.tail(2), ["two", "one"]);
    }

    #[test]
    fn old_lines_leave_memory_and_places_stay_true() {
        let text: String = (0..HELD_MAX + 10).map(|n| format!("{n}\n")).collect();
        let lines = Lines::read(std::io::Cursor::new(text), None);
        lines.wait_closed();
        assert_eq!(lines.count(), HELD_MAX + 10);
        assert_eq!(lines.wait(0, LONG, |_| true), Next::Line("10".into(), 11));
    }
}
