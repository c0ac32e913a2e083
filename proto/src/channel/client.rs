//! The member's side: a channel to the coordinator, directly or through the hospital's proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::failure::ConnectError;
use super::identity::Identity;
use super::proxy;
use super::verify::{PinnedRoot, ServerFault, only_root};
use super::words::{Broken, Untimely, now};

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// For everything up to the first byte from the coordinator.
    pub connect_timeout: Duration,
    /// `http://[user:password@]host:port`; `None` for what HTTPS_PROXY and NO_PROXY say,
    /// which a coordinator on this machine's loopback is exempt from.
    pub proxy: Option<String>,
    /// HTTP/2 receive window of one download, bytes.
    pub stream_window: u32,
    /// HTTP/2 receive window of the connection, bytes.
    pub connection_window: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            proxy: None,
            stream_window: 8 << 20,
            connection_window: 16 << 20,
        }
    }
}

/// Connects to the coordinator at `address` (`host:port`) as `identity`. When this returns, both
/// sides have accepted each other's certificate. The channel reconnects by itself.
pub async fn connect(
    address: &str,
    identity: &Identity,
    options: &ConnectOptions,
) -> Result<Channel, ConnectError> {
    let key = identity.key().map_err(|e| ConnectError::Identity(rustls::Error::General(e)))?;
    let config = tls13()
        .with_root_certificates(only_root(&identity.root).map_err(ConnectError::Identity)?)
        .with_client_auth_cert(vec![identity.certificate.clone()], key)
        .map_err(ConnectError::Identity)?;
    open(address, config, Some(identity.certificate.clone()), options).await
}

/// The certificate that a server listening on `listener` presents to a member that connects to
/// `address` and trusts `root` alone.
pub async fn presented(
    listener: SocketAddr,
    address: &str,
    root: &CertificateDer<'_>,
    timeout: Duration,
) -> Result<CertificateDer<'static>, ConnectError> {
    let mut config = tls13()
        .with_root_certificates(only_root(root).map_err(ConnectError::Identity)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![super::ALPN.to_vec()];
    let target = Target {
        address: listener.to_string(),
        name: server_name(address)?,
        proxy: None,
        certificate: None,
        tls: TlsConnector::from(Arc::new(config)),
        timeout,
    };
    let connection = target.dial().await?;
    let chain = connection.get_ref().get_ref().1.peer_certificates();
    let leaf = chain.and_then(|chain| chain.first()).ok_or_else(|| {
        let address = target.address.clone();
        ConnectError::Server { address, detail: "it presented no certificate".to_owned() }
    })?;
    Ok(leaf.clone().into_owned())
}

/// Connects without a certificate to a server under the root with the pinned fingerprint.
pub(super) async fn connect_pinned(
    address: &str,
    pinned: PinnedRoot,
    options: &ConnectOptions,
) -> Result<Channel, ConnectError> {
    let verifier: Arc<dyn ServerCertVerifier> = Arc::new(pinned);
    let config =
        tls13().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    open(address, config, None, options).await
}

fn tls13() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(super::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring offers cipher suites for TLS 1.3")
}

async fn open(
    address: &str,
    mut config: ClientConfig,
    certificate: Option<CertificateDer<'static>>,
    options: &ConnectOptions,
) -> Result<Channel, ConnectError> {
    config.alpn_protocols = vec![super::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let target = Arc::new(Target {
        address: address.to_owned(),
        name: server_name(address)?,
        proxy: proxy::choose(options.proxy.as_deref(), address)?,
        tls: TlsConnector::from(Arc::new(config)),
        certificate,
        timeout: options.connect_timeout,
    });
    // The first connection is made here, where its error still has a type; the channel makes
    // the later ones itself.
    let first = Arc::new(Mutex::new(Some(target.dial().await?)));
    let connector = service_fn(move |_: Uri| {
        let target = Arc::clone(&target);
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            match first {
                Some(connection) => Ok(TokioIo::new(connection)),
                None => target.dial().await.map(TokioIo::new),
            }
        }
    });
    // The connector does TLS; to tonic this is a plain connection.
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| ConnectError::Address { address: address.to_owned() })?
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|e| ConnectError::Handshake {
            address: address.to_owned(),
            source: Broken::of(&e),
        })
}

/// One coordinator and how to get to it.
struct Target {
    address: String,
    name: ServerName<'static>,
    proxy: Option<Intercept>,
    tls: TlsConnector,
    /// Ours, to say why it is refused.
    certificate: Option<CertificateDer<'static>>,
    timeout: Duration,
}

/// Buffered because the first byte is looked at before HTTP/2 reads it.
type Connection = BufReader<TlsStream<TcpStream>>;

impl Target {
    async fn dial(&self) -> Result<Connection, ConnectError> {
        // Whom the time limit would blame.
        let waiting_for = Mutex::new(String::new());
        match tokio::time::timeout(self.timeout, self.dial_patiently(&waiting_for)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout {
                target: waiting_for.into_inner().unwrap_or_else(PoisonError::into_inner),
                seconds: self.timeout.as_secs(),
            }),
        }
    }

    async fn dial_patiently(
        &self,
        waiting_for: &Mutex<String>,
    ) -> Result<Connection, ConnectError> {
        let wait_for = |whom: String| {
            *waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = whom;
        };
        let address = &self.address;
        let socket = if let Some(proxy) = &self.proxy {
            let name = proxy::display(proxy);
            wait_for(format!("the proxy {name}"));
            let mut socket = open_socket(&name).await.map_err(|e| {
                let (proxy, address) = (name.clone(), address.clone());
                ConnectError::ProxyUnreachable { proxy, address, source: Broken::of_io(&e) }
            })?;
            proxy::tunnel(&mut socket, proxy, address).await?;
            wait_for(format!("{address} through the proxy {name}"));
            socket
        } else {
            wait_for(address.clone());
            open_socket(address).await.map_err(|e| {
                let address = address.clone();
                ConnectError::Unreachable { address, source: Broken::of_io(&e) }
            })?
        };
        let tls = self.tls.connect(self.name.clone(), socket).await;
        let mut connection = BufReader::new(tls.map_err(|e| self.handshake_failed(&e))?);
        // In TLS 1.3 our handshake ends before the server has judged our certificate. Its
        // HTTP/2 settings come first when it accepts; when it refuses, an alert does.
        match connection.fill_buf().await {
            Ok([]) => Err(self.handshake_failed(&io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(connection),
            Err(e) => Err(self.handshake_failed(&e)),
        }
    }

    fn handshake_failed(&self, error: &io::Error) -> ConnectError {
        let address = self.address.clone();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(e @ rustls::Error::InvalidCertificate(_)) => match ServerFault::of(e) {
                ServerFault::Untimely(untimely) => {
                    ConnectError::ServerUntimely { address, untimely }
                }
                ServerFault::Name { host, names } => {
                    ConnectError::ServerName { address, host, names }
                }
                ServerFault::Other(detail) => ConnectError::Server { address, detail },
            },
            Some(rustls::Error::AlertReceived(alert)) if about_our_certificate(*alert) => {
                let timely = *alert == AlertDescription::CertificateExpired;
                let ours = self.certificate.as_ref().filter(|_| timely);
                let untimely = ours.and_then(|der| Untimely::of_refused(der, now()));
                ConnectError::Certificate { address, untimely }
            }
            Some(_) | None => ConnectError::Handshake { address, source: Broken::of_io(error) },
        }
    }
}

async fn open_socket(address: &str) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

fn about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

/// The host of `address` (`host:port`), as a certificate names it.
pub fn host_of(address: &str) -> Result<String, ConnectError> {
    server_name(address).map(|name| name.to_str().into_owned())
}

/// The name that the server's certificate must carry: the address without its port.
fn server_name(address: &str) -> Result<ServerName<'static>, ConnectError> {
    let invalid = || ConnectError::Address { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if port == 0 || (bare.contains(':') && bare.len() == host.len()) {
        return Err(invalid());
    }
    ServerName::try_from(bare.to_owned()).map_err(|_| invalid())
}
