//! The coordinator's side: accepts TLS connections, knows who is behind each, and can cut them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Status};
use tributary_shared::name::ConsortiumName;
use tributary_shared::timestamp::Timestamp;

use super::member::{Certified, Member, Peer, Role, authority_consortium, certified};
use super::verify::MemberVerifier;
use super::words::{Broken, of_tls};

/// How long a client may take over its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes in progress at once; more wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 256;
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
        })
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
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
            let (socket, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let acceptor = self.clone();
            let ready = ready.clone();
            tokio::spawn(async move {
                match acceptor.handshake(socket, remote).await {
                    Ok(conn) => {
                        // Closed means that the server is stopping.
                        let _ = ready.send(Ok(conn)).await;
                    }
                    Err(e) => log_refusal(remote, &e),
                }
                drop(permit);
            });
        }
    }

    async fn handshake(&self, socket: TcpStream, remote: SocketAddr) -> io::Result<Conn> {
        // Not set by tonic for an incoming stream of our own; without it uploads are 5x slower.
        socket.set_nodelay(true)?;
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(socket))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "handshake took too long"))??;
        let named = match tls.get_ref().1.peer_certificates() {
            None | Some([]) => None,
            Some([leaf, ..]) => Some(certified(leaf).map_err(io::Error::other)?),
        };
        Ok(self.connections.enter(tls, named, remote))
    }
}

fn log_refusal(remote: SocketAddr, error: &io::Error) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let by_system = error.raw_os_error().is_some() || error.kind() == io::ErrorKind::UnexpectedEof;
    let reason = match tls {
        Some(tls) => of_tls(tls),
        None if by_system => Broken::of_io(error).to_string(),
        None => error.to_string(),
    };
    tracing::warn!(peer = %remote, reason, "connection refused");
}

/// Who is behind a connection; tonic puts it into every request's extensions.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// The member its certificate names; `None` when it presented none.
    pub peer: Option<Peer>,
    /// Where it connects from.
    pub remote: SocketAddr,
}

/// Open connections by number: whose certificate each presented, and what ends it.
type Live = HashMap<u64, (Option<Peer>, CancellationToken)>;

/// The live connections of one server.
#[derive(Clone, Default)]
pub struct Connections {
    live: Arc<Mutex<Live>>,
    next: Arc<AtomicU64>,
}

impl Connections {
    /// Ends at once, open streams included, every connection whose certificate is `unwanted`; says how many.
    pub fn cut(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        let live = self.lock();
        let found = live.values().filter(|(peer, _)| peer.as_ref().is_some_and(&unwanted));
        found.map(|(_, token)| token.cancel()).count()
    }

    /// True when `member` has a connection.
    pub fn holds(&self, member: &Member) -> bool {
        self.lock()
            .values()
            .any(|(peer, _)| peer.as_ref().is_some_and(|peer| peer.member == *member))
    }

    /// How many connections are open.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn enter(
        &self,
        tls: TlsStream<TcpStream>,
        named: Option<Certified>,
        remote: SocketAddr,
    ) -> Conn {
        let token = CancellationToken::new();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let expires = named.as_ref().map(|certified| certified.expires);
        let peer = named.map(|certified| certified.peer);
        self.lock().insert(id, (peer.clone(), token.clone()));
        let end = Box::pin(end(token.clone(), expires));
        let info = ConnectInfo { peer, remote };
        Conn { tls, info, token, end, _entry: Entry { id, connections: self.clone() } }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // The map is valid after every single operation, whoever panicked.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when the connection is cut, or when its certificate expires: the handshake checked that
/// once, and a connection may live for months.
async fn end(token: CancellationToken, expires: Option<Timestamp>) {
    let Some(expires) = expires else { return token.cancelled().await };
    let now_ms = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX).saturating_mul(1000);
    // The last second is still good (RFC 5280, 4.1.2.5).
    let over = expires.plus(Duration::from_secs(1));
    let remaining = over.since(Timestamp::from_millis(now_ms));
    tokio::select! {
        () = token.cancelled() => {}
        () = tokio::time::sleep(remaining) => token.cancel(),
    }
}

/// Takes a connection off the list when it ends.
struct Entry {
    id: u64,
    connections: Connections,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

/// One accepted connection.
pub struct Conn {
    tls: TlsStream<TcpStream>,
    info: ConnectInfo,
    token: CancellationToken,
    /// Wakes the connection's reader when it must end.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _entry: Entry,
}

impl Connected for Conn {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "cut, or its certificate expired")
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The token first: `end` must not be polled again once it is ready.
        if self.token.is_cancelled() || self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// HTTP/2 receive windows, bytes: at a round trip of 40 ms an upload moves one stream window per
/// round trip, so the protocol's default of 64 KiB would be 1.5 MB/s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of one stream.
    pub stream: u32,
    /// Of all streams of a connection: what one stalled client can hold in memory.
    pub connection: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { stream: 2 << 20, connection: 16 << 20 }
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
