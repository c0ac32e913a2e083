//! Plain words for what breaks a connection. Libraries' own words stay out of messages and logs:
//! their type names and links say nothing to the person who has to mend it.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{CertificateError, OtherError};
use tributary_shared::timestamp::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A broken connection's reason, in plain words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Broken {
    refused: bool,
    words: String,
}

impl Broken {
    /// The reason under `error`, whatever it is wrapped in.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Self { refused: false, words: of_tls(error) };
            }
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Self::of_io(error);
            }
            next = error.source();
        }
        Self { refused: false, words: BROKE_OFF.to_owned() }
    }

    /// As [`Self::of`], for an error of the system or one that is wrapped in such.
    pub(super) fn of_io(error: &io::Error) -> Self {
        // What a custom error wraps is not among its sources.
        if let Some(inner) = error.get_ref() {
            let inner: &(dyn Error + 'static) = inner;
            if inner.is::<rustls::Error>() || inner.is::<io::Error>() || inner.source().is_some() {
                return Self::of(inner);
            }
        }
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        Self { refused, words: of_system(error) }
    }

    /// True when the other machine answered that nothing listens there.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }
}

const BROKE_OFF: &str = "the connection broke off";

fn of_system(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("failed to lookup address") {
        return "its name is not known to this machine's DNS".to_owned();
    }
    let closed = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::NotConnected,
    ];
    if closed.contains(&error.kind()) {
        return "the connection was closed at the other end".to_owned();
    }
    if error.raw_os_error().is_none() {
        return BROKE_OFF.to_owned();
    }
    // The system's words without Rust's number behind them.
    let words = text.split(" (os error").next().unwrap_or(&text);
    words.chars().next().map_or(String::new(), |c| c.to_lowercase().collect::<String>())
        + words.get(1..).unwrap_or_default()
}

/// Message for a failed handshake; an error of our verifier keeps its own words.
pub(super) fn of_tls(error: &rustls::Error) -> String {
    if let Some(untimely) = Untimely::of_judgement(error) {
        return format!("the certificate {untimely}");
    }
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error {
        return inner.to_string();
    }
    if let rustls::Error::PeerIncompatible(_) = error {
        return format!("not TLS 1.3 as we speak it: {error}");
    }
    if let rustls::Error::InvalidMessage(_) = error {
        return "what answers does not speak TLS".to_owned();
    }
    error.to_string()
}

/// Reason a certificate is not good at this time, by this machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untimely {
    /// Its time is over.
    Expired {
        /// Its last moment.
        until: Timestamp,
        /// This machine's clock.
        now: Timestamp,
    },
    /// Its time has not begun.
    NotYet {
        /// Its first moment.
        from: Timestamp,
        /// This machine's clock.
        now: Timestamp,
    },
    /// Good by this machine's clock, and not by the other side's.
    ByTheirClock {
        /// Its first moment.
        from: Timestamp,
        /// Its last moment.
        until: Timestamp,
        /// This machine's clock.
        now: Timestamp,
    },
}

impl Untimely {
    /// Fault of time that our own verifier found; `None` when the error is about something else.
    pub(super) fn of_judgement(error: &rustls::Error) -> Option<Self> {
        let rustls::Error::InvalidCertificate(error) = error else { return None };
        let at = |time: &UnixTime| seconds(time.as_secs());
        if let CertificateError::ExpiredContext { time, not_after } = error {
            return Some(Self::Expired { until: at(not_after), now: at(time) });
        }
        if let CertificateError::NotValidYetContext { time, not_before } = error {
            return Some(Self::NotYet { from: at(not_before), now: at(time) });
        }
        None
    }

    /// Reason the other side found the certificate `der` out of its time, as far as this machine's
    /// clock tells.
    pub(super) fn of_refused(der: &[u8], now: Timestamp) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        let (from, until) =
            (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
        Some(match () {
            () if now > until => Self::Expired { until, now },
            () if now < from => Self::NotYet { from, now },
            () => Self::ByTheirClock { from, until, now },
        })
    }
}

/// This machine's clock.
pub(super) fn now() -> Timestamp {
    seconds(UnixTime::now().as_secs())
}

fn seconds(seconds: u64) -> Timestamp {
    Timestamp::from_millis(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000))
}

impl fmt::Display for Untimely {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { until, now } => {
                write!(f, "expired at {until}, and this machine's clock says {now}")
            }
            Self::NotYet { from, now } => {
                write!(
                    f,
                    "is not valid yet: it begins at {from}, and this machine's clock says {now}"
                )
            }
            Self::ByTheirClock { from, until, now } => write!(
                f,
                "is good from {from} to {until}, and this machine's clock says {now}: the two clocks differ"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_connection_has_plain_words() {
        let of = |error: io::Error| Broken::of_io(&error).to_string();
        assert_eq!(of(io::Error::from_raw_os_error(111)), "connection refused");
        assert_eq!(of(io::Error::from_raw_os_error(113)), "no route to host");
        // rustls puts a link to its manual into this one.
        let link = "peer closed connection without sending TLS close_notify: https://docs.rs/";
        let closed = io::Error::new(io::ErrorKind::UnexpectedEof, link);
        assert_eq!(of(closed), "the connection was closed at the other end");
        let wrapped = io::Error::other(io::Error::from_raw_os_error(104));
        assert_eq!(of(wrapped), "the connection was closed at the other end");
        assert_eq!(of(io::Error::other("h2 protocol error")), BROKE_OFF);
        let message = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert_eq!(of(io::Error::other(message)), "what answers does not speak TLS");
        let dns = "failed to lookup address information: Name or service not known";
        assert!(of(io::Error::other(dns)).contains("DNS"));
    }

    #[test]
    fn a_certificate_out_of_its_time_says_both_times() {
        let at = UnixTime::since_unix_epoch;
        let second = std::time::Duration::from_secs;
        let expired = CertificateError::ExpiredContext {
            time: at(second(1_000_000_000)),
            not_after: at(second(900_000_000)),
        };
        let words = of_tls(&rustls::Error::InvalidCertificate(expired));
        assert_eq!(
            words,
            "the certificate expired at 1998-07-09T16:00:00Z, and this machine's clock says 2001-09-09T01:46:40Z"
        );
        assert_eq!(Untimely::of_judgement(&rustls::Error::DecryptError), None);
    }
}
