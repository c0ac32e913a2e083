//! `tributary`: the operator's and the auditor's command line.

use std::path::PathBuf;
use std::process;

use clap::{Parser, Subcommand};
use tributary_proto::channel::Role;
use tributary_shared::name::RunName;
use tributary_shared::outcome::{ExitCode, Failure};

use super::audit::{AuditCommand, audit};
use super::members::{PersonCommand, SiteCommand, person, site};
use super::reason::Reason;
use super::recovery::{self, RecoveryCommand};
use super::session::Globals;
use super::{Answer, Format, Program, check, enroll, log, new, pull, run, runs, show, status};

/// The operator's and the auditor's command line.
///
/// Exit codes: 0 ok, 1 refused, 2 connection or authentication, 3 timeout, 4 bad arguments, file
/// or data, 5 bug. With --format json every command prints one object: schema_version, status,
/// and data or error{code, message, hint}.
#[derive(Debug, Parser)]
#[command(name = "tributary", version)]
struct Tributary {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the coordinator: its version, its disk, its runs
    Status,
    /// Invite, list, suspend and revoke sites
    #[command(subcommand)]
    Site(SiteCommand),
    /// Invite, list, suspend and revoke operators
    #[command(subcommand)]
    Operator(PersonCommand),
    /// Invite, list, suspend and revoke auditors, who may read everything and change nothing
    #[command(subcommand)]
    Auditor(PersonCommand),
    /// Make a key here and get a certificate for it, as an invited operator or auditor
    Enroll {
        /// The startup kit
        kit: PathBuf,
        /// Directory of the identity; the same as --identity [default: $TRIBUTARY_IDENTITY, else
        /// ./operator or ./auditor, by the kit]
        #[arg(long, value_name = "DIR", conflicts_with = "identity")]
        directory: Option<PathBuf>,
        /// Replace the certificate of the same member, keeping its key
        #[arg(long)]
        renew: bool,
    },
    /// Start, watch and stop runs; fetch their adapters
    #[command(subcommand)]
    Run(RunCommand),
    /// Export the history and prove it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Sign what a restored coordinator says of the leaves it lost
    #[command(subcommand)]
    Recovery(RecoveryCommand),
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    /// Write a manifest to begin with, filled in from a backbone's file
    New(new::NewArgs),
    /// List what stands in the way of a run: in the manifest, at the coordinator, and at every
    /// connected site, which is asked whether it would take part. Starts nothing. Sites have
    /// --timeout to answer
    Check {
        /// The manifest, run.toml
        manifest: PathBuf,
    },
    /// Check a manifest as `check` does, and start the run that it declares
    Start {
        /// The manifest, run.toml
        manifest: PathBuf,
        /// Pass over warnings, and do not ask the sites; problems refuse all the same
        #[arg(long)]
        anyway: bool,
    },
    /// Show a run: its open round, who is where, and what came of each round
    Show {
        /// The run
        run: RunName,
        /// Again whenever something changes, until the run ends
        #[arg(long, short)]
        watch: bool,
    },
    /// Show every run
    #[command(visible_alias = "ls")]
    List,
    /// Print a run's history, one line an event
    Log {
        /// The run; everything, the registry of members included, when left out
        run: Option<RunName>,
        /// Go on as events happen, until interrupted
        #[arg(long, short)]
        follow: bool,
        /// Begin at this leaf of the history
        #[arg(long, default_value_t = 0, value_name = "LEAF")]
        from: u64,
    },
    /// End a run now; the adapters that it has published stand
    #[command(override_usage = "tributary run stop <RUN> --reason <WORDS> [OPTIONS]")]
    Stop {
        /// The run
        run: RunName,
        #[command(flatten)]
        reason: Reason,
    },
    /// Take up a run that failed, was stopped or waits: the next round opens under the same name and
    /// terms, and every site is asked again
    Resume {
        /// The run
        run: RunName,
        #[command(flatten)]
        reason: Reason,
    },
    /// Wait until a run ends: exit code 0 when it completed, 1 when it ended in any other way,
    /// 3 when --timeout has passed
    Wait {
        /// The run
        run: RunName,
        /// Exit with 0 for completed_partial too
        #[arg(long)]
        accept_partial: bool,
    },
    /// Fetch an adapter and check every byte of it against the run's terms
    Pull {
        /// The run
        run: RunName,
        /// Adapter version, 0 being the initial one [default: the newest]
        #[arg(long)]
        version: Option<u32>,
        /// The directory it goes to [default: RUN-vVERSION]
        #[arg(long, short, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// The whole program: arguments in, exit code out.
pub fn operator() -> process::ExitCode {
    run::<Tributary>()
}

impl Program for Tributary {
    fn format(&self) -> Format {
        self.globals.format
    }

    fn execute(self) -> Result<Answer, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::new(ExitCode::Bug, "runtime", e.to_string()))?;
        runtime.block_on(dispatch(self.command, self.globals))
    }
}

async fn dispatch(command: Command, mut globals: Globals) -> Result<Answer, Failure> {
    match command {
        Command::Status => status::status(&globals).await,
        Command::Site(command) => site(command, &globals).await,
        Command::Operator(command) => person(Role::Operator, command, &globals).await,
        Command::Auditor(command) => person(Role::Auditor, command, &globals).await,
        Command::Enroll { kit, directory, renew } => {
            globals.identity = directory.or(globals.identity);
            enroll::enroll(&kit, renew, &globals).await
        }
        Command::Run(command) => dispatch_run(command, &globals).await,
        Command::Audit(command) => audit(command, &globals).await,
        Command::Recovery(RecoveryCommand::Sign(arguments)) => recovery::sign(&arguments, &globals),
    }
}

async fn dispatch_run(command: RunCommand, globals: &Globals) -> Result<Answer, Failure> {
    match command {
        RunCommand::New(args) => new::new(args, globals).await,
        RunCommand::Check { manifest } => check::check(&manifest, globals).await,
        RunCommand::Start { manifest, anyway } => check::start(&manifest, anyway, globals).await,
        RunCommand::Show { run, watch: false } => show::show(&run, globals).await,
        RunCommand::Show { run, watch: true } => show::watch(&run, globals).await,
        RunCommand::List => runs::list(globals).await,
        RunCommand::Log { run, follow, from } => {
            log::log(run.as_ref(), from, follow, globals).await
        }
        RunCommand::Stop { run, reason } => {
            let reason = reason.words(&format!("run stop {run}"))?;
            runs::stop(&run, reason, globals).await
        }
        RunCommand::Resume { run, reason } => {
            let reason = reason.words(&format!("run resume {run}"))?;
            runs::resume(&run, reason, globals).await
        }
        RunCommand::Wait { run, accept_partial } => runs::wait(&run, accept_partial, globals).await,
        RunCommand::Pull { run, version, out } => pull::pull(&run, version, out, globals).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_holds_together() {
        Tributary::command().debug_assert();
    }
}
