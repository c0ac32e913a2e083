//! The command lines: parse, make one call, print. Every command ends in one exit code and, with
//! `--format json`, one envelope (`shared::outcome`).

mod audit;
mod enroll;
mod log;
mod manifest;
mod members;
mod narrate;
mod operator;
mod present;
mod pull;
mod runs;
mod service;
mod session;
mod show;

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
use tributary_shared::outcome::{ExitCode, Failure, error_envelope, ok_envelope};

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
        Format::Json => emit(&error_envelope(failure).to_string()),
        Format::Text => eprintln!("error: {failure}"),
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
        eprint!("{error}");
        return exit(ExitCode::Invalid);
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("bad arguments");
    let message = first.strip_prefix("error: ").unwrap_or(first);
    let failure = Failure::invalid("arguments", message).hint("see --help");
    failed(&failure, Format::Json)
}

/// Whether arguments that did not parse asked for JSON all the same.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let pair = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
    arguments.windows(2).any(pair) || arguments.iter().any(|a| a == "--format=json")
}

fn bug(payload: &(dyn Any + Send)) -> Failure {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked");
    Failure { exit: ExitCode::Bug, code: "bug", message: text.to_owned(), hint: None }
        .hint("this is a bug; please report it with the lines above")
}

/// A failure of reading or writing a local file.
fn file_failure(path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::invalid("file", format!("{}: {error}", path.display()))
}

/// Prints one or more lines. Whoever closed the pipe has seen enough: that is no failure.
fn emit(lines: &str) {
    let mut out = io::stdout().lock();
    if let Err(e) = writeln!(out, "{lines}").and_then(|()| out.flush()) {
        let code = if e.kind() == io::ErrorKind::BrokenPipe { ExitCode::Ok } else { ExitCode::Bug };
        process::exit(code as i32);
    }
}
