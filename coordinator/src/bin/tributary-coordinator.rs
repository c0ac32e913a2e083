//! The coordinator service.

use std::process::ExitCode;

fn main() -> ExitCode {
    tributary_coordinator::cli::service()
}
