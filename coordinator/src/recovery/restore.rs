//! `tributary-coordinator restore`: a verified backup takes the place of a lost database.
//!
//! Everything is unpacked into a staging folder and proven before anything is touched. The switch
//! itself is one rename: killed at any moment, the directory holds the old database or the new one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tributary_proto::channel::write_durably;
use tributary_proto::private;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::checkpoint::Checkpoint;

use super::archive::{ArchiveError, Manifest, read_manifest, unpack};
use super::{DATABASE, Place, RESTORED_HEAD};
use crate::clock;
use crate::heads;
use crate::membership::{Authority, LOG_KEY, LOG_VERIFIER_KEY, ROOT, ROOT_KEY, SIGNED_HEAD};
use crate::store::{Look, StoreError, lock};

/// The folder, beside what it will replace, in which a backup is unpacked.
const STAGING: &str = "restore.staging";

/// A finished restore.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Restored {
    /// The directory.
    pub directory: PathBuf,
    /// The database.
    pub database: PathBuf,
    /// Leaves of the restored history.
    pub leaves: u64,
    /// Their root.
    pub root: Digest,
    /// The database that was there before, kept as evidence.
    pub moved_aside: Option<PathBuf>,
    /// Leaves that the authority has signed, where those are more.
    pub signed: Option<u64>,
}

/// Restores the backup `from` to `place`. An existing database is refused unless `replace` says so,
/// and is then moved aside.
pub async fn restore(place: &Place, from: &Path, replace: bool) -> Result<Restored, Failure> {
    let unusable = |e: ArchiveError| {
        Failure::invalid("backup", format!("{}: {}", from.display(), chain(&e))).hint(UNCHANGED)
    };
    let manifest = read_manifest(from).map_err(unusable)?;
    refuse_foreign(&place.directory, &manifest)?;
    fs::create_dir_all(&place.directory).map_err(|e| failed(&place.directory, &e))?;
    let _lock = lock(&place.database).map_err(|e| unlocked(&e))?;
    let there = fs::metadata(&place.database).is_ok_and(|found| found.len() > 0);
    if there && let Some(done) = finished(place, &manifest).await? {
        return Ok(done);
    }
    if there && !replace {
        let message = format!("{} is there", place.database.display());
        return Err(Failure::refused("exists", message)
            .hint("--replace moves it aside, where it stays as evidence"));
    }
    let staging = Staging::begin(&place.directory)?;
    let unpacked = unpack(from, 0, |path| Some(staging.0.join(path))).map_err(unusable)?;
    if unpacked != manifest {
        return Err(Failure::invalid("backup", "it changed while it was read").hint(UNCHANGED));
    }
    prove(&staging.0, &manifest).await?;
    refuse_other_keys(&staging.0, &place.directory)?;
    let database = bring_beside(&staging.0.join(DATABASE), &place.database)
        .map_err(|e| failed(&place.database, &e))?;
    place_blobs(&staging.0, &place.directory).map_err(|e| failed(&place.directory, &e))?;
    place_authority(&staging.0, &place.directory).map_err(|e| failed(&place.directory, &e))?;
    let signed = note_restored(place, &manifest)?;
    let moved_aside = if there { Some(set_aside(&place.database).await?) } else { None };
    switch(&database, &place.database).map_err(|e| failed(&place.database, &e))?;
    staging.end()?;
    Ok(Restored::of(place, &manifest, moved_aside, signed))
}

impl Restored {
    fn of(
        place: &Place,
        manifest: &Manifest,
        moved_aside: Option<PathBuf>,
        signed: Option<u64>,
    ) -> Self {
        Self {
            directory: place.directory.clone(),
            database: place.database.clone(),
            leaves: manifest.log_size,
            root: manifest.log_root,
            moved_aside,
            signed: signed.filter(|signed| *signed > manifest.log_size),
        }
    }
}

/// A restore of the same backup that was killed after its switch: nothing is left to do but to remove its folder.
async fn finished(place: &Place, manifest: &Manifest) -> Result<Option<Restored>, Failure> {
    let staging = place.directory.join(STAGING);
    if !staging.is_dir() || staging.join(DATABASE).exists() || ready(&place.database).exists() {
        // Not begun, or not as far: its folder is made anew.
        return Ok(None);
    }
    let unusable = |e: StoreError| Failure::invalid("database", chain(&e));
    let mut look = Look::open(&place.database).await.map_err(unusable)?;
    let head = look.prove(|_, _| ()).await.map_err(unusable)?;
    look.close().await.map_err(unusable)?;
    if (head.size, head.root) != (manifest.log_size, manifest.log_root) {
        return Ok(None);
    }
    let signed = note_restored(place, manifest)?;
    remove(&staging).map_err(|e| failed(&staging, &e))?;
    Ok(Some(Restored::of(place, manifest, None, signed)))
}

const UNCHANGED: &str = "nothing was replaced; use another copy of the backup";

/// The failure of a lock that another program holds, or that cannot be taken at all.
fn unlocked(error: &StoreError) -> Failure {
    let StoreError::InUse { path } = error else {
        return Failure::invalid("database", chain(error));
    };
    let message = format!("{} is in use by a coordinator", path.display());
    Failure::refused("in_use", message).hint("stop the coordinator, then restore")
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::invalid("file", format!("{}: {error}", path.display()))
        .hint("run the same restore again when that is mended; it goes on where it was")
}

/// A backup of another consortium, or of another log, than the authority that is there.
fn refuse_foreign(directory: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let refused = |what: &str, theirs: &str, ours: &str| {
        let message =
            format!("the backup is of {what} {theirs}, {} of {ours}", directory.display());
        Failure::refused("foreign", message).hint(UNCHANGED)
    };
    let key = directory.join(LOG_VERIFIER_KEY);
    match fs::read_to_string(&key) {
        Ok(ours) if ours.trim() == manifest.log_verifier_key => Ok(()),
        Ok(ours) => Err(refused("log", &manifest.log_verifier_key, ours.trim())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // No log.vkey: the keys are compared after unpacking.
            Ok(())
        }
        Err(e) => Err(failed(&key, &e)),
    }
}

/// The unpacked backup as it must be: an authority that loads, a history under its root.
async fn prove(staging: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let authority = Authority::load(staging).map_err(|e| {
        Failure::invalid("backup", format!("its authority: {}", chain(&e))).hint(UNCHANGED)
    })?;
    let ours = (authority.consortium(), authority.log_verifier_key());
    if ours != (&manifest.consortium, &manifest.log_verifier_key) {
        let message = "its authority is another than its manifest says";
        return Err(Failure::invalid("backup", message).hint(UNCHANGED));
    }
    let unusable = |e: StoreError| Failure::invalid("backup", chain(&e)).hint(UNCHANGED);
    let mut look = Look::open(&staging.join(DATABASE)).await.map_err(unusable)?;
    let head = look.prove(|_, _| ()).await.map_err(unusable)?;
    look.close().await.map_err(unusable)?;
    if (head.size, head.root) != (manifest.log_size, manifest.log_root) {
        let message = format!(
            "its history has {} leaves of root {}, its manifest says {} of {}",
            head.size, head.root, manifest.log_size, manifest.log_root
        );
        return Err(Failure::invalid("backup", message).hint(UNCHANGED));
    }
    Ok(())
}

/// The keys that are there must be the backup's, or the two are no authority together.
fn refuse_other_keys(staging: &Path, directory: &Path) -> Result<(), Failure> {
    for name in [ROOT_KEY, LOG_KEY] {
        let (theirs, ours) = (staging.join(name), directory.join(name));
        if !ours.exists() {
            continue;
        }
        let theirs = fs::read(&theirs).map_err(|e| failed(&theirs, &e))?;
        if theirs != fs::read(&ours).map_err(|e| failed(&ours, &e))? {
            let message = format!("{} is another key than the backup's", ours.display());
            return Err(Failure::refused("foreign", message).hint(UNCHANGED));
        }
    }
    Ok(())
}

/// A folder, for the owner alone, that is removed at the end or, when it is left by a crash, by the next try.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // It holds private keys. The next try removes what cannot be removed now.
        let _ = remove(&self.0);
    }
}

impl Staging {
    fn begin(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(STAGING);
        remove(&path).map_err(|e| failed(&path, &e))?;
        private::create_folder(&path)
            .and_then(|()| private::tighten(&path))
            .map_err(|e| failed(&path, &e))?;
        Ok(Self(path))
    }

    fn end(&self) -> Result<(), Failure> {
        remove(&self.0).map_err(|e| failed(&self.0, &e))
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Blobs are named by digest; an additional one is harmless.
fn place_blobs(staging: &Path, directory: &Path) -> io::Result<()> {
    let Ok(blobs) = fs::read_dir(staging.join("blobs")) else { return Ok(()) };
    let home = directory.join("blobs");
    fs::create_dir_all(&home)?;
    for blob in blobs {
        let blob = blob?;
        let name = blob.file_name().to_string_lossy().into_owned();
        let folder = home.join(name.get(..2).unwrap_or_default());
        fs::create_dir_all(&folder)?;
        move_file(&blob.path(), &folder.join(&name))?;
        sync(&folder)?;
    }
    sync(&home)
}

/// Puts what the authority lacks in its place, the root certificate last, and leaves what is
/// there: a renewed server certificate or an edited configuration is newer than the backup.
fn place_authority(staging: &Path, directory: &Path) -> io::Result<()> {
    let mut names: Vec<&str> =
        super::backup::AUTHORITY.into_iter().filter(|n| *n != ROOT).collect();
    names.extend([SIGNED_HEAD, ROOT]);
    for name in names {
        let (from, to) = (staging.join(name), directory.join(name));
        if from.exists() && !to.exists() {
            write_durably(&to, &fs::read(&from)?, 0o600)?;
        }
    }
    let (from, to) =
        (staging.join(crate::membership::OPERATOR), directory.join(crate::membership::OPERATOR));
    if from.is_dir() && !to.exists() {
        fs::rename(&from, &to)?;
        private::tighten(&to)?;
    }
    sync(directory)
}

/// Writes down where the branches part, for `recover`; gives the size of the largest signed head.
fn note_restored(place: &Place, manifest: &Manifest) -> Result<Option<u64>, Failure> {
    let authority = Authority::load(&place.directory).map_err(|e| e.failure())?;
    let signer = authority.log_signer().map_err(|e| e.failure())?;
    let path = place.directory.join(RESTORED_HEAD);
    let note = Checkpoint::sign(manifest.log_size, manifest.log_root, &signer);
    write_durably(&path, note.as_bytes(), 0o600).map_err(|e| failed(&path, &e))?;
    let signed = heads::read(&place.directory, &signer.verifier_key());
    let signed = signed.map_err(|e| failed(&place.directory.join(SIGNED_HEAD), &e))?;
    Ok(signed.map(|head| head.size))
}

/// Gives the old database a second name and leaves it in place; its journal is written back, or
/// set aside too where it cannot be.
async fn set_aside(database: &Path) -> Result<PathBuf, Failure> {
    let stamp = clock::now().as_millis();
    let aside = named(database, &format!(".before-restore-{stamp}"));
    let io_failed = |e: io::Error| failed(database, &e);
    if let Err(error) = Look::settle(database).await {
        tracing::warn!("the old database cannot be opened: {}", chain(&error));
    }
    fs::hard_link(database, &aside).map_err(io_failed)?;
    for journal in ["-wal", "-shm"] {
        let path = named(database, journal);
        if path.exists() {
            // A journal of another database beside the new one would be written into it.
            fs::rename(&path, named(&aside, journal)).map_err(io_failed)?;
        }
    }
    sync_folder_of(database).map_err(io_failed)?;
    Ok(aside)
}

fn named(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The place beside `database` for the one that will replace it.
fn ready(database: &Path) -> PathBuf {
    named(database, ".restoring")
}

/// Brings the unpacked database to the disk that it will be used on, so that the switch is one rename.
fn bring_beside(from: &Path, database: &Path) -> io::Result<PathBuf> {
    let to = ready(database);
    move_file(from, &to)?;
    Ok(to)
}

/// Moves a file, by a copy where `to` is on another disk.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let part = named(to, ".part");
            fs::copy(from, &part)?;
            File::open(&part)?.sync_all()?;
            fs::rename(&part, to)
        }
        done => done,
    }
}

/// One rename: the old database or the new one, never none.
fn switch(from: &Path, to: &Path) -> io::Result<()> {
    for journal in ["-wal", "-shm"] {
        let path = named(to, journal);
        if path.exists() {
            fs::rename(
                &path,
                named(to, &format!("{journal}.before-restore-{}", clock::now().as_millis())),
            )?;
        }
    }
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder_of(to)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync(folder),
        Some(_) | None => sync(Path::new(".")),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
