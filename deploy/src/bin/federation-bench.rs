//! `cargo federation-bench`: what a round costs.

use std::process::ExitCode;

use clap::Parser;
use tributary_deploy::bench::{self, BenchOptions};
use tributary_deploy::program::{self, Format};

/// What a round costs: a coordinator and N sites as processes over mutual TLS on this machine,
/// where training is replaced by adding a known constant.
#[derive(Parser)]
#[command(name = "federation-bench", version)]
struct Arguments {
    #[command(flatten)]
    options: BenchOptions,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn main() -> ExitCode {
    let Arguments { options, format } = match program::arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let say = |what: &str| eprintln!("federation-bench: {what}");
    match bench::measure(&options, &say) {
        Ok(report) => program::show(format, &report, &report.to_string()),
        Err(failed) => return program::report(&failed, "bench", format),
    }
    ExitCode::SUCCESS
}
