//! Calls in progress, bounded in number for each caller and in time. Counted before a byte of the
//! request's body is read.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tower::Service;
use tributary_proto::calls::Call as Method;
use tributary_proto::channel::{ConnectInfo, Member, Origin, access};

/// The calls in progress of one server. Cheap to clone.
#[derive(Clone, Default)]
pub struct Calls(Arc<Mutex<Table>>);

type Table = HashMap<(Caller, Kind), u32>;

/// Caller whose calls are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Member(Member),
    /// Without a certificate.
    Stranger(Origin),
}

/// Kinds of calls by what they hold, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// Enrolment, open to everybody.
    Enrol,
    /// Waits for a round, or for its turn to upload.
    Wait,
    /// Waits for what sites say to an operator's question.
    Ask,
    /// Sends a stream.
    Stream,
    /// Receives one.
    Upload,
    /// Answers at once.
    Short,
}

impl Kind {
    fn of(call: Method) -> Self {
        match call {
            Method::EnrolmentEnroll => Self::Enrol,
            Method::SiteNextAssignment | Method::SiteUploadStatus => Self::Wait,
            Method::OperatorCheckRun | Method::OperatorStartRun => Self::Ask,
            Method::SiteFetchAdapter
            | Method::OperatorLog
            | Method::OperatorPull
            | Method::OperatorExport => Self::Stream,
            Method::SiteUpload => Self::Upload,
            Method::SiteHello
            | Method::SiteAnswerInquiry
            | Method::SiteAcceptTerms
            | Method::SiteDecline
            | Method::SiteHeartbeat
            | Method::SiteSubmit
            | Method::SiteCheckpoint
            | Method::SiteEvidence
            | Method::OperatorStatus
            | Method::OperatorInvite
            | Method::OperatorListSites
            | Method::OperatorListPersons
            | Method::OperatorSetMemberState
            | Method::OperatorWithdrawInvitations
            | Method::OperatorStopRun
            | Method::OperatorResumeRun
            | Method::OperatorListRuns
            | Method::OperatorShowRun
            | Method::OperatorCheckpoint => Self::Short,
        }
    }

    /// Most at once of one caller.
    fn most(self) -> u32 {
        match self {
            // An upload leaves its dead half behind where a connection broke.
            Self::Enrol | Self::Ask | Self::Upload => 4,
            Self::Wait | Self::Stream => 8,
            Self::Short => 16,
        }
    }

    /// Longest time until the answer, or a stream of answers, begins: the whole request has come
    /// and was dealt with.
    fn limit(self) -> Option<Duration> {
        match self {
            Self::Enrol => Some(Duration::from_secs(10)),
            Self::Short | Self::Stream => Some(Duration::from_secs(60)),
            Self::Wait => Some(Duration::from_secs(90)),
            Self::Ask => Some(Duration::from_secs(660)),
            // It has a rule of its own: bytes must keep coming.
            Self::Upload => None,
        }
    }
}

impl Calls {
    fn begin(&self, caller: Caller, kind: Kind) -> Option<Call> {
        let mut table = self.lock();
        let count = table.entry((caller.clone(), kind)).or_default();
        if *count >= kind.most() {
            return None;
        }
        *count += 1;
        Some(Call { key: (caller, kind), calls: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is valid after every single operation, also after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in progress, until dropped.
struct Call {
    key: (Caller, Kind),
    calls: Calls,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut table = self.calls.lock();
        if let Some(count) = table.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.key);
            }
        }
    }
}

/// Services behind the count and the clock.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    calls: Calls,
    limit: fn(Kind) -> Option<Duration>,
}

impl<S> Counted<S> {
    /// Counts the calls of `inner` among `calls`.
    pub fn new(inner: S, calls: Calls) -> Self {
        Self { inner, calls, limit: Kind::limit }
    }
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(method) = Method::of(request.uri().path()) else {
            let refused = Status::unimplemented("there is no such call");
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        let Some(info) = request.extensions().get::<ConnectInfo>() else {
            let refused = Status::unauthenticated("the connection is not known");
            return Box::pin(async move { Ok(refused.into_http()) });
        };
        if let Err(refused) = access::authorize(method, info.peer.as_ref()) {
            return Box::pin(async move { Ok(refused.into_http()) });
        }
        let kind = Kind::of(method);
        let caller = match &info.peer {
            Some(peer) => Caller::Member(peer.member.clone()),
            None => Caller::Stranger(Origin::of(info.remote.ip())),
        };
        let Some(call) = self.calls.begin(caller, kind) else {
            let most = kind.most();
            let text = format!("{most} calls of this kind are in progress already; end one first");
            return Box::pin(async move { Ok(Status::resource_exhausted(text).into_http()) });
        };
        let (answered, limit) = (self.inner.call(request), (self.limit)(kind));
        Box::pin(async move {
            let answer = match limit {
                None => answered.await?,
                Some(limit) => match tokio::time::timeout(limit, answered).await {
                    Ok(answer) => answer?,
                    Err(_) => {
                        let text = format!("not finished within {} s", limit.as_secs());
                        return Ok(Status::deadline_exceeded(text).into_http());
                    }
                },
            };
            // The call lasts as long as its answer is being sent.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &call;
                    frame
                }))
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tributary_proto::channel::Peer;
    use tributary_shared::digest::Digest;

    use super::*;

    /// A3e: any number of waits and streams of one member.
    #[test]
    fn one_callers_calls_are_bounded_and_another_has_its_own() {
        let calls = Calls::default();
        let site = |name: &str| Caller::Member(format!("site/{name}").parse().unwrap());
        let kind = Kind::of(Method::SiteNextAssignment);
        assert_eq!(kind, Kind::Wait);
        let mut held: Vec<Call> = Vec::new();
        while let Some(call) = calls.begin(site("mallory"), kind) {
            held.push(call);
        }
        assert_eq!(held.len(), 8);
        assert!(calls.begin(site("isar"), kind).is_some());
        let beat = calls.begin(site("mallory"), Kind::of(Method::SiteHeartbeat));
        assert!(beat.is_some());
        held.pop();
        assert!(calls.begin(site("mallory"), kind).is_some());
        drop((held, beat));
        assert!(calls.lock().is_empty());
    }

    #[test]
    fn every_call_has_a_bound_in_number_and_all_but_uploads_one_in_time() {
        let bounds = |call| (Kind::of(call).most(), Kind::of(call).limit().map(|l| l.as_secs()));
        assert_eq!(bounds(Method::EnrolmentEnroll), (4, Some(10)));
        assert_eq!(bounds(Method::SiteHeartbeat), (16, Some(60)));
        assert_eq!(bounds(Method::SiteFetchAdapter), (8, Some(60)));
        assert_eq!(bounds(Method::SiteNextAssignment), (8, Some(90)));
        assert_eq!(bounds(Method::OperatorCheckRun), (4, Some(660)));
        assert_eq!(bounds(Method::SiteUpload), (4, None));
        let timeless = Method::ALL.into_iter().filter(|call| Kind::of(*call).limit().is_none());
        assert_eq!(timeless.collect::<Vec<_>>(), [Method::SiteUpload]);
    }

    /// A handler that hangs, as behind a disk that does, keeps no call open for ever. A second is a millisecond here.
    #[tokio::test]
    async fn a_call_whose_handler_hangs_is_answered_at_its_limit_and_counts_until_then() {
        let hangs = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let calls = Calls::default();
        let limit = |kind: Kind| kind.limit().map(|limit| limit / 1000);
        let mut service = Counted { inner: hangs, calls: calls.clone(), limit };
        let mut call = |method: Method, member: &str| {
            let member: Member = member.parse().unwrap();
            let fingerprint = Digest::of(member.to_string().as_bytes());
            let peer = Peer { member, serial_hex: "01".to_owned(), fingerprint };
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = method.path().parse().unwrap();
            let remote = "127.0.0.1:1".parse().unwrap();
            request.extensions_mut().insert(ConnectInfo { peer: Some(peer), remote });
            service.call(request)
        };
        let status = |answer: Response<Body>| Status::from_header_map(answer.headers()).unwrap();
        for (method, member, most) in [
            (Method::SiteHeartbeat, "site/a", 16),
            (Method::SiteFetchAdapter, "site/a", 8),
            (Method::SiteNextAssignment, "site/a", 8),
            (Method::OperatorCheckRun, "operator/o", 4),
        ] {
            let hanging: Vec<_> = (0..most).map(|_| call(method, member)).collect();
            let more = status(call(method, member).await.unwrap());
            assert_eq!(more.code(), Code::ResourceExhausted, "{method:?}: {more}");
            for answer in hanging {
                let late = status(answer.await.unwrap());
                assert_eq!(late.code(), Code::DeadlineExceeded, "{method:?}: {late}");
            }
        }
        assert!(calls.lock().is_empty(), "an answered call counts no more");
    }
}
