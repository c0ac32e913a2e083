//! Whole files under their own name, parts that survive, nothing left half-done.

use super::*;

fn key(site: &str, round: u32, content: &[u8]) -> SpoolKey {
    let digest = Digest::of(content);
    SpoolKey { run: "run-1".parse().unwrap(), round, site: site.parse().unwrap(), digest }
}

fn spool_files(root: &Path) -> usize {
    fs::read_dir(root.join("spool")).unwrap().count()
}

#[tokio::test]
async fn bytes_are_kept_under_their_digest() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let put = || {
        blobs.put_with(|out| {
            out.write_all(b"abc")?;
            Ok(Digest::of(b"abc"))
        })
    };
    let digest = put().unwrap();
    assert_eq!(digest, Digest::of(b"abc"));
    assert_eq!(put().unwrap(), digest, "twice is once");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(fs::read(root.path().join("blobs/ba").join(hex)).unwrap(), b"abc");
    let again = Blobs::at(root.path()).unwrap();
    assert!(again.exists(digest));
    assert_eq!(again.size(digest).await.unwrap(), 3);
    for (offset, rest) in [(0, &b"abc"[..]), (1, b"bc"), (3, b"")] {
        assert_eq!(again.piece(digest, offset, 9).await.unwrap(), rest);
    }
    assert_eq!(again.list().unwrap(), [digest]);
    again.remove(digest).unwrap();
    assert!(!again.exists(digest));
    assert!(again.open_blocking(digest).is_err());
    assert_eq!(spool_files(root.path()), 0);
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let failed = blobs.put_with(|out| {
        out.write_all(b"half")?;
        Err(io::Error::other("no more"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "no more");
    assert_eq!(blobs.list().unwrap(), []);
    assert_eq!(spool_files(root.path()), 0);
}

#[test]
fn temporary_files_of_a_killed_process_go_and_parts_stay() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    fs::write(root.path().join("spool/3.tmp"), b"half").unwrap();
    blobs.spool(&key("a", 1, b"x")).unwrap().append(b"part").unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    assert_eq!(spool_files(root.path()), 1);
    assert_eq!(blobs.spool(&key("a", 1, b"x")).unwrap().received(), 4);
}

#[tokio::test]
async fn a_part_goes_on_where_it_was_left_and_becomes_a_blob() {
    let root = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..9_000_000u32).map(|i| i as u8).collect();
    let key = key("a", 1, &content);
    for piece in content.chunks(1_000_000) {
        let blobs = Blobs::at(root.path()).unwrap();
        let mut spool = blobs.spool(&key).unwrap();
        let mut held = Vec::new();
        spool
            .replay(|bytes| {
                held.extend_from_slice(bytes);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        assert_eq!(held, content[..held.len()]);
        assert_eq!(blobs.spooled(&key).await.unwrap(), held.len() as u64);
        spool.append(piece).unwrap();
        assert_eq!(spool.received(), (held.len() + piece.len()) as u64);
    }
    let blobs = Blobs::at(root.path()).unwrap();
    blobs.spool(&key).unwrap().sync().unwrap();
    assert!(!blobs.exists(key.digest), "a delta that is not counted is no blob");
    for _ in ["once", "and again, as after a restart"] {
        blobs.promote(&BTreeSet::from([key.clone()])).unwrap();
        assert_eq!(fs::read(blobs.path(key.digest)).unwrap(), content);
        assert_eq!(spool_files(root.path()), 0);
        assert_eq!(blobs.spooled(&key).await.unwrap(), 0);
    }
}

/// A batch whose second part cannot get its name leaves the first one a part.
#[test]
fn parts_become_blobs_all_or_none_and_the_next_call_succeeds() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let keys = [key("a", 1, b"first"), key("b", 1, b"second")];
    for (key, content) in keys.iter().zip([&b"first"[..], b"second"]) {
        let mut spool = blobs.spool(key).unwrap();
        spool.append(content).unwrap();
        spool.sync().unwrap();
    }
    // A file where the second one's folder must be.
    let blocked = blobs.path(keys[1].digest).parent().unwrap().to_path_buf();
    assert_ne!(Some(&*blocked), blobs.path(keys[0].digest).parent());
    fs::write(&blocked, b"").unwrap();
    let all = BTreeSet::from(keys.clone());
    blobs.promote(&all).unwrap_err();
    assert_eq!((spool_files(root.path()), blobs.exists(keys[0].digest)), (2, false));
    fs::remove_file(&blocked).unwrap();
    blobs.promote(&all).unwrap();
    assert!(keys.iter().all(|key| blobs.exists(key.digest)));
    assert_eq!(spool_files(root.path()), 0);
}

/// A3: what slow readers hold up is bounded.
#[test]
fn few_readers_at_once_have_large_pieces() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let mut large: Vec<_> = (0..LARGE_READERS_MAX).map(|_| blobs.pieces()).collect();
    assert!(large.iter().all(|pieces| pieces.bytes == LARGE_PIECE_BYTES));
    assert_eq!(blobs.pieces().bytes, SMALL_PIECE_BYTES);
    large.pop();
    assert_eq!(blobs.pieces().bytes, LARGE_PIECE_BYTES);
}

#[tokio::test]
async fn a_site_has_one_part_a_run() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let write = |key: &SpoolKey| blobs.spool(key).unwrap().append(b"part").unwrap();
    write(&key("a", 1, b"x"));
    write(&key("b", 1, b"x"));
    write(&key("a", 1, b"y"));
    write(&key("a", 2, b"x"));
    let other = SpoolKey { run: "run-12".parse().unwrap(), ..key("a", 1, b"x") };
    write(&other);
    assert_eq!(spool_files(root.path()), 3, "a's newest, b's, and a's of another run");
    assert_eq!(blobs.spooled(&key("a", 2, b"x")).await.unwrap(), 4);
    let mut parts = blobs.parts().unwrap();
    parts.sort();
    assert_eq!(parts, [key("b", 1, b"x"), key("a", 2, b"x"), other.clone()]);
    blobs.remove_part(&key("a", 2, b"x")).unwrap();
    blobs.remove_part(&key("a", 2, b"x")).unwrap();
    assert_eq!(spool_files(root.path()), 2);
    assert_eq!(blobs.spooled(&other).await.unwrap(), 4);
}

/// A file that takes bytes and cannot be made durable.
fn unsyncable(path: &Path) -> File {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Failed before: the bytes after the last good sync stayed in the part and were believed, and the
/// next stream went on behind them.
#[tokio::test]
async fn what_could_not_be_made_durable_is_not_in_the_part() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    let key = key("a", 1, b"durable and lost");
    let mut spool = blobs.spool(&key).unwrap();
    spool.append(b"durable").unwrap();
    spool.sync().unwrap();
    spool.append(b" and lost").unwrap();
    spool.file = unsyncable(&root.path().join("pipe"));
    assert!(spool.sync().is_err());
    assert_eq!(blobs.spooled(&key).await.unwrap(), 7);
    let mut spool = blobs.spool(&key).unwrap();
    spool.replay(|_| Ok::<_, io::Error>(())).unwrap();
    spool.append(b" and lost").unwrap();
    spool.sync().unwrap();
    blobs.promote(&BTreeSet::from([key.clone()])).unwrap();
    assert_eq!(fs::read(blobs.path(key.digest)).unwrap(), b"durable and lost");
}

/// Failed before: a stray file in the folder ended `gc` and `doctor` with an error that named the folder.
#[tokio::test]
async fn a_file_among_the_folders_of_blobs_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::at(root.path()).unwrap();
    fs::write(root.path().join("blobs/junk"), b"x").unwrap();
    assert_eq!(blobs.list().unwrap(), []);
}
