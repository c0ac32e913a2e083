//! The blob store: files named by their content, and the spool in which deltas arrive.
//!
//! `blobs/<2 hex digits>/<64 hex digits>` holds only whole files whose bytes have that SHA-256: a
//! file gets its name by a rename, after its bytes are durable, and the rename is made durable
//! before anybody hears of it. `spool/` holds deltas that are not counted, whole or in part, at most
//! one of a site and run; they survive a restart. Temporary files there do not.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};

/// A part is made durable whenever this much of it is not, bytes.
const SYNC_EVERY: u64 = 4 << 20;
/// Piece in which a part is read again, bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Piece in which a blob is read for the network, bytes.
const LARGE_PIECE_BYTES: usize = 256 << 10;
/// The same when as many readers as may be have large pieces.
const SMALL_PIECE_BYTES: usize = 64 << 10;
/// Most readers with large pieces at once.
const LARGE_READERS_MAX: usize = 16;

/// A directory of blobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    blobs: PathBuf,
    spool: PathBuf,
    temporaries: AtomicU64,
    /// Held while files get their names: one that has to be taken back must be ours. Directories
    /// whose names may not survive a power failure.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    large_pieces: Arc<Semaphore>,
}

impl Inner {
    fn new(root: &Path) -> Self {
        Self {
            blobs: root.join("blobs"),
            spool: root.join("spool"),
            temporaries: AtomicU64::new(0),
            unsynced: Mutex::default(),
            large_pieces: Arc::new(Semaphore::new(LARGE_READERS_MAX)),
        }
    }
}

/// The size of one reader's pieces, to be kept until that reader is done; [`Blobs::pieces`].
#[derive(Debug)]
pub struct Pieces {
    /// Bytes of a piece.
    pub bytes: usize,
    _large: Option<OwnedSemaphorePermit>,
}

/// A blob's bytes from the first on; [`Blobs::reader`].
#[derive(Debug)]
pub struct BlobReader {
    path: PathBuf,
    offset: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = File::open(&self.path)?.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Which delta a part in the spool belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpoolKey {
    /// The run.
    pub run: RunName,
    /// The round.
    pub round: u32,
    /// The site that sends it.
    pub site: SiteName,
    /// The digest it is announced under.
    pub digest: Digest,
}

impl SpoolKey {
    /// The part's file name. Names hold no dots, so it has one reading only.
    fn file_name(&self) -> String {
        let Self { run, round, site, digest } = self;
        format!("{run}.{round}.{site}.{}.part", digest.to_hex())
    }

    /// Reads a part's file name; `None` for any other file.
    fn read(name: &str) -> Option<Self> {
        let fields: Vec<&str> = name.strip_suffix(".part")?.split('.').collect();
        let [run, round, site, hex] = fields[..] else { return None };
        Some(Self {
            run: run.parse().ok()?,
            round: round.parse().ok()?,
            site: site.parse().ok()?,
            digest: format!("sha256:{hex}").parse().ok()?,
        })
    }
}

impl Blobs {
    /// Opens the store under `root`, making its two directories, and removes temporary files.
    pub fn at(root: &Path) -> io::Result<Self> {
        let store = Self::look(root);
        fs::create_dir_all(&store.0.blobs)?;
        fs::create_dir_all(&store.0.spool)?;
        sync_directory(root)?;
        for entry in fs::read_dir(&store.0.spool)? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new("tmp")) {
                remove_if_there(&path)?;
            }
        }
        Ok(store)
    }

    /// The store under `root` for readers: makes and removes nothing.
    pub fn look(root: &Path) -> Self {
        Self(Arc::new(Inner::new(root)))
    }

    /// Whether the blob is here.
    pub fn exists(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The blob's size, bytes.
    pub async fn size(&self, digest: Digest) -> io::Result<u64> {
        let path = self.path(digest);
        blocking(move || Ok(fs::metadata(path)?.len())).await
    }

    /// The pieces in which one more reader gets its blob: of 256 KiB while few readers have such, else
    /// of 64 KiB. What is held for a reader who is slow, the transport's buffer included, follows
    /// their size.
    pub fn pieces(&self) -> Pieces {
        let large = self.0.large_pieces.clone().try_acquire_owned().ok();
        let bytes = if large.is_some() { LARGE_PIECE_BYTES } else { SMALL_PIECE_BYTES };
        Pieces { bytes, _large: large }
    }

    /// The blob's bytes from `offset` on, `most` of them or as many as there are.
    pub async fn piece(&self, digest: Digest, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let store = self.clone();
        blocking(move || {
            let mut file = store.open_blocking(digest)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(most);
            file.take(most as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    /// Opens the blob for reading, for those who may block.
    pub fn open_blocking(&self, digest: Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// The blob's bytes, read without an open file between two reads, so that an aggregation of many
    /// deltas needs few descriptors. Blocks.
    pub fn reader(&self, digest: Digest) -> BlobReader {
        BlobReader { path: self.path(digest), offset: 0 }
    }

    /// Stores what `write` writes, under the digest of it that `write` gives; durable when this
    /// returns. Blocks.
    pub fn put_with(
        &self,
        write: impl FnOnce(&mut File) -> io::Result<Digest>,
    ) -> io::Result<Digest> {
        let number = self.0.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.0.spool.join(format!("{number}.tmp"));
        let mut file = File::create(&path)?;
        let stored = write(&mut file).and_then(|digest| {
            file.sync_all()?;
            self.name(&[(path.clone(), digest)])?;
            Ok(digest)
        });
        if stored.is_err() {
            // Of a failure to write, the first cause is the one to tell.
            let _ = fs::remove_file(&path);
        }
        stored
    }

    /// Every blob here, in order. Blocks.
    pub fn list(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for directory in fs::read_dir(&self.0.blobs)? {
            let directory = directory?;
            if !directory.file_type()?.is_dir() {
                tracing::warn!(
                    "{} is no folder of blobs and is passed over",
                    directory.path().display()
                );
                continue;
            }
            for file in fs::read_dir(directory.path())? {
                let name = file?.file_name();
                let digest: Option<Digest> =
                    name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
                digests.extend(digest);
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// Removes a blob, if it is there. Blocks.
    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        remove_if_there(&self.path(digest))
    }

    /// Bytes of a delta that are in the spool.
    pub async fn spooled(&self, key: &SpoolKey) -> io::Result<u64> {
        let (store, key) = (self.clone(), key.clone());
        blocking(move || store.part_bytes(&key)).await
    }

    /// As [`Self::spooled`], for those who may block.
    pub fn part_bytes(&self, key: &SpoolKey) -> io::Result<u64> {
        match fs::metadata(self.part(key)) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Opens a delta's part where an earlier stream left it, or a new one. A site has one part a
    /// run: any other is removed. Blocks.
    pub fn spool(&self, key: &SpoolKey) -> io::Result<Spool> {
        for other in self.parts()? {
            if other != *key && (&other.run, &other.site) == (&key.run, &key.site) {
                self.remove_part(&other)?;
            }
        }
        let path = self.part(key);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let received = file.metadata()?.len();
        let mut spool = Spool { file, path, received, durable: 0 };
        if received > 0 {
            // Of what an earlier stream left nothing is known to be durable before this.
            spool.sync()?;
        }
        Ok(spool)
    }

    /// Every part in the spool. Blocks.
    pub fn parts(&self) -> io::Result<Vec<SpoolKey>> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.0.spool)? {
            parts.extend(entry?.file_name().to_str().and_then(SpoolKey::read));
        }
        Ok(parts)
    }

    /// Opens a part for reading; `None` when there is none. Blocks.
    pub fn open_part(&self, key: &SpoolKey) -> io::Result<Option<File>> {
        match File::open(self.part(key)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes blobs of whole parts, whose bytes have the keys' digests; durable when this returns.
    /// Parts that are not there are passed over. After an error each is a blob or still a part, and
    /// the same call makes both durable. Blocks.
    pub fn promote(&self, keys: &BTreeSet<SpoolKey>) -> io::Result<()> {
        let mut parts = Vec::new();
        for key in keys {
            if let Some(file) = self.open_part(key)? {
                file.sync_all()?;
                parts.push((self.part(key), key.digest));
            }
        }
        self.name(&parts)
    }

    /// Removes a part, if it is there. Blocks.
    pub fn remove_part(&self, key: &SpoolKey) -> io::Result<()> {
        remove_if_there(&self.part(key))
    }

    fn part(&self, key: &SpoolKey) -> PathBuf {
        self.0.spool.join(key.file_name())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_hex();
        self.0.blobs.join(&hex[..2]).join(hex)
    }

    /// Gives durable files their names, and makes the names durable, all at once. After an
    /// error the new names are taken back as far as the disk lets it, and the next call makes durable
    /// what is left of them. No bytes are removed.
    fn name(&self, files: &[(PathBuf, Digest)]) -> io::Result<()> {
        let mut unsynced = self.0.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if files.is_empty() && unsynced.is_empty() {
            return Ok(());
        }
        let (mut renamed, mut directories) = (Vec::new(), std::mem::take(&mut *unsynced));
        let mut rename_all = || {
            for (from, digest) in files {
                let to = self.path(*digest);
                let directory = to.parent().unwrap_or(&self.0.blobs).to_path_buf();
                match fs::create_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    Ok(()) | Err(_) => {}
                }
                let known = to.is_file();
                fs::rename(from, &to)?;
                directories.insert(directory);
                if !known {
                    renamed.push((from, to));
                }
            }
            // The outer one as well, every time: that a folder was made once says nothing about the
            // disk.
            directories.iter().try_for_each(|directory| sync_directory(directory))?;
            sync_directory(&self.0.blobs)
        };
        let named = rename_all();
        if named.is_err() {
            for (from, to) in renamed {
                if let Err(error) = fs::rename(&to, from) {
                    tracing::error!(%error, "a blob cannot be taken back: {}", to.display());
                }
            }
            *unsynced = directories;
        }
        named
    }
}

/// The part of one delta that has arrived. One writer at a time is the caller's duty. All methods
/// block.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    received: u64,
    /// Bytes of it that are known to survive a power failure.
    durable: u64,
}

impl Spool {
    /// Bytes in the part.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Gives the part's bytes from the first on, piece by piece, and leaves off at its end.
    pub fn replay<E: From<io::Error>>(
        &mut self,
        mut piece: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                count => piece(&buffer[..count])?,
            }
        }
    }

    /// Makes the next bytes follow those that are there.
    pub fn go_to_end(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.received))?;
        Ok(())
    }

    /// Writes the next bytes. After an error the part holds what is durable and no more, and this
    /// value is of no further use.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // A full disk may have taken half of them.
            self.fall_back();
            return Err(error);
        }
        self.received += bytes.len() as u64;
        if self.received - self.durable >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Makes durable what has arrived; an error is as one of [`Self::append`].
    pub fn sync(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            self.fall_back();
            return Err(error);
        }
        self.durable = self.received;
        Ok(())
    }

    /// Forgets what has arrived.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.received, self.durable) = (0, 0);
        Ok(())
    }

    /// Cuts the part back to what is durable. After a failed sync the system counts pages as
    /// written that never reached the disk, and a later sync says nothing about them. The part is
    /// opened anew for that; one that cannot be cut is removed.
    fn fall_back(&self) {
        let cut = || {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(self.durable)?;
            file.sync_all()
        };
        if let Err(error) = cut().or_else(|_: io::Error| remove_if_there(&self.path)) {
            tracing::error!(%error, "a part that failed cannot be removed: {}", self.path.display());
        }
    }

    /// Removes the part.
    pub fn discard(&self) -> io::Result<()> {
        remove_if_there(&self.path)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the entries of `directory` durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory =
        if directory.as_os_str() == OsStr::new("") { Path::new(".") } else { directory };
    File::open(directory)?.sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
