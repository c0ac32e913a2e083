//! `run pull`: fetches an adapter, checks it against the run's own terms, and keeps it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::NamedTempFile;
use tributary_proto::channel::write_durably;
use tributary_proto::v1::{PullChunk, PullRequest, PullSubject};
use tributary_shared::digest::Digest;
use tributary_shared::initial::adapter_header;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::Failure;
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::Reader;

use super::present::{bar, bytes};
use super::session::{Globals, Session};
use super::{Answer, file_failure};

/// The adapter's canonical bytes.
const ADAPTER: &str = "adapter.tensors";
/// The manifest's canonical JSON, which the history names by its digest.
const MANIFEST: &str = "manifest.json";
/// The manifest as a file to start the next run from.
const RUN: &str = "run.toml";

/// Fetches version `version` (the newest when absent) of `run` into the directory `out`.
pub(super) async fn pull(
    run: &RunName,
    version: Option<u32>,
    out: Option<PathBuf>,
    globals: &Globals,
) -> Result<Answer, Failure> {
    let session = Session::open(globals).await?;
    let request = PullRequest { run: run.to_string(), version };
    let mut stream = session.ask(session.client.clone().pull(request)).await?;
    let first = session.next(&mut stream).await?;
    let first = first.ok_or_else(|| broken("the stream holds nothing"))?;
    let subject = Subject::check(run, version, first.subject.as_ref())?;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{run}-v{}", subject.version)));
    let target = out.join(ADAPTER);
    if target.exists() {
        return Err(Failure::invalid("exists", format!("{} exists already", target.display()))
            .hint("name another directory with --out, or remove that one"));
    }
    std::fs::create_dir_all(&out).map_err(|e| file_failure(&out, &e))?;
    let mut download = Download::begin(&out, &subject)?;
    let mut next = Some(first);
    while let Some(chunk) = next {
        download.take(&chunk)?;
        next = session.next(&mut stream).await?;
    }
    download.keep(&target, &subject)?;
    let manifest = &subject.manifest;
    keep_text(&out.join(MANIFEST), &String::from_utf8_lossy(&manifest.to_json()))?;
    let toml = toml::to_string(manifest).map_err(|e| broken(format!("the manifest: {e}")))?;
    keep_text(&out.join(RUN), &toml)?;
    let mut text = format!(
        "Wrote {}: version {} of {run}, {}, {}.",
        target.display(),
        subject.version,
        bytes(subject.bytes),
        subject.digest
    );
    if manifest.backbone.is_some() {
        text.push_str(&format!(
            "\nFor Python's peft: tributary-client export --run {} --adapter {} --out {}",
            out.join(RUN).display(),
            target.display(),
            out.join("peft").display()
        ));
    }
    let data = json!({
        "run": run, "version": subject.version, "digest": subject.digest, "bytes": subject.bytes,
        "manifest_digest": manifest.digest(), "directory": out, "adapter": target,
    });
    Ok(Answer::new(data, text))
}

/// What is coming, checked to be what was asked for.
#[derive(Debug)]
struct Subject {
    version: u32,
    digest: Digest,
    bytes: u64,
    manifest: RunManifest,
}

impl Subject {
    fn check(
        run: &RunName,
        version: Option<u32>,
        wire: Option<&PullSubject>,
    ) -> Result<Self, Failure> {
        let wire = wire.ok_or_else(|| broken("the first message names no adapter"))?;
        let manifest = RunManifest::from_json(&wire.manifest_json)
            .map_err(|e| broken(format!("the manifest: {e}")))?;
        if manifest.name != *run {
            return Err(broken(format!("it is of run {}, not {run}", manifest.name)));
        }
        if let Some(asked) = version.filter(|asked| *asked != wire.version) {
            return Err(broken(format!("it is version {}, not {asked}", wire.version)));
        }
        let digest = Digest::try_from(wire.digest.as_ref()).map_err(|e| broken(e.to_string()))?;
        Ok(Self { version: wire.version, digest, bytes: wire.bytes, manifest })
    }
}

/// Bytes on their way to a file that gets its name only when all of them are right.
struct Download {
    reader: Reader,
    file: BufWriter<NamedTempFile>,
    bar: indicatif::ProgressBar,
}

impl Download {
    fn begin(out: &Path, subject: &Subject) -> Result<Self, Failure> {
        let contract = subject.manifest.contract().ok_or_else(|| broken("it has no contract"))?;
        let header = adapter_header(&subject.manifest.name, subject.version, &contract);
        let reader = Reader::new(header);
        if reader.total_bytes() != subject.bytes {
            let expected = reader.total_bytes();
            return Err(refused(&Refusal::Size { expected, found: subject.bytes }));
        }
        let file = NamedTempFile::new_in(out).map_err(|e| file_failure(out, &e))?;
        let bar = bar("pulling", Some(subject.bytes));
        Ok(Self { reader, file: BufWriter::new(file), bar })
    }

    fn take(&mut self, chunk: &PullChunk) -> Result<(), Failure> {
        self.reader.push(&chunk.data).map_err(|refusal| refused(&refusal))?;
        self.bar.inc(chunk.data.len() as u64);
        let path = self.file.get_ref().path().to_owned();
        self.file.write_all(&chunk.data).map_err(|e| file_failure(&path, &e))
    }

    fn keep(self, target: &Path, subject: &Subject) -> Result<(), Failure> {
        let failed = |e: &std::io::Error| file_failure(target, e);
        let checked = self.reader.finish().map_err(|refusal| refused(&refusal))?;
        if checked.digest != subject.digest {
            return Err(refused(&Refusal::Digest {
                expected: subject.digest.to_string(),
                found: checked.digest.to_string(),
            }));
        }
        self.bar.finish_and_clear();
        let file = self.file.into_inner().map_err(|e| failed(e.error()))?;
        file.as_file().sync_all().map_err(|e| failed(&e))?;
        file.persist_noclobber(target).map_err(|e| failed(&e.error))?;
        let folder = target.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| failed(&e))
    }
}

fn keep_text(path: &Path, text: &str) -> Result<(), Failure> {
    write_durably(path, text.as_bytes(), 0o600).map_err(|e| file_failure(path, &e))
}

/// An adapter that does not fit the run's own manifest: refused, and nothing is kept.
fn refused(refusal: &Refusal) -> Failure {
    Failure::refused("adapter", format!("the adapter is refused: {refusal}"))
        .hint("nothing was kept; try again, and tell the operator if it comes again")
}

fn broken(problem: impl Into<String>) -> Failure {
    let problem = problem.into();
    Failure::refused("adapter", format!("the coordinator sent something else: {problem}"))
        .hint("the coordinator and this program may be of different versions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manifest;
    use tributary_shared::initial::initial_adapter;

    fn subject(adapter: &[u8]) -> Subject {
        let manifest = manifest::sample();
        let wire = PullSubject {
            version: 0,
            digest: Digest::of(adapter).as_bytes().to_vec().into(),
            bytes: adapter.len() as u64,
            manifest_json: manifest.to_json().into(),
        };
        Subject::check(&manifest.name, None, Some(&wire)).unwrap()
    }

    fn download(subject: &Subject, sent: &[u8], out: &Path) -> Result<(), Failure> {
        let mut download = Download::begin(out, subject)?;
        for piece in sent.chunks(1_000) {
            let chunk = PullChunk { subject: None, data: piece.to_vec().into() };
            download.take(&chunk)?;
        }
        download.keep(&out.join(ADAPTER), subject)
    }

    #[test]
    fn an_adapter_is_kept_whole_and_right_or_not_at_all() {
        let adapter = initial_adapter(&manifest::sample());
        let mut flipped = adapter.clone();
        let last = flipped.len() - 4;
        flipped[last] ^= 1;
        let subject = subject(&adapter);
        for (sent, problem) in [
            (&flipped[..], "bytes hash to"),
            (&adapter[..adapter.len() - 1], "the contract allows"),
            (&adapter[1..], "malformed"),
            (&[&adapter[..], b"x"].concat(), "the contract allows"),
        ] {
            let out = tempfile::tempdir().unwrap();
            let failure = download(&subject, sent, out.path()).unwrap_err();
            assert!(failure.message.contains(problem), "{failure}");
            assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{problem}");
        }
        let out = tempfile::tempdir().unwrap();
        download(&subject, &adapter, out.path()).unwrap();
        assert_eq!(std::fs::read(out.path().join(ADAPTER)).unwrap(), adapter);
    }

    #[test]
    fn the_pulled_run_toml_means_the_same_terms() {
        let manifest = manifest::sample();
        let text = toml::to_string(&manifest).unwrap();
        assert_eq!(RunManifest::from_toml(&text).unwrap().digest(), manifest.digest());
    }
}
