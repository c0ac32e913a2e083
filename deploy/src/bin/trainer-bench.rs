//! `cargo trainer-bench`: what a training step costs beside PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tributary_client::cli::aside;
use tributary_deploy::command::Failed;
use tributary_deploy::program::{self, Format, Printing, Program};
use tributary_deploy::trainer_bench::{self, TrainerBenchOptions, Work};

/// What a LoRA step of a vision transformer costs beside PyTorch, transformers and peft.
#[derive(Parser)]
#[command(name = "trainer-bench", version, args_conflicts_with_subcommands = true)]
struct TrainerBench {
    #[command(flatten)]
    options: TrainerBenchOptions,
    /// How often each side is measured, in turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    turns: u16,
    /// A Python that has torch, transformers and peft (tests/python/requirements.txt)
    #[arg(long, default_value_os_t = trainer_bench::default_python())]
    python: PathBuf,
    #[command(flatten)]
    printing: Printing,
    #[command(subcommand)]
    side: Option<Side>,
}

#[derive(clap::Subcommand)]
enum Side {
    /// One measurement of ours alone, in this process
    Ours {
        #[arg(long, value_enum)]
        work: Work,
        #[command(flatten)]
        options: TrainerBenchOptions,
    },
}

fn main() -> ExitCode {
    program::run::<TrainerBench>()
}

impl Program for TrainerBench {
    const CODE: &'static str = "bench";

    fn format(&self) -> Format {
        // What one process measures is read by the one that started it.
        if self.side.is_some() { Format::Json } else { self.printing.format }
    }

    fn execute(self) -> Result<ExitCode, Failed> {
        let format = self.format();
        if let Some(Side::Ours { work, options }) = &self.side {
            program::show(format, trainer_bench::run_ours(options, *work)?, "");
            return Ok(ExitCode::SUCCESS);
        }
        let say = |what: &str| aside(format_args!("trainer-bench: {what}"));
        let report = trainer_bench::measure(&self.options, self.turns, &self.python, &say)?;
        program::show(format, &report, &report.to_string());
        Ok(ExitCode::SUCCESS)
    }
}
