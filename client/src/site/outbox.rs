//! Deltas on their way out: one file a round, whole or absent, kept until the coordinator has
//! answered.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tributary_shared::digest::{Digest, Hasher};
use tributary_shared::name::RunName;
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Checked, Header, Reader};

use crate::durable;

/// Values written at a time.
pub(super) const BLOCK_VALUES: usize = 16 * 1024;

/// Why a delta was not put into the outbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeltaError {
    /// It is not one that may leave.
    #[error("the delta may not leave")]
    Refused(#[from] Refusal),
    /// The disk said no.
    #[error("the outbox cannot be written")]
    Disk(#[from] io::Error),
    /// The work was told to end.
    #[error("stopped")]
    Stopped,
}

/// The folder of deltas on their way out.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    folder: PathBuf,
}

impl Outbox {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where the delta of a round lies.
    pub(super) fn path(&self, run: &RunName, round: u32) -> PathBuf {
        self.folder.join(format!("{run}-{round}.delta"))
    }

    /// Begins to write the delta that `header` describes. Room for all of it is taken now: a full
    /// disk is known before the training and not after it.
    pub(super) fn begin(
        &self,
        run: &RunName,
        round: u32,
        header: &Header,
    ) -> io::Result<DeltaWriter> {
        let path = self.path(run, round);
        let part = durable::part_of(&path);
        let begun = || -> io::Result<(File, Reader)> {
            let mut file = File::create(&part)?;
            take_room(&file, header.total_bytes())?;
            let mut check = Reader::new(header.clone());
            let bytes = header.to_bytes();
            check.push(&bytes).expect("a header is what it says");
            file.write_all(&bytes)?;
            Ok((file, check))
        };
        match begun() {
            Ok((file, check)) => {
                let (bytes, block) = (header.total_bytes(), Vec::with_capacity(BLOCK_VALUES * 4));
                Ok(DeltaWriter { path, file, check, bytes, block })
            }
            Err(error) => {
                // Best effort: what is left is in the way of nothing, the next attempt begins anew.
                let _ = fs::remove_file(&part);
                Err(error)
            }
        }
    }

    /// Whether the round's file still holds exactly the delta of this name and size.
    pub(super) fn holds(&self, run: &RunName, round: u32, digest: Digest, bytes: u64) -> bool {
        digest_of(&self.path(run, round)).is_ok_and(|found| found == (digest, bytes))
    }

    /// Forgets the delta of an answered round.
    pub(super) fn remove(&self, run: &RunName, round: u32) -> io::Result<()> {
        match fs::remove_file(self.path(run, round)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes every file but those of `kept`: halves left by a crash, deltas that the ledger never
    /// took up, deltas already answered. Gives back how many.
    pub(super) fn sweep(&self, kept: &[PathBuf]) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                fs::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Takes `bytes` bytes on the disk; where the file system cannot, writing will tell.
fn take_room(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(e) if ![Errno::OPNOTSUPP, Errno::NOSYS].contains(&e) => Err(e.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut block = vec![0; BLOCK_VALUES * 4];
    let mut bytes = 0;
    loop {
        let read = io::Read::read(&mut file, &mut block)?;
        if read == 0 {
            return Ok((hasher.finish(), bytes));
        }
        hasher.update(&block[..read]);
        bytes += read as u64;
    }
}

/// Writes one delta block by block; each block is checked as the coordinator will check it.
#[derive(Debug)]
pub(super) struct DeltaWriter {
    path: PathBuf,
    file: File,
    check: Reader,
    bytes: u64,
    block: Vec<u8>,
}

impl DeltaWriter {
    /// Takes the next values, in the order of the header's tensors.
    pub(super) fn push(&mut self, values: &[f32]) -> Result<(), DeltaError> {
        for piece in values.chunks(BLOCK_VALUES) {
            self.block.clear();
            self.block.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
            self.check.push(&self.block)?;
            self.file.write_all(&self.block)?;
        }
        Ok(())
    }

    /// Bytes of the whole delta.
    pub(super) fn total_bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes written.
    pub(super) fn written_bytes(&self) -> u64 {
        self.check.seen_bytes()
    }

    /// Gives the room back. That this fails is no reason of its own: the next start sweeps what is
    /// left, and the next attempt begins anew.
    pub(super) fn abandon(self) {
        let part = durable::part_of(&self.path);
        if let Err(error) = fs::remove_file(&part) {
            tracing::warn!("{}: the room cannot be given back: {error}", part.display());
        }
    }

    /// Makes the delta durable, under its name, when all of it came and its norm is at most
    /// `norm_max`.
    pub(super) fn finish(self, norm_max: f64) -> Result<Checked, DeltaError> {
        let part = durable::part_of(&self.path);
        let finished = self.check.finish().and_then(|checked| {
            let norm = checked.norm;
            if norm <= norm_max { Ok(checked) } else { Err(Refusal::OverNorm { norm, norm_max }) }
        });
        match finished {
            Ok(checked) => {
                self.file.sync_all()?;
                drop(self.file);
                durable::rename(&part, &self.path)?;
                Ok(checked)
            }
            Err(refusal) => {
                fs::remove_file(&part)?;
                Err(DeltaError::Refused(refusal))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::layout::{Layout, TensorSpec};
    use tributary_shared::tensors::{Subject, encode};

    use super::*;

    fn header() -> Header {
        let spec = |name: &str, elements| TensorSpec { name: name.into(), shape: vec![elements] };
        let layout = Layout::new(vec![spec("a", 3), spec("b", BLOCK_VALUES + 1)]);
        let subject = Subject::Delta {
            run: "run".parse().unwrap(),
            round: 2,
            site: "site".parse().unwrap(),
            base: Digest::of(b"base"),
            cases: 1,
        };
        Header::new(subject, Digest::of(b"contract"), &layout)
    }

    fn outbox() -> (tempfile::TempDir, Outbox, RunName) {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path().to_path_buf());
        (folder, outbox, "run".parse().unwrap())
    }

    #[test]
    fn the_file_is_the_canonical_bytes_of_the_values() {
        let (_folder, outbox, run) = outbox();
        let values = vec![vec![1.0, 2.0, 3.0], vec![0.5; BLOCK_VALUES + 1]];
        let mut writer = outbox.begin(&run, 2, &header()).unwrap();
        for tensor in &values {
            writer.push(tensor).unwrap();
        }
        let checked = writer.finish(1e3).unwrap();
        let expected = encode(&header(), &values);
        assert_eq!(fs::read(outbox.path(&run, 2)).unwrap(), expected);
        assert_eq!(checked.digest, Digest::of(&expected));
        assert!(outbox.holds(&run, 2, checked.digest, expected.len() as u64));
        assert!(!outbox.holds(&run, 2, checked.digest, 1));
        assert!(!outbox.holds(&run, 3, checked.digest, expected.len() as u64));
    }

    #[test]
    fn what_may_not_leave_leaves_no_file() {
        let (folder, outbox, run) = outbox();
        let refused = |values: &[f32], norm_max: f64| {
            let mut writer = outbox.begin(&run, 2, &header()).unwrap();
            match writer.push(values).and_then(|()| writer.finish(norm_max)) {
                Err(DeltaError::Refused(refusal)) => refusal.code(),
                other => panic!("{other:?}"),
            }
        };
        let mut values = vec![0.0; BLOCK_VALUES + 4];
        assert_eq!(refused(&values[1..], 1.0), "size");
        values[0] = 2.0;
        assert_eq!(refused(&values, 1.99), "over_norm");
        values[7] = f32::NAN;
        assert_eq!(refused(&values, 10.0), "not_finite");
        outbox.sweep(&[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_known_before_the_training_and_nothing_is_left_on_it() {
        if !crate::full_disk::is_simulated() {
            return crate::full_disk::simulate_in_a_child(
                "site::outbox::tests::a_full_disk_is_known_before_the_training_and_nothing_is_left_on_it",
            );
        }
        let (folder, outbox, run) = outbox();
        let values = vec![0.5; BLOCK_VALUES + 4];
        let full = outbox.begin(&run, 2, &header()).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::FileTooLarge, "{full}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        crate::full_disk::make_room();
        let mut writer = outbox.begin(&run, 2, &header()).unwrap();
        writer.push(&values).unwrap();
        let checked = writer.finish(1e9).unwrap();
        assert!(outbox.holds(&run, 2, checked.digest, header().total_bytes()));
    }

    #[test]
    fn a_training_that_fails_gives_its_room_back() {
        let (folder, outbox, run) = outbox();
        let writer = outbox.begin(&run, 2, &header()).unwrap();
        let part = durable::part_of(&outbox.path(&run, 2));
        assert_eq!(fs::metadata(&part).unwrap().len(), header().total_bytes());
        writer.abandon();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // Somebody else may have cleared the folder: the training's own reason stays the one told.
        let writer = outbox.begin(&run, 2, &header()).unwrap();
        fs::remove_file(&part).unwrap();
        writer.abandon();
        assert!(outbox.begin(&run, 2, &header()).is_ok());
    }

    #[test]
    fn a_sweep_keeps_what_is_owed_alone() {
        let (_folder, outbox, run) = outbox();
        for name in ["run-1.delta", "run-2.delta", "run-2.delta.part", "other-1.delta"] {
            fs::write(outbox.folder.join(name), b"x").unwrap();
        }
        assert_eq!(outbox.sweep(&[outbox.path(&run, 2)]).unwrap(), 3);
        assert!(outbox.path(&run, 2).exists());
        outbox.remove(&run, 2).unwrap();
        outbox.remove(&run, 2).unwrap();
    }
}
