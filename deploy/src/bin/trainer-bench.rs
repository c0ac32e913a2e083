//! `cargo trainer-bench`: what a training step costs beside PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tributary_deploy::command::Failed;
use tributary_deploy::program::{self, Format};
use tributary_deploy::trainer_bench::{self, TrainerBenchOptions, Work};

/// What a LoRA step of a vision transformer costs beside PyTorch, transformers and peft.
#[derive(Parser)]
#[command(name = "trainer-bench", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    options: TrainerBenchOptions,
    /// How often each side is measured, in turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    turns: u16,
    /// A Python that has torch, transformers and peft (tests/python/requirements.txt)
    #[arg(long, default_value_os_t = trainer_bench::default_python())]
    python: PathBuf,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
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
    let arguments: Arguments = match program::arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    // What one process measures is read by the one that started it.
    let format = if arguments.side.is_some() { Format::Json } else { arguments.format };
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => program::report(&failed, "bench", format),
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failed> {
    let Arguments { options, turns, python, format, side } = arguments;
    if let Some(Side::Ours { work, options }) = side {
        program::show(Format::Json, trainer_bench::run_ours(options, *work)?, "");
        return Ok(());
    }
    let say = |what: &str| eprintln!("trainer-bench: {what}");
    let report = trainer_bench::measure(options, *turns, python, &say)?;
    program::show(*format, &report, &report.to_string());
    Ok(())
}
