//! `cargo demo`: a whole federation on this machine.

use std::process::ExitCode;

use clap::Parser;
use tributary_client::cli::aside;
use tributary_deploy::command::Failed;
use tributary_deploy::demo::{self, DemoOptions, Shown, Teller};
use tributary_deploy::program::{self, Format, Printing, Program};

/// A whole federation on this machine: a coordinator and three hospitals as processes, enrolled
/// over mutual TLS, training LoRA together on images that never leave them.
#[derive(Parser)]
#[command(name = "demo", version)]
struct Demo {
    #[command(flatten)]
    options: DemoOptions,
    #[command(flatten)]
    printing: Printing,
}

fn main() -> ExitCode {
    program::run::<Demo>()
}

impl Program for Demo {
    const CODE: &'static str = "demo";

    fn format(&self) -> Format {
        self.printing.format
    }

    fn execute(self) -> Result<ExitCode, Failed> {
        let format = self.format();
        let mut teller = Teller::new(format == Format::Json);
        let Shown { federation, summary } = demo::show(&self.options, &mut teller)?;
        program::show(format, summary.machine(), &summary.people().to_string());
        if self.options.keep {
            aside(demo::invitation(&federation));
            loop {
                // Until interrupted; then the guard ends everything.
                std::thread::park();
            }
        }
        Ok(if summary.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
