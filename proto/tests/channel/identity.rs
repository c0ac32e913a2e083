//! Identities and kits on disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use tributary_proto::channel::{
    Identity, IdentityError, InvalidCertificate, KitError, Member, StartupKit, certified,
    write_durably,
};
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;

use crate::fixture::{Authority, Leaf};

#[test]
fn an_identity_round_trips_and_keeps_its_key_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("identity");
    let stored = Authority::new().site("isar");
    stored.store(&directory).unwrap();
    let loaded = Identity::load(&directory).unwrap();
    assert_eq!(loaded.member, stored.member);
    assert_eq!(loaded.certificate, stored.certificate);
    assert_eq!(loaded.root, stored.root);
    assert_eq!(loaded.key_pem, stored.key_pem);
    assert_eq!(loaded.address, "localhost:1");
    assert_eq!(loaded.log_verifier_key, "log+key");
    assert_eq!(format!("{loaded:?}"), "Identity(tributary://rivers/site/isar at localhost:1)");

    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("key.pem")), 0o600);
    let mut left = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name());
    assert!(left.all(|name| !name.to_string_lossy().ends_with(".tmp")));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    Authority::new().site("isar").store(directory.path()).unwrap();
    let key = directory.path().join("key.pem");
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let error = Identity::load(directory.path()).unwrap_err();
        assert!(matches!(&error, IdentityError::Exposed { mode: m, .. } if *m == mode), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn a_broken_identity_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(Identity::load(directory.path()), Err(IdentityError::Missing(_))));
    let authority = Authority::new();
    authority.site("isar").store(directory.path()).unwrap();
    for (file, text) in [
        ("cert.pem", "nonsense"),
        ("root.pem", ""),
        ("identity.toml", "schema = 1\nname = 2"),
        ("key.pem", "nonsense"),
    ] {
        let path = directory.path().join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let error = Identity::load(directory.path()).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::write(&path, whole).unwrap();
    }
    // A certificate of somebody else beside our summary.
    let inn = authority.site("inn");
    let pem = tributary_proto::channel::certificate_pem(&inn.certificate);
    fs::write(directory.path().join("cert.pem"), pem).unwrap();
    let error = Identity::load(directory.path()).unwrap_err().to_string();
    assert!(error.contains("site/inn") && error.contains("site/isar"), "{error}");
}

pub(crate) fn kit(address: &str, authority: &Authority) -> StartupKit {
    StartupKit {
        consortium: "rivers".parse().unwrap(),
        address: address.to_owned(),
        root_fingerprint: Digest::of(&authority.root),
        token: "a-token".to_owned(),
        member: "site/isar".parse().unwrap(),
        expires: Timestamp::from_millis(1_800_000_000_000),
    }
}

#[test]
fn a_kit_round_trips_and_refuses_what_it_does_not_know() {
    let kit = kit("coordinator.example.org:8443", &Authority::new());
    let text = kit.to_toml().unwrap();
    assert!(text.contains("expires = \"2027-01-15T08:00:00Z\""), "{text}");
    assert_eq!(StartupKit::parse(&text).unwrap(), kit);
    assert!(!format!("{kit:?}").contains("a-token"));

    for (from, to, word) in [
        ("schema = 1", "schema = 2", "schema 2"),
        ("schema = 1", "schema = 1\nextra = 1", "extra"),
        ("role = \"site\"", "role = \"king\"", "king"),
        ("name = \"isar\"", "name = \"../isar\"", "../isar"),
        ("2027-01-15T08:00:00Z", "soon", "soon"),
        ("sha256:", "md5:", "md5"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(broken, text);
        let error = StartupKit::parse(&broken).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text.clone() + &"#".repeat(20_000)).unwrap();
    assert!(matches!(StartupKit::load(file.path()), Err(KitError::TooLarge(_))));
    fs::write(file.path(), &text).unwrap();
    assert_eq!(StartupKit::load(file.path()).unwrap(), kit);
}

#[test]
fn only_the_one_uri_names_a_member() {
    let authority = Authority::new();
    let identity = authority.identity(&Leaf::good("tributary://rivers/auditor/dpo"));
    let named = certified(&identity.certificate).unwrap();
    assert_eq!(named.peer.member, "auditor/dpo".parse::<Member>().unwrap());
    assert_eq!(named.peer.fingerprint, Digest::of(&identity.certificate));
    assert!(matches!(certified(&authority.root), Err(InvalidCertificate::NotAMember(_))));
    let mut longer = identity.certificate.to_vec();
    longer.push(0);
    assert!(matches!(certified(&longer), Err(InvalidCertificate::Malformed(_))));
}

/// Failed before: every failed write left its temporary file, on a disk that was full already.
#[test]
fn a_write_that_fails_leaves_nothing_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::create_dir_all(taken.join("by a folder")).unwrap();
    assert!(write_durably(&taken, b"new", 0o600).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A link in a folder that others can write leads to a file of the writer's.
#[test]
fn a_write_follows_no_planted_link() {
    let folder = tempfile::tempdir().unwrap();
    let [victim, out] = ["victim", "out"].map(|name| folder.path().join(name));
    let temporary = folder.path().join(format!("out.{}.tmp", std::process::id()));
    fs::write(&victim, b"kept").unwrap();
    symlink(&victim, &out).unwrap();
    symlink(&victim, &temporary).unwrap();
    write_durably(&out, b"new", 0o600).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"kept");
    assert!(fs::symlink_metadata(&out).unwrap().is_file());
    assert_eq!(fs::read(&out).unwrap(), b"new");
    assert!(!temporary.is_symlink());
}
