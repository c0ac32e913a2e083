//! What every command line ends with: one exit code, and with `--format json` one envelope.

use std::ffi::OsString;
use std::fmt;
use std::io;

use serde::Serialize;
use serde_json::{Value, json};

use crate::text::printable;

/// How a command ended, as its process exit code says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// The other side, or a policy, said no.
    Refused = 1,
    /// No connection, or who we are was not accepted.
    Connection = 2,
    /// It took too long.
    Timeout = 3,
    /// Bad arguments, configuration, file or data.
    Invalid = 4,
    /// A bug of ours.
    Bug = 5,
}

/// Why a command failed, in one line, and what mends it.
#[derive(Debug)]
pub struct Failure {
    /// The process exit code.
    pub exit: ExitCode,
    /// A stable code for machines, snake_case.
    pub code: &'static str,
    /// What happened and where.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// What the message counts, one line each, however many.
    pub details: Vec<String>,
    /// Data that the command found all the same, for machines.
    pub data: Option<Box<Value>>,
}

impl Failure {
    /// A failure with `exit`, under the stable `code`.
    pub fn new(exit: ExitCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = printable(&without_numbers(&message.into()));
        Self { exit, code, message, hint: None, details: Vec::new(), data: None }
    }

    /// A failure of bad input: arguments, configuration, files, data.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ExitCode::Invalid, code, message)
    }

    /// A refusal by the other side or by a policy.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, code, message)
    }

    /// A failure to reach the other side or to be accepted by it.
    pub fn connection(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Connection, "connection", message)
    }

    /// Adds how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(printable(&hint.into()));
        self
    }

    /// Adds what the command found all the same.
    #[must_use]
    pub fn data(mut self, data: Value) -> Self {
        self.data = Some(Box::new(data));
        self
    }

    /// Adds what the message counts.
    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details.iter().map(|line| printable(line)).collect();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever an inner error spans.
        let line: Vec<&str> = self.message.split_whitespace().collect();
        write!(f, "{}", line.join(" "))?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// `text` without the numbers of the system's errors, such as `(os error 2)`: the words before them
/// say the same.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| plain.push_str(part.split_once(')').map_or("", |(_, rest)| rest)));
    plain
}

/// `error` and every error under it, joined by colons: for the one line at the process boundary.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        line.push_str(": ");
        line.push_str(&inner.to_string());
        source = inner.source();
    }
    line
}

/// Whether arguments, even ones that do not parse, ask for JSON.
pub fn asks_for_json(arguments: &[OsString]) -> bool {
    let pair = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
    arguments.windows(2).any(pair) || arguments.iter().any(|a| a == "--format=json")
}

/// The failure of arguments that did not parse; `told` is what the parser says of them.
pub fn usage(told: &str) -> Failure {
    let mut lines = told.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("bad arguments");
    let message = first.strip_prefix("error: ").unwrap_or(first);
    Failure::invalid("arguments", message).hint("see --help")
}

/// What it comes to that standard output could not be written: nothing if it was closed, because
/// whoever closed the pipe has seen enough.
pub fn unwritten(error: &io::Error) -> Option<Failure> {
    let closed = error.kind() == io::ErrorKind::BrokenPipe;
    (!closed).then(|| Failure::invalid("output", format!("standard output: {error}")))
}

/// The envelope of a success.
pub fn ok_envelope(data: impl Serialize) -> Value {
    json!({ "schema_version": 1, "status": "ok", "data": data })
}

/// The envelope of a failure.
pub fn error_envelope(failure: &Failure) -> Value {
    let Failure { code, message, hint, details, data, .. } = failure;
    let mut error = json!({ "code": code, "message": message, "hint": hint });
    if !details.is_empty() {
        error["details"] = json!(details);
    }
    let mut envelope = json!({ "schema_version": 1, "status": "error", "error": error });
    if let Some(data) = data {
        envelope["data"] = Value::clone(data);
    }
    envelope
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A13a. Failed before: a hostile coordinator's message moved the cursor of the terminal.
    #[test]
    fn no_message_moves_a_cursor_or_forges_a_line() {
        let failure = Failure::refused("refused", "no\u{1b}[2J\nok: all is well").hint("\u{7}ring");
        assert_eq!(failure.to_string(), "no [2J ok: all is well ( ring)");
        let listed = Failure::invalid("manifest", "2 problems").details(vec!["a\nb".to_owned()]);
        assert_eq!(listed.details, ["a b"]);
        assert!(!error_envelope(&failure).to_string().contains("u001b"));
    }

    /// Failed before: errors of files ended in `(os error 2)`.
    #[test]
    fn a_message_keeps_the_words_of_the_system_and_not_its_numbers() {
        let failure = Failure::invalid("file", "a: gone (os error 2): b: full (os error 28)");
        assert_eq!(failure.message, "a: gone: b: full");
    }
}
