//! `tributary-coordinator`: founds a consortium, serves it, keeps it up.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process;

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tributary_shared::name::{ConsortiumName, SiteName};
use tributary_shared::outcome::{ExitCode, Failure, ok_envelope};

use super::recovery::{self, Backup, Recover, Restore};
use super::{Answer, Format, Program, doctor, emit, gc, run};
use crate::clock;
use crate::config::CoordinatorConfig;
use crate::membership::{self, Founding, ServerNames};
use crate::serve::{self, Listening};

/// The coordinator of a consortium.
///
/// Exit codes: 0 ok, 1 refused, 2 connection or authentication, 3 timeout, 4 bad arguments, file
/// or data, 5 bug.
#[derive(Debug, Parser)]
#[command(name = "tributary-coordinator", version)]
struct Service {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a consortium: its private authority, server certificate, log key, first operator
    Init(Init),
    /// Serve until told to stop
    Serve(Configured),
    /// Bring the database's schema up to date and check it, without serving
    Migrate(Configured),
    /// Write everything of the coordinator into one verified file, while it serves
    Backup(Backup),
    /// Put a backup in the place of a lost database
    Restore(Restore),
    /// Record in a restored history which leaves were lost, signed by the log's key and an operator's
    Recover(Recover),
    /// Replace the server's key and certificate; a running coordinator takes them on SIGHUP
    RenewServer {
        /// coordinator.toml
        #[arg(long, default_value = "coordinator.toml", value_name = "FILE")]
        config: PathBuf,
        /// Add this DNS name or address to those of the present certificate; may be repeated
        #[arg(long = "server-name", value_name = "NAME")]
        server_names: Vec<String>,
        /// Leave this name out; may be repeated
        #[arg(long = "drop-server-name", value_name = "NAME")]
        dropped: Vec<String>,
        /// Let the names given with --server-name stand alone, in place of the present ones
        #[arg(long, requires = "server_names", conflicts_with = "dropped")]
        replace_server_names: bool,
    },
    /// Remove adapters and deltas that no event names or that the history has given up; the
    /// coordinator must be stopped
    Gc(gc::Gc),
    /// Check authority, certificate, address, listener, database, blobs and disk; one line each
    Doctor(Configured),
}

#[derive(Debug, Args)]
struct Configured {
    /// coordinator.toml
    #[arg(long, default_value = "coordinator.toml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Init {
    /// Directory of the coordinator, e.g. coord; created when absent, and nothing in it is
    /// overwritten
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// The consortium's name: a-z, 0-9 and `-`, e.g. example
    #[arg(long, value_name = "NAME", value_parser = consortium_name)]
    consortium: ConsortiumName,
    /// Address that startup kits tell members to connect to, e.g. coordinator.example.org:8443
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Where to listen [default: 127.0.0.1 and the port of --address]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Further DNS names and addresses in the server's certificate
    #[arg(long = "server-name", value_name = "NAME")]
    server_names: Vec<String>,
    /// The first operator's name
    #[arg(long, default_value = "operator", value_name = "NAME")]
    operator: SiteName,
}

fn consortium_name(text: &str) -> Result<ConsortiumName, String> {
    text.parse().map_err(|e| format!("{e}, e.g. example"))
}

/// The whole program: arguments in, exit code out.
pub fn service() -> process::ExitCode {
    run::<Service>()
}

impl Program for Service {
    fn format(&self) -> Format {
        self.format
    }

    fn execute(self) -> Result<Answer, Failure> {
        // An error means that one is installed already, and there is only the one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match self.command {
            Command::Init(arguments) => init(arguments),
            Command::Serve(Configured { config }) => serve(&load(&config)?, self.format),
            Command::Migrate(Configured { config }) => migrate(&load(&config)?),
            Command::Backup(arguments) => recovery::backup(&arguments),
            Command::Restore(arguments) => recovery::restore(&arguments),
            Command::Recover(arguments) => recovery::recover(&arguments),
            Command::Gc(arguments) => gc::gc(&arguments),
            Command::RenewServer { config, server_names, dropped, replace_server_names } => {
                let names = match replace_server_names {
                    true => ServerNames::Only(server_names),
                    false => ServerNames::Change { added: server_names, dropped },
                };
                renew_server(&load(&config)?, names)
            }
            Command::Doctor(Configured { config }) => {
                runtime()?.block_on(doctor::doctor(&config, load(&config), self.format))
            }
        }
    }
}

pub(super) fn load(file: &Path) -> Result<CoordinatorConfig, Failure> {
    CoordinatorConfig::load(file, &environment())
}

/// The environment as text; a variable that is not text overrides nothing.
pub(super) fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn init(arguments: Init) -> Result<Answer, Failure> {
    let Init { directory, consortium, address, listen, server_names, operator } = arguments;
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| {
        Failure::invalid("arguments", format!("--address: `{address}` is not HOST:PORT"))
            .hint("write what sites can reach, e.g. coordinator.example.org:8443")
    })?;
    let listen = listen.unwrap_or(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port));
    let founding = Founding {
        consortium,
        server_names,
        listen: listen.to_string(),
        address: address.clone(),
        operator,
    };
    let founded = membership::init(&directory, &founding, clock::now()).map_err(|e| e.failure())?;
    let (config, identity) = (founded.config.display(), founded.operator.display());
    let mut text = format!(
        "Founded consortium {} in {}:\n  \
         {config}   the configuration\n  \
         {identity}/   the identity of operator/{}; move it to the operator's machine\n  \
         {}   a run that tries network and storage and trains nothing\n  \
         {}   the log's public key; publish it\n  \
         root-key.pem, log-key.pem   private keys: back them up, and never hand them out\n\n\
         The server's certificate is for {}.\n",
        founding.consortium,
        directory.display(),
        founding.operator,
        founded.rehearsal.display(),
        directory.join(membership::LOG_VERIFIER_KEY).display(),
        founded.server_names.join(", "),
    );
    if listen.ip().is_loopback() {
        text.push_str(&format!(
            "It listens on {listen}, which only this machine can reach; `listen` in {config} says so.\n"
        ));
    }
    text.push_str(&format!(
        "\nThe default policy of a site refuses a run with fewer than two sites; the rehearsal needs two.\n\n\
         Next (start the run when both sites have enrolled and their clients run):\n  \
         tributary-coordinator serve --config {config}\n  \
         tributary site invite alpha --identity {identity}\n  \
         tributary site invite beta --identity {identity}\n  \
         tributary run start {rehearsal} --identity {identity}",
        rehearsal = founded.rehearsal.display(),
    ));
    let data = json!({
        "directory": directory, "config": founded.config, "operator": founded.operator,
        "address": address, "listen": listen, "server_names": founded.server_names,
        "log_verifier_key": founded.log_verifier_key,
    });
    Ok(Answer::new(data, text))
}

fn serve(config: &CoordinatorConfig, format: Format) -> Result<Answer, Failure> {
    serve::log(config.log);
    runtime()?.block_on(serve::serve(config, |listening| announce(listening, format)))?;
    Ok(Answer::Printed)
}

fn announce(listening: &Listening, format: Format) {
    let Listening { consortium, bound, address } = listening;
    match format {
        Format::Text => emit(&format!("{consortium}: listening on {bound}, kits say {address}")),
        Format::Json => {
            let data = json!({ "consortium": consortium, "listening": bound, "address": address });
            emit(&ok_envelope(data).to_string());
        }
    }
}

fn migrate(config: &CoordinatorConfig) -> Result<Answer, Failure> {
    let leaves = runtime()?.block_on(async {
        let store = serve::open_store(config).await?;
        let leaves = *store.follow().borrow();
        store.close().await;
        Ok::<_, Failure>(leaves)
    })?;
    let text = format!(
        "{} has this version's schema; its history has {leaves} leaves.",
        config.database.display()
    );
    Ok(Answer::new(json!({ "database": config.database, "leaves": leaves }), text))
}

fn renew_server(config: &CoordinatorConfig, names: ServerNames) -> Result<Answer, Failure> {
    let address = config.address_expected();
    let names = membership::renew_server(&config.directory, names, &address, clock::now())
        .map_err(|e| e.failure())?;
    let text = format!(
        "The server has a new key and certificate, for {}.\n\
         A running coordinator takes them when it gets SIGHUP: kill -HUP PID",
        names.join(", ")
    );
    Ok(Answer::new(json!({ "server_names": names }), text))
}

/// Two workers: the service moves bytes, and what computes runs beside them.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|e| Failure::new(ExitCode::Bug, "runtime", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_holds_together() {
        Service::command().debug_assert();
    }
}
