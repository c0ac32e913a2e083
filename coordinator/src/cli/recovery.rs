//! `tributary-coordinator backup|restore|recover` and `tributary recovery sign`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::json;
use tributary_proto::channel::{sign_recovery, write_durably};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::recovery::{Draft, Recovery, Statement};

use super::present::bytes;
use super::service::{environment, load, runtime};
use super::session::Globals;
use super::{Answer, file_failure};
use crate::membership::CONFIG;
use crate::recovery::statement::{Recovering, read_statement};
use crate::recovery::{Place, backup as backing, restore as restoring};

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// coordinator.toml
    #[arg(long, default_value = "coordinator.toml", value_name = "FILE")]
    config: PathBuf,
    /// The backup; it holds the private keys, and its owner alone can read it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// MiB per second at which the archive is written and read back, at most; 0 for no limit
    #[arg(long, default_value_t = 32, value_name = "MIB_S")]
    rate: u64,
    /// Make a backup although adapters that the history names are gone
    #[arg(long)]
    allow_missing: bool,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("place").required(true).args(["config", "directory"])))]
pub(super) struct Restore {
    /// coordinator.toml of the coordinator whose database is replaced
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The coordinator's directory; created when absent
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Move a database that is there aside, where it stays as evidence
    #[arg(long)]
    replace: bool,
}

/// Arguments of `recover`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("who").required(true).args(["operator", "out", "statement"])))]
pub(super) struct Recover {
    /// coordinator.toml
    #[arg(long, default_value = "coordinator.toml", value_name = "FILE")]
    config: PathBuf,
    /// The reason of the loss, in words; they stand in the history for good
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "statement",
        required_unless_present = "statement"
    )]
    reason: Option<String>,
    /// Sign at once with the operator's identity in this directory
    #[arg(long, value_name = "DIR")]
    operator: Option<PathBuf>,
    /// Write the statement, to be signed with `tributary recovery sign FILE` elsewhere
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The operator who will sign what --out writes
    #[arg(long, default_value = "operator", value_name = "NAME", requires = "out")]
    operator_name: String,
    /// Add the statement signed by the operator
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// Leaves that the restored backup had; needed when the database was copied by hand
    #[arg(long, value_name = "SIZE")]
    kept: Option<u64>,
}

/// `tributary recovery ...`
#[derive(Debug, Subcommand)]
pub(super) enum RecoveryCommand {
    /// Sign a recovery statement with the operator's key, after printing what was lost
    Sign(Sign),
}

/// Arguments of `recovery sign`.
#[derive(Debug, Args)]
pub(super) struct Sign {
    /// The file that `tributary-coordinator recover --out FILE` wrote
    file: PathBuf,
    /// The file for the signed statement [default: the same file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Does `backup`.
pub(super) fn backup(arguments: &Backup) -> Result<Answer, Failure> {
    let place = Place::of(&load(&arguments.config)?);
    let rate = arguments.rate.saturating_mul(1 << 20);
    let done = runtime()?.block_on(backing::backup(
        &place,
        &arguments.out,
        rate,
        arguments.allow_missing,
    ))?;
    let mut text = format!(
        "Wrote {}: {}, {} leaves, {} adapters and deltas; read back and whole.\n\
         It holds the private keys: keep it encrypted.",
        done.file.display(),
        bytes(done.bytes),
        done.leaves,
        done.blobs
    );
    if done.blobs_missing > 0 {
        text.push_str(&format!(
            "\n{} adapters and deltas that the history names are not in the directory.",
            done.blobs_missing
        ));
    }
    Ok(Answer::new(done, text))
}

/// Does `restore`.
pub(super) fn restore(arguments: &Restore) -> Result<Answer, Failure> {
    let Restore { config, directory, from, replace } = arguments;
    let place = match (config, directory) {
        (Some(config), _) => Place::of(&load(config)?),
        (None, Some(directory)) => Place::at(directory.clone(), &environment())?,
        (None, None) => return Err(Failure::invalid("arguments", "give --config or --directory")),
    };
    let file = config.clone().unwrap_or_else(|| place.directory.join(CONFIG));
    let file = file.display();
    let done = runtime()?.block_on(restoring::restore(&place, from, *replace))?;
    let mut text = format!("Restored {}: {} leaves.", done.database.display(), done.leaves);
    if let Some(aside) = &done.moved_aside {
        text.push_str(&format!("\nThe database that was there is {}; keep it.", aside.display()));
    }
    match done.signed {
        Some(signed) => text.push_str(&format!(
            "\nThe log has signed {signed} leaves. Restore a newer backup, or say what was lost:\n  \
             tributary-coordinator recover --config {file} --operator DIR --reason TEXT"
        )),
        None => text.push_str(&format!("\nNext: tributary-coordinator serve --config {file}")),
    }
    Ok(Answer::new(done, text))
}

/// Does `recover`.
pub(super) fn recover(arguments: &Recover) -> Result<Answer, Failure> {
    let place = Place::of(&load(&arguments.config)?);
    runtime()?.block_on(async {
        let recovering = Recovering::open(&place).await?;
        let done = recover_with(&recovering, arguments).await;
        recovering.close().await;
        done
    })
}

async fn recover_with(recovering: &Recovering, arguments: &Recover) -> Result<Answer, Failure> {
    let config = arguments.config.display();
    let reason = arguments.reason.clone().unwrap_or_default();
    if let Some(out) = &arguments.out {
        let operator = format!("operator/{}", arguments.operator_name);
        let draft = recovering.draft(operator, reason, arguments.kept).await?;
        write_durably(out, draft.to_json().as_bytes(), 0o600).map_err(|e| file_failure(out, &e))?;
        let file = out.display();
        let text = format!(
            "{}\nWrote {file}. On the operator's machine: tributary recovery sign {file}\n\
             Then here: tributary-coordinator recover --config {config} --statement {file}",
            told(&draft.statement)
        );
        return Ok(Answer::new(json!({ "file": out, "statement": draft.statement }), text));
    }
    let recovery = match (&arguments.statement, &arguments.operator) {
        (Some(file), _) => recovering.read(file)?,
        (None, Some(directory)) => recovering.sign(directory, reason, arguments.kept).await?,
        (None, None) => return Err(Failure::invalid("arguments", "give --operator or --out")),
    };
    let done = recovering.accept(recovery).await?;
    let text = format!(
        "{}\nThe statement is leaf {} of the history. Sites accept it with `tributary-client recovery accept`.\n\
         Next: tributary-coordinator serve --config {config}",
        told(&done.recovery.statement),
        done.leaf
    );
    Ok(Answer::new(done, text))
}

/// Does `recovery sign`.
pub(super) fn sign(arguments: &Sign, globals: &Globals) -> Result<Answer, Failure> {
    let identity = globals.load_identity()?;
    let invalid = |e: &dyn std::error::Error| Failure::invalid("recovery", chain(e));
    let key = identity.log_verifier_key.parse().map_err(|e| invalid(&e))?;
    let text = read_statement(&arguments.file)?;
    let draft = Draft::from_json(text.as_bytes(), &key).map_err(|e| invalid(&e))?;
    let recovery: Recovery = sign_recovery(draft, &identity).map_err(|e| invalid(&e))?;
    let out = arguments.out.as_ref().unwrap_or(&arguments.file);
    write_durably(out, recovery.to_json().as_bytes(), 0o600).map_err(|e| file_failure(out, &e))?;
    let text =
        format!("{}\nSigned by {}: {}", told(&recovery.statement), identity.member, out.display());
    Ok(Answer::new(json!({ "file": out, "statement": recovery.statement }), text))
}

/// A statement in words, for people.
fn told(said: &Statement) -> String {
    let mut text = format!("Recovery statement {}", said.digest().short());
    for head in &said.lost {
        text.push_str(&format!(
            "\n  lost    {} leaves: the log had signed {}, root {}",
            head.size.saturating_sub(said.kept.size),
            head.size,
            head.root
        ));
    }
    let Statement { kept, reason, .. } = said;
    text.push_str(&format!(
        "\n  kept    {} leaves, root {}\n  reason  {reason}",
        kept.size, kept.root
    ));
    text
}
