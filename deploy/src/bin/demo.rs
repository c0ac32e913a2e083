//! `cargo demo`: a whole federation on this machine.

use std::process::ExitCode;

use clap::Parser;
use tributary_deploy::demo::{self, DemoOptions, Shown, Teller};
use tributary_deploy::program::{self, Format};

/// A whole federation on this machine: a coordinator and three hospitals as processes, enrolled
/// over mutual TLS, training LoRA together on images that never leave them.
#[derive(Parser)]
#[command(name = "demo", version)]
struct Arguments {
    #[command(flatten)]
    options: DemoOptions,
    /// How the result is printed; as JSON it is the last line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn main() -> ExitCode {
    let Arguments { options, format } = match program::arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let mut teller = Teller::new(format == Format::Json);
    match demo::show(&options, &mut teller) {
        Ok(shown) => succeeded(&shown, &options, format),
        Err(failed) => program::report(&failed, "demo", format),
    }
}

fn succeeded(shown: &Shown, options: &DemoOptions, format: Format) -> ExitCode {
    let Shown { federation, summary } = shown;
    program::show(format, summary.machine(), &summary.people().to_string());
    if options.keep {
        eprintln!("{}", demo::invitation(federation));
        loop {
            // Until interrupted; then the guard ends everything.
            std::thread::park();
        }
    }
    if summary.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
