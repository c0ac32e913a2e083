//! Taking part: enrol, check the machine, run, look at what was done.

mod doctor;
mod enroll;
mod history;
mod recovery;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use tributary_shared::outcome::{ExitCode, Failure};

use super::Format;
use crate::config::site::SiteConfig;
use crate::site;
use crate::site::progress::Display;

/// Threads that carry network and files; training has its own.
const IO_THREADS: usize = 2;
/// Threads for what blocks: name look-ups, reading images.
const BLOCKING_THREADS: usize = 4;

/// Commands of a site that takes part.
#[derive(Debug, clap::Subcommand)]
pub enum SiteCommand {
    /// Enrol this machine with the startup kit from the operator.
    Enroll(enroll::EnrollArgs),
    /// Check configuration, identity, network, data and disk; one line each.
    Doctor(ConfigArgs),
    /// Take part in runs until stopped.
    Run(ConfigArgs),
    /// Say what the running client does.
    Status(ConfigArgs),
    /// Print what was agreed, refused and trained, and what left the building.
    Ledger(history::LedgerArgs),
    /// Show and accept recovery statements of a restored coordinator.
    #[command(subcommand)]
    Recovery(recovery::RecoveryCommand),
}

/// Where the configuration is.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// The site's configuration.
    #[arg(long, value_name = "FILE", default_value = "site.toml")]
    config: PathBuf,
}

impl ConfigArgs {
    /// Configuration and policy, checked.
    fn load(&self) -> Result<SiteConfig, Failure> {
        SiteConfig::load(&self.config, &environment())
    }

    /// Configuration alone, for commands that only look.
    fn read(&self) -> Result<SiteConfig, Failure> {
        SiteConfig::read(&self.config, &environment())
    }
}

/// Runs one command.
pub fn run(command: &SiteCommand, format: Format, display: Display) -> Result<(), Failure> {
    match command {
        SiteCommand::Enroll(args) => enroll::run(args, format),
        SiteCommand::Doctor(args) => doctor::run(args, format),
        SiteCommand::Run(args) => take_part(args.load()?, display),
        SiteCommand::Status(args) => history::status(&args.read()?, format),
        SiteCommand::Ledger(args) => history::ledger(args, format),
        SiteCommand::Recovery(command) => recovery::run(command, format),
    }
}

fn take_part(config: SiteConfig, display: Display) -> Result<(), Failure> {
    let runtime = runtime()?;
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let signals = listen(shutdown.clone())?;
        let ended = site::run(config, display, shutdown).await;
        signals.abort();
        ended
    });
    // A look-up or a file that hangs must not keep the program from leaving.
    runtime.shutdown_background();
    ended
}

/// The small runtime that carries network and files.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|e| bug("runtime", format!("cannot start threads: {e}")))
}

/// Cancels `shutdown` at the first SIGINT or SIGTERM.
fn listen(shutdown: CancellationToken) -> Result<tokio::task::JoinHandle<()>, Failure> {
    let failed = |e: std::io::Error| bug("signals", format!("cannot listen for signals: {e}"));
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        // A file that outgrows the process's limit is an error like a full disk, not its end.
        let outgrown = rustix::process::Signal::XFSZ.as_raw();
        drop(signal(SignalKind::from_raw(outgrown)).map_err(failed)?);
        Ok(tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            shutdown.cancel();
        }))
    }
    #[cfg(not(unix))]
    {
        let _ = failed;
        Ok(tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                shutdown.cancel();
            }
        }))
    }
}

fn bug(code: &'static str, message: String) -> Failure {
    Failure::new(ExitCode::Bug, code, message)
}

/// The environment as text; a variable that is not text overrides nothing.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
