//! The door under a crowd: who keeps a connection, and who gets one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tributary_proto::channel::Limits;
use tributary_proto::v1;

use crate::fixture::{Authority, Server};

/// As many descriptors as many systems give a process.
fn few() -> Limits {
    Limits::of_descriptors(1024).unwrap()
}

/// A3a, A3c: silent sockets of one host. Failed before: each held a handshake for five seconds, 256 at
/// a time, and members waited behind 2,000 of them for 40 s.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_silent_connections_from_a_members_own_address_do_not_keep_it_out() {
    let authority = Authority::new();
    let server = Server::limited(&authority, few()).await;
    let mut silent = Vec::new();
    for _ in 0..2000 {
        silent.push(TcpStream::connect(&server.address).await.unwrap());
    }
    let since = Instant::now();
    let mut client = server.connect(&authority.site("isar")).await.unwrap();
    client.hello(v1::HelloRequest::default()).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert!(server.connections.count() <= few().connections, "{}", server.connections.count());
}

/// A limit for each address must not count members: a hospital group has one address.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sites_behind_one_address_connect_within_ten_seconds() {
    let authority = Authority::new();
    let server = Arc::new(Server::limited(&authority, Limits::of_descriptors(4096).unwrap()).await);
    let identities: Vec<_> = (0..1000).map(|k| authority.site(&format!("site-{k}"))).collect();
    let since = Instant::now();
    let mut sites = JoinSet::new();
    for identity in identities {
        let server = server.clone();
        sites.spawn(async move {
            let mut client = server.connect(&identity).await.unwrap();
            client.hello(v1::HelloRequest::default()).await.unwrap();
            client
        });
    }
    let connected = sites.join_all().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!((connected.len(), server.connections.count()), (1000, 1000));
}

/// A3e: one member had as many connections as it liked.
#[tokio::test]
async fn a_member_has_eight_connections_and_loses_the_oldest_for_a_ninth() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let (mallory, isar) = (authority.site("mallory"), authority.site("isar"));
    let mut other = server.connect(&isar).await.unwrap();
    let mut first = server.connect(&mallory).await.unwrap();
    let fetch = v1::FetchRequest::default();
    let mut stream = first.fetch_adapter(fetch).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let mut more = Vec::new();
    for _ in 0..8 {
        more.push(server.connect(&mallory).await.unwrap());
    }
    stream.message().await.unwrap_err();
    assert_eq!(server.connections.count(), 9);
    other.hello(v1::HelloRequest::default()).await.unwrap();
}

/// A3a: after its handshake a connection without a certificate was kept for ever.
#[tokio::test]
async fn connections_without_a_certificate_are_few_and_end_when_they_say_nothing() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut anonymous = Vec::new();
    for _ in 0..20 {
        anonymous.push(without_certificate(&server, &authority).await);
    }
    assert_eq!(server.connections.count(), 16);
    let since = Instant::now();
    for connection in &mut anonymous {
        let mut rest = Vec::new();
        // However it ends.
        let _ = connection.read_to_end(&mut rest).await;
    }
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    assert_eq!(server.connections.count(), 0);
}

/// A TLS connection without a certificate whose handshake the server has finished.
async fn without_certificate(server: &Server, authority: &Authority) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(&server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    // The server's settings come once it serves the connection.
    let mut settings = [0; 9];
    tls.read_exact(&mut settings).await.unwrap();
    tls
}
