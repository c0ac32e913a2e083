//! What the frozen blocks make of images, kept on disk between epochs, rounds and runs.
//!
//! One record an image (`record.rs`) in one folder a shelf; a shelf is named by everything that
//! decides the numbers except the image, a record by the image's pixels. Records are patient data:
//! files are readable by their owner alone, in a folder of the same kind. Any number of processes
//! may use a cache at once: a record appears whole or not at all, and whoever writes or evicts
//! holds the lock. Nothing is synced: what a crash leaves behind does not match its checksum and is
//! computed again.

mod record;

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tributary_proto::private::{create_folder, tighten};
use tributary_shared::digest::Digest;

use self::record::Subject;
use crate::config::cache::Precision;

/// The folder inside the one that the site names: ours alone, so that its mode is ours to choose.
const FOLDER: &str = "prefixes";
const LOCK: &str = "lock";
/// The sum of all records' bytes, or more: raised before a record is written.
const TOTAL: &str = "bytes";
/// In each shelf, a line for people.
const ABOUT: &str = "about";
/// Longest such line that is read, bytes.
const ABOUT_BYTES_MAX: u64 = 1_000;
const RECORD: &str = "prefix";
const TEMPORARY: &str = "tmp";
/// Of the cap, freed beyond what is needed, so that not every record makes room for itself alone.
const SLACK: u64 = 16;

/// A folder of prefixes with a cap on its size.
#[derive(Debug)]
pub struct PrefixCache {
    folder: PathBuf,
    bytes_max: u64,
    precision: Precision,
    told_small: AtomicBool,
    told_broken: AtomicBool,
}

impl PrefixCache {
    /// Uses `dir`, and makes it where it is missing; at most `bytes_max` bytes of records lie in it.
    pub fn open(dir: &Path, bytes_max: u64, precision: Precision) -> io::Result<Self> {
        let folder = dir.join(FOLDER);
        create_folder(&folder)?;
        tighten(&folder)?;
        let (told_small, told_broken) = Default::default();
        let cache = Self { folder, bytes_max, precision, told_small, told_broken };
        // Fails now rather than at the first record where nothing can be written.
        cache.lock()?;
        Ok(cache)
    }

    /// What lies in `dir`, shelf by shelf; nothing where no cache is. Nothing is made or changed.
    pub fn look(dir: &Path) -> io::Result<Vec<Shelved>> {
        let folder = dir.join(FOLDER);
        let mut shelves = Vec::new();
        for (path, name) in shelves_in(&folder)? {
            let mut shelf = Shelved { shelf: name, about: about(&path), records: 0, bytes: 0 };
            for file in ours(fs::read_dir(&path))? {
                let Some(file) = gone(file.and_then(|f| Ok((f.path(), f.metadata()?))))? else {
                    continue;
                };
                if file.0.extension().is_some_and(|e| e == RECORD) {
                    shelf.records += 1;
                    shelf.bytes += file.1.len();
                }
            }
            shelves.push(shelf);
        }
        shelves.sort_by(|a, b| (b.bytes, &a.shelf).cmp(&(a.bytes, &b.shelf)));
        Ok(shelves)
    }

    /// Removes every record in `dir` and says what went. Safe while programs use the cache: they
    /// wait for it, or compute again what is gone. Files that are no cache's stay.
    pub fn clear(dir: &Path) -> io::Result<Vec<Shelved>> {
        let folder = dir.join(FOLDER);
        if !folder.try_exists()? {
            return Ok(Vec::new());
        }
        let _held = lock(&folder)?;
        let cleared = Self::look(dir)?;
        for (path, _) in shelves_in(&folder)? {
            for file in ours(fs::read_dir(&path))? {
                let file = file?.path();
                let extension = file.extension().unwrap_or_default();
                if extension == RECORD || extension == TEMPORARY || file.ends_with(ABOUT) {
                    remove(&file)?;
                }
            }
            // Somebody else's file in it stays, and so does it.
            let _ = fs::remove_dir(&path);
        }
        remove(&folder.join(TOTAL))?;
        Ok(cleared)
    }

    /// The shelf of prefixes that `key` names and `about` tells people of, `numbers` numbers an
    /// image, for `images` images;
    /// `None` where that many do not fit: most would be evicted before they are needed again.
    pub(super) fn shelf(
        &self,
        key: &str,
        about: &str,
        numbers: usize,
        images: usize,
    ) -> Option<Shelf<'_>> {
        let bytes = (images * record::bytes(numbers, self.precision)) as u64;
        if bytes > self.bytes_max {
            if !self.told_small.swap(true, Ordering::Relaxed) {
                let Self { bytes_max, .. } = self;
                tracing::warn!(
                    "cache.bytes_max = {bytes_max}: {images} images take {bytes} bytes; \
                     computing without a cache"
                );
            }
            return None;
        }
        let key = Digest::of(format!("tributary prefix\n{key}\n{:?}", self.precision).as_bytes());
        let folder = self.folder.join(name(&key));
        Some(Shelf { cache: self, key, about: about.to_owned(), folder, numbers })
    }

    /// Held until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        lock(&self.folder)
    }

    /// Makes room for `need` bytes and counts them; the caller holds the lock.
    fn reserve(&self, need: u64) -> io::Result<()> {
        let known = fs::read_to_string(self.folder.join(TOTAL)).ok();
        let known = known.and_then(|text| text.parse::<u64>().ok());
        let total = match known {
            Some(total) if total.saturating_add(need) <= self.bytes_max => total,
            Some(_) | None => self.evict(need)?,
        };
        self.write(&self.folder.join(TOTAL), (total + need).to_string().as_bytes())
    }

    /// Removes the records that were not used for longest until `need` bytes fit; what is left.
    fn evict(&self, need: u64) -> io::Result<u64> {
        let mut records = self.records()?;
        let mut total: u64 = records.iter().map(|record| record.bytes).sum();
        if total + need <= self.bytes_max {
            return Ok(total);
        }
        records.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        let room = self.bytes_max.saturating_sub(need + self.bytes_max / SLACK);
        for record in records {
            if total <= room {
                break;
            }
            remove(&record.path)?;
            total -= record.bytes;
        }
        Ok(total)
    }

    /// Every record; what a process that was killed left half-written goes.
    fn records(&self) -> io::Result<Vec<Kept>> {
        let mut records = Vec::new();
        for shelf in fs::read_dir(&self.folder)? {
            let shelf = shelf?;
            if !shelf.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(shelf.path())? {
                let file = file?;
                let path = file.path();
                let extension = path.extension().unwrap_or_default();
                if extension == TEMPORARY {
                    remove(&path)?;
                } else if extension == RECORD {
                    let found = file.metadata()?;
                    records.push(Kept { path, bytes: found.len(), used: found.modified()? });
                }
            }
        }
        Ok(records)
    }

    /// Whole or not at all; the caller holds the lock.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension(TEMPORARY);
        remove(&temporary)?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // A full disk needs no halves of records; best effort, for the error is known already.
            let _ = remove(&temporary);
        }
        written
    }

    /// A disk that is full or gone stops no training.
    fn tell_broken(&self, error: &io::Error) {
        if !self.told_broken.swap(true, Ordering::Relaxed) {
            let folder = self.folder.display();
            tracing::warn!("{folder}: {error}; computing what cannot be kept or read");
        }
    }
}

/// One shelf of a cache as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shelved {
    /// Its name: a digest of everything that decides its numbers but the image.
    pub shelf: String,
    /// What it is of: the backbone and how far it was computed; `None` where that is not written.
    pub about: Option<String>,
    /// Images of which something is kept.
    pub records: u64,
    /// Their sum.
    pub bytes: u64,
}

/// A record on disk.
struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// The records that differ in the image alone.
pub(super) struct Shelf<'a> {
    cache: &'a PrefixCache,
    key: Digest,
    about: String,
    folder: PathBuf,
    numbers: usize,
}

impl Shelf<'_> {
    /// What was kept of `image`, if that is there and whole.
    pub(super) fn get(&self, image: &Digest) -> Option<Vec<f32>> {
        let path = self.path(image);
        let bytes = match read(&path, record::bytes(self.numbers, Precision::F32) as u64) {
            Ok(bytes) => bytes,
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    self.cache.tell_broken(&e);
                }
                return None;
            }
        };
        match record::decode(&self.subject(image), &bytes) {
            Ok(values) => Some(values),
            Err(problem) => {
                tracing::warn!("{}: {problem}; computing it again", path.display());
                None
            }
        }
    }

    /// Keeps what was computed of images, and rounds it to what will be read back.
    pub(super) fn put(&self, images: &[Digest], rows: &mut [Vec<f32>]) {
        let precision = self.cache.precision;
        let mut records = Vec::with_capacity(images.len());
        for (image, row) in images.iter().zip(rows) {
            records.push((self.path(image), record::encode(&self.subject(image), row, precision)));
            record::rounded(row, precision);
        }
        if let Err(e) = self.write_all(&records) {
            self.cache.tell_broken(&e);
        }
    }

    fn write_all(&self, records: &[(PathBuf, Vec<u8>)]) -> io::Result<()> {
        let need = records.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if need > self.cache.bytes_max {
            return Ok(());
        }
        // Somebody may have removed it all.
        create_folder(&self.cache.folder)?;
        let _held = self.cache.lock()?;
        create_folder(&self.folder)?;
        self.cache.reserve(need)?;
        let about = self.folder.join(ABOUT);
        if !about.try_exists()? {
            self.cache.write(&about, self.about.as_bytes())?;
        }
        records.iter().try_for_each(|(path, bytes)| self.cache.write(path, bytes))
    }

    fn path(&self, image: &Digest) -> PathBuf {
        self.folder.join(name(image)).with_extension(RECORD)
    }

    fn subject(&self, image: &Digest) -> Subject {
        Subject { shelf: self.key, image: *image, numbers: self.numbers }
    }
}

/// The folders of `folder` that are named as shelves are.
fn shelves_in(folder: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut shelves = Vec::new();
    for entry in ours(fs::read_dir(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let digest = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        if digest && entry.file_type()?.is_dir() {
            shelves.push((entry.path(), name));
        }
    }
    Ok(shelves)
}

/// The entries of a folder; none where it is not there (any more).
fn ours(
    listing: io::Result<fs::ReadDir>,
) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
    Ok(gone(listing)?.into_iter().flatten())
}

/// `None` for what somebody else has removed meanwhile.
fn gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(found) => Ok(Some(found)),
        Err(e) => Err(e),
    }
}

/// What a shelf says it is of.
fn about(shelf: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(shelf.join(ABOUT)).ok()?;
    file.take(ABOUT_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// Held until the file is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let path = folder.join(LOCK);
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    lock.lock()?;
    Ok(lock)
}

/// Hexadecimal alone: a file's name.
fn name(digest: &Digest) -> String {
    digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole file, which is marked as used now.
fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(bytes_max as usize);
    (&file).take(bytes_max + 1).read_to_end(&mut bytes)?;
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let used = rustix::fs::Timestamps { last_access: now, last_modification: now };
    // A disk that may only be read serves as well; nothing is evicted from it.
    let _ = rustix::fs::futimens(&file, &used);
    Ok(bytes)
}

/// Whether it was there or not.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
