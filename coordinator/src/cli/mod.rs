//! The command lines: parse, make one call, print. Every command ends in one exit code and, with
//! `--format json`, one envelope (`shared::outcome`).

mod audit;
mod check;
mod doctor;
mod enroll;
mod gc;
mod log;
mod manifest;
mod members;
mod narrate;
mod new;
mod new_file;
mod operator;
mod present;
mod pull;
mod reason;
mod recovery;
mod runs;
mod service;
mod session;
mod show;
mod status;

pub use operator::operator;
pub use service::service;

use std::any::Any;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic;
use std::process;

use clap::Parser;
use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::Value;
use tributary_proto::private::keep_to_owner;
use tributary_shared::outcome::{
    self, ExitCode, Failure, asks_for_json, error_envelope, ok_envelope, unwritten,
};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and lines for people.
    #[default]
    Text,
    /// One JSON envelope for machines.
    Json,
}

/// What a command came to.
pub enum Answer {
    /// Everything at once, for machines and for people.
    Whole {
        /// The envelope's `data`.
        data: Value,
        /// Lines for people.
        text: String,
    },
    /// Already printed while it happened.
    Printed,
}

impl Answer {
    fn new(data: impl Serialize, text: impl Into<String>) -> Self {
        // Infallible: rows are plain structs with text keys.
        let data = serde_json::to_value(data).unwrap_or(Value::Null);
        Self::Whole { data, text: text.into() }
    }
}

/// A parsed command line that knows how to print.
pub trait Program: Parser {
    /// What `--format` says.
    fn format(&self) -> Format;
    /// Does it.
    fn execute(self) -> Result<Answer, Failure>;
}

/// Runs `P` on the process's arguments and prints how it ended.
fn run<P: Program>() -> process::ExitCode {
    keep_to_owner();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let program = match P::try_parse_from(&arguments) {
        Ok(program) => program,
        Err(e) => return usage(&e, asks_for_json(&arguments)),
    };
    let format = program.format();
    // A panic is a bug of ours; the hook has printed where.
    let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| program.execute()));
    match ended.unwrap_or_else(|payload| Err(bug(payload.as_ref()))) {
        Ok(Answer::Printed) => {}
        Ok(Answer::Whole { data, text }) => match format {
            Format::Json => emit(&ok_envelope(data).to_string()),
            Format::Text => emit(text.trim_end()),
        },
        Err(failure) => return failed(&failure, format),
    }
    exit(ExitCode::Ok)
}

fn exit(code: ExitCode) -> process::ExitCode {
    process::ExitCode::from(code as u8)
}

fn failed(failure: &Failure, format: Format) -> process::ExitCode {
    match format {
        // The exit code says it too, where nobody reads the envelope.
        Format::Json => drop(writeln!(io::stdout(), "{}", error_envelope(failure))),
        Format::Text => {
            // The summary last: a long list scrolls away.
            if failure.details.len() > 1 {
                failure.details.iter().for_each(|line| aside(&format!("  {line}")));
            }
            aside(&format!("error: {failure}"));
        }
    }
    exit(failure.exit)
}

/// Help and version are no errors; anything else is exit code 4.
fn usage(error: &clap::Error, json: bool) -> process::ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        emit(error.to_string().trim_end());
        return exit(ExitCode::Ok);
    }
    if !json {
        aside(error.to_string().trim_end());
        return exit(ExitCode::Invalid);
    }
    failed(&outcome::usage(&error.to_string()), Format::Json)
}

fn bug(payload: &(dyn Any + Send)) -> Failure {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked");
    Failure::new(ExitCode::Bug, "bug", text.to_owned())
        .hint("this is a bug; please report it with the lines above")
}

/// A failure of reading or writing a local file.
fn file_failure(path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::invalid("file", format!("{}: {error}", path.display()))
}

/// Prints one or more lines. Whoever closed the pipe has seen enough: that ends the program, and
/// is no failure.
fn emit(lines: &str) {
    let mut out = io::stdout().lock();
    let Err(error) = writeln!(out, "{lines}").and_then(|()| out.flush()) else { return };
    let failure = unwritten(&error);
    if let Some(failure) = &failure {
        aside(&format!("error: {failure}"));
    }
    process::exit(failure.map_or(ExitCode::Ok, |failure| failure.exit) as i32);
}

/// Prints one or more lines on standard error; they are lost where nobody reads.
fn aside(lines: &str) {
    let _ = writeln!(io::stderr(), "{lines}");
}
