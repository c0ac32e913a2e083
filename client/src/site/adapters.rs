//! Global adapters on their way in: fetched in pieces, checked as they arrive, resumed where a
//! broken connection or a restart left off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use tributary_proto::v1;
use tributary_shared::contract::AdapterContract;
use tributary_shared::digest::Digest;
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::name::RunName;
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Reader, Subject, decode};

use super::terms::Asked;
use crate::durable;
use crate::transport::{CallError, Coordinator};

/// Read at a time from a half-fetched file.
const BLOCK_BYTES: usize = 64 * 1024;

/// Why there is no base adapter.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The call broke off; what came is kept.
    #[error("{}", .0.failure())]
    Call(CallError),
    /// What came is not the adapter that the terms name.
    #[error("it is not the adapter that the terms name: {0}")]
    Refused(Refusal),
    /// The disk said no.
    #[error("the adapters' folder: {0}")]
    Disk(io::Error),
}

impl From<io::Error> for FetchError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Where the adapter of this digest lies once it is whole.
pub(super) fn path_of(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(digest.to_hex())
}

/// Fetches the base adapter of `asked` into `folder`, or finds it there. `received` hears how many
/// bytes there are.
pub(super) async fn obtain(
    coordinator: &Coordinator,
    folder: &Path,
    asked: &Asked,
    mut received: impl FnMut(u64),
) -> Result<PathBuf, FetchError> {
    let digest = asked.terms.base;
    let path = path_of(folder, digest);
    let Some(mut spool) = tokio::task::block_in_place(|| Spool::resume(&path, asked))? else {
        tokio::task::block_in_place(|| check_initial(&path, asked))?;
        return Ok(path);
    };
    let request = v1::FetchRequest {
        run: asked.terms.run.to_string(),
        digest: digest.as_bytes().to_vec().into(),
        offset: spool.check.seen_bytes(),
    };
    if spool.check.seen_bytes() < asked.base_bytes {
        let mut download = coordinator.fetch_adapter(request).await.map_err(FetchError::Call)?;
        while let Some(piece) = download.next().await.map_err(FetchError::Call)? {
            tokio::task::block_in_place(|| spool.push(&piece))?;
            received(spool.check.seen_bytes());
        }
    }
    tokio::task::block_in_place(|| {
        spool.finish(&path, digest)?;
        check_initial(&path, asked)
    })?;
    Ok(path)
}

/// Version 0 is what the manifest implies, in whichever round it is the base. The first round was
/// judged by it already.
fn check_initial(path: &Path, asked: &Asked) -> Result<(), FetchError> {
    if asked.terms.round == 1 {
        return Ok(());
    }
    let longest = adapter_header(&asked.terms.run, 0, &asked.contract).to_bytes().len();
    let mut beginning = Vec::new();
    File::open(path)?.take(longest as u64).read_to_end(&mut beginning)?;
    // A header of another version may be longer, and then it is not this one.
    match version(&beginning, longest, u32::MAX) {
        Ok(Some(0)) => asked.check_initial().map_err(FetchError::Refused),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The values of a whole adapter at `path`, one flat vector a tensor.
pub(super) fn read_values(path: &Path, asked: &Asked) -> Result<Vec<Vec<f32>>, FetchError> {
    let bytes = fs::read(path)?;
    let (run, newest) = (&asked.terms.run, asked.terms.round - 1);
    let version = version(&bytes, bytes.len(), newest)
        .map_err(FetchError::Refused)?
        .ok_or(FetchError::Refused(Refusal::Size { expected: asked.base_bytes, found: 0 }))?;
    decode(&bytes, &adapter_header(run, version, &asked.contract)).map_err(FetchError::Refused)
}

/// Refuses a base whose L2 distance from the initial adapter is above `most`, the policy's `base_norm_max`.
pub(super) fn check_norm(base: &[Vec<f32>], asked: &Asked, most: f64) -> Result<(), String> {
    let norm = distance_from_initial(base, asked);
    if norm <= most {
        return Ok(());
    }
    Err(format!(
        "the base adapter is {norm:.4} from the initial one, above the site's base_norm_max = {most}"
    ))
}

/// The L2 distance of a base from the adapter that the run began with, in f64.
fn distance_from_initial(base: &[Vec<f32>], asked: &Asked) -> f64 {
    let header = adapter_header(&asked.terms.run, 0, &asked.contract);
    let initial = decode(&initial_adapter(&asked.manifest), &header);
    let initial = initial.expect("the initial adapter fits its own contract");
    let pairs = base.iter().flatten().zip(initial.iter().flatten());
    pairs.map(|(b, i)| (f64::from(*b) - f64::from(*i)).powi(2)).sum::<f64>().sqrt()
}

/// Removes every adapter but the one of `kept`, whole or in part.
pub(super) fn sweep(folder: &Path, kept: Option<Digest>) -> io::Result<()> {
    let kept = kept.map(|digest| path_of(folder, digest));
    let keeps = |path: &Path| {
        kept.as_ref().is_some_and(|kept| path == kept || path == durable::part_of(kept))
    };
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !keeps(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// An adapter being fetched. Not made durable: it has a digest, is checked before each use, and
/// can be fetched again.
struct Spool {
    part: PathBuf,
    file: File,
    check: BaseCheck,
}

impl Spool {
    /// Goes on with what is there; `None` when all of it is.
    fn resume(path: &Path, asked: &Asked) -> Result<Option<Self>, FetchError> {
        let fresh = || BaseCheck::new(&asked.terms.run, asked.terms.round, &asked.contract);
        if let Some(check) = check_file(path, fresh())? {
            match check.finish() {
                Ok(digest) if digest == asked.terms.base => return Ok(None),
                Ok(_) | Err(_) => fs::remove_file(path)?,
            }
        }
        let part = durable::part_of(path);
        let held = check_file(&part, fresh())?;
        let mut options = OpenOptions::new();
        let file = match &held {
            Some(_) => options.append(true).open(&part)?,
            None => options.create(true).write(true).truncate(true).open(&part)?,
        };
        Ok(Some(Self { part, file, check: held.unwrap_or_else(fresh) }))
    }

    fn push(&mut self, piece: &Bytes) -> Result<(), FetchError> {
        if let Err(refusal) = self.check.push(piece) {
            fs::remove_file(&self.part)?;
            return Err(FetchError::Refused(refusal));
        }
        Ok(self.file.write_all(piece)?)
    }

    fn finish(self, path: &Path, expected: Digest) -> Result<(), FetchError> {
        let found = self.check.finish();
        match found {
            Ok(found) if found == expected => Ok(fs::rename(&self.part, path)?),
            Ok(found) => {
                fs::remove_file(&self.part)?;
                let (expected, found) = (expected.to_string(), found.to_string());
                Err(FetchError::Refused(Refusal::Digest { expected, found }))
            }
            // The stream ended early: what came is good, the rest is asked for again.
            Err(refusal) => Err(FetchError::Call(CallError::broken_off(&refusal.to_string()))),
        }
    }
}

/// Checks what a file holds; `None` when there is none, or it is not the beginning of a base.
fn check_file(path: &Path, mut check: BaseCheck) -> io::Result<Option<BaseCheck>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(Some(check));
        }
        if check.push(&block[..read]).is_err() {
            return Ok(None);
        }
    }
}

/// A [`Reader`] that learns from the header which version of the run's adapter comes: at most the
/// number of rounds before this one, fewer when rounds ended below quorum.
pub(super) struct BaseCheck {
    run: RunName,
    round: u32,
    contract: AdapterContract,
    /// The header while incomplete.
    pending: Vec<u8>,
    reader: Option<Reader>,
}

impl BaseCheck {
    pub(super) fn new(run: &RunName, round: u32, contract: &AdapterContract) -> Self {
        let (run, contract) = (run.clone(), contract.clone());
        Self { run, round, contract, pending: Vec::new(), reader: None }
    }

    fn seen_bytes(&self) -> u64 {
        self.reader.as_ref().map_or(self.pending.len() as u64, Reader::seen_bytes)
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if let Some(reader) = &mut self.reader {
            return reader.push(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let longest = adapter_header(&self.run, self.round - 1, &self.contract).to_bytes().len();
        let Some(version) = version(&self.pending, longest, self.round - 1)? else {
            return Ok(());
        };
        let mut reader = Reader::new(adapter_header(&self.run, version, &self.contract));
        reader.push(&std::mem::take(&mut self.pending))?;
        self.reader = Some(reader);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Digest, Refusal> {
        let seen = self.seen_bytes();
        let expected = adapter_header(&self.run, self.round - 1, &self.contract).total_bytes();
        let reader = self.reader.ok_or(Refusal::Size { expected, found: seen })?;
        Ok(reader.finish()?.digest)
    }
}

/// The version that the beginning of an adapter names, at most `newest`; `None` while its header
/// of at most `longest` bytes is incomplete. The [`Reader`] checks all else.
fn version(bytes: &[u8], longest: usize, newest: u32) -> Result<Option<u32>, Refusal> {
    #[derive(Deserialize)]
    struct Beginning {
        subject: Subject,
    }
    let malformed = |detail: String| Refusal::Malformed { detail };
    let Some((prefix, rest)) = bytes.split_at_checked(12) else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([prefix[8], prefix[9], prefix[10], prefix[11]]) as usize;
    if length > longest {
        return Err(malformed(format!("header of {length} bytes, above {longest}")));
    }
    let Some(json) = rest.get(..length) else {
        return Ok(None);
    };
    let beginning: Beginning =
        serde_json::from_slice(json).map_err(|e| malformed(format!("header: {e}")))?;
    match beginning.subject {
        Subject::Adapter { version, .. } if version <= newest => Ok(Some(version)),
        Subject::Adapter { version, .. } => Err(Refusal::Wrong {
            field: "version".to_owned(),
            expected: format!("at most {newest}"),
            found: version.to_string(),
        }),
        Subject::Delta { .. } => Err(malformed("a delta in place of an adapter".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tributary_shared::tensors::encode;
    use tributary_shared::terms::Terms;
    use tributary_shared::timestamp::Timestamp;

    use super::super::fixture::rehearsal;
    use super::*;

    fn contract() -> AdapterContract {
        AdapterContract::rehearsal(40)
    }

    fn run() -> RunName {
        "run".parse().unwrap()
    }

    fn adapter(version: u32) -> Vec<u8> {
        encode(&adapter_header(&run(), version, &contract()), &[vec![0.5; 10]])
    }

    fn checked(bytes: &[u8], round: u32) -> Result<Digest, Refusal> {
        let mut check = BaseCheck::new(&run(), round, &contract());
        check.push(bytes)?;
        check.finish()
    }

    #[test]
    fn any_version_that_the_rounds_before_can_have_made_is_a_base() {
        for version in [0, 9, 11] {
            let bytes = adapter(version);
            assert_eq!(checked(&bytes, 12), Ok(Digest::of(&bytes)));
        }
        let newer = checked(&adapter(12), 12).unwrap_err();
        assert!(matches!(newer, Refusal::Wrong { field, .. } if field == "version"));
    }

    /// A7. Failed before: version 0 was compared with the manifest in the first round alone.
    #[test]
    fn version_0_is_what_the_manifest_implies_in_every_round() {
        let manifest = rehearsal("run");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        let checked = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let terms = Terms {
                run: run(),
                round: 2,
                manifest: manifest.digest(),
                base: Digest::of(bytes),
                cohort_size: 1,
                deadline: Timestamp::from_millis(0),
            };
            let base_bytes = bytes.len() as u64;
            let asked =
                Asked { manifest: manifest.clone(), terms, contract: contract(), base_bytes };
            let values = read_values(&path, &asked).unwrap();
            let norm = |most| check_norm(&values, &asked, most);
            assert!(norm(2.0).is_ok(), "{:?}", norm(2.0));
            (check_initial(&path, &asked), distance_from_initial(&values, &asked), norm(1.5))
        };
        let (initial, distance, norm) = checked(&initial_adapter(&manifest));
        assert!(initial.is_ok() && distance == 0.0 && norm.is_ok(), "{initial:?} {norm:?}");
        let (crafted, distance, norm) = checked(&adapter(0));
        let above =
            "the base adapter is 1.5811 from the initial one, above the site's base_norm_max = 1.5";
        assert_eq!(norm, Err(above.to_owned()));
        assert!(matches!(crafted, Err(FetchError::Refused(_))), "{crafted:?}");
        assert!((distance - 10f64.sqrt() / 2.0).abs() < 1e-6, "{distance}");
        assert!(checked(&adapter(1)).0.is_ok(), "another version is the history's to prove");
    }

    #[test]
    fn what_is_no_base_is_refused() {
        let bytes = adapter(3);
        assert_eq!(checked(&bytes[..bytes.len() - 1], 4).unwrap_err().code(), "size");
        assert_eq!(checked(&bytes[..20], 4).unwrap_err().code(), "size");
        assert_eq!(checked(b"TRIBTNS1\xff\xff\xff\xff", 4).unwrap_err().code(), "malformed");
        let other = AdapterContract::rehearsal(44);
        let bytes = encode(&adapter_header(&run(), 3, &other), &[vec![0.5; 11]]);
        assert_eq!(checked(&bytes, 4).unwrap_err().code(), "contract");
    }

    #[test]
    fn a_part_is_taken_up_where_it_ends_and_a_foreign_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let bytes = adapter(1);
        let fresh = || BaseCheck::new(&run(), 2, &contract());
        assert!(check_file(&path, fresh()).unwrap().is_none());
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let mut check = check_file(&path, fresh()).unwrap().unwrap();
            assert_eq!(check.seen_bytes(), cut as u64);
            check.push(&bytes[cut..]).unwrap();
            assert_eq!(check.finish(), Ok(Digest::of(&bytes)));
        }
        fs::write(&path, b"something else entirely").unwrap();
        assert!(check_file(&path, fresh()).unwrap().is_none());
    }

    #[test]
    fn a_sweep_keeps_one_adapter() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, old) = (Digest::of(b"kept"), Digest::of(b"old"));
        for path in [path_of(folder.path(), kept), path_of(folder.path(), old)] {
            fs::write(durable::part_of(&path), b"").unwrap();
            fs::write(path, b"").unwrap();
        }
        sweep(folder.path(), Some(kept)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        sweep(folder.path(), None).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = checked(&bytes, 3);
        }
    }
}
