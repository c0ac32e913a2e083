//! `cargo federation-bench`: what a round costs.

use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use tributary_deploy::bench::{self, BenchOptions};
use tributary_shared::outcome::ok_envelope;

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
    let say = |what: &str| eprintln!("federation-bench: {what}");
    match (bench::measure(&options, &say), format) {
        (Ok(report), Format::Json) => println!("{}", ok_envelope(&report)),
        (Ok(report), Format::Text) => println!("{report}"),
        (Err(failed), Format::Json) => {
            eprintln!("error: {failed}");
            let error = json!({ "code": "bench", "message": failed.to_string(), "hint": null });
            println!("{}", json!({ "schema_version": 1, "status": "error", "error": error }));
            return ExitCode::FAILURE;
        }
        (Err(failed), Format::Text) => {
            eprintln!("error: {failed}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
