//! The site's program.

use std::ffi::OsString;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use tributary_client::cli::data::DataCommand;
use tributary_client::cli::site::SiteCommand;
use tributary_client::cli::train::TrainCommand;
use tributary_client::cli::{Format, aside, data, site, train};
use tributary_client::data::guard::quiet_caught_panics;
use tributary_client::data::isolate::{self, Isolation};
use tributary_client::site::progress::Display;
use tributary_proto::private::keep_to_owner;
use tributary_shared::outcome::{self, ExitCode, Failure, asks_for_json, error_envelope};

/// Adapts a frozen imaging model together with other hospitals; the images stay here.
#[derive(Debug, Parser)]
#[command(name = "tributary-client", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    /// How log lines are written to standard error; RUST_LOG chooses which.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Site(SiteCommand),
    /// Look at images, divide them over sites, or draw synthetic ones.
    #[command(subcommand)]
    Data(DataCommand),
    #[command(flatten)]
    Train(TrainCommand),
    /// Decode pictures for another process of this program; it starts this itself.
    #[command(hide = true)]
    DecodeWorker {
        /// Most address space beside what the program maps at its start, MiB.
        memory_mib: u64,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> process::ExitCode {
    quiet_caught_panics();
    keep_to_owner();
    let typed: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::try_parse_from(&typed) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, asks_for_json(&typed)),
    };
    if let Command::DecodeWorker { memory_mib } = arguments.command {
        // Its standard error is closed: the client names the file.
        return exit(isolate::serve(memory_mib).map_or(ExitCode::Invalid, |()| ExitCode::Ok));
    }
    if let Err(failure) = isolated() {
        return report(arguments.format, &failure);
    }
    let display = Display::new(arguments.log_format == LogFormat::Json);
    log(&arguments, display.clone());
    let format = arguments.format;
    let ended = match arguments.command {
        Command::Site(command) => site::run(&command, format, display),
        Command::Data(command) => data::run(command, format),
        Command::Train(command) => train::run(&command, format),
        Command::DecodeWorker { .. } => Ok(()),
    };
    match ended {
        Ok(()) => exit(ExitCode::Ok),
        Err(failure) => report(format, &failure),
    }
}

/// From here on decoders with unsafe code run in other processes of this program.
fn isolated() -> Result<(), Failure> {
    // Linux has this name for the running program even after an upgrade has replaced its file.
    let own = Path::new("/proc/self/exe");
    let program = if cfg!(target_os = "linux") && own.exists() {
        own.to_owned()
    } else {
        std::env::current_exe().map_err(|error| {
            let message = format!("the program does not find its own file: {error}");
            Failure::invalid("program", message).hint("start it by its full path")
        })?
    };
    Isolation::processes(program).choose();
    Ok(())
}

fn usage(error: &clap::Error, json: bool) -> process::ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if json && !asked {
        return report(Format::Json, &outcome::usage(&error.to_string()));
    }
    // When the terminal is gone there is nobody to tell.
    let _ = error.print();
    exit(if asked { ExitCode::Ok } else { ExitCode::Invalid })
}

fn log(arguments: &Arguments, display: Display) {
    let level = if matches!(arguments.command, Command::Site(SiteCommand::Run(_))) {
        "info"
    } else {
        "warn"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(display);
    // A log that nobody reads any more must not end the work.
    let subscriber = subscriber.log_internal_errors(false);
    match arguments.log_format {
        LogFormat::Text => subscriber.with_target(false).with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

fn report(format: Format, failure: &Failure) -> process::ExitCode {
    match format {
        // The exit code says it too, where nobody reads the envelope.
        Format::Json => drop(writeln!(stdout(), "{}", error_envelope(failure))),
        Format::Text => {
            // The summary last: a long list scrolls away.
            failure.details.iter().for_each(|line| aside(format_args!("  {line}")));
            aside(format_args!("error: {failure}"));
        }
    }
    exit(failure.exit)
}

fn exit(code: ExitCode) -> process::ExitCode {
    process::ExitCode::from(code as u8)
}
