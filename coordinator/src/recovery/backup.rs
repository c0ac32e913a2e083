//! `tributary-coordinator backup`: everything of a coordinator in one verified file, while it
//! serves.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tributary_proto::private;
use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::outcome::{Failure, chain};

use super::archive::{ARCHIVE_SCHEMA, Entry, Manifest, Writer, unpack};
use super::check::unreadable_head;
use super::{DATABASE, Place};
use crate::audit::TensorFiles;
use crate::clock;
use crate::heads;
use crate::membership::{
    Authority, CONFIG, FOUNDER, LOG_KEY, LOG_VERIFIER_KEY, OPERATOR, REHEARSAL, ROOT, ROOT_KEY,
    SERVER, SIGNED_HEAD,
};
use crate::store::{Head, Look, StoreError};

/// The amount by which the scheduler prefers others.
const NICENESS: i32 = 10;
/// The files of an authority.
pub(super) const AUTHORITY: [&str; 8] =
    [ROOT_KEY, ROOT, SERVER, FOUNDER, LOG_KEY, LOG_VERIFIER_KEY, CONFIG, REHEARSAL];

/// A finished backup.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BackedUp {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Leaves of the history in it.
    pub leaves: u64,
    /// Their root.
    pub root: Digest,
    /// Adapters and deltas in it.
    pub blobs: usize,
    /// Adapters and deltas that the history names and the directory does not hold.
    pub blobs_missing: usize,
}

/// Backs up `place` into the file `out`, at most `rate` bytes a second (0: no limit). An existing
/// file is replaced when the new one is whole and was read back. An adapter that the history names
/// and the directory lacks refuses it, unless `allow_missing` says otherwise.
pub async fn backup(
    place: &Place,
    out: &Path,
    rate: u64,
    allow_missing: bool,
) -> Result<BackedUp, Failure> {
    // A backup at normal priority is better than none.
    let _ = rustix::process::nice(NICENESS);
    let authority = Authority::load(&place.directory).map_err(|e| e.failure())?;
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let failed = |e: io::Error| Failure::invalid("file", format!("{}: {e}", out.display()));
    let scratch = Scratch::begin(folder, out).map_err(failed)?;
    let snapshot = scratch.path().join(DATABASE);
    // Before the snapshot, so that the head in a backup is never beyond its own history.
    copy_if_there(&place.directory.join(SIGNED_HEAD), &scratch.path().join(SIGNED_HEAD))
        .map_err(failed)?;
    let key = authority.log_signer().map_err(|e| e.failure())?.verifier_key();
    heads::read(scratch.path(), &key).map_err(|e| unreadable_head(&place.directory, &e))?;
    let (head, schema, named) = take_snapshot(&place.database, &snapshot)
        .await
        .map_err(|e| Failure::invalid("database", chain(&e)))?;
    let (sources, missing) = sources(place, &snapshot, &named).map_err(failed)?;
    let adapters = missing.iter().filter(|digest| named.is_adapter(digest)).count();
    if adapters > 0 && !allow_missing {
        let folder = place.directory.join("blobs");
        let message =
            format!("{adapters} adapters that the history names are not in {}", folder.display());
        return Err(Failure::refused("adapters_missing", message).hint(
            "nothing was written; bring them back from an earlier backup, or --allow-missing makes a backup without them",
        ));
    }
    let manifest = Manifest {
        schema_version: ARCHIVE_SCHEMA,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        database_schema: schema,
        consortium: authority.consortium().clone(),
        log_verifier_key: authority.log_verifier_key().to_owned(),
        log_size: head.size,
        log_root: head.root,
        created: clock::now(),
        files: sources.iter().map(|(entry, _)| entry.clone()).collect(),
    };
    let part = tempfile::NamedTempFile::new_in(scratch.path()).map_err(failed)?;
    write(part.as_file(), &manifest, &sources, rate).map_err(failed)?;
    let read_back = unpack(part.path(), rate, |_| None);
    let read_back = read_back
        .map_err(|e| Failure::invalid("backup", format!("{}: {}", out.display(), chain(&e))))?;
    if read_back != manifest {
        return Err(Failure::invalid("backup", "the manifest was not read back as it was written"));
    }
    let bytes = part.as_file().metadata().map_err(failed)?.len();
    part.persist(out).map_err(|e| failed(e.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    let blobs = sources.iter().filter(|(entry, _)| entry.path.starts_with("blobs/")).count();
    Ok(BackedUp {
        file: out.to_owned(),
        bytes,
        leaves: head.size,
        root: head.root,
        blobs,
        blobs_missing: missing.len(),
    })
}

/// The folder beside a backup in which it is made; removed at the end, or by the next backup to the same file.
struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    fn begin(folder: &Path, out: &Path) -> io::Result<Self> {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = folder.join(format!(".{name}.making"));
        private::create_folder(&path)?;
        private::tighten(&path)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another backup to this file is under way"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        for left in fs::read_dir(&path)? {
            let left = left?.path();
            if !left.ends_with("lock") {
                fs::remove_file(left)?;
            }
        }
        Ok(Self { path, _lock: lock })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next backup to the same file removes what cannot be removed now.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Copies the database as it is at one moment and proves the copy; gives its head, its schema and
/// the blobs that its events name.
async fn take_snapshot(database: &Path, to: &Path) -> Result<(Head, i64, TensorFiles), StoreError> {
    let mut live = Look::open(database).await?;
    live.copy_to(to).await?;
    live.close().await?;
    let mut copy = Look::open(to).await?;
    let mut named = TensorFiles::default();
    let head = copy.prove(|record, _| named.take(record)).await?;
    let schema = copy.schema_version().await?;
    copy.close().await?;
    Ok((head, schema, named))
}

type Source = (Entry, PathBuf);

/// Every file that goes in, and the blobs that are not there.
fn sources(
    place: &Place,
    snapshot: &Path,
    named: &TensorFiles,
) -> io::Result<(Vec<Source>, Vec<Digest>)> {
    let mut sources = vec![hashed(DATABASE.to_owned(), snapshot.to_owned())?];
    for name in AUTHORITY {
        let path = place.directory.join(name);
        if path.exists() {
            sources.push(hashed(name.to_owned(), path)?);
        }
    }
    let signed = snapshot.with_file_name(SIGNED_HEAD);
    if signed.exists() {
        sources.push(hashed(SIGNED_HEAD.to_owned(), signed)?);
    }
    // Moved to the operator's machine, as it should be, it is not here.
    let operator = place.directory.join(OPERATOR);
    if operator.is_dir() {
        for file in fs::read_dir(&operator)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if file.file_type()?.is_file() {
                sources.push(hashed(format!("{OPERATOR}/{name}"), file.path())?);
            }
        }
    }
    let mut missing = Vec::new();
    for digest in named.digests() {
        let hex = digest.to_hex();
        let path = place.directory.join("blobs").join(&hex[..2]).join(&hex);
        match fs::metadata(&path) {
            Ok(found) => {
                let path_there = format!("blobs/{hex}");
                let entry = Entry { path: path_there, bytes: found.len(), sha256: digest };
                sources.push((entry, path));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(digest),
            Err(e) => return Err(e),
        }
    }
    Ok((sources, missing))
}

fn copy_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn hashed(name: String, path: PathBuf) -> io::Result<Source> {
    let mut file = File::open(&path)?;
    let (mut hasher, mut bytes) = (Hasher::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok((Entry { path: name, bytes, sha256: hasher.finish() }, path))
}

fn write(file: &File, manifest: &Manifest, sources: &[Source], rate: u64) -> io::Result<()> {
    let mut writer = Writer::begin(file, manifest, rate)?;
    for (entry, path) in sources {
        writer.file(entry, manifest.created, File::open(path)?)?;
    }
    writer.finish()
}
