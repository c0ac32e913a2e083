//! What `demo` and the benches do alike: arguments, one result, one exit code.

use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;
use tributary_shared::outcome::{Failure, error_envelope, ok_envelope};

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

/// The arguments, or the exit code where there is nothing to do: help, version, or a mistake.
pub fn arguments<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|e| {
        // Help and version are no errors; a closed pipe is nobody's.
        let _ = e.print();
        ExitCode::from(if e.use_stderr() { 4 } else { 0 })
    })
}

/// Prints a success.
pub fn show(format: Format, data: impl Serialize, text: &str) {
    match format {
        Format::Json => println!("{}", ok_envelope(data)),
        Format::Text => println!("{text}"),
    }
}

/// Prints a failure under `code`.
pub fn report(failed: &Failed, code: &'static str, format: Format) -> ExitCode {
    eprintln!("error: {failed}");
    if format == Format::Json {
        println!("{}", error_envelope(&Failure::invalid(code, failed.to_string())));
    }
    ExitCode::FAILURE
}
