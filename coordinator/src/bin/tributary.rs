//! The operator's and the auditor's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    tributary_coordinator::cli::operator()
}
