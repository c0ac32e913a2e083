//! A hostile coordinator with the keys of the true one. It passes every call on, but for the heads of the history, which
//! it forges once a call of a chosen kind has passed.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use prost::Message;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tower::Service;
use tributary_proto::calls::Call;
use tributary_proto::channel::{
    Acceptor, ConnectOptions, Identity, ServerIdentity, Windows, connect, server_builder,
};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::{Signer, VerifierKey};

use crate::Scratch;

/// Leaves of a forged history: more than any test writes.
const FORGED_LEAVES: u64 = 1_000;

/// The hostile coordinator, gone when dropped.
pub struct Impostor {
    /// Address on which it listens.
    pub address: String,
    passing: Passing,
    stop: CancellationToken,
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Impostor {
    /// Stands before the coordinator of `scratch` for the site of `index`. Forges heads after the first `begins`.
    pub async fn before(scratch: &Scratch, index: usize, begins: Call) -> Self {
        let folder = scratch.federation.coordinator_directory();
        let pem = |name: &str| std::fs::read(folder.join(name)).expect("a key of the coordinator");
        let (server, root) = (pem("server.pem"), pem("root.pem"));
        let server = ServerIdentity::from_pem(&server, &root, &server).expect("a certificate");
        let site = &scratch.federation.sites()[index];
        let identity = Identity::load(&site.directory.join("identity")).expect("an enrolled site");
        let log: VerifierKey = identity.log_verifier_key.parse().expect("a verifier key");
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem("log-key.pem")).expect("the log's key");
        let signer = Signer::from_pkcs8(log.name(), key.secret_pkcs8_der()).expect("a signer");
        let address = scratch.federation.address();
        let channel = connect(address, &identity, &ConnectOptions::default()).await;
        let state = State { calls: Vec::new(), begins: Some(begins), forges: false };
        let passing = Passing {
            channel: channel.expect("the coordinator answers"),
            signer: Arc::new(signer),
            state: Arc::new(Mutex::new(state)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let stop = CancellationToken::new();
        let incoming =
            Acceptor::new(&server).expect("an acceptor").incoming(listener, stop.clone());
        let router = server_builder(Windows::default()).add_service(passing.clone());
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
        Self { address, passing, stop }
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.passing.state().calls.clone()
    }

    /// Passes heads on from now on.
    pub fn stop_forging(&self) {
        let mut state = self.passing.state();
        (state.begins, state.forges) = (None, false);
    }
}

struct State {
    calls: Vec<Call>,
    begins: Option<Call>,
    forges: bool,
}

#[derive(Clone)]
struct Passing {
    channel: Channel,
    signer: Arc<Signer>,
    state: Arc<Mutex<State>>,
}

impl Passing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head with the log's true signature over leaves that do not exist.
    fn forged(&self) -> Response<Body> {
        let note = Checkpoint::sign(FORGED_LEAVES, Digest::of(b"forged"), &self.signer);
        let hash = Bytes::copy_from_slice(Digest::of(b"proof").as_bytes());
        let reply = v1::CheckpointReply { note, consistency: vec![hash], ..Default::default() };
        let message = reply.encode_to_vec();
        let mut data = vec![0];
        data.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
        data.extend(message);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a header"));
        let body = Full::new(Bytes::from(data)).with_trailers(async { Some(Ok(trailers)) });
        let mut response = Response::new(Body::new(body));
        let kind = "application/grpc".parse().expect("a header");
        response.headers_mut().insert("content-type", kind);
        response
    }
}

impl NamedService for Passing {
    const NAME: &'static str = "tributary.v1.Site";
}

impl Service<Request<Body>> for Passing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::of(request.uri().path()).expect("a call of the protocol");
        let passing = self.clone();
        let forges = {
            let mut state = self.state();
            state.calls.push(call);
            state.forges && call == Call::SiteCheckpoint
        };
        Box::pin(async move {
            if forges {
                return Ok(passing.forged());
            }
            let mut channel = passing.channel.clone();
            let answer = match std::future::poll_fn(|cx| channel.poll_ready(cx)).await {
                Ok(()) => channel.call(request).await,
                Err(error) => Err(error),
            };
            // Before the answer arrives: the site's next look at the history comes after it.
            let mut state = passing.state();
            state.forges |= state.begins == Some(call);
            Ok(answer.unwrap_or_else(|e| Status::unavailable(e.to_string()).into_http()))
        })
    }
}
