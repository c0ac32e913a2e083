//! Command lines: parse, call one room, print.

/// `println!` that ends quietly where nobody reads any more.
macro_rules! say {
    ($($line:tt)*) => { $crate::cli::emit(format_args!($($line)*)) };
}

/// `eprintln!` that goes on where nobody reads any more.
macro_rules! aside {
    ($($line:tt)*) => { $crate::cli::aside(format_args!($($line)*)) };
}

pub mod data;
pub mod site;
pub mod train;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process;

use serde::Serialize;
use tributary_shared::outcome::{ExitCode, ok_envelope, unwritten};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and lines for people.
    #[default]
    Text,
    /// One JSON envelope for machines.
    Json,
}

/// Prints `data` as one envelope, or lets `text` print for people.
pub fn print(format: Format, data: impl Serialize, text: impl FnOnce()) {
    match format {
        Format::Json => emit(ok_envelope(data)),
        Format::Text => text(),
    }
}

/// Prints one or more lines. Whoever closed the pipe has seen enough: that ends the program, and
/// is no failure.
pub fn emit(lines: impl Display) {
    let mut out = io::stdout().lock();
    let Err(error) = writeln!(out, "{lines}").and_then(|()| out.flush()) else { return };
    let failure = unwritten(&error);
    if let Some(failure) = &failure {
        aside(format_args!("error: {failure}"));
    }
    process::exit(failure.map_or(ExitCode::Ok, |failure| failure.exit) as i32);
}

/// Prints one or more lines beside the results, on standard error. What is told in passing stops
/// no work: it is lost where nobody reads.
pub fn aside(lines: impl Display) {
    let _ = writeln!(io::stderr(), "{lines}");
}
