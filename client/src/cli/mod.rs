//! Command lines: parse, call one room, print.

pub mod data;
pub mod site;
pub mod train;

use serde::Serialize;
use tributary_shared::outcome::ok_envelope;

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
        Format::Json => println!("{}", ok_envelope(data)),
        Format::Text => text(),
    }
}
