//! The coordinator's side: accepts TLS connections and knows who is behind each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::transport::server::Server;
use tonic::{Request, Status};
use tributary_shared::name::ConsortiumName;

use super::connections::{Conn, ConnectInfo, Connections, Entry};
use super::door::Limits;
use super::member::{Peer, Role, authority_consortium, certified};
use super::refusals::{PERIOD, Refusals};
use super::verify::MemberVerifier;
use super::words::{Broken, of_tls};

/// Time for a client's handshake, from the connection on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a failed `accept`, such as too many open files, before the next.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The server's certificate chain (leaf, root) and its key.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    consortium: ConsortiumName,
}

impl ServerIdentity {
    /// Reads the leaf, the root (whose name says which consortium this is) and the leaf's key.
    pub fn from_pem(leaf: &[u8], root: &[u8], key: &[u8]) -> Result<Self, String> {
        let one = |pem: &[u8], what: &str| {
            CertificateDer::from_pem_slice(pem).map_err(|e| format!("{what}: {e}"))
        };
        let root = one(root, "root certificate")?;
        let consortium =
            authority_consortium(&root).map_err(|e| format!("root certificate: {e}"))?;
        Ok(Self {
            chain: vec![one(leaf, "server certificate")?, root],
            key: PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("server key: {e}"))?,
            consortium,
        })
    }

    /// The consortium whose members may connect.
    pub fn consortium(&self) -> &ConsortiumName {
        &self.consortium
    }

    fn certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        let key = self.key.clone_key();
        let certified = CertifiedKey::from_der(self.chain.clone(), key, &super::provider())?;
        // Catches a renewed certificate beside an old key before the first handshake does.
        certified.keys_match()?;
        Ok(certified)
    }
}

/// The certificate of the next handshake; swapped on reload while open connections go on.
#[derive(Debug)]
struct Presented(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Accepts connections for tonic's `serve_with_incoming`.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    presented: Arc<Presented>,
    connections: Connections,
    refusals: Arc<Refusals>,
}

impl Acceptor {
    /// Prepares TLS 1.3 with `identity` as the server and its root as the only authority.
    pub fn new(identity: &ServerIdentity) -> Result<Self, rustls::Error> {
        let presented = Arc::new(Presented(ArcSwap::from_pointee(identity.certified_key()?)));
        let root = identity.chain.last().ok_or(rustls::Error::NoCertificatesPresented)?;
        let verifier = MemberVerifier::new(root, identity.consortium.clone())?;
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(presented.clone());
        config.alpn_protocols = vec![super::ALPN.to_vec()];
        // A resumed session would skip the verifier, and with it every certificate that has
        // expired since; a full handshake costs two milliseconds.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            presented,
            connections: Connections::default(),
            refusals: Arc::default(),
        })
    }

    /// Holds as many connections as `limits` say; those that it holds already do not count.
    pub fn limited(self, limits: Limits) -> Self {
        Self { connections: Connections::new(limits), ..self }
    }

    /// Presents another certificate from the next handshake on. The authority stays.
    pub fn reload(&self, identity: &ServerIdentity) -> Result<(), rustls::Error> {
        self.presented.0.store(Arc::new(identity.certified_key()?));
        Ok(())
    }

    /// The live connections, for cutting them.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// Accepts on `listener` until `stop`, one task a handshake, so that a slow client delays
    /// nobody. Give the stream to `Router::serve_with_incoming_shutdown`.
    pub fn incoming(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> ReceiverStream<io::Result<Conn>> {
        let (ready, incoming) = mpsc::channel(16);
        let acceptor = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = ready.closed() => {}
                () = acceptor.accept_all(&listener, &ready) => {}
            }
        });
        ReceiverStream::new(incoming)
    }

    async fn accept_all(&self, listener: &TcpListener, ready: &mpsc::Sender<io::Result<Conn>>) {
        let mut period = tokio::time::interval(PERIOD);
        let mut told = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = period.tick() => {
                    self.refusals.tell();
                    told = false;
                    continue;
                }
            };
            let (socket, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("cannot accept connections: {}", Broken::of_io(&e));
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let (entry, displaced) = self.connections.accepted(remote);
            let (acceptor, ready) = (self.clone(), ready.clone());
            tokio::spawn(async move {
                match acceptor.handshake(socket, remote, entry).await {
                    Ok(conn) => {
                        // Closed means that the server is stopping.
                        let _ = ready.send(Ok(conn)).await;
                    }
                    Err(e) => acceptor.refusals.note(remote, &reason(&e)),
                }
            });
            if displaced {
                // The one that goes frees its descriptor before the next is taken.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        remote: SocketAddr,
        entry: Entry,
    ) -> io::Result<Conn> {
        // Not set by tonic for an incoming stream of our own; without it uploads are 5x slower.
        socket.set_nodelay(true)?;
        let shaken = async {
            // Nothing is spent on TLS before the first byte.
            socket.readable().await?;
            entry.spoke();
            self.tls.accept(socket).await
        };
        let tls = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken) => shaken
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "handshake took too long"))??,
            () = entry.displaced() => return Err(io::Error::other("dropped in its handshake: too many at once, most from its address")),
        };
        let named = match tls.get_ref().1.peer_certificates() {
            None | Some([]) => None,
            Some([leaf, ..]) => Some(certified(leaf).map_err(io::Error::other)?),
        };
        let admitted = entry.admit(tls, named, remote);
        admitted.ok_or_else(|| io::Error::other("every place for members' connections is taken"))
    }
}

fn reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let by_system = error.raw_os_error().is_some() || error.kind() == io::ErrorKind::UnexpectedEof;
    match tls {
        Some(tls) => of_tls(tls),
        None if by_system => Broken::of_io(error).to_string(),
        None => error.to_string(),
    }
}

/// HTTP/2 receive windows, bytes: at a round trip of 40 ms an upload moves one stream window per
/// round trip, so the protocol's default of 64 KiB would be 1.5 MB/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of one stream.
    pub stream: u32,
    /// Of all streams of a connection: most bytes of it that wait to be read. Larger than a
    /// stream's, or calls would stand behind an upload that waits.
    pub connection: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { stream: 2 << 20, connection: 4 << 20 }
    }
}

/// A tonic server with our HTTP/2 settings; TLS is the [`Acceptor`]'s.
pub fn server_builder(windows: Windows) -> Server {
    Server::builder()
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(64 * 1024)
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

/// The member behind a request; unauthenticated without a certificate.
pub fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    let info = request.extensions().get::<ConnectInfo>();
    info.and_then(|info| info.peer.as_ref()).ok_or_else(|| {
        Status::unauthenticated("this call needs a member's certificate; enrol first")
    })
}

/// The member behind a request, when it has one of `roles`.
pub fn require<'a, T>(request: &'a Request<T>, roles: &[Role]) -> Result<&'a Peer, Status> {
    let peer = peer(request)?;
    if roles.contains(&peer.member.role) {
        return Ok(peer);
    }
    let asked: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let text = format!("{} may not call this; it is for: {}", peer.member, asked.join(", "));
    Err(Status::permission_denied(text))
}

/// What [`Guard`] asks about every request: is this certificate still good?
pub type Check = dyn Fn(&Peer) -> Result<(), Status> + Send + Sync;

/// Stands before a whole service (`XServer::with_interceptor(service, guard)`): no request
/// without a certificate, of another role, or that the check refuses comes to a handler.
#[derive(Clone)]
pub struct Guard {
    roles: &'static [Role],
    check: Arc<Check>,
}

impl Guard {
    /// Lets members of `roles` pass whom `check` does not refuse.
    pub fn new(roles: &'static [Role], check: Arc<Check>) -> Self {
        Self { roles, check }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = require(&request, self.roles)?;
        (self.check)(peer)?;
        Ok(request)
    }
}
