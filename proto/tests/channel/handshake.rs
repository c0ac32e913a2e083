//! Who is let in and who is turned away, on either side.

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tributary_proto::channel::{
    Acceptor, ConnectError, ConnectOptions, Identity, connect, connect_failure,
};
use tributary_proto::v1;
use tributary_shared::outcome::ExitCode;

use crate::fixture::{Authority, Leaf, Log, Server, new_key, now, san_uri};

const ISAR: &str = "tributary://rivers/site/isar";

#[tokio::test]
async fn a_member_is_known_by_its_certificate() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut client = server.connect(&authority.site("isar")).await.unwrap();
    let reply = client.hello(v1::HelloRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.member, "site/isar");
}

/// Connects with a certificate that is not good; the reason must be in the server's log.
async fn turned_away(identity: &Identity, authority: &Authority, reason: &str) {
    let log = Log::catch();
    let server = Server::start(authority).await;
    let error = server.connect(identity).await.unwrap_err();
    let failure = connect_failure(&error);
    assert!(matches!(error, ConnectError::Certificate { .. }), "{reason}: {failure}");
    assert_eq!(failure.exit, ExitCode::Connection);
    assert!(failure.to_string().contains("did not accept our certificate"), "{failure}");
    let line = log.refusal().await;
    assert!(line.contains("127.0.0.1:") && line.contains(reason), "{reason}: {line}");
    assert_eq!(server.connections.count(), 0);
}

#[tokio::test]
async fn certificates_that_are_not_good_end_the_handshake_with_a_logged_reason() {
    let authority = Authority::new();
    let refused = async |leaf: Leaf, reason: &str| {
        turned_away(&authority.identity(&leaf), &authority, reason).await;
    };
    let good = || Leaf::good(ISAR);
    let past = Leaf { from: Duration::days(-2), to: Duration::days(-1), ..good() };
    refused(past, "expired").await;
    let future = Leaf { from: Duration::days(1), to: Duration::days(2), ..good() };
    refused(future, "not valid yet").await;
    let server = Leaf { usage: ExtendedKeyUsagePurpose::ServerAuth, ..good() };
    refused(server, "extended key usage").await;
    refused(Leaf { names: Vec::new(), ..good() }, "carries 0").await;
    let two = vec![san_uri(ISAR), san_uri("tributary://rivers/operator/anna")];
    refused(Leaf { names: two, ..good() }, "carries 2").await;
    let beside = vec![san_uri(ISAR), SanType::DnsName("isar.example.org".try_into().unwrap())];
    refused(Leaf { names: beside, ..good() }, "carries 2").await;
    let dns = vec![SanType::DnsName("isar.example.org".try_into().unwrap())];
    refused(Leaf { names: dns, ..good() }, "carries 1").await;
    refused(Leaf::good("tributary://lakes/site/isar"), "consortium `lakes`").await;
    for odd in ["tributary://rivers/king/isar", "tributary://rivers/site/isar/x", "https://rivers"]
    {
        refused(Leaf::good(odd), "is not tributary://").await;
    }
}

/// A wrong clock used to be blamed on a proxy, and an expired certificate told without its date.
#[tokio::test]
async fn our_certificate_out_of_its_time_is_told_with_its_dates_and_this_machines_clock() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let told = async |from: i64, to: i64| {
        let leaf = Leaf { from: Duration::days(from), to: Duration::days(to), ..Leaf::good(ISAR) };
        let error = server.connect(&authority.identity(&leaf)).await.unwrap_err();
        let failure = connect_failure(&error);
        assert_eq!(failure.code, "certificate_not_accepted", "{failure}");
        failure.to_string()
    };
    let today = now().date();
    let (past, future) = (told(-3, -2).await, told(2, 3).await);
    let day = |days: i64| (today + Duration::days(days)).to_string();
    assert!(past.contains(&format!("expired at {}", day(-2))), "{past}");
    assert!(past.contains("--renew"), "{past}");
    assert!(future.contains(&format!("not valid yet: it begins at {}", day(2))), "{future}");
    for line in [past, future] {
        assert!(line.contains(&format!("this machine's clock says {}", day(0))), "{line}");
        assert!(!line.contains("proxy"), "{line}");
    }
}

/// The same of the server's certificate, which used to "not prove to be the coordinator".
#[tokio::test]
async fn the_servers_certificate_out_of_its_time_is_told_as_such() {
    let authority = Authority::new();
    for (from, to, words) in [(-3, -2, "expired at "), (2, 3, "is not valid yet")] {
        let valid = (Duration::days(from), Duration::days(to));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = Acceptor::new(&authority.server_within(&["localhost"], valid)).unwrap();
        let _incoming = acceptor.incoming(listener, tokio_util::sync::CancellationToken::new());
        let options = ConnectOptions::default();
        let error = connect(&address, &authority.site("isar"), &options).await.unwrap_err();
        let failure = connect_failure(&error);
        assert_eq!(failure.code, "server_certificate_time", "{failure}");
        let line = failure.to_string();
        assert!(line.contains(&format!("the coordinator at {address} {words}")), "{line}");
        assert!(line.contains("this machine's clock says") && !line.contains("proxy"), "{line}");
    }
}

#[tokio::test]
async fn another_authority_with_the_same_names_vouches_for_nobody() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let forged = Identity { root: ours.root.clone(), ..theirs.site("isar") };
    turned_away(&forged, &ours, "BadSignature").await;

    let key = new_key();
    let self_signed = Leaf::good(ISAR).params().self_signed(&key).unwrap();
    turned_away(&ours.identity_of(self_signed.der().clone(), &key), &ours, "UnknownIssuer").await;
}

#[tokio::test]
async fn a_member_cannot_vouch_for_another() {
    let authority = Authority::new();
    let member_key = new_key();
    let member = Leaf::good(ISAR).params().signed_by(&member_key, &authority.issuer).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(member.der(), member_key).unwrap();
    let key = new_key();
    let leaf = Leaf::good("tributary://rivers/operator/anna").params();
    let forged = leaf.signed_by(&key, &issuer).unwrap().der().clone();
    turned_away(&authority.identity_of(forged, &key), &authority, "UnknownIssuer").await;
}

#[tokio::test]
async fn another_role_or_a_barred_member_is_refused_per_call() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let anna = authority.identity(&Leaf::good("tributary://rivers/operator/anna"));
    let status =
        server.connect(&anna).await.unwrap().hello(v1::HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("operator/anna"), "{status}");

    let barred = authority.site("barred");
    let status = server
        .connect(&barred)
        .await
        .unwrap()
        .hello(v1::HelloRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.message(), "barred by the check");
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::start(&theirs).await;
    let error = server.connect(&ours.site("isar")).await.unwrap_err();
    let failure = connect_failure(&error);
    assert_eq!((failure.code, failure.exit), ("server_not_trusted", ExitCode::Connection));

    // Same authority, another name: a certificate is good for its own address alone.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = Acceptor::new(&ours.server(&["elsewhere.example.org"])).unwrap();
    let _incoming = acceptor.incoming(listener, tokio_util::sync::CancellationToken::new());
    let error =
        connect(&address, &ours.site("isar"), &ConnectOptions::default()).await.unwrap_err();
    // Before, this was told like a foreign authority, with the rustls types of the names.
    assert_eq!(connect_failure(&error).code, "server_name", "{error}");
    let text = connect_failure(&error).to_string();
    assert!(text.contains("is for elsewhere.example.org and not for localhost"), "{text}");

    // A member's certificate makes no server.
    let isar = ours.site("isar");
    let pem = tributary_proto::channel::certificate_pem(&isar.certificate);
    let root = tributary_proto::channel::certificate_pem(&ours.root);
    let posing = tributary_proto::channel::ServerIdentity::from_pem(
        pem.as_bytes(),
        root.as_bytes(),
        isar.key_pem.as_bytes(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = Acceptor::new(&posing.unwrap()).unwrap();
    let _incoming = acceptor.incoming(listener, tokio_util::sync::CancellationToken::new());
    let error = connect(&address, &ours.site("inn"), &ConnectOptions::default()).await.unwrap_err();
    assert_eq!(connect_failure(&error).code, "server_not_trusted", "{error}");
}

/// A TLS 1.2 ClientHello that offers nothing newer: ECDHE with AES-GCM, P-256, ECDSA and RSA.
fn tls12_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, // supported_groups: secp256r1
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // ec_point_formats: uncompressed
        0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x04, 0x01, // signature_algorithms
        0x00, 0x17, 0x00, 0x00, // extended_master_secret
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]); // random
    body.push(0); // session id
    body.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f]); // cipher suites
    body.extend([0x01, 0x00]); // no compression
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![0x01, 0x00];
    handshake.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    handshake.extend(body);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(handshake.len()).unwrap().to_be_bytes());
    record.extend(handshake);
    record
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let log = Log::catch();
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(&tls12_hello()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    // Record type alert, level fatal, protocol_version (RFC 8446, 6.2).
    assert_eq!(answer.first(), Some(&0x15), "{answer:02x?}");
    assert_eq!(answer.get(5..), Some([2, 70].as_slice()), "{answer:02x?}");
    let line = log.refusal().await;
    assert!(line.contains("not TLS 1.3"), "{line}");
}

#[tokio::test]
async fn a_silent_client_delays_nobody() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(&server.address).await.unwrap());
    }
    let mut client = server.connect(&authority.site("isar")).await.unwrap();
    client.hello(v1::HelloRequest::default()).await.unwrap();
}

#[tokio::test]
async fn every_way_of_not_arriving_has_its_own_words_and_exit_code() {
    let authority = Authority::new();
    let isar = authority.site("isar");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();

    // Accepted by the kernel, answered by nobody.
    let hasty = ConnectOptions {
        connect_timeout: std::time::Duration::from_millis(20),
        ..ConnectOptions::default()
    };
    let failure = connect_failure(&connect(&address, &isar, &hasty).await.unwrap_err());
    assert_eq!((failure.code, failure.exit), ("timeout", ExitCode::Timeout));
    assert!(failure.message.starts_with(&address), "{failure}");

    drop(listener);
    let failure =
        connect_failure(&connect(&address, &isar, &ConnectOptions::default()).await.unwrap_err());
    assert_eq!((failure.code, failure.exit), ("unreachable", ExitCode::Connection));
    assert!(failure.to_string().contains("nothing listens there"), "{failure}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let web = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let failure =
        connect_failure(&connect(&address, &isar, &ConnectOptions::default()).await.unwrap_err());
    assert_eq!((failure.code, failure.exit), ("handshake", ExitCode::Connection));
    web.await.unwrap();

    for bad in ["localhost", "localhost:", "localhost:0", "local host:1", "::1:443", ":1"] {
        let failure =
            connect_failure(&connect(bad, &isar, &ConnectOptions::default()).await.unwrap_err());
        assert_eq!((failure.code, failure.exit), ("address", ExitCode::Invalid), "{bad}");
    }
}
