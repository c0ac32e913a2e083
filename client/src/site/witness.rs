//! The site as a witness of the coordinator's history: it remembers the last head it saw and stops
//! before a log that does not continue it.

use std::io;
use std::path::{Path, PathBuf};

use tributary_proto::channel::write_durably;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::text::printable_start;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::recovery::Recovery;
use tributary_shared::tlog::witness::{Witness, WitnessRefusal};

/// Largest witness file and checkpoint read, bytes.
const NOTE_BYTES_MAX: usize = 16 * 1024;
/// Most hashes of a consistency proof: a log of 2^64 leaves needs no more.
const PROOF_HASHES_MAX: usize = 130;

/// The reason for which the log was not followed.
#[derive(Debug)]
pub(super) enum Unfollowed {
    /// The site's own disk said no.
    Disk(io::Error),
    /// The log does not continue the head that is held.
    Broken(Failure),
}

/// The witness and its file.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    witness: Witness,
}

impl Keeper {
    /// Reads the witness file, or begins one for the log of `verifier_key`.
    pub(super) fn open(path: &Path, verifier_key: &str) -> Result<Self, Failure> {
        let key = verifier_key.parse().map_err(|e| {
            let message = format!("the identity's log key: {}", chain(&e));
            Failure::invalid("identity", message).hint("enrol again with a new startup kit")
        })?;
        let refused = |problem: String| {
            Failure::invalid("witness", format!("{}: {problem}", path.display()))
                .hint("restore the file from a backup; it is this site's memory of the history")
        };
        let witness = match std::fs::read_to_string(path) {
            Ok(text) => Witness::from_json(&text).map_err(|e| refused(chain(&e)))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Witness::new(key),
            Err(e) => return Err(refused(e.to_string())),
        };
        if witness.key().to_string() != verifier_key {
            return Err(refused("it is of another log than the identity's".to_owned()));
        }
        Ok(Self { path: path.to_path_buf(), witness })
    }

    /// The last head seen.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.witness.checkpoint()
    }

    /// The last head seen, with its signature; empty when there is none.
    pub(super) fn note(&self) -> String {
        self.witness.note().unwrap_or_default().to_owned()
    }

    /// Goes on from the head that `recovery` keeps. The head held so far stays in a file of its
    /// own, as evidence, whose path is given.
    pub(super) fn resume(&mut self, recovery: &Recovery) -> io::Result<PathBuf> {
        let kept = Witness::at(self.witness.key().clone(), &recovery.statement.kept.note)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, chain(&e)))?;
        let root = self.checkpoint().map(|head| head.root.short()).unwrap_or_default();
        // Two lost branches may end at one size: each keeps its file.
        let lost = format!("witness-lost-{}-leaves-{root}.json", self.size());
        let evidence = self.path.with_file_name(lost);
        // First the copy, then the change: a crash in between leaves both.
        write_durably(&evidence, self.witness.to_json().as_bytes(), 0o600)?;
        write_durably(&self.path, kept.to_json().as_bytes(), 0o600)?;
        self.witness = kept;
        Ok(evidence)
    }

    /// Leaves of the last head seen.
    pub(super) fn size(&self) -> u64 {
        self.witness.size()
    }

    /// Follows the log to the head in `reply`, durably. A log that does not continue the head held
    /// is named with both heads, and the file keeps the former as evidence.
    pub(super) fn follow(&mut self, reply: &v1::CheckpointReply) -> Result<(), Unfollowed> {
        // Memory follows the file: a head that was not written was not seen.
        let next = advanced(&self.witness, reply).map_err(Unfollowed::Broken)?;
        if next.size() != self.size() {
            write_durably(&self.path, next.to_json().as_bytes(), 0o600)
                .map_err(Unfollowed::Disk)?;
            self.witness = next;
        }
        Ok(())
    }
}

/// `witness` after the head in `reply`, where the log continues the head held.
pub(super) fn advanced(witness: &Witness, reply: &v1::CheckpointReply) -> Result<Witness, Failure> {
    if reply.note.len() > NOTE_BYTES_MAX || reply.consistency.len() > PROOF_HASHES_MAX {
        return Err(broken("the coordinator's checkpoint is of excessive length".to_owned()));
    }
    let hashes = reply.consistency.iter().map(|hash| Digest::try_from(&hash[..]));
    let proof = hashes
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| broken(format!("the coordinator's consistency proof: {e}")))?;
    let mut next = witness.clone();
    match next.advance(&reply.note, &proof) {
        Ok(_) => Ok(next),
        Err(refusal) => Err(refused(witness, &refusal, &reply.note)),
    }
}

fn refused(witness: &Witness, refusal: &WitnessRefusal, offered: &str) -> Failure {
    let held = witness
        .checkpoint()
        .map_or_else(|| "none".to_owned(), |head| format!("size {} root {}", head.size, head.root));
    // The signed body alone: three lines of name, size and root.
    let offered: Vec<&str> = offered.lines().take(3).collect();
    let offered = printable_start(&offered.join(" "), 300);
    broken(format!("{}; head held: {held}; head offered: {offered}", chain(refusal)))
}

fn broken(message: String) -> Failure {
    Failure::refused("history_not_continued", message).hint(
        "this site takes no part until it is explained: keep its directory, call the consortium",
    )
}

#[cfg(test)]
mod tests {
    use tributary_shared::tlog::checkpoint::Checkpoint;
    use tributary_shared::tlog::frontier::Frontier;
    use tributary_shared::tlog::key::Signer;
    use tributary_shared::tlog::merkle::leaf_hash;

    use super::*;

    /// Failed before: memory went ahead of the file, so that the head counted as seen although the
    /// file was never written, and a restart followed another history without a word.
    #[test]
    fn a_head_that_could_not_be_written_was_not_seen() {
        let random = ring::rand::SystemRandom::new();
        let signer = Signer::from_pkcs8("log", &Signer::generate(&random).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("away/witness.json");
        let mut keeper = Keeper::open(&path, &signer.verifier_key().to_string()).unwrap();
        let mut log = Frontier::new();
        log.append(leaf_hash(b"first"));
        let note = Checkpoint::sign(log.size(), log.root(), &signer);
        let reply = v1::CheckpointReply { note, ..Default::default() };
        for _ in 0..2 {
            let unwritten = keeper.follow(&reply).unwrap_err();
            assert!(matches!(unwritten, Unfollowed::Disk(_)), "{unwritten:?}");
            assert_eq!(keeper.size(), 0);
        }
        std::fs::create_dir(folder.path().join("away")).unwrap();
        keeper.follow(&reply).unwrap();
        assert_eq!(keeper.size(), 1);
        let again = Keeper::open(&path, &signer.verifier_key().to_string()).unwrap();
        assert_eq!(again.size(), 1);
    }
}
