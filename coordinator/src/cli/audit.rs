//! `audit export|verify`: the history as a file, and the proof that it is whole.

use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
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
use super::{Answer, file_failure};
use crate::audit::{Finding, Progress, Report, verify_file};
use crate::config::read_text;

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
                recomputed(&report)?;
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
        "Wrote {shown}: {}.\nVerify it anywhere: tributary audit verify --file {shown} --key log.vkey\n\
         The key is {}",
        bytes(size),
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
    let file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(|e| failed(&e))?;
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
    let (file, _) = fetch(&session, &std::env::temp_dir(), true).await?;
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

/// Refuses a history of which some published adapter was not recomputed.
fn recomputed(report: &Report) -> Result<(), Failure> {
    let missing = report.not_recomputed();
    let Some(first) = missing.first() else { return Ok(()) };
    let asked = report.adapters_recomputed + missing.len();
    let message = format!(
        "NOT VERIFIED: {} of {asked} published adapters were not recomputed, first {first}",
        missing.len()
    );
    Err(Failure::refused("not_recomputed", message)
        .hint("verify an export made with --with-tensors; all else in this one holds")
        .details(missing))
}

/// A history that does not hold is refused; a file that cannot be read is bad input.
fn failure(file: &Path, finding: &Finding) -> Failure {
    let message = format!("NOT VERIFIED: {}: {}", file.display(), chain(finding));
    if matches!(finding, Finding::Unreadable(_)) {
        return Failure::invalid(finding.code(), message);
    }
    Failure::refused(finding.code(), message).hint(
        "keep this file and ask for another export; if both fail alike, the history was altered",
    )
}
