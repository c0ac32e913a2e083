//! A name that could not be made durable, in a process of its own: it has no file descriptor left
//! for the folder that would have to be synced.

use std::io::Write;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tributary_coordinator::blobs::Blobs;
use tributary_shared::digest::Digest;

/// Failed before: the rename stood, and the blob was believed.
#[test]
fn a_blob_whose_name_may_not_be_durable_is_not_there() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let digest = Digest::of(b"an adapter");
    let folder = digest.to_hex()[..2].to_owned();
    std::fs::create_dir(root.path().join("blobs").join(folder)).unwrap();

    let before = getrlimit(Resource::Nofile);
    let failed = blobs.put_with(|out| {
        out.write_all(b"an adapter")?;
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before })?;
        Ok(digest)
    });
    setrlimit(Resource::Nofile, before).unwrap();

    assert!(failed.is_err());
    assert!(!blobs.exists(digest));
    let stored = blobs.put_with(|out| {
        out.write_all(b"an adapter")?;
        Ok(digest)
    });
    assert_eq!(stored.unwrap(), digest);
    assert!(blobs.exists(digest));
}
