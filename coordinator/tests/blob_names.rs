//! A name that could not be made durable, in a process of its own: it has no file descriptor left
//! for the folder that would have to be synced.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tributary_coordinator::blobs::{Blobs, SpoolKey};
use tributary_shared::digest::Digest;

/// Failed before: the rename stood, and the blob was believed.
#[test]
fn a_blob_whose_name_may_not_be_durable_is_not_there() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let digest = Digest::of(b"a delta");
    let (run, site) = ("run".parse().unwrap(), "site".parse().unwrap());
    let key = SpoolKey { run, round: 1, site, digest };
    let folder = digest.to_hex()[..2].to_owned();
    std::fs::create_dir(root.path().join("blobs").join(folder)).unwrap();
    let mut spool = blobs.spool(&key).unwrap();
    spool.append(b"a delta").unwrap();

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let failed = spool.finish(digest);
    setrlimit(Resource::Nofile, before).unwrap();

    assert!(failed.is_err());
    assert!(!blobs.exists(digest));
    let spool = blobs.spool(&key).unwrap();
    assert_eq!(spool.received(), 7, "its bytes are good");
    spool.finish(digest).unwrap();
    assert!(blobs.exists(digest));
}
