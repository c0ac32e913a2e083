//! Backups that are whole, and every way in which one is not.

use std::fs;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use tributary_proto::channel::Identity;
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::key::Signer;
use tributary_shared::tlog::recovery::Statement;

use super::archive::{Entry, Manifest, Writer, read_manifest};
use super::backup::backup;
use super::restore::restore;
use super::statement::Recovering;
use super::*;
use crate::heads::Heads;
use crate::membership::{Authority, Founding, init};
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Stream};
use crate::store::{Certificate, Store};

/// A coordinator's directory with a history.
struct Home {
    folder: tempfile::TempDir,
    place: Place,
}

impl Home {
    async fn found() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("coordinator");
        let founding = Founding {
            consortium: "consortium".parse().unwrap(),
            server_names: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            address: "127.0.0.1:0".to_owned(),
            operator: "o".parse().unwrap(),
        };
        init(&directory, &founding, crate::clock::now()).unwrap();
        let place = Place { database: directory.join(DATABASE), directory };
        let home = Self { folder, place };
        let authority = home.authority();
        let root = authority.root_fingerprint();
        let founded = RegistryEvent::Founded { consortium: "consortium".to_owned(), root };
        let store = home.store().await;
        store.commit(time(0), &Stream::Registry, 0, &[Event::Registry(founded)]).await.unwrap();
        let founder = authority.founder();
        let der = home.operator().certificate.to_vec();
        let certificate = Certificate {
            serial_hex: founder.peer.serial_hex.clone(),
            expires: founder.expires,
            der: der.clone(),
        };
        let member = founder.peer.member.clone();
        let certificate_digest = Digest::of(&der);
        let event =
            RegistryEvent::Enrolled { member: member.to_string(), certificate: certificate_digest };
        store.add_member(time(1), &member, &certificate, event).await.unwrap();
        store.close().await;
        home
    }

    fn authority(&self) -> Authority {
        Authority::load(&self.place.directory).unwrap()
    }

    fn operator(&self) -> Identity {
        Identity::load(&self.place.directory.join("operator")).unwrap()
    }

    async fn store(&self) -> Store {
        Store::open(&self.place.database).await.unwrap()
    }

    /// Appends `count` leaves and signs the head.
    async fn grow(&self, count: u64) -> u64 {
        let store = self.store().await;
        for _ in 0..count {
            let seq = store.records(&Stream::Registry).await.unwrap().len() as u64;
            let member = format!("site/s{seq}");
            let (expires, by) = (time(9), "operator/o".to_owned());
            let event =
                Event::Registry(RegistryEvent::Invited { member, expires, by, replaces: false });
            store.commit(time(2), &Stream::Registry, seq, &[event]).await.unwrap();
        }
        let head = store.head().await.unwrap();
        let heads = self.heads();
        heads.sign(head.size, head.root).unwrap();
        heads.write().unwrap();
        store.close().await;
        head.size
    }

    fn heads(&self) -> Heads {
        let signer = std::sync::Arc::new(self.authority().log_signer().unwrap());
        Heads::open(&self.place.directory, signer).unwrap()
    }

    async fn leaves(&self) -> u64 {
        let store = self.store().await;
        let size = store.head().await.unwrap().size;
        store.close().await;
        size
    }

    async fn backup(&self) -> PathBuf {
        let out = self.folder.path().join("backup");
        backup(&self.place, &out, 0, false).await.unwrap();
        out
    }

    /// Restores `from` and says what that lost; gives the statement.
    async fn restore_and_recover(&self, from: &Path) -> Statement {
        restore(&self.place, from, true).await.unwrap();
        let open = Recovering::open(&self.place).await.unwrap();
        let operator = self.place.directory.join("operator");
        let recovery = open.sign(&operator, "the disk failed".to_owned(), None).await.unwrap();
        let done = open.accept(recovery).await.unwrap();
        open.close().await;
        done.recovery.statement
    }

    async fn refused(&self, from: &Path) -> (String, String) {
        let before = fs::read(&self.place.database).unwrap();
        let failure = restore(&self.place, from, true).await.unwrap_err();
        assert_eq!(fs::read(&self.place.database).unwrap(), before, "something was replaced");
        (failure.code.to_owned(), failure.message)
    }
}

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[tokio::test]
async fn a_backup_of_a_database_in_use_becomes_a_whole_coordinator_elsewhere() {
    let home = Home::found().await;
    let size = home.grow(20).await;
    let store = home.store().await;
    let file = home.backup().await;
    store.close().await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "a backup holds the keys");
    let directory = home.folder.path().join("elsewhere");
    let place = Place { database: directory.join(DATABASE), directory };
    let restored = restore(&place, &file, false).await.unwrap();
    assert_eq!((restored.leaves, restored.signed), (size, None));
    for name in ["root-key.pem", "log-key.pem", "server.pem", "coordinator.toml", "signed-head"] {
        let (ours, theirs) = (home.place.directory.join(name), place.directory.join(name));
        assert_eq!(fs::read(ours).unwrap(), fs::read(theirs).unwrap(), "{name}");
    }
    assert!(Identity::load(&place.directory.join("operator")).is_ok());
    let store = Store::open(&place.database).await.unwrap();
    assert_eq!(store.head().await.unwrap().size, size);
    assert_eq!(store.members().await.unwrap().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_broken_foreign_or_newer_backup_is_refused_and_nothing_is_replaced() {
    let home = Home::found().await;
    home.grow(20).await;
    let file = home.backup().await;
    let whole = fs::read(&file).unwrap();
    let bad = home.folder.path().join("bad");
    for cut in [0, 100, 2_000, whole.len() / 2, whole.len() - 1_600] {
        fs::write(&bad, &whole[..cut]).unwrap();
        assert_eq!(home.refused(&bad).await.0, "backup", "cut at {cut}");
    }
    for at in [700, whole.len() / 3, whole.len() / 2] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&bad, &damaged).unwrap();
        let (code, message) = home.refused(&bad).await;
        assert!(["backup", "foreign"].contains(&&code[..]), "{at}: {message}");
    }
    let other = Home::found().await;
    let foreign = other.backup().await;
    let (code, message) = home.refused(&foreign).await;
    assert_eq!(code, "foreign", "{message}");
    for newer in ["archive", "database"] {
        let mut manifest = read_manifest(&file).unwrap();
        if newer == "archive" {
            manifest.schema_version = 2;
            manifest.files.clear();
            write(&bad, &manifest, &[]);
        } else {
            newer_database(&home, &manifest, &bad).await;
        }
        let (code, message) = home.refused(&bad).await;
        assert_eq!(code, "backup", "{message}");
        assert!(message.contains("schema version"), "{message}");
    }
    // A coordinator that runs keeps its database.
    let store = home.store().await;
    let running = restore(&home.place, &file, true).await.unwrap_err();
    assert_eq!(running.code, "in_use");
    store.close().await;
}

/// A backup whose database a later version has migrated.
async fn newer_database(home: &Home, manifest: &Manifest, out: &Path) {
    let unpacked = home.folder.path().join("unpacked");
    super::archive::unpack(&home.folder.path().join("backup"), 0, |path| Some(unpacked.join(path)))
        .unwrap();
    let database = unpacked.join(DATABASE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&database);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', TRUE, x'00', 0)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let mut manifest = manifest.clone();
    let bytes = fs::read(&database).unwrap();
    manifest.files[0].bytes = bytes.len() as u64;
    manifest.files[0].sha256 = Digest::of(&bytes);
    let files: Vec<Vec<u8>> =
        manifest.files.iter().map(|entry| fs::read(unpacked.join(&entry.path)).unwrap()).collect();
    write(out, &manifest, &files);
}

fn write(out: &Path, manifest: &Manifest, files: &[Vec<u8>]) {
    let file = fs::File::create(out).unwrap();
    let mut writer = Writer::begin(&file, manifest, 0).unwrap();
    for (entry, bytes) in manifest.files.iter().zip(files) {
        writer.file(entry, manifest.created, &bytes[..]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_backup_writes_nowhere_but_in_its_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    let pkcs8 = Signer::generate(&SystemRandom::new()).unwrap();
    let signer = Signer::from_pkcs8("log", &pkcs8).unwrap();
    for path in ["../evil", "/etc/evil", "a/b/c", "blobs/..", ".hidden"] {
        let bytes = b"evil".to_vec();
        let sha256 = Digest::of(&bytes);
        let entry = Entry { path: path.to_owned(), bytes: bytes.len() as u64, sha256 };
        let manifest = Manifest {
            schema_version: 1,
            program_version: "1".to_owned(),
            database_schema: 1,
            consortium: "consortium".parse().unwrap(),
            log_verifier_key: signer.verifier_key().to_string(),
            log_size: 1,
            log_root: sha256,
            created: time(0),
            files: vec![entry],
        };
        let out = folder.path().join("archive");
        let file = fs::File::create(&out).unwrap();
        drop(Writer::begin(&file, &manifest, 0).unwrap().finish());
        let refused = read_manifest(&out).unwrap_err().to_string();
        assert!(refused.contains("is no path of a backup"), "{path}: {refused}");
    }
}

/// Failed before: `serve` went on with whatever database lay there.
#[tokio::test]
async fn an_older_database_is_served_only_after_a_statement_of_what_was_lost() {
    let home = Home::found().await;
    let kept = home.grow(5).await;
    let file = home.backup().await;
    let lost = home.grow(7).await;
    let open = Recovering::open(&home.place).await.unwrap();
    let nothing = open.draft("operator/o".to_owned(), "x".to_owned(), None).await.unwrap_err();
    assert_eq!(nothing.code, "nothing_lost");
    open.close().await;

    let restored = restore(&home.place, &file, true).await.unwrap();
    assert_eq!((restored.leaves, restored.signed), (kept, Some(lost)));
    let aside = restored.moved_aside.unwrap();
    let evidence = Store::open(&aside).await.unwrap();
    assert_eq!(evidence.head().await.unwrap().size, lost);
    evidence.close().await;
    // Leaves that were appended before the loss was noticed do not move the fork.
    let grown = {
        let store = home.store().await;
        let (expires, by) = (time(9), "operator/o".to_owned());
        let event =
            RegistryEvent::Invited { member: "site/x".to_owned(), expires, by, replaces: false };
        let seq = store.records(&Stream::Registry).await.unwrap().len() as u64;
        store.commit(time(3), &Stream::Registry, seq, &[Event::Registry(event)]).await.unwrap();
        let size = store.head().await.unwrap().size;
        let refused = check::refuse_older(&home.place, &store, &home.heads()).await.unwrap_err();
        assert!(refused.message.contains(&lost.to_string()), "{refused}");
        store.close().await;
        size
    };
    let open = Recovering::open(&home.place).await.unwrap();
    let operator = home.place.directory.join("operator");
    let recovery = open.sign(&operator, "the disk failed".to_owned(), None).await.unwrap();
    let said = recovery.statement.clone();
    assert_eq!((said.kept.size, said.lost_size()), (kept, lost));
    let mut forged = recovery.clone();
    forged.operator_signature = forged.log_signature.clone();
    assert_eq!(open.accept(forged).await.unwrap_err().code, "recovery");
    assert_eq!(open.accept(recovery).await.unwrap().leaf, grown);
    open.close().await;

    let store = home.store().await;
    check::refuse_older(&home.place, &store, &home.heads()).await.unwrap();
    assert_eq!(home.heads().largest().unwrap().size, grown + 1);
    store.close().await;
    assert_eq!(home.leaves().await, grown + 1);
    let missing = Place { database: home.folder.path().join("none.db"), ..home.place.clone() };
    let refused = check::refuse_missing(&missing).unwrap_err();
    assert_eq!(refused.code, "history_lost");
    // Before, `recover` named itself as the remedy.
    assert!(refused.hint.unwrap().contains("found a new consortium"));
}

/// Failed before: a missing file was told as one that cannot be read to its end, an export of an
/// audit by the words of the tar library, and a coordinator that runs with two contradicting
/// remedies.
#[tokio::test]
async fn a_file_that_is_no_backup_and_a_coordinator_that_runs_are_named() {
    let home = Home::found().await;
    let file = home.backup().await;
    let told = async |from: &Path| restore(&home.place, from, true).await.unwrap_err().to_string();
    let none = home.folder.path().join("none");
    let missing = told(&none).await;
    assert!(missing.starts_with(&format!("{}: cannot be opened: ", none.display())), "{missing}");
    let export = home.folder.path().join("export");
    fs::write(&export, [&b"TRIBAUD1"[..], &[b'x'; 4096]].concat()).unwrap();
    let foreign = told(&export).await;
    assert!(foreign.contains("export: not a backup: it is not a tar archive"), "{foreign}");
    let store = home.store().await;
    let running = told(&file).await;
    store.close().await;
    let words = "is in use by a coordinator (stop the coordinator, then restore)";
    assert!(running.ends_with(words), "{running}");
}

/// Failed before: a second restore forgot the first statement with the branch that held it, and a site that was away
/// through both was explained by nothing.
#[tokio::test]
async fn a_statement_after_a_second_restore_names_the_branches_of_both() {
    let home = Home::found().await;
    home.grow(5).await;
    let early = home.backup().await;
    let kept = home.leaves().await;
    home.grow(2).await;
    let late = home.folder.path().join("late");
    backup(&home.place, &late, 0, false).await.unwrap();
    let first = home.grow(1).await;
    let lost_first = home.heads().largest().unwrap();
    home.restore_and_recover(&early).await;
    // The second branch ends at the size of the first.
    let second = home.grow(first - home.leaves().await).await;
    let lost_second = home.heads().largest().unwrap();
    assert_eq!(first, second);
    assert_ne!(lost_first.root, lost_second.root);

    // A newer backup of the first branch: the branches still part where the early one ended.
    for from in [&early, &late] {
        let said = home.restore_and_recover(from).await;
        assert_eq!(said.kept.size, kept);
        for head in [&lost_first, &lost_second] {
            assert!(said.lost.contains(head), "{said:?}");
            assert!(said.covers(&head.checkpoint()));
        }
        let store = home.store().await;
        check::refuse_older(&home.place, &store, &home.heads()).await.unwrap();
        store.close().await;
    }
}

/// Failed before: `doctor` said that a missing or older database was whole, and `serve` refused it.
#[tokio::test]
async fn an_inspection_refuses_what_serve_refuses() {
    let home = Home::found().await;
    home.grow(5).await;
    let file = home.backup().await;
    let signed = home.grow(3).await;
    assert_eq!(check::inspect(&home.place).await.unwrap().unwrap().leaves, signed);
    restore(&home.place, &file, true).await.unwrap();
    let older = check::inspect(&home.place).await.unwrap_err();
    assert!(older.message.contains(&format!("has signed {signed} leaves")), "{older}");
    fs::remove_file(&home.place.database).unwrap();
    assert_eq!(check::inspect(&home.place).await.unwrap_err().code, "history_lost");
    fs::write(home.place.directory.join("signed-head"), "").unwrap();
    restore(&home.place, &file, false).await.unwrap_err();
}

/// Failed before: `read back and whole` was said of a backup that no restore could take.
#[tokio::test]
async fn no_backup_is_made_with_a_damaged_signed_head() {
    let home = Home::found().await;
    home.grow(2).await;
    fs::write(home.place.directory.join("signed-head"), "").unwrap();
    let out = home.folder.path().join("backup");
    let refused = backup(&home.place, &out, 0, false).await.unwrap_err();
    assert!(refused.message.contains("signed-head"), "{refused}");
    assert!(!out.exists());
}

/// Names in `folder` that a command made for itself.
fn left_over(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.contains("staging") || name.starts_with('.') || name.contains("restoring")
        })
        .collect()
}

/// Failed before: the private keys of a refused restore, and of a backup that was killed, stayed.
#[tokio::test]
async fn a_refused_restore_and_a_killed_backup_leave_no_keys_behind() {
    let home = Home::found().await;
    home.grow(2).await;
    let file = home.backup().await;
    assert_eq!(left_over(home.folder.path()), [""; 0]);
    let bytes = fs::read(&file).unwrap();
    let cut = home.folder.path().join("cut");
    fs::write(&cut, &bytes[..bytes.len() - 2_000]).unwrap();
    let directory = home.folder.path().join("elsewhere");
    let place = Place { database: directory.join(DATABASE), directory };
    restore(&place, &cut, false).await.unwrap_err();
    assert_eq!(left_over(&place.directory), [""; 0]);
    // As a kill leaves it.
    let scratch = home.folder.path().join(".backup.making");
    fs::create_dir(&scratch).unwrap();
    fs::write(scratch.join("tributary.db"), "half").unwrap();
    home.backup().await;
    assert_eq!(left_over(home.folder.path()), [""; 0]);
    restore(&place, &file, false).await.unwrap();
    let found = fs::metadata(place.directory.join("operator")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777, 0o700);
}

/// Failed before: killed between its switch and its end, a restore was refused when it was repeated.
#[tokio::test]
async fn a_restore_that_was_killed_after_its_switch_is_ended_by_the_same_command() {
    let home = Home::found().await;
    let size = home.grow(2).await;
    let file = home.backup().await;
    fs::create_dir(home.place.directory.join("restore.staging")).unwrap();
    let done = restore(&home.place, &file, false).await.unwrap();
    assert_eq!(done.leaves, size);
    assert_eq!(left_over(&home.place.directory), [""; 0]);
    home.grow(1).await;
    fs::create_dir(home.place.directory.join("restore.staging")).unwrap();
    assert_eq!(restore(&home.place, &file, false).await.unwrap_err().code, "exists");
}

/// Failed before: the last step was a rename from one disk to another.
#[tokio::test]
async fn a_database_on_another_disk_is_restored() {
    use std::os::unix::fs::MetadataExt;
    let home = Home::found().await;
    let size = home.grow(2).await;
    let file = home.backup().await;
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(
        device(elsewhere.path()),
        device(home.folder.path()),
        "/dev/shm is a disk of its own"
    );
    let database = elsewhere.path().join("tributary.db");
    let place = Place { directory: home.folder.path().join("restored"), database };
    restore(&place, &file, false).await.unwrap();
    let store = Store::open(&place.database).await.unwrap();
    assert_eq!(store.head().await.unwrap().size, size);
    store.close().await;
}

/// Failed before: a second restore to before what was signed was served, because an older statement stood in the
/// history, and the log's second branch grew.
#[tokio::test]
async fn an_older_statement_does_not_excuse_a_newer_loss() {
    let home = Home::found().await;
    let early = {
        home.grow(3).await;
        home.backup().await
    };
    home.grow(4).await;
    home.restore_and_recover(&early).await;
    let later = home.folder.path().join("later");
    backup(&home.place, &later, 0, false).await.unwrap();
    let signed = home.grow(9).await;
    restore(&home.place, &later, true).await.unwrap();
    let store = home.store().await;
    let refused = check::refuse_older(&home.place, &store, &home.heads()).await.unwrap_err();
    assert!(refused.message.contains(&signed.to_string()), "{refused}");
    store.close().await;
}
