//! What happens to connections that are open: cut, reloaded under, never resumed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, RootCertStore};
use time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tributary_proto::channel::{ConnectError, Identity, Member, status_failure};
use tributary_proto::v1;

use crate::fixture::{Authority, Leaf, Server};

#[tokio::test]
async fn cutting_a_member_ends_its_live_streams_and_no_others() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut isar = server.connect(&authority.site("isar")).await.unwrap();
    let mut inn = server.connect(&authority.site("inn")).await.unwrap();
    let fetch = v1::FetchRequest::default();
    let mut of_isar = isar.fetch_adapter(fetch.clone()).await.unwrap().into_inner();
    let mut of_inn = inn.fetch_adapter(fetch).await.unwrap().into_inner();
    assert!(of_isar.message().await.unwrap().is_some());
    assert!(of_inn.message().await.unwrap().is_some());
    assert_eq!(server.connections.count(), 2);

    let cut = |member: &str| {
        let member: Member = member.parse().unwrap();
        server.connections.cut(|peer| peer.member == member)
    };
    assert_eq!(cut("operator/isar"), 0);
    assert_eq!(cut("site/isar"), 1);
    // The stream would wait for ever; the cut is what ends it.
    of_isar.message().await.unwrap_err();
    inn.hello(v1::HelloRequest::default()).await.unwrap();
    assert_eq!(server.connections.count(), 1);

    // The channel comes back by itself; whether it may is for the check to say.
    isar.hello(v1::HelloRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let brief = Leaf { to: Duration::seconds(4), ..Leaf::good("tributary://rivers/site/isar") };
    let identity = authority.identity(&brief);
    let mut client = server.connect(&identity).await.unwrap();
    let mut stream = client.fetch_adapter(v1::FetchRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    // Nothing else would ever end this stream.
    stream.message().await.unwrap_err();
    let error = server.connect(&identity).await.unwrap_err();
    assert!(matches!(error, ConnectError::Certificate { .. }), "{error}");
}

/// The message about a coordinator that goes away and does not come back has no type of a library
/// and no link to its manual.
#[tokio::test]
async fn a_lost_server_is_told_in_plain_words() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let address = server.address.clone();
    let mut client = server.connect(&authority.site("isar")).await.unwrap();
    let fetch = v1::FetchRequest::default();
    let mut stream = client.fetch_adapter(fetch).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let member: Member = "site/isar".parse().unwrap();
    assert_eq!(server.connections.cut(|peer| peer.member == member), 1);
    let cut = status_failure(&address, &stream.message().await.unwrap_err());
    let told = cut.to_string();
    assert!(told.starts_with(&format!("lost the coordinator at {address}: ")), "{told}");
    server.gone().await;
    let gone =
        status_failure(&address, &client.hello(v1::HelloRequest::default()).await.unwrap_err());
    assert_eq!(gone.code, "unreachable", "{gone}");
    for told in [told, gone.to_string()] {
        for word in ["http", "h2", "transport", "error", "Os {", "code:", "status"] {
            assert!(!told.contains(word), "`{word}` in: {told}");
        }
    }
}

#[tokio::test]
async fn a_renewed_server_certificate_serves_the_next_handshake() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let mut client = server.connect(&authority.site("isar")).await.unwrap();
    let before = Raw::connect(&server, &authority.site("inn")).await.server_certificate();

    let renewed = authority.server(&["localhost", "127.0.0.1"]);
    server.acceptor.reload(&renewed).unwrap();
    let raw = Raw::connect(&server, &authority.site("inn")).await;
    assert_ne!(raw.server_certificate(), before);
    assert_eq!(raw.tls.get_ref().1.peer_certificates().unwrap().last(), Some(&authority.root));
    client.hello(v1::HelloRequest::default()).await.unwrap();
}

#[test]
fn a_certificate_beside_another_key_is_refused_before_it_is_presented() {
    let authority = Authority::new();
    let of = |identity: &Identity| tributary_proto::channel::certificate_pem(&identity.certificate);
    let (isar, inn) = (authority.site("isar"), authority.site("inn"));
    let mixed = tributary_proto::channel::ServerIdentity::from_pem(
        of(&isar).as_bytes(),
        tributary_proto::channel::certificate_pem(&authority.root).as_bytes(),
        inn.key_pem.as_bytes(),
    );
    assert!(tributary_proto::channel::Acceptor::new(&mixed.unwrap()).is_err());
}

/// Counts the tickets a server offers, and would use them.
#[derive(Debug)]
struct Tickets {
    offered: AtomicUsize,
    inner: rustls::client::ClientSessionMemoryCache,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.inner.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.inner.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.inner.set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.inner.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.inner.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.offered.fetch_add(1, Ordering::Relaxed);
        self.inner.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.inner.take_tls13_ticket(name)
    }
}

/// A TLS connection made with rustls alone, beside our own client.
struct Raw {
    tls: TlsStream<TcpStream>,
}

impl Raw {
    async fn connect(server: &Server, identity: &Identity) -> Self {
        Self::dial(server, &Arc::new(client_config(identity))).await
    }

    async fn dial(server: &Server, config: &Arc<ClientConfig>) -> Self {
        let socket = TcpStream::connect(&server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = TlsConnector::from(config.clone()).connect(name, socket).await.unwrap();
        // The first bytes of HTTP/2 come after any ticket.
        let mut settings = [0; 9];
        tls.read_exact(&mut settings).await.unwrap();
        Self { tls }
    }

    fn server_certificate(&self) -> CertificateDer<'static> {
        self.tls.get_ref().1.peer_certificates().unwrap().first().unwrap().clone()
    }
}

fn client_config(identity: &Identity) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(identity.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![identity.certificate.clone()],
            PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let tickets = Arc::new(Tickets {
        offered: AtomicUsize::new(0),
        inner: rustls::client::ClientSessionMemoryCache::new(8),
    });
    let mut config =
        client_config(&authority.identity(&Leaf::good("tributary://rivers/site/isar")));
    config.resumption = Resumption::store(tickets.clone());
    let config = Arc::new(config);
    for _ in 0..2 {
        let raw = Raw::dial(&server, &config).await;
        assert_eq!(raw.tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert_eq!(tickets.offered.load(Ordering::Relaxed), 0);
}

/// A gRPC channel that presents no certificate.
pub(crate) async fn without_certificate(
    server: &Server,
    authority: &Authority,
) -> tonic::transport::Channel {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let address = server.address.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let socket = TcpStream::connect(&address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            tls.connect(name, socket).await.map(hyper_util::rt::TokioIo::new)
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.unwrap()
}
