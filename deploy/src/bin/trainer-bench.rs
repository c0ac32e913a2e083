//! `cargo trainer-bench`: what a training step costs beside PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;
use tributary_deploy::command::Failed;
use tributary_deploy::trainer_bench::{self, TrainerBenchOptions};
use tributary_shared::outcome::ok_envelope;

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
    /// One side alone, in this process
    Ours {
        #[command(flatten)]
        options: TrainerBenchOptions,
    },
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version are no errors; a closed pipe is nobody's.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 4 } else { 0 });
        }
    };
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failed> {
    let Arguments { options, turns, python, format, side } = arguments;
    if let Some(Side::Ours { options }) = side {
        show(Format::Json, &trainer_bench::run_ours(options)?, "");
        return Ok(());
    }
    let say = |what: &str| eprintln!("trainer-bench: {what}");
    let report = trainer_bench::measure(options, *turns, python, &say)?;
    show(*format, &report, &report.to_string());
    Ok(())
}

fn show(format: Format, data: &impl Serialize, text: &str) {
    match format {
        Format::Json => println!("{}", ok_envelope(data)),
        Format::Text => println!("{text}"),
    }
}
