//! What `demo` and the benches do alike: arguments, one result, one exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;
use tributary_client::cli::{aside, emit};
use tributary_proto::private::keep_to_owner;
use tributary_shared::outcome::{Failure, asks_for_json, error_envelope, ok_envelope, usage};

use crate::command::Failed;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One envelope, the last line.
    Json,
}

/// The argument that every program has.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Printing {
    /// How the result is printed; as JSON it is the last line
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// A parsed command line that does one thing.
pub trait Program: Parser {
    /// The stable code of its failures.
    const CODE: &'static str;
    /// What `--format` says.
    fn format(&self) -> Format;
    /// Does it and shows what came of it.
    fn execute(self) -> Result<ExitCode, Failed>;
}

/// Runs `P` on the process's arguments.
pub fn run<P: Program>() -> ExitCode {
    keep_to_owner();
    let arguments = typed(std::env::args_os());
    let program = match P::try_parse_from(&arguments) {
        Ok(program) => program,
        Err(e) if e.use_stderr() && asks_for_json(&arguments) => {
            let failure = usage(&e.to_string());
            emit(error_envelope(&failure));
            return ExitCode::from(failure.exit as u8);
        }
        Err(e) => {
            // Help and version are no errors; a closed pipe is nobody's.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 4 } else { 0 });
        }
    };
    let format = program.format();
    program.execute().unwrap_or_else(|failed| report(&failed, P::CODE, format))
}

/// The arguments without one leading `--`. Cargo's alias already ends in one, and people write
/// `cargo demo -- --keep` as well as `cargo demo --keep`.
fn typed(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    if arguments.get(1).is_some_and(|first| first == "--") {
        arguments.remove(1);
    }
    arguments
}

/// Prints a success.
pub fn show(format: Format, data: impl Serialize, text: &str) {
    match format {
        Format::Json => emit(ok_envelope(data)),
        Format::Text => emit(text),
    }
}

fn report(failed: &Failed, code: &'static str, format: Format) -> ExitCode {
    aside(format_args!("error: {failed}"));
    if format == Format::Json {
        emit(error_envelope(&Failure::invalid(code, failed.to_string())));
    }
    ExitCode::FAILURE
}
