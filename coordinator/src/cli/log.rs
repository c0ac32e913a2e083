//! `run log`: the history as it was written, one line an event.

use serde_json::Value;
use tokio::time::Instant;
use tributary_proto::v1::{LogEntry, LogRequest};
use tributary_shared::name::RunName;
use tributary_shared::outcome::Failure;
use tributary_shared::text::printable;

use super::narrate::narrate;
use super::present::time;
use super::runs::{AWAY_MAX, LOOK_AGAIN, is_away};
use super::session::{Globals, Session};
use super::{Answer, Format, emit};
use crate::round::event::RunEvent;
use crate::round::record::{Event, Record};

/// Prints the events of `run`, of everything when absent; with `follow` as they happen, until the
/// run ends or until interrupted, through a restart of the coordinator. Followed as JSON it is one
/// record a line, without an envelope.
pub(super) async fn log(
    run: Option<&RunName>,
    from_leaf: u64,
    follow: bool,
    globals: &Globals,
) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let mut reader = Reader { run, follow, next_leaf: from_leaf, ended: false, lines: Vec::new() };
    let mut heard = Instant::now();
    loop {
        let before = reader.next_leaf;
        let read = reader.read(&session, globals.format).await;
        if !follow {
            read?;
            break;
        }
        if reader.ended {
            break;
        }
        if reader.next_leaf > before {
            heard = Instant::now();
        }
        // The stream broke, or the coordinator closed it to restart: go on where it was.
        match read {
            Err(failure) if !is_away(&failure) || heard.elapsed() > AWAY_MAX => {
                return Err(failure);
            }
            Ok(()) => heard = Instant::now(),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(match globals.format {
        Format::Json if !follow => Answer::new(reader.lines, ""),
        Format::Json | Format::Text => Answer::Printed,
    })
}

/// How far a reading of the history is.
struct Reader<'r> {
    run: Option<&'r RunName>,
    follow: bool,
    next_leaf: u64,
    /// True while the last event that was read ends the run.
    ended: bool,
    /// For the envelope.
    lines: Vec<Value>,
}

impl Reader<'_> {
    /// Prints from the next leaf on to the end of the stream.
    async fn read(&mut self, session: &Session, format: Format) -> Result<(), Failure> {
        let request = LogRequest {
            run: self.run.map(ToString::to_string).unwrap_or_default(),
            from_leaf: self.next_leaf,
            follow: self.follow,
        };
        let mut stream = session.ask(session.client.clone().log(request)).await?;
        loop {
            let entry = if self.follow {
                // A quiet history is no trouble; a dead connection ends the stream by itself.
                stream.message().await.map_err(|status| session.failure(&status))?
            } else {
                session.next(&mut stream).await?
            };
            let Some(entry) = entry else { return Ok(()) };
            self.take(&entry, format);
        }
    }

    fn take(&mut self, entry: &LogEntry, format: Format) {
        self.next_leaf = entry.leaf.saturating_add(1);
        let record = Record::from_bytes(&entry.record_json);
        let last = |record: &Record| matches!(record.event, Event::Run(RunEvent::RunEnded { .. }));
        // A run that was resumed goes on after its end.
        self.ended = self.run.is_some() && record.as_ref().is_ok_and(last);
        match (format, self.follow) {
            (Format::Text, _) => emit(&line(entry)),
            (Format::Json, true) => emit(&machine(entry).to_string()),
            (Format::Json, false) => self.lines.push(machine(entry)),
        }
    }
}

fn line(entry: &LogEntry) -> String {
    match Record::from_bytes(&entry.record_json) {
        Ok(record) => printable(&format!(
            "{:>6}  {}  {}  {}",
            entry.leaf,
            time(record.at.as_millis()),
            record.stream,
            narrate(&record.event)
        )),
        Err(e) => printable(&format!("{:>6}  {e}", entry.leaf)),
    }
}

fn machine(entry: &LogEntry) -> Value {
    let record: Value = serde_json::from_slice(&entry.record_json).unwrap_or(Value::Null);
    serde_json::json!({ "leaf": entry.leaf, "record": record })
}
