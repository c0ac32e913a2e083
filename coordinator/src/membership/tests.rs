use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tributary_proto::channel::{
    Acceptor, ConnectError, ConnectOptions, Identity, Member, Untimely, Windows, certified,
    connect, server_builder,
};
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::note;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::clock;
use crate::config::CoordinatorConfig;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn founding() -> Founding {
    Founding {
        consortium: "rivers".parse().unwrap(),
        server_names: vec!["127.0.0.1".to_owned(), "::1".to_owned()],
        listen: "127.0.0.1:9443".to_owned(),
        address: "localhost:9443".to_owned(),
        operator: "anna".parse().unwrap(),
    }
}

fn founded(now: Timestamp) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    init(directory.path(), &founding(), now).unwrap();
    directory
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_writes_what_serve_and_the_operator_read_and_never_overwrites() {
    let directory = founded(clock::now());
    for secret in [ROOT_KEY, SERVER, LOG_KEY, "operator/key.pem"] {
        assert_eq!(mode(&directory.path().join(secret)), 0o600, "{secret}");
    }
    let config = CoordinatorConfig::load(&directory.path().join(CONFIG), &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:9443");
    assert_eq!(config.address.as_deref(), Some("localhost:9443"));

    let authority = Authority::load(directory.path()).unwrap();
    let operator = Identity::load(&directory.path().join(OPERATOR)).unwrap();
    assert_eq!(operator.member.to_string(), "operator/anna");
    assert_eq!(Digest::of(&operator.root), authority.root_fingerprint());
    assert_eq!(authority.founder(), &certified(&operator.certificate).unwrap());
    let published = fs::read_to_string(directory.path().join(LOG_VERIFIER_KEY)).unwrap();
    assert_eq!(published.trim(), operator.log_verifier_key);
    let signer = authority.log_signer().unwrap();
    let signed = note::sign("text\n", &signer);
    assert_eq!(note::open(&signed, &published.trim().parse().unwrap()).unwrap(), "text\n");

    let before = fs::read(directory.path().join(ROOT_KEY)).unwrap();
    let error = init(directory.path(), &founding(), clock::now()).unwrap_err();
    assert!(matches!(error, InitError::Exists(_)), "{error}");
    assert_eq!(fs::read(directory.path().join(ROOT_KEY)).unwrap(), before);
}

#[test]
fn init_refuses_names_and_addresses_that_nobody_could_verify() {
    let directory = tempfile::tempdir().unwrap();
    for (names, address, word) in [
        (vec!["two words".to_owned()], "localhost:1", "two words"),
        (Vec::new(), "localhost", "host:port"),
        (Vec::new(), "localhost:http", "host:port"),
        (Vec::new(), "bad host:1", "bad host"),
    ] {
        let founding = Founding { server_names: names, address: address.to_owned(), ..founding() };
        let error = init(directory.path(), &founding, clock::now()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn each_certificate_lives_as_long_and_may_do_as_much_as_it_should() {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let directory = founded(now);
    let days = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        (certificate.validity().not_after.timestamp() - now.as_millis() / 1000) / (24 * 3600)
    };
    let root = authority::read_certificate(directory.path(), ROOT).unwrap();
    let server = authority::read_certificate(directory.path(), SERVER).unwrap();
    let member = authority::read_certificate(directory.path(), FOUNDER).unwrap();
    assert_eq!((days(&root), days(&server), days(&member)), (3653, 365, 365));

    let (_, root) = X509Certificate::from_der(&root).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    let uses = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
        let uses = certificate.extended_key_usage().unwrap().unwrap().value;
        (uses.server_auth, uses.client_auth, uses.any)
    };
    assert_eq!(uses(&server), (true, false, false));
    assert_eq!(uses(&member), (false, true, false));
    assert_eq!(certificate::server_names(&server).unwrap(), ["localhost", "127.0.0.1", "::1"]);
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn a_certificate_says_what_the_invitation_says_whatever_was_requested() {
    let directory = founded(clock::now());
    let authority = Authority::load(directory.path()).unwrap();
    let key = new_key();
    let mut greedy = CertificateParams::default();
    greedy.subject_alt_names =
        vec![SanType::URI("tributary://rivers/operator/anna".try_into().unwrap())];
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let csr = greedy.serialize_request(&key).unwrap();
    let parsed = CertificateRequest::parse(csr.der()).unwrap();
    let isar: Member = "site/isar".parse().unwrap();
    let der = authority.sign(&parsed, &isar, clock::now()).unwrap();
    assert_eq!(certified(&der).unwrap().peer.member, isar);
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
    let uses = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(uses.client_auth && !uses.server_auth);

    let again = authority.sign(&parsed, &isar, clock::now()).unwrap();
    let serial = |der: &[u8]| certified(der).unwrap().peer.serial_hex;
    assert_ne!(serial(&der), serial(&again));
    assert_eq!(serial(&der).len(), 32);
}

#[test]
fn a_request_without_proof_of_a_p256_key_is_refused() {
    let key = new_key();
    let good = request(&key);
    assert!(CertificateRequest::parse(&good).is_ok());
    let refused = |der: &[u8]| CertificateRequest::parse(der).err();

    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&forged), Some(InvalidRequest::Signature));
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let other = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(refused(&request(&other)), Some(InvalidRequest::KeyKind));
    }
    let longer = [good.as_slice(), &[0]].concat();
    for bytes in [&[][..], b"nonsense", &longer, &vec![0x30; 9000]] {
        assert!(matches!(refused(bytes), Some(InvalidRequest::Malformed(_))), "{}", bytes.len());
    }
    // Every prefix and every flipped byte is an answer, never a panic.
    for index in 0..good.len() {
        let mut broken = good.clone();
        broken[index] ^= 0x55;
        let _ = CertificateRequest::parse(&broken);
        assert!(CertificateRequest::parse(&good[..index]).is_err());
    }
}

#[test]
fn a_token_works_once_for_one_key_until_its_end() {
    let now = clock::now();
    let directory = founded(now);
    let authority = Authority::load(directory.path()).unwrap();
    let isar: Member = "site/isar".parse().unwrap();
    let (kit, mut invitation) = new_kit(&authority, "localhost:1", &isar, DAY, now).unwrap();
    assert_eq!(token_digest(&kit.token), invitation.token_digest);
    assert_eq!(kit.token.len(), 43);
    let (other, _) = new_kit(&authority, "localhost:1", &isar, DAY, now).unwrap();
    assert_ne!(kit.token, other.token);

    let parse = |key: &KeyPair| CertificateRequest::parse(&request(key)).unwrap();
    let (first, second) = (parse(&new_key()), parse(&new_key()));
    let end = now.plus(DAY);
    let before_end = Timestamp::from_millis(end.as_millis() - 1);
    assert_eq!(admit(None, &first, now), Err(EnrolmentRefused::Unknown));
    assert_eq!(admit(Some(&invitation), &first, end), Err(EnrolmentRefused::Expired { at: end }));
    let sign = Admission::Sign { member: isar.clone(), key_digest: first.key_digest() };
    assert_eq!(admit(Some(&invitation), &first, before_end), Ok(sign));

    let certificate = authority.sign(&first, &isar, now).unwrap();
    invitation.used = Some((first.key_digest(), certificate.clone()));
    let repeat = Admission::Repeat { member: isar, certificate };
    assert_eq!(admit(Some(&invitation), &first, now), Ok(repeat.clone()));
    assert_eq!(admit(Some(&invitation), &first, end.plus(DAY)), Ok(repeat));
    assert_eq!(admit(Some(&invitation), &second, now), Err(EnrolmentRefused::Used));
}

#[tokio::test]
async fn the_founded_server_and_operator_accept_each_other_also_after_renewal() {
    let directory = founded(clock::now());
    let acceptor = Acceptor::new(&server_identity(directory.path()).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let incoming = acceptor.incoming(listener, stop.clone());
    let serving = server_builder(Windows::default())
        .add_routes(Routes::default())
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let serving = tokio::spawn(serving);
    let operator = Identity::load(&directory.path().join(OPERATOR)).unwrap();
    let options = ConnectOptions::default();
    let reached = async |host: &str| {
        // When this returns, each side has accepted the other's certificate.
        connect(&format!("{host}:{port}"), &operator, &options).await.map(drop)
    };
    reached("localhost").await.unwrap();
    reached("127.0.0.1").await.unwrap();

    let before = fs::read(directory.path().join(SERVER)).unwrap();
    let (keep, address) = (|| change(&[], &[]), founding().address);
    let names = renew_server(directory.path(), keep(), &address, clock::now()).unwrap();
    assert_eq!(names, ["localhost", "127.0.0.1", "::1"]);
    assert_ne!(fs::read(directory.path().join(SERVER)).unwrap(), before);
    assert_eq!(mode(&directory.path().join(SERVER)), 0o600);
    acceptor.reload(&server_identity(directory.path()).unwrap()).unwrap();
    reached("127.0.0.1").await.unwrap();

    let only = ServerNames::Only(vec!["elsewhere.example.org".to_owned()]);
    renew_server(directory.path(), only, "elsewhere.example.org:1", clock::now()).unwrap();
    acceptor.reload(&server_identity(directory.path()).unwrap()).unwrap();
    assert!(matches!(reached("localhost").await, Err(ConnectError::ServerName { .. })));
    stop.cancel();
    serving.await.unwrap().unwrap();
}

fn change(added: &[&str], dropped: &[&str]) -> ServerNames {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    ServerNames::Change { added: owned(added), dropped: owned(dropped) }
}

/// Before, `--server-name` replaced every name and locked all members out after a reload.
#[test]
fn a_server_name_is_added_and_a_renewal_that_lacks_the_address_changes_nothing() {
    let directory = founded(clock::now());
    let renew = |names| renew_server(directory.path(), names, "localhost:9443", clock::now());
    let names = renew(change(&["new.example.org", "127.0.0.1"], &[])).unwrap();
    assert_eq!(names, ["localhost", "127.0.0.1", "::1", "new.example.org"]);
    let names = renew(change(&[], &["::1"])).unwrap();
    assert_eq!(names, ["localhost", "127.0.0.1", "new.example.org"]);

    let before = fs::read(directory.path().join(SERVER)).unwrap();
    for (names, word) in [
        (change(&[], &["localhost"]), "not for localhost"),
        (ServerNames::Only(vec!["new.example.org".to_owned()]), "not for localhost"),
        (change(&[], &["gone.example.org"]), "`gone.example.org` is not in"),
        (change(&["two words"], &[]), "two words"),
    ] {
        let error = renew(names).unwrap_err().failure().to_string();
        // Before, the reason was told twice.
        assert_eq!(error.matches(word).count(), 1, "{error}");
        assert_eq!(fs::read(directory.path().join(SERVER)).unwrap(), before);
    }
}

/// Before, a coordinator served with a certificate that no member accepts.
#[test]
fn a_certificate_is_held_against_address_clock_and_authority() {
    let now = clock::now();
    let directory = founded(now);
    let certificate = ServerCertificate::load(directory.path()).unwrap();
    let check = |address: &str, at| certificate.check(address, at);
    assert_eq!(check("localhost:9443", now), Ok(()));
    assert_eq!(check("[::1]:9443", now), Ok(()));
    let Err(Unworkable::Name { host, names }) = check("10.0.0.1:9443", now) else { panic!() };
    assert_eq!((host.as_str(), names.len()), ("10.0.0.1", 3));
    assert_eq!(names, ["localhost", "127.0.0.1", "::1"]);
    let address = Err(Unworkable::Address("0.0.0.0:9443".to_owned()));
    assert_eq!(check("0.0.0.0:9443", now), address);
    let late = check("localhost:9443", now.plus(366 * DAY));
    assert!(matches!(late, Err(Unworkable::Untimely(Untimely::Expired { .. }))), "{late:?}");
    let early = Timestamp::from_millis(now.as_millis() - 3_600_000);
    let early = check("localhost:9443", early);
    assert!(matches!(early, Err(Unworkable::Untimely(Untimely::NotYet { .. }))), "{early:?}");
    let other = founded(now);
    fs::copy(other.path().join(SERVER), directory.path().join(SERVER)).unwrap();
    let foreign = ServerCertificate::load(directory.path()).unwrap().check("localhost:1", now);
    assert!(matches!(foreign, Err(Unworkable::Untrusted(_))), "{foreign:?}");
}

#[test]
fn a_loopback_listener_under_a_public_address_is_warned_of_and_so_is_another_port() {
    let said = |address: &str, bound: &str| mismatch(address, bound.parse().unwrap());
    for (address, bound) in [
        ("localhost:8443", "127.0.0.1:8443"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("c.example.org:8443", "0.0.0.0:8443"),
    ] {
        assert_eq!(said(address, bound), None);
    }
    let loopback = said("c.example.org:8443", "127.0.0.1:8443").unwrap();
    assert!(loopback.contains("only this machine can reach 127.0.0.1:8443"), "{loopback}");
    assert!(said("c.example.org:443", "0.0.0.0:8443").unwrap().contains("port 443"));
}

#[test]
fn a_broken_authority_names_the_file() {
    let directory = founded(clock::now());
    let path = |name: &str| directory.path().join(name);
    fs::set_permissions(path(ROOT_KEY), fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::load(directory.path()).unwrap_err().failure().to_string();
    assert!(error.contains("chmod 600") && error.contains(ROOT_KEY), "{error}");
    fs::set_permissions(path(ROOT_KEY), fs::Permissions::from_mode(0o600)).unwrap();

    // The key of another consortium's authority beside our certificate.
    let other = founded(clock::now());
    fs::copy(other.path().join(ROOT_KEY), path(ROOT_KEY)).unwrap();
    let error = Authority::load(directory.path()).unwrap_err().failure().to_string();
    assert!(error.contains("not the key") && error.contains(ROOT_KEY), "{error}");

    for name in [ROOT, FOUNDER, LOG_KEY, ROOT_KEY] {
        let directory = founded(clock::now());
        fs::write(directory.path().join(name), "nonsense").unwrap();
        let error = Authority::load(directory.path()).unwrap_err().failure().to_string();
        assert!(error.contains(name), "{error}");
    }
}
