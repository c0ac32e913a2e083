//! Failures inside SQLite, at every statement of every verb that writes: whatever SQLite did about
//! them by itself, nothing of the failed verb is stored, and what is acknowledged afterwards is in
//! the file for other readers and for the next process.
//!
//! The writer used before (a pool and its transactions) fails here: after SQLite had rolled back by
//! itself, every later verb was a savepoint inside a transaction that was never committed.

use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::members::{certificate, enrolled, site, suspended};
use super::*;

/// Fault put into the database from outside, and the statement that removes it.
struct Fault {
    make: String,
    mend: &'static str,
}

/// Every statement that a verb may fail at, in every way in which SQLite lets it.
fn faults() -> Vec<Fault> {
    let mut faults = Vec::new();
    for place in [
        "INSERT ON stream",
        "UPDATE ON stream",
        "INSERT ON leaf",
        "INSERT ON node",
        "INSERT ON node WHEN NEW.level = 1",
        "UPDATE ON head",
        "INSERT ON invitation",
        "UPDATE ON invitation",
        "INSERT ON member",
        "UPDATE OF state ON member",
        "UPDATE OF last_seen ON member",
    ] {
        for (time, way) in [("BEFORE", "ROLLBACK"), ("AFTER", "ROLLBACK"), ("AFTER", "ABORT")] {
            let body = format!("BEGIN SELECT RAISE({way}, 'no room'); END");
            let make = format!("CREATE TRIGGER fault {time} {place} {body}");
            faults.push(Fault { make, mend: "DROP TRIGGER fault" });
        }
    }
    // Only COMMIT looks at a deferred foreign key; it leaves the transaction open.
    let make = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER fault AFTER INSERT ON leaf BEGIN INSERT INTO child VALUES (1); END";
    let mend = "DROP TRIGGER fault; DROP TABLE child; DROP TABLE parent";
    faults.push(Fault { make: make.to_owned(), mend });
    faults
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Commit,
    StartRun,
    Invite,
    Enrol,
    AddMember,
    SetMemberState,
}

const VERBS: [Verb; 6] = [
    Verb::Commit,
    Verb::StartRun,
    Verb::Invite,
    Verb::Enrol,
    Verb::AddMember,
    Verb::SetMemberState,
];

fn invitation(token: &str, member: &Member) -> Invitation {
    let token_digest = Digest::of(token.as_bytes());
    Invitation { token_digest, member: member.clone(), expires: at(9_000), used: None }
}

/// Prepares the state that every verb needs: a run of one event, `a` enrolled, `b` invited, `a`
/// heard.
async fn prepare(store: &Store) {
    let (a, b) = (site("a"), site("b"));
    store.commit(at(1), &run("old"), 0, &events(1, 0)).await.unwrap();
    let first = certificate("a");
    store.add_member(at(1), &a, &first, enrolled(&a, &first)).await.unwrap();
    store.invite(at(1), &invitation("b", &b), invited(&b)).await.unwrap();
    store.touch_seen(&a, at(2));
}

async fn perform(store: &Store, verb: Verb) -> Result<(), String> {
    let (a, b, c) = (site("a"), site("b"), site("c"));
    let told = |error: &dyn std::error::Error| error.to_string();
    match verb {
        Verb::Commit => {
            let done = store.commit(at(3), &run("old"), 1, &events(2, 1)).await;
            done.map(drop).map_err(|e| told(&e))
        }
        Verb::StartRun => {
            let done = store.start_run(at(3), &"new".parse().unwrap(), &events(1, 0)).await;
            done.map(drop).map_err(|e| told(&e))
        }
        Verb::Invite => {
            let done = store.invite(at(3), &invitation("c", &c), invited(&c)).await;
            done.map_err(|e| told(&e))
        }
        Verb::Enrol => {
            let (token, key) = (Digest::of(b"b"), Digest::of(b"key"));
            let issued = certificate("b");
            let done = store.enrol(at(3), token, key, &issued, enrolled(&b, &issued)).await;
            done.map(drop).map_err(|e| told(&e))
        }
        Verb::AddMember => {
            let issued = certificate("a again");
            let done = store.add_member(at(3), &a, &issued, enrolled(&a, &issued)).await;
            done.map_err(|e| told(&e))
        }
        Verb::SetMemberState => {
            let state = MemberState::Suspended;
            let done = store.set_member_state(at(3), &a, state, suspended(&a)).await;
            done.map(drop).map_err(|e| told(&e))
        }
    }
}

/// Everything that is stored, as another reader of the file sees it.
async fn dump(room: &Room) -> Vec<String> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(room.file());
    let mut reader: SqliteConnection = options.connect().await.unwrap();
    let mut rows = Vec::new();
    for sql in [
        "SELECT 'stream ' || name || next_seq FROM stream",
        "SELECT 'leaf ' || idx || stream || seq || quote(bytes) FROM leaf",
        "SELECT 'node ' || level || '/' || idx || quote(hash) FROM node",
        "SELECT 'head ' || size || quote(root) FROM head",
        "SELECT 'invitation ' || quote(token_digest) || quote(key_digest) FROM invitation",
        "SELECT 'member ' || member || state || serial FROM member",
    ] {
        let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut reader).await.unwrap();
        rows.extend(found);
    }
    reader.close().await.unwrap();
    rows
}

/// Fails as soon as what the store acknowledges and what others read differ.
async fn check(room: &Room, store: &Store, acknowledged: u64, case: &str) {
    assert_eq!(*store.follow().borrow(), acknowledged, "{case}: told to followers");
    assert_eq!(store.head().await.unwrap().size, acknowledged, "{case}: the store's own readers");
    let rows = dump(room).await;
    let head = format!("head {acknowledged}");
    assert!(rows.iter().any(|row| row.starts_with(&head)), "{case}: another reader: {rows:?}");
}

#[tokio::test]
async fn a_failure_inside_sqlite_costs_its_own_verb_and_nothing_else() {
    let (mut failures, mut tried) = (0, 0);
    for fault in faults() {
        for verb in VERBS {
            let case = format!("{verb:?} under {}", fault.make);
            let room = Room::new();
            let store = room.open().await;
            prepare(&store).await;
            let before = dump(&room).await;
            room.run(&fault.make).await;
            let failed = perform(&store, verb).await;
            room.run(fault.mend).await;
            tried += 1;
            let mut leaves = 3;
            if failed.is_err() {
                failures += 1;
                assert_eq!(dump(&room).await, before, "{case}: something of it was stored");
                check(&room, &store, leaves, &case).await;
                perform(&store, verb).await.expect(&case);
            }
            leaves += if matches!(verb, Verb::Commit) { 2 } else { 1 };
            check(&room, &store, leaves, &case).await;
            let stale = store.commit(at(4), &run("old"), 9, &events(1, 9)).await;
            assert!(matches!(stale, Err(CommitError::Stale { .. })), "{case}: {stale:?}");
            store.commit(at(4), &run("later"), 0, &events(2, 5)).await.expect(&case);
            check(&room, &store, leaves + 2, &case).await;
            let rows = dump(&room).await;
            drop(store);
            let fresh = room.open().await;
            assert_eq!(*fresh.follow().borrow(), leaves + 2, "{case}: the next process");
            assert_eq!(dump(&room).await, rows, "{case}: the next process");
        }
    }
    assert!(failures > tried / 3, "only {failures} of {tried} faults struck");
}

/// A refusal is no failure: the writer that said it is used again.
#[tokio::test]
async fn a_refusal_is_rolled_back_and_the_next_verb_counts() {
    let room = Room::new();
    let store = room.open().await;
    prepare(&store).await;
    let unknown = site("unknown");
    for _ in 0..3 {
        let state = MemberState::Revoked;
        let refused = store.set_member_state(at(3), &unknown, state, suspended(&unknown)).await;
        assert!(matches!(refused, Err(StateError::Unknown(_))), "{refused:?}");
        let (token, issued) = (Digest::of(b"none"), certificate("b"));
        let event = enrolled(&unknown, &issued);
        let refused = store.enrol(at(3), token, Digest::of(b"key"), &issued, event).await;
        assert!(matches!(refused, Err(EnrolError::UnknownToken)), "{refused:?}");
    }
    perform(&store, Verb::Commit).await.unwrap();
    check(&room, &store, 5, "after refusals").await;
}

#[tokio::test]
async fn a_closed_store_takes_nothing_more() {
    let room = Room::new();
    let store = room.open().await;
    prepare(&store).await;
    store.close().await;
    assert!(perform(&store, Verb::Commit).await.is_err());
    assert_eq!(*room.open().await.follow().borrow(), 3);
}

/// Set in the process of its own that [`limited_files`] runs a test in.
const ALONE: &str = "TRIBUTARY_TEST_ALONE";

/// Runs the test `name` of this program again in a process of its own, whose limits are its own:
/// true in there.
fn limited_files(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    // The signal that would kill a program at the limit is ignored, so that it sees the error.
    let mut child = std::process::Command::new("sh");
    child.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(this);
    let output = child.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "no such test: {said}");
    false
}

/// From now on this process may write no file longer than that; any it likes when absent.
fn limit_files(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

/// The journal may grow by so many bytes and no more: every page of every verb's commit meets the
/// limit once.
#[tokio::test]
async fn a_disk_that_ends_within_any_page_costs_its_own_verb_and_nothing_else() {
    if !limited_files(
        "store::tests::faults::a_disk_that_ends_within_any_page_costs_its_own_verb_and_nothing_else",
    ) {
        return;
    }
    for verb in VERBS {
        let room = Room::new();
        let store = room.open().await;
        prepare(&store).await;
        let mut leaves = 3;
        for step in 0.. {
            let case = format!("{verb:?}, step {step}");
            let before = dump(&room).await;
            let journal = room.directory.path().join("tributary.db-wal");
            let length = std::fs::metadata(&journal).map_or(0, |found| found.len());
            limit_files(Some(length + step * 2_060));
            let ended = perform(&store, verb).await;
            limit_files(None);
            if ended.is_ok() {
                assert!(step > 2, "{case}: nothing ever failed");
                break;
            }
            assert_eq!(dump(&room).await, before, "{case}: something of it was stored");
            let later = run(&format!("later-{step}"));
            store.commit(at(4), &later, 0, &events(1, 5)).await.expect(&case);
            leaves += 1;
            check(&room, &store, leaves, &case).await;
        }
        leaves += if matches!(verb, Verb::Commit) { 2 } else { 1 };
        check(&room, &store, leaves, "in the end").await;
        let rows = dump(&room).await;
        drop(store);
        assert_eq!(*room.open().await.follow().borrow(), leaves, "{verb:?}: the next process");
        assert_eq!(dump(&room).await, rows, "{verb:?}: the next process");
    }
}

#[tokio::test]
async fn a_commit_that_finds_no_room_is_known_as_that() {
    if !limited_files("store::tests::faults::a_commit_that_finds_no_room_is_known_as_that") {
        return;
    }
    let room = Room::new();
    let store = room.open().await;
    prepare(&store).await;
    limit_files(Some(1));
    let full = store.commit(at(3), &run("old"), 1, &events(1, 1)).await.unwrap_err();
    limit_files(None);
    let CommitError::Store(full) = full else { panic!("{full:?}") };
    assert!(full.is_full(), "{full:?}");
    assert!(!StoreError::Unreadable.is_full());
}
