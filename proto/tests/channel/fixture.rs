//! A real authority, a real server on port 0, and certificates good and bad.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing_subscriber::fmt::MakeWriter;
use tributary_proto::channel::{
    Acceptor, ConnectError, ConnectOptions, Connections, Guard, Identity, Limits, Role,
    ServerIdentity, Windows, certificate_pem, connect, peer, server_builder,
};
use tributary_proto::v1;

pub(crate) fn now() -> OffsetDateTime {
    // An integration test's certificates must be good at the time the verifier reads.
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(since.as_secs().cast_signed())
}

/// A private authority of consortium `rivers`.
pub(crate) struct Authority {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// What a leaf says; `good` is what a member's says, and each test breaks one thing.
pub(crate) struct Leaf {
    pub(crate) names: Vec<SanType>,
    pub(crate) usage: ExtendedKeyUsagePurpose,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

impl Leaf {
    pub(crate) fn good(uri: &str) -> Self {
        Self {
            names: vec![san_uri(uri)],
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            from: Duration::minutes(-5),
            to: Duration::hours(1),
        }
    }

    pub(crate) fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&self.names);
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.extended_key_usages = vec![self.usage.clone()];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = now() + self.from;
        params.not_after = now() + self.to;
        params.use_authority_key_identifier_extension = true;
        params
    }
}

pub(crate) fn san_uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = new_key();
        let mut params = Leaf::good("tributary://rivers").params();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = Vec::new();
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&root, key).unwrap();
        Self { root, issuer }
    }

    pub(crate) fn identity(&self, leaf: &Leaf) -> Identity {
        let key = new_key();
        let certificate = leaf.params().signed_by(&key, &self.issuer).unwrap().der().clone();
        self.identity_of(certificate, &key)
    }

    pub(crate) fn identity_of(
        &self,
        certificate: CertificateDer<'static>,
        key: &KeyPair,
    ) -> Identity {
        Identity {
            consortium: "rivers".parse().unwrap(),
            member: "site/isar".parse().unwrap(),
            address: "localhost:1".to_owned(),
            log_verifier_key: "log+key".to_owned(),
            certificate,
            root: self.root.clone(),
            key_pem: key.serialize_pem(),
        }
    }

    pub(crate) fn site(&self, name: &str) -> Identity {
        self.identity(&Leaf::good(&format!("tributary://rivers/site/{name}")))
    }

    /// A server certificate for `names`, with its key.
    pub(crate) fn server(&self, names: &[&str]) -> ServerIdentity {
        let Leaf { from, to, .. } = Leaf::good("x://y");
        self.server_within(names, (from, to))
    }

    /// The same, good from and to these distances from now.
    pub(crate) fn server_within(
        &self,
        names: &[&str],
        (from, to): (Duration, Duration),
    ) -> ServerIdentity {
        let key = new_key();
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let leaf = Leaf { usage, from, to, ..Leaf::good("x://y") };
        let mut params = leaf.params();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        ServerIdentity::from_pem(
            certificate.pem().as_bytes(),
            certificate_pem(&self.root).as_bytes(),
            key.serialize_pem().as_bytes(),
        )
        .unwrap()
    }
}

type EnrolHandler = dyn Fn(v1::EnrollRequest) -> Result<v1::EnrollReply, Status> + Send + Sync;

/// A running server, stopped when dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) acceptor: Acceptor,
    pub(crate) connections: Connections,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    pub(crate) async fn start(authority: &Authority) -> Self {
        Self::limited(authority, Limits::default()).await
    }

    pub(crate) async fn limited(authority: &Authority, limits: Limits) -> Self {
        let refuses = |_| Err(Status::permission_denied("no token"));
        Self::with(authority, limits, Arc::new(refuses)).await
    }

    pub(crate) async fn enrolling(authority: &Authority, handler: Arc<EnrolHandler>) -> Self {
        Self::with(authority, Limits::default(), handler).await
    }

    async fn with(authority: &Authority, limits: Limits, handler: Arc<EnrolHandler>) -> Self {
        let acceptor = Acceptor::new(&authority.server(&["localhost", "127.0.0.1"])).unwrap();
        let acceptor = acceptor.limited(limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let stop = CancellationToken::new();
        let check = Arc::new(|peer: &tributary_proto::channel::Peer| {
            if peer.member.name.as_str() == "barred" {
                Err(Status::permission_denied("barred by the check"))
            } else {
                Ok(())
            }
        });
        let router = server_builder(Windows::default())
            .add_service(v1::enrolment_server::EnrolmentServer::new(Enrolment(handler)))
            .add_service(v1::site_server::SiteServer::with_interceptor(
                Site,
                Guard::new(&[Role::Site], check),
            ));
        let incoming = acceptor.incoming(listener, stop.clone());
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
        Self { address, connections: acceptor.connections(), acceptor, stop, serving }
    }

    /// Stops, and returns when nothing listens any more.
    pub(crate) async fn gone(mut self) {
        self.stop.cancel();
        (&mut self.serving).await.unwrap().unwrap();
    }

    pub(crate) async fn connect(
        &self,
        identity: &Identity,
    ) -> Result<v1::site_client::SiteClient<tonic::transport::Channel>, ConnectError> {
        let channel = connect(&self.address, identity, &ConnectOptions::default()).await?;
        Ok(v1::site_client::SiteClient::new(channel))
    }
}

struct Enrolment(Arc<EnrolHandler>);

#[tonic::async_trait]
impl v1::enrolment_server::Enrolment for Enrolment {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollReply>, Status> {
        (self.0)(request.into_inner()).map(Response::new)
    }
}

struct Site;

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

/// A call that no test makes.
fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no test calls this"))
}

#[tonic::async_trait]
impl v1::site_server::Site for Site {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let member = peer(&request)?.member.to_string();
        Ok(Response::new(v1::HelloReply { member, ..v1::HelloReply::default() }))
    }

    type FetchAdapterStream = Chunks;

    /// One chunk, then nothing for ever.
    async fn fetch_adapter(
        &self,
        _: Request<v1::FetchRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(Ok(v1::Chunk::default())).unwrap();
        tokio::spawn(async move { sender.closed().await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn next_assignment(
        &self,
        _: Request<v1::NextAssignmentRequest>,
    ) -> Result<Response<v1::NextAssignmentReply>, Status> {
        unused()
    }

    async fn answer_inquiry(
        &self,
        _: Request<v1::AnswerInquiryRequest>,
    ) -> Result<Response<v1::AnswerInquiryReply>, Status> {
        unused()
    }

    async fn accept_terms(
        &self,
        _: Request<v1::AcceptTermsRequest>,
    ) -> Result<Response<v1::AcceptTermsReply>, Status> {
        unused()
    }

    async fn decline(
        &self,
        _: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineReply>, Status> {
        unused()
    }

    async fn heartbeat(
        &self,
        _: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        unused()
    }

    async fn upload_status(
        &self,
        _: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusReply>, Status> {
        unused()
    }

    async fn upload(
        &self,
        _: Request<Streaming<v1::UploadChunk>>,
    ) -> Result<Response<v1::UploadReply>, Status> {
        unused()
    }

    async fn submit(
        &self,
        _: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        unused()
    }

    async fn evidence(
        &self,
        _: Request<v1::EvidenceRequest>,
    ) -> Result<Response<v1::EvidenceReply>, Status> {
        unused()
    }

    async fn checkpoint(
        &self,
        _: Request<v1::CheckpointRequest>,
    ) -> Result<Response<v1::CheckpointReply>, Status> {
        unused()
    }
}

/// The server's log lines, to be waited for.
pub(crate) struct Log {
    lines: Mutex<mpsc::UnboundedReceiver<String>>,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone)]
struct Lines(mpsc::UnboundedSender<String>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Catches what this thread logs; the test's runtime has no other thread.
    pub(crate) fn catch() -> Self {
        let (sender, lines) = mpsc::unbounded_channel();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(Lines(sender))
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        Self { lines: Mutex::new(lines), _guard: guard }
    }

    /// The next line that the server logs about a refused connection.
    pub(crate) async fn refusal(&self) -> String {
        std::future::poll_fn(|cx| self.lines.lock().unwrap().poll_recv(cx)).await.unwrap()
    }
}
