//! The history of a run as it is written.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::Failed;
use crate::lines::Next;
use crate::process::Process;

/// One event of a run, as its leaf holds it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Leaf of the history.
    pub leaf: u64,
    /// When the coordinator committed it, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Which event, in snake case.
    pub kind: String,
    /// Its fields.
    pub fields: Value,
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let entry: Value = serde_json::from_str(line).ok()?;
        let record = &entry["record"];
        Some(Self {
            leaf: entry["leaf"].as_u64()?,
            at_ms: record["at"].as_i64()?,
            kind: record["event"]["type"].as_str()?.to_owned(),
            fields: record["event"].clone(),
        })
    }

    /// The round it belongs to; 0 for events of the whole run.
    pub fn round(&self) -> u64 {
        self.fields["round"].as_u64().unwrap_or(0)
    }

    /// The site it is about; empty for others.
    pub fn site(&self) -> &str {
        self.fields["site"].as_str().unwrap_or("")
    }

    /// Whether it is `kind` of round `round`.
    pub fn is(&self, kind: &str, round: u64) -> bool {
        self.kind == kind && self.round() == round
    }
}

/// Follows a run's history through `tributary run log --follow`.
#[derive(Debug)]
pub struct Follow {
    log: Process,
    read: usize,
}

impl Follow {
    pub(crate) fn new(log: Process) -> Self {
        Self { log, read: 0 }
    }

    /// The next event; `None` when the history of the run has ended.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>, Failed> {
        match self.log.stdout().wait(self.read, timeout, |_| true) {
            Next::Line(line, read) => {
                self.read = read;
                let event = Event::parse(&line);
                let problem = || self.log.failed(&format!("this is no event: {line}"));
                event.map(Some).ok_or_else(problem)
            }
            Next::Closed if self.log.wait()?.success() => Ok(None),
            Next::Closed => {
                self.log.stderr().wait_closed();
                Err(self.log.failed("following the run ended early"))
            }
            Next::TimedOut => Err(self.log.failed(&format!("no event within {timeout:?}"))),
        }
    }

    /// Reads on to the event that `wanted` takes and returns it.
    pub fn until(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, Failed> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(event) if wanted(&event) => return Ok(event),
                Some(_) => {}
                None => return Err(self.log.failed("the run ended before the awaited event")),
            }
        }
    }

    /// Every event up to the run's end.
    pub fn rest(&mut self, timeout: Duration) -> Result<Vec<Event>, Failed> {
        let deadline = Instant::now() + timeout;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(event) => events.push(event),
                None => return Ok(events),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_the_operator_prints_it() {
        let line = r#"{"leaf":9,"record":{"schema":1,"at":1500,"stream":"run/r","seq":3,
            "event":{"type":"terms_accepted","round":2,"site":"a","cases":7}}}"#;
        let event = Event::parse(line).unwrap();
        assert_eq!((event.leaf, event.at_ms, event.round(), event.site()), (9, 1500, 2, "a"));
        assert!(event.is("terms_accepted", 2) && !event.is("terms_accepted", 1));
        assert!(Event::parse("{}").is_none());
    }
}
