//! Appending, reading, opening.

use std::task::{Context, Waker};

use tributary_shared::tlog::merkle::{leaf_hash, verify_consistency, verify_inclusion};

use super::*;

/// RFC 6962, section 2.1, word for word: MTH over the leaves, by recursion.
fn merkle_tree_hash(leaves: &[Vec<u8>]) -> Digest {
    let prefixed =
        |prefix: u8, parts: &[&[u8]]| Digest::of(&[&[prefix][..], &parts.concat()[..]].concat());
    match leaves {
        [] => Digest::of(b""),
        [leaf] => prefixed(0, &[leaf]),
        _ => {
            let left = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(left);
            let (left, right) = (merkle_tree_hash(left), merkle_tree_hash(right));
            prefixed(1, &[left.as_bytes(), right.as_bytes()])
        }
    }
}

#[tokio::test]
async fn events_become_leaves_of_one_tree() {
    let room = Room::new();
    let store = room.open().await;
    assert_eq!(store.head().await.unwrap(), Head { size: 0, root: Digest::of(b"") });
    let (mut seq, mut all) = (BTreeMap::<&str, u64>::new(), Vec::new());
    for i in 0..25usize {
        let name = ["a", "b", "c"][i % 3];
        let next = seq.entry(name).or_default();
        let appended = store.commit(at(1_000), &run(name), *next, &events(1 + i % 2, i)).await;
        let appended = appended.unwrap();
        assert_eq!(appended[0].1.seq, *next);
        *next += appended.len() as u64;
        for (leaf, record) in appended {
            assert_eq!(leaf, all.len() as u64);
            all.push(record.to_bytes());
        }
        let head = store.head().await.unwrap();
        assert_eq!(head, Head { size: all.len() as u64, root: merkle_tree_hash(&all) });
    }
    let leaves = store.leaves(0, 1_000).await.unwrap();
    assert_eq!(leaves.iter().map(|l| l.bytes.clone()).collect::<Vec<_>>(), all);
    assert_eq!(leaves[7].hash, leaf_hash(&all[7]));
    let page: Vec<u64> = store.leaves(30, 4).await.unwrap().iter().map(|l| l.index).collect();
    assert_eq!(page, [30, 31, 32, 33]);
    let some = store.leaves_at(&[9, 4, 1_000]).await.unwrap();
    assert_eq!(some, [leaves[4].clone(), leaves[9].clone()]);
    let names: Vec<RunName> = store.run_names().await.unwrap();
    assert_eq!(names.iter().map(RunName::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    let records = store.records(&run("b")).await.unwrap();
    assert!(records.iter().enumerate().all(|(i, (_, record))| record.seq == i as u64));
    assert_eq!(records.len() as u64, seq["b"]);
    proofs_hold(&store, &all).await;
}

async fn proofs_hold(store: &Store, leaves: &[Vec<u8>]) {
    let size = leaves.len();
    let root = merkle_tree_hash(leaves);
    let all: Vec<u64> = (0..size as u64).collect();
    let proofs = store.inclusion_proofs(&all, size as u64).await.unwrap();
    assert_eq!(proofs.len(), size);
    for (index, proof) in proofs.into_iter().enumerate() {
        let hash = leaf_hash(&leaves[index]);
        verify_inclusion(hash, index as u64, size as u64, &proof, root).unwrap();
        let proof = store.consistency_proof(index as u64, size as u64).await.unwrap();
        let old = merkle_tree_hash(&leaves[..index]);
        verify_consistency(index as u64, size as u64, old, root, &proof).unwrap();
    }
    assert!(store.inclusion_proofs(&[0, size as u64], size as u64).await.is_err());
}

#[tokio::test]
async fn a_stale_writer_changes_nothing() {
    let room = Room::new();
    let store = room.open().await;
    store.commit(at(1), &run("a"), 0, &events(2, 0)).await.unwrap();
    let before = store.head().await.unwrap();
    for expected_seq in [0, 1, 3] {
        let stale = store.commit(at(2), &run("a"), expected_seq, &events(1, 9)).await;
        assert!(matches!(stale, Err(CommitError::Stale { .. })), "{stale:?}");
    }
    let absent = store.commit(at(2), &run("b"), 1, &events(1, 9)).await;
    assert!(matches!(absent, Err(CommitError::Stale { .. })), "{absent:?}");
    assert_eq!(store.head().await.unwrap(), before);
    assert_eq!(store.commit(at(3), &run("a"), 2, &[]).await.unwrap(), []);
    let name = "a".parse().unwrap();
    let again = store.start_run(at(2), &name, &events(1, 0)).await;
    assert!(matches!(again, Err(StartError::RunExists(_))), "{again:?}");
}

#[tokio::test]
async fn of_many_writers_at_one_place_one_wins() {
    let room = Room::new();
    let store = room.open().await;
    for seq in 0..10 {
        let writers: Vec<_> = (0..8)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.commit(at(1), &run("a"), seq, &events(1, i)).await.is_ok()
                })
            })
            .collect();
        let mut won = 0;
        for writer in writers {
            won += usize::from(writer.await.unwrap());
        }
        assert_eq!(won, 1);
    }
    assert_eq!(store.head().await.unwrap().size, 10);
}

/// A kill leaves the files as they are at some moment; any copy of them must open.
#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill_at_any_moment() {
    let room = Room::new();
    let store = room.open().await;
    for seq in 0..20 {
        let acknowledged = store.commit(at(1), &run("a"), seq, &events(1, 0)).await.unwrap();
        let copy = Room::new();
        for suffix in ["", "-wal"] {
            let name = format!("tributary.db{suffix}");
            std::fs::copy(room.directory.path().join(&name), copy.directory.path().join(&name))
                .unwrap();
        }
        let killed = copy.open().await;
        assert_eq!(killed.head().await.unwrap(), store.head().await.unwrap());
        assert_eq!(killed.records(&run("a")).await.unwrap().last(), acknowledged.last());
    }
    let (head, records) = (store.head().await.unwrap(), store.records(&run("a")).await.unwrap());
    drop(store);
    let store = room.open().await;
    assert_eq!(store.head().await.unwrap(), head);
    assert_eq!(store.records(&run("a")).await.unwrap(), records);
    assert_eq!(*store.follow().borrow(), 20);
    store.commit(at(2), &run("a"), 20, &events(1, 0)).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn followers_hear_of_every_leaf_also_when_the_writer_went_away() {
    let room = Room::new();
    let store = room.open().await;
    let mut follow = store.follow();
    assert_eq!(*follow.borrow_and_update(), 0);
    {
        let (stream, events) = (run("a"), events(3, 0));
        let mut commit = Box::pin(store.commit(at(1), &stream, 0, &events));
        let started = commit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(started.is_pending());
    }
    follow.changed().await.unwrap();
    assert_eq!(*follow.borrow(), 3, "the transaction ran to its end without its caller");
    assert_eq!(store.records(&run("a")).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_does_not_fit_or_could_not_be_read_is_refused_whole() {
    let room = Room::new();
    let store = room.open().await;
    let detail = "x".repeat(70_000);
    let large = Event::Run(RunEvent::RunEnded { state: EndState::Stopped, detail });
    let batch = [events(1, 0), vec![large]].concat();
    let refused = store.commit(at(1), &run("a"), 0, &batch).await.unwrap_err();
    assert!(matches!(refused, CommitError::Store(StoreError::LeafTooLarge(n)) if n > 70_000));
    let no_json = Event::Run(RunEvent::DeltaAccepted {
        round: 1,
        site: "a".parse().unwrap(),
        digest: Digest::of(b""),
        cases: 1,
        norm: f64::NAN,
        bytes: 1,
        metrics: Default::default(),
    });
    let refused = store.commit(at(1), &run("a"), 0, &[no_json]).await.unwrap_err();
    assert!(matches!(refused, CommitError::Store(StoreError::Unreadable)), "{refused:?}");
    assert_eq!(store.head().await.unwrap().size, 0);
    store.commit(at(1), &run("a"), 0, &events(1, 0)).await.unwrap();
}

#[tokio::test]
async fn a_second_coordinator_is_kept_out() {
    let room = Room::new();
    let store = room.open().await;
    let second = Store::open(&room.file()).await.unwrap_err();
    assert!(matches!(second, StoreError::InUse { .. }), "{second:?}");
    let line = second.to_string();
    assert!(line.contains("in use by another coordinator; stop it"), "{line}");
    drop(store);
    room.open().await;
}

#[tokio::test]
async fn other_files_and_later_schemas_are_refused_in_a_clear_line() {
    let room = Room::new();
    std::fs::write(room.file(), "[listen]\nport = 1\n".repeat(100)).unwrap();
    let text = Store::open(&room.file()).await.unwrap_err().to_string();
    assert!(text.ends_with("is not a Tributary database: it is no SQLite file"), "{text}");

    let room = Room::new();
    room.open().await.close().await;
    room.tamper(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'later', TRUE, x'00', 0)",
    )
    .await
    .unwrap();
    let later = Store::open(&room.file()).await.unwrap_err();
    assert!(matches!(later, StoreError::Newer { version: 99, .. }), "{later:?}");

    let room = Room::new();
    room.open().await.close().await;
    room.tamper("PRAGMA application_id = 7").await.unwrap();
    let foreign = Store::open(&room.file()).await.unwrap_err().to_string();
    assert!(foreign.ends_with("its application id is 7"), "{foreign}");

    let nowhere = room.directory.path().join("nowhere/tributary.db");
    let missing = Store::open(&nowhere).await.unwrap_err();
    assert!(matches!(missing, StoreError::Open { .. }), "{missing:?}");
}

#[tokio::test]
async fn the_database_refuses_impossible_rows() {
    let room = Room::new();
    let store = room.open().await;
    store.commit(at(1), &run("a"), 0, &events(3, 0)).await.unwrap();
    store.close().await;
    for (sql, problem) in [
        ("DELETE FROM leaf WHERE idx = 2", "append-only"),
        ("UPDATE leaf SET bytes = x'00' WHERE idx = 1", "append-only"),
        ("UPDATE node SET hash = zeroblob(32) WHERE level = 1", "append-only"),
        ("DELETE FROM node", "append-only"),
        ("UPDATE head SET size = 2", "append-only"),
        ("UPDATE stream SET next_seq = 1", "append-only"),
        ("INSERT INTO leaf VALUES (9, 'run/a', 3, x'00')", "must follow"),
        ("INSERT INTO leaf VALUES (3, 'run/a', 4, x'00')", "must follow"),
        ("INSERT INTO leaf VALUES (3, 'run/z', 0, x'00')", "FOREIGN KEY"),
        ("INSERT INTO leaf VALUES (3, 'run/a', 3, zeroblob(65536))", "CHECK"),
        ("INSERT INTO stream VALUES ('elsewhere', 1)", "CHECK"),
        ("INSERT INTO head VALUES (2, 0, zeroblob(32))", "CHECK"),
        ("INSERT INTO member VALUES ('site/a', 'bored', '1', x'00', 0, NULL)", "CHECK"),
        ("INSERT INTO member VALUES ('king/a', 'active', '1', x'00', 0, NULL)", "CHECK"),
        ("INSERT INTO invitation VALUES (x'00', 'site/a', 0, NULL, NULL)", "CHECK"),
        ("INSERT INTO invitation VALUES (zeroblob(32), 'site/a', 0, zeroblob(32), NULL)", "CHECK"),
    ] {
        let refused = room.tamper(sql).await.expect_err(sql).to_string();
        assert!(refused.contains(problem), "{sql}: {refused}");
    }
}

#[tokio::test]
async fn a_tree_that_does_not_fit_its_head_does_not_open() {
    let room = Room::new();
    let store = room.open().await;
    store.commit(at(1), &run("a"), 0, &events(3, 0)).await.unwrap();
    store.close().await;
    room.tamper("UPDATE head SET size = 4, root = zeroblob(32)").await.unwrap();
    let damaged = Store::open(&room.file()).await.unwrap_err();
    assert!(matches!(damaged, StoreError::Corrupt(_)), "{damaged:?}");
}

#[tokio::test]
#[ignore = "measures: cargo test -p tributary-coordinator --lib store -- --ignored --nocapture"]
async fn commits_a_second() {
    let room = Room::new();
    let store = room.open().await;
    let begun = std::time::Instant::now();
    for seq in 0..1_000 {
        store.commit(at(1), &run("a"), seq, &events(1, 0)).await.unwrap();
    }
    println!("commit: {:.2} ms", begun.elapsed().as_secs_f64());
}
