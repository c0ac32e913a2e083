//! `cargo federation-bench`: what a round costs.

use std::process::ExitCode;

use clap::Parser;
use tributary_client::cli::aside;
use tributary_deploy::bench::{self, BenchOptions};
use tributary_deploy::command::Failed;
use tributary_deploy::program::{self, Format, Printing, Program};

/// What a round costs: a coordinator and N sites as processes over mutual TLS on this machine,
/// where training is replaced by adding a known constant.
#[derive(Parser)]
#[command(name = "federation-bench", version)]
struct FederationBench {
    #[command(flatten)]
    options: BenchOptions,
    #[command(flatten)]
    printing: Printing,
}

fn main() -> ExitCode {
    program::run::<FederationBench>()
}

impl Program for FederationBench {
    const CODE: &'static str = "bench";

    fn format(&self) -> Format {
        self.printing.format
    }

    fn execute(self) -> Result<ExitCode, Failed> {
        let say = |what: &str| aside(format_args!("federation-bench: {what}"));
        let report = bench::measure(&self.options, &say)?;
        program::show(self.format(), &report, &report.to_string());
        Ok(ExitCode::SUCCESS)
    }
}
