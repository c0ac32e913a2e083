//! A backup as one file: a tar archive whose first entry says what the others are.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::name::ConsortiumName;
use tributary_shared::timestamp::Timestamp;

/// The only archive schema this version writes, and the newest it reads.
pub const ARCHIVE_SCHEMA: u32 = 1;
/// The first entry.
pub const MANIFEST: &str = "manifest.json";
/// Largest manifest read, bytes: about a third of a million files.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Piece in which files are copied, bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Written bytes are made durable this often, so that no flood of them stands before a commit.
const SYNC_EVERY: u64 = 8 << 20;

/// The table of contents of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`ARCHIVE_SCHEMA`].
    pub schema_version: u32,
    /// The program that wrote it.
    pub program_version: String,
    /// Schema of the database in it.
    pub database_schema: i64,
    /// The consortium.
    pub consortium: ConsortiumName,
    /// The log's public key.
    pub log_verifier_key: String,
    /// Leaves of the history in it.
    pub log_size: u64,
    /// Their root.
    pub log_root: Digest,
    /// The moment at which it was made.
    pub created: Timestamp,
    /// Every further entry, in order.
    pub files: Vec<Entry>,
}

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path in the coordinator's directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// The reason for which an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be opened.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// The file cannot be read, or ends before it should.
    #[error("cannot be read to its end; is it a whole copy?")]
    Read(#[source] io::Error),
    /// Not a backup.
    #[error("not a backup: {0}")]
    Form(String),
    /// Written by a later version.
    #[error("backup of schema version {0}; this program reads {ARCHIVE_SCHEMA}; use a newer one")]
    Newer(u64),
    /// A file in it was changed.
    #[error("{path} in the backup hashes to {found}, its manifest says {expected}")]
    Damaged {
        /// The file.
        path: String,
        /// As the manifest says.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// Writes an archive at a bounded rate.
pub struct Writer<'f> {
    tar: tar::Builder<Paced<'f>>,
}

impl<'f> Writer<'f> {
    /// Begins an archive with its manifest.
    pub fn begin(file: &'f File, manifest: &Manifest, rate: u64) -> io::Result<Self> {
        let mut tar = tar::Builder::new(Paced::new(file, rate));
        let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
        let mut header = header(bytes.len() as u64, manifest.created);
        tar.append_data(&mut header, MANIFEST, &bytes[..])?;
        Ok(Self { tar })
    }

    /// Writes the next file.
    pub fn file(&mut self, entry: &Entry, at: Timestamp, from: impl Read) -> io::Result<()> {
        self.tar.append_data(&mut header(entry.bytes, at), &entry.path, from.take(entry.bytes))
    }

    /// Ends the archive, durably.
    pub fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.file.sync_all()
    }
}

fn header(bytes: u64, at: Timestamp) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(at.as_millis() / 1000).unwrap_or_default());
    header
}

/// Reads the manifest of an archive alone.
pub fn read_manifest(archive: &Path) -> Result<Manifest, ArchiveError> {
    let file = File::open(archive).map_err(ArchiveError::Open)?;
    let mut tar = tar::Archive::new(file);
    let mut entries = tar.entries().map_err(ArchiveError::Read)?;
    manifest_of(&mut entries)
}

/// Reads an archive to its end, checks every file of it, and gives each to `target`, which says
/// where it is written; nowhere when it gives `None`.
pub fn unpack(
    archive: &Path,
    rate: u64,
    target: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Manifest, ArchiveError> {
    let file = File::open(archive).map_err(ArchiveError::Open)?;
    let mut tar = tar::Archive::new(file);
    let mut entries = tar.entries().map_err(ArchiveError::Read)?;
    let manifest = manifest_of(&mut entries)?;
    let mut pace = Pace::new(rate);
    for expected in &manifest.files {
        let missing = || ArchiveError::Form(format!("it ends before {}", expected.path));
        let found = entries.next().ok_or_else(missing)?.map_err(ArchiveError::Read)?;
        let path = found.path().map_err(ArchiveError::Read)?.to_string_lossy().into_owned();
        if path != expected.path || found.size() != expected.bytes {
            let problem = format!(
                "{path} of {} bytes stands where {} of {} should",
                found.size(),
                expected.path,
                expected.bytes
            );
            return Err(ArchiveError::Form(problem));
        }
        copy_checked(found, expected, target(&path).as_deref(), &mut pace)?;
    }
    match entries.next() {
        None => Ok(manifest),
        Some(_) => Err(ArchiveError::Form("it goes on after its last file".to_owned())),
    }
}

/// Reads the manifest, which is the first entry.
fn manifest_of(entries: &mut tar::Entries<'_, File>) -> Result<Manifest, ArchiveError> {
    let form = |problem: String| ArchiveError::Form(problem);
    let entry = match entries.next() {
        None => return Err(form("it is empty".to_owned())),
        Some(Err(e)) if e.kind() == io::ErrorKind::Other => {
            return Err(form("it is not a tar archive".to_owned()));
        }
        Some(first) => first.map_err(ArchiveError::Read)?,
    };
    let path = entry.path().map_err(ArchiveError::Read)?;
    if path.as_os_str() != MANIFEST {
        return Err(form(format!("it begins with {}, not with {MANIFEST}", path.display())));
    }
    if entry.size() > MANIFEST_BYTES_MAX {
        return Err(form("its manifest is of excessive length".to_owned()));
    }
    let mut text = Vec::new();
    entry.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(ArchiveError::Read)?;
    let unreadable = |e: serde_json::Error| ArchiveError::Form(format!("{MANIFEST}: {e}"));
    let loose: serde_json::Value = serde_json::from_slice(&text).map_err(unreadable)?;
    match loose["schema_version"].as_u64() {
        Some(found) if found > u64::from(ARCHIVE_SCHEMA) => Err(ArchiveError::Newer(found)),
        Some(_) => {
            let manifest: Manifest = serde_json::from_value(loose).map_err(unreadable)?;
            match manifest.files.iter().find(|entry| !is_plain(&entry.path)) {
                Some(bad) => Err(form(format!("`{}` is no path of a backup", bad.path))),
                None => Ok(manifest),
            }
        }
        None => Err(form(format!("{MANIFEST} has no schema_version"))),
    }
}

/// One or two plain names: no way out of the folder.
fn is_plain(path: &str) -> bool {
    let name = |name: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
    };
    let names: Vec<&str> = path.split('/').collect();
    names.len() <= 2 && names.into_iter().all(name)
}

fn copy_checked(
    mut from: impl Read,
    expected: &Entry,
    to: Option<&Path>,
    pace: &mut Pace,
) -> Result<(), ArchiveError> {
    let mut file = to.map(create).transpose()?;
    let written = |source| ArchiveError::Write { path: to.unwrap_or(Path::new("")).into(), source };
    let (mut hasher, mut left) = (Hasher::new(), expected.bytes);
    let mut buffer = vec![0; PIECE_BYTES];
    while left > 0 {
        let count = from.read(&mut buffer).map_err(ArchiveError::Read)?;
        if count == 0 {
            let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(ArchiveError::Read(ended));
        }
        hasher.update(&buffer[..count]);
        if let Some(file) = &mut file {
            file.write_all(&buffer[..count]).map_err(written)?;
        }
        left = left.saturating_sub(count as u64);
        pace.spend(count as u64);
    }
    if let Some(file) = file {
        file.sync_all().map_err(written)?;
    }
    let found = hasher.finish();
    if found == expected.sha256 {
        return Ok(());
    }
    Err(ArchiveError::Damaged { path: expected.path.clone(), expected: expected.sha256, found })
}

fn create(path: &Path) -> Result<File, ArchiveError> {
    let failed = |source| ArchiveError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).create_new(true).open(path).map_err(failed)
}

/// Holds back so that no more than so many bytes a second pass.
struct Pace {
    rate: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// `rate` bytes a second; 0 for no limit.
    fn new(rate: u64) -> Self {
        Self { rate, began: Instant::now(), bytes: 0 }
    }

    fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.rate == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
        std::thread::sleep(due.saturating_sub(self.began.elapsed()));
    }
}

struct Paced<'f> {
    file: &'f File,
    pace: Pace,
    unsynced: u64,
}

impl<'f> Paced<'f> {
    fn new(file: &'f File, rate: u64) -> Self {
        Self { file, pace: Pace::new(rate), unsynced: 0 }
    }
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(&bytes[..bytes.len().min(PIECE_BYTES)])?;
        self.pace.spend(count as u64);
        self.unsynced += count as u64;
        if self.unsynced >= SYNC_EVERY {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
