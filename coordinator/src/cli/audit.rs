//! `audit export|verify`: the history as a file, and the proof that it is whole.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use tempfile::NamedTempFile;
use tributary_proto::v1::ExportRequest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::witness::Witness;

use super::present::{bar, bytes};
use super::session::{Globals, Session};
use super::{Answer, Format, emit, file_failure};
use crate::audit::{Finding, Progress, Report, verify_file};
use crate::config::read_text;
use crate::membership::LOG_VERIFIER_KEY;

/// Largest verifier key file read, bytes.
const KEY_BYTES_MAX: u64 = 4096;
/// Largest witness file read, bytes.
const WITNESS_BYTES_MAX: u64 = 64 * 1024;

/// `tributary audit ...`
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Fetch the whole history into one file that can be verified offline
    Export(Export),
    /// Prove that a history is complete and unaltered: of an export, or online
    Verify(Verify),
}

/// Where the history goes.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The file; an existing one is replaced when the new one is whole
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Deltas and adapters too, so that every published adapter can be recomputed
    #[arg(long)]
    with_tensors: bool,
}

/// What is verified, and by which key.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// An export; without it the history is fetched, with its tensors, and verified
    #[arg(long, value_name = "EXPORT")]
    file: Option<PathBuf>,
    /// The log's public key [default: log.vkey of your identity]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A site's witness.json: the history must continue what that site saw; may be repeated
    #[arg(long, value_name = "FILE")]
    witness: Vec<PathBuf>,
    /// Fail unless every published adapter was recomputed from the deltas that were counted
    #[arg(long)]
    require_tensors: bool,
}

/// Does an `audit` command.
pub(super) async fn audit(command: AuditCommand, globals: &Globals) -> Result<Answer, Failure> {
    match command {
        AuditCommand::Export(Export { out, with_tensors }) => {
            export(&out, with_tensors, globals).await
        }
        AuditCommand::Verify(arguments) => {
            let Verify { file, key, witness, require_tensors } = arguments;
            let report = match &file {
                Some(file) => offline(file, key.as_deref(), &witness, globals)?,
                None => online(key.as_deref(), &witness, globals).await?,
            };
            if require_tensors {
                recomputed(&report, globals.format)?;
            }
            Ok(Answer::new(&report, report.to_string()))
        }
    }
}

async fn export(out: &Path, with_tensors: bool, globals: &Globals) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let (file, size) = fetch(&session, folder_of(out), with_tensors).await?;
    file.as_file().sync_all().map_err(|e| file_failure(out, &e))?;
    file.persist(out).map_err(|e| file_failure(out, &e.error))?;
    let shown = out.display().to_string();
    let text = format!(
        "Wrote {shown}: {}.\nVerify it anywhere: tributary audit verify --file {shown} --key {}\n\
         The key is {}",
        bytes(size),
        globals.directory()?.join(LOG_VERIFIER_KEY).display(),
        session.identity.log_verifier_key
    );
    let data = json!({
        "file": out, "bytes": size, "with_tensors": with_tensors,
        "log_verifier_key": session.identity.log_verifier_key,
    });
    Ok(Answer::new(data, text))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Streams an export into a file that has no name of its own yet.
async fn fetch(
    session: &Session,
    folder: &Path,
    with_tensors: bool,
) -> Result<(NamedTempFile, u64), Failure> {
    let failed = |e: &std::io::Error| file_failure(folder, e);
    let file = NamedTempFile::new_in(folder).map_err(|e| failed(&e))?;
    let mut file = BufWriter::new(file);
    let request = ExportRequest { with_tensors };
    let mut stream = session.ask(session.client.clone().export(request)).await?;
    let bar = bar("exporting", None);
    let mut size = 0;
    while let Some(chunk) = session.next(&mut stream).await? {
        file.write_all(&chunk.data).map_err(|e| failed(&e))?;
        size += chunk.data.len() as u64;
        bar.set_position(size);
    }
    bar.finish_and_clear();
    let file = file.into_inner().map_err(|e| failed(e.error()))?;
    Ok((file, size))
}

async fn online(
    key: Option<&Path>,
    witnesses: &[PathBuf],
    globals: &Globals,
) -> Result<Report, Failure> {
    let session = Session::open(globals).await?;
    let key = match key {
        Some(file) => load_key(file)?,
        None => own_key(&session.identity.log_verifier_key)?,
    };
    let known = known_heads(witnesses, &key)?;
    // Deltas are private to this user, and too large for a folder in memory.
    let (file, _) = fetch(&session, &globals.directory()?, true).await?;
    verify(file.path(), &key, &known)
}

fn offline(
    file: &Path,
    key: Option<&Path>,
    witnesses: &[PathBuf],
    globals: &Globals,
) -> Result<Report, Failure> {
    let key = match key {
        Some(key) => load_key(key)?,
        None => own_key(&globals.load_identity()?.log_verifier_key)?,
    };
    verify(file, &key, &known_heads(witnesses, &key)?)
}

/// The heads that sites hold of the log of `key`.
fn known_heads(files: &[PathBuf], key: &VerifierKey) -> Result<Vec<Checkpoint>, Failure> {
    let mend = "name the witness.json out of a site's directory";
    let head = |file: &PathBuf| {
        let refused = |problem: String| {
            Failure::invalid("witness", format!("{}: {problem}", file.display())).hint(mend)
        };
        let text = read_text(file, WITNESS_BYTES_MAX, mend)?;
        let witness = Witness::from_json(&text).map_err(|e| refused(chain(&e)))?;
        if witness.key() != key {
            return Err(refused(format!("it is of the log {}, not of {key}", witness.key())));
        }
        Ok(witness.checkpoint().cloned())
    };
    files.iter().filter_map(|file| head(file).transpose()).collect()
}

fn load_key(file: &Path) -> Result<VerifierKey, Failure> {
    let mend = "use the log.vkey that the coordinator published, or that of an identity";
    let text = read_text(file, KEY_BYTES_MAX, mend)?;
    text.trim()
        .parse()
        .map_err(|e| Failure::invalid("key", format!("{}: {e}", file.display())).hint(mend))
}

fn own_key(text: &str) -> Result<VerifierKey, Failure> {
    text.parse().map_err(|e| {
        Failure::invalid("key", format!("log.vkey of the identity: {e}"))
            .hint("name the log's public key with --key FILE")
    })
}

fn verify(file: &Path, key: &VerifierKey, known: &[Checkpoint]) -> Result<Report, Failure> {
    let bar = bar("verifying", None);
    let mut progress = |progress: Progress| match progress {
        Progress::Leaves { done, total } => bar.set_message(format!("leaf {done} of {total}")),
        Progress::Bytes { done } => bar.set_position(done),
        Progress::Rounds { done, total } => bar.set_message(format!("round {done} of {total}")),
    };
    let report = verify_file(file, key, known, &mut progress);
    bar.finish_and_clear();
    report.map_err(|finding| failure(file, &finding))
}

/// Refuses a history of which some published adapter was not recomputed. Text begins with the
/// verdict, and the report follows it.
fn recomputed(report: &Report, format: Format) -> Result<(), Failure> {
    let missing = report.not_recomputed();
    let Some(first) = missing.first() else { return Ok(()) };
    let asked = report.adapters_recomputed + missing.len();
    let verdict = format!(
        "NOT VERIFIED: {} of {asked} published adapters were not recomputed, first {first}",
        missing.len()
    );
    let refused = |message: String| {
        Failure::refused("not_recomputed", message)
            .hint("verify an export made with --with-tensors; all else in this one holds")
    };
    Err(match format {
        Format::Json => refused(verdict).details(missing),
        Format::Text => {
            emit(report.under(&verdict).trim_end());
            refused("published adapters were not recomputed".to_owned())
        }
    })
}

/// A history that does not hold is refused; a file that cannot be read is bad input.
fn failure(file: &Path, finding: &Finding) -> Failure {
    let message = format!("NOT VERIFIED: {}: {}", file.display(), chain(finding));
    if matches!(finding, Finding::Unreadable(_)) {
        return Failure::invalid(finding.code(), message);
    }
    Failure::refused(finding.code(), message).hint(mend(finding))
}

/// The next step of an auditor after `finding`.
fn mend(finding: &Finding) -> &'static str {
    match finding {
        Finding::Checkpoint(_) => "is --key the public key of this consortium's log?",
        Finding::Truncated { .. } => "the file ends early; export or copy it again",
        Finding::Unreadable(_)
        | Finding::Malformed { .. }
        | Finding::Rollback { .. }
        | Finding::Fork { .. }
        | Finding::LeafHash { .. }
        | Finding::Root { .. }
        | Finding::Record { .. }
        | Finding::Sequence { .. }
        | Finding::Impossible { .. }
        | Finding::Initial { .. }
        | Finding::Tensors { .. }
        | Finding::Aggregate { .. }
        | Finding::NoAggregate { .. } => {
            "keep this file and ask for another export; if both fail alike, the history was altered"
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::digest::Digest;

    use super::*;

    /// Failed before: every finding, a wrong `--key` too, was told as an altered history.
    #[test]
    fn a_wrong_key_and_a_short_file_are_not_told_as_an_altered_history() {
        let truncated = Finding::Truncated { offset: 9, inside: "leaf 0".to_owned() };
        let told = failure(Path::new("history"), &truncated).to_string();
        assert!(told.starts_with("NOT VERIFIED: history: "), "{told}");
        assert!(told.ends_with("(the file ends early; export or copy it again)"), "{told}");
        let root = Digest::of(b"root");
        let altered = Finding::Root { size: 1, found: root, signed: root };
        assert!(failure(Path::new("history"), &altered).to_string().contains("was altered"));
    }
}
