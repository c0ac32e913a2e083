//! `recovery show|accept`: shows and accepts the recovery statements of a restored coordinator.

use serde::Serialize;
use tributary_proto::channel::Identity;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::text::printable;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::recovery::{Head, Recovery};

use super::ConfigArgs;
use crate::cli::{Format, print};
use crate::config::site::SiteConfig;
use crate::site::directory::identity_of;
use crate::site::recovery::{Files, kept};

/// Commands about a restored history.
#[derive(Debug, clap::Subcommand)]
pub enum RecoveryCommand {
    /// Print what the coordinator says was lost, with who signed it.
    Show(ConfigArgs),
    /// Accept it: the running client goes on from the head that was kept.
    Accept(AcceptArgs),
}

/// Which statement to accept.
#[derive(Debug, clap::Args)]
pub struct AcceptArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The statement's digest, or its first 8 digits at least [default: the one that waits]
    #[arg(long, value_name = "DIGEST")]
    statement: Option<String>,
}

/// Least digits by which a statement is named.
const DIGITS_MIN: usize = 8;
/// The beginning of a digest as it is printed.
const SCHEME: &str = "sha256:";

/// One statement.
#[derive(Debug, Serialize)]
struct Row {
    statement: Digest,
    accepted: bool,
    at: Timestamp,
    operator: String,
    reason: String,
    kept_leaves: u64,
    kept_root: Digest,
    lost: Vec<Lost>,
}

/// A head on a branch that was lost.
#[derive(Debug, Serialize)]
struct Lost {
    leaves: u64,
    size: u64,
    root: Digest,
}

impl Row {
    fn new(recovery: &Recovery, files: &Files) -> Self {
        let said = &recovery.statement;
        Self {
            statement: said.digest(),
            accepted: files.accepted.exists(),
            at: said.at,
            operator: said.operator.clone(),
            reason: said.reason.clone(),
            kept_leaves: said.kept.size,
            kept_root: said.kept.root,
            lost: said.lost.iter().map(|head| Lost::new(head, said.kept.size)).collect(),
        }
    }
}

impl Lost {
    fn new(head: &Head, kept: u64) -> Self {
        Self { leaves: head.size.saturating_sub(kept), size: head.size, root: head.root }
    }
}

pub(super) fn run(command: &RecoveryCommand, format: Format) -> Result<(), Failure> {
    match command {
        RecoveryCommand::Show(config) => {
            let rows: Vec<Row> =
                read(&config.read()?)?.iter().map(|(r, f)| Row::new(r, f)).collect();
            print(format, &rows, || tell(&rows));
            Ok(())
        }
        RecoveryCommand::Accept(args) => accept(args, format),
    }
}

fn read(config: &SiteConfig) -> Result<Vec<(Recovery, Files)>, Failure> {
    let identity = Identity::load(&identity_of(&config.directory))
        .map_err(|e| Failure::invalid("identity", chain(&e)))?;
    kept(&config.directory, &identity)
}

fn accept(args: &AcceptArgs, format: Format) -> Result<(), Failure> {
    let config = args.config.read()?;
    let all = read(&config)?;
    let waiting: Vec<_> = match &args.statement {
        Some(start) if start.trim_start_matches(SCHEME).len() < DIGITS_MIN => {
            let message = format!("--statement: give at least {DIGITS_MIN} digits of the digest");
            return Err(Failure::invalid("arguments", message));
        }
        Some(start) => {
            let start = start.trim_start_matches(SCHEME);
            all.iter().filter(|(r, _)| r.statement.digest().to_hex().starts_with(start)).collect()
        }
        None => all.iter().filter(|(_, files)| !files.accepted.exists()).collect(),
    };
    let [(recovery, files)] = waiting[..] else {
        return Err(unclear(waiting.len(), args.statement.as_deref()));
    };
    files
        .accept("the site's engineer")
        .map_err(|e| Failure::invalid("directory", format!("{}: {e}", files.accepted.display())))?;
    let row = Row::new(recovery, files);
    print(format, &row, || {
        say!("Accepted: this site goes on from {} leaves.", row.kept_leaves);
        say!("What it has seen before stays beside witness.json, as evidence.");
    });
    Ok(())
}

/// The failure of `accept` where not exactly one statement waits.
fn unclear(waiting: usize, asked: Option<&str>) -> Failure {
    let refused = |message: String| Failure::refused("recovery", message);
    match (waiting, asked) {
        (0, Some(digest)) => refused(format!("no recovery statement begins with {digest}"))
            .hint("`tributary-client recovery show` lists the statements"),
        (0, None) => refused("no recovery statement waits for acceptance".to_owned())
            .hint("the client fetches it when it connects"),
        (more, _) => refused(format!("{more} recovery statements wait for acceptance"))
            .hint("`tributary-client recovery show` lists them; name one with --statement"),
    }
}

fn tell(rows: &[Row]) {
    if rows.is_empty() {
        say!("The coordinator has not said that its history lost anything this site has seen.");
    }
    for row in rows {
        say!("Statement {}", row.statement);
        say!("  {}", if row.accepted { "accepted" } else { "not accepted yet" });
        for Lost { leaves, size, root } in &row.lost {
            say!("  lost    {leaves} leaves: the log had signed {size}, root {root}");
        }
        say!("  kept    {} leaves, root {}", row.kept_leaves, row.kept_root);
        say!("  signed  by the log's key and {}, {}", printable(&row.operator), row.at);
        say!("  reason  {}", printable(&row.reason));
    }
}
