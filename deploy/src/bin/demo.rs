//! `cargo demo`: a whole federation on this machine.

use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use tributary_deploy::command::Failed;
use tributary_deploy::demo::{self, DemoOptions, Shown, Teller};
use tributary_shared::outcome::ok_envelope;

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

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

fn main() -> ExitCode {
    let Arguments { options, format } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version are no errors; a closed pipe is nobody's.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 4 } else { 0 });
        }
    };
    let mut teller = Teller::new(format == Format::Json);
    match demo::show(&options, &mut teller) {
        Ok(shown) => succeeded(&shown, &options, format),
        Err(failed) => report(&failed, format),
    }
}

fn succeeded(shown: &Shown, options: &DemoOptions, format: Format) -> ExitCode {
    let Shown { federation, summary } = shown;
    match format {
        Format::Json => println!("{}", ok_envelope(summary.machine())),
        Format::Text => println!("{}", summary.people()),
    }
    if options.keep {
        eprintln!("{}", demo::invitation(federation));
        loop {
            // Until interrupted; then the guard ends everything.
            std::thread::park();
        }
    }
    if summary.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(failed: &Failed, format: Format) -> ExitCode {
    eprintln!("error: {failed}");
    if format == Format::Json {
        let error = json!({ "code": "demo", "message": failed.to_string(), "hint": null });
        println!("{}", json!({ "schema_version": 1, "status": "error", "error": error }));
    }
    ExitCode::FAILURE
}
