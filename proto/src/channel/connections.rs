//! Open connections: the holder of each, its end, and its deadlines.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tributary_shared::timestamp::Timestamp;

use super::door::{Door, Limits, Origin, Verdict};
use super::member::{Certified, Member, Peer};

/// Length of what an HTTP/2 client sends first (RFC 9113, 3.4), bytes.
const PREFACE_BYTES: u64 = 24;
/// Time for it, from the end of the handshake.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a connection without a certificate.
const ANONYMOUS_IDLE: Duration = Duration::from_secs(10);
/// Longest life of one.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);

/// Identity and address behind a connection; tonic puts it into every request's extensions.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// The member its certificate names; `None` when it presented none.
    pub peer: Option<Peer>,
    /// Address that it connects from.
    pub remote: SocketAddr,
}

/// The live connections of one server.
#[derive(Clone)]
pub struct Connections {
    live: Arc<Mutex<Live>>,
    next: Arc<AtomicU64>,
}

struct Live {
    door: Door,
    /// Certificate that each presented, once it has, and the token that ends it.
    ends: HashMap<u64, (Option<Peer>, CancellationToken)>,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        let live = Live { door: Door::new(limits), ends: HashMap::new() };
        Self { live: Arc::new(Mutex::new(live)), next: Arc::default() }
    }

    /// Ends at once, open streams included, every connection whose certificate is `unwanted`; says
    /// how many.
    pub fn cut(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        let live = self.lock();
        let found = live.ends.values().filter(|(peer, _)| peer.as_ref().is_some_and(&unwanted));
        found.map(|(_, end)| end.cancel()).count()
    }

    /// True when `member` has a connection.
    pub fn holds(&self, member: &Member) -> bool {
        self.lock().door.of(member).next().is_some()
    }

    /// Number of open connections, those in their handshake included.
    pub fn count(&self) -> usize {
        self.lock().door.count()
    }

    /// Takes a place for an accepted socket; true when another connection was dropped for it.
    pub(super) fn accepted(&self, remote: SocketAddr) -> (Entry, bool) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let end = CancellationToken::new();
        let mut live = self.lock();
        live.ends.insert(id, (None, end.clone()));
        let verdict = live.door.accepted(id, Origin::of(remote.ip()));
        let displaced = live.settle(verdict);
        (Entry { id, end, connections: self.clone() }, displaced)
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // The maps are valid after every single operation, also after a panic elsewhere.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Ends whom a verdict names; true when there is one.
    fn settle(&self, verdict: Verdict) -> bool {
        let Verdict::Displace(id) = verdict else { return false };
        if let Some((_, end)) = self.ends.get(&id) {
            end.cancel();
        }
        true
    }
}

/// A connection's place, given back when dropped.
pub(super) struct Entry {
    id: u64,
    end: CancellationToken,
    connections: Connections,
}

impl Entry {
    /// Resolves when the place is needed by another.
    pub(super) async fn displaced(&self) {
        self.end.cancelled().await;
    }

    /// The first byte is there.
    pub(super) fn spoke(&self) {
        self.connections.lock().door.spoke(self.id);
    }

    /// Turns the place into that of a connection whose handshake is done; `None` when there is
    /// none for it.
    pub(super) fn admit(
        self,
        tls: TlsStream<TcpStream>,
        named: Option<Certified>,
        remote: SocketAddr,
    ) -> Option<Conn> {
        let mut live = self.connections.lock();
        if let Some((peer, _)) = live.ends.get_mut(&self.id) {
            *peer = named.as_ref().map(|certified| certified.peer.clone());
        }
        let verdict = match &named {
            Some(certified) => live.door.member(self.id, certified.peer.member.clone()),
            None => live.door.anonymous(self.id),
        };
        live.settle(verdict);
        drop(live);
        if verdict == Verdict::Refuse {
            return None;
        }
        let expires = named.as_ref().map(|certified| ends_at(certified.expires));
        let began = Instant::now();
        let patience = Patience { began, expires, received: 0, heard: began };
        Some(Conn {
            tls,
            info: ConnectInfo { peer: named.map(|certified| certified.peer), remote },
            cut: Box::pin(self.end.clone().cancelled_owned()),
            alarm: Box::pin(tokio::time::sleep_until(patience.until())),
            patience,
            ended: false,
            _entry: self,
        })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut live = self.connections.lock();
        live.door.left(self.id);
        live.ends.remove(&self.id);
    }
}

/// The end of a certificate by the clock of timers: the handshake checked it once, and a
/// connection may live for months.
fn ends_at(expires: Timestamp) -> Instant {
    let now_ms = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX).saturating_mul(1000);
    // The last second is still good (RFC 5280, 4.1.2.5).
    let over = expires.plus(Duration::from_secs(1));
    Instant::now() + over.since(Timestamp::from_millis(now_ms))
}

/// Deadline of a connection, by what it has sent.
#[derive(Clone, Copy, Debug)]
struct Patience {
    began: Instant,
    /// The end of its certificate; absent when it has none.
    expires: Option<Instant>,
    received: u64,
    /// The time at which it last sent something.
    heard: Instant,
}

impl Patience {
    fn until(&self) -> Instant {
        let Some(expires) = self.expires else {
            return (self.heard + ANONYMOUS_IDLE).min(self.began + ANONYMOUS_LIFE);
        };
        match self.received >= PREFACE_BYTES {
            true => expires,
            false => expires.min(self.began + PREFACE_TIMEOUT),
        }
    }
}

/// One accepted connection.
pub struct Conn {
    tls: TlsStream<TcpStream>,
    info: ConnectInfo,
    /// Ready when the connection is ended from outside; wakes its reader and writer.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    patience: Patience,
    /// Set to the end of the patience, or earlier.
    alarm: Pin<Box<Sleep>>,
    ended: bool,
    _entry: Entry,
}

impl Conn {
    /// An error once the connection is cut or its time is over. Asked by readers and writers: a
    /// client that does not read keeps the server from reading, too.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended && self.alarm.as_mut().poll(cx).is_ready() {
            let until = self.patience.until();
            self.ended = until <= Instant::now();
            self.alarm.as_mut().reset(until);
        }
        // The flag first: `cut` must not be polled again once it is ready.
        self.ended = self.ended || self.cut.as_mut().poll(cx).is_ready();
        if !self.ended {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut, or its time is over"))
    }
}

impl Connected for Conn {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        let count = buf.filled().len().saturating_sub(before);
        if count > 0 {
            self.patience.received = self.patience.received.saturating_add(count as u64);
            self.patience.heard = Instant::now();
        }
        read
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A3a: a connection without a certificate was kept for ever, and so was a member's that never
    /// began to speak HTTP/2.
    #[test]
    fn patience_follows_what_was_sent() {
        let began = Instant::now();
        let seconds = Duration::from_secs;
        let mut anonymous = Patience { began, expires: None, received: 0, heard: began };
        assert_eq!(anonymous.until(), began + seconds(10));
        for second in 1..60 {
            // A byte a second: a slow enrolment.
            anonymous.heard = began + seconds(second);
            assert_eq!(anonymous.until(), began + seconds((second + 10).min(30)));
        }
        let expires = began + seconds(3600);
        let mut member = Patience { expires: Some(expires), ..anonymous };
        assert_eq!(member.until(), began + seconds(10));
        member.received = PREFACE_BYTES;
        assert_eq!(member.until(), expires);
    }
}
