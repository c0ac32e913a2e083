//! The way out of a hospital: an HTTP proxy that opens a tunnel by CONNECT. TLS runs inside the
//! tunnel end to end; the proxy sees the coordinator's address and nothing else.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tributary_shared::text::printable_start;

use super::failure::ConnectError;

/// Longest answer to CONNECT.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// The proxy for `authority` (`host:port`): the configured one, else what HTTPS_PROXY and
/// NO_PROXY say, else none.
pub(super) fn choose(
    configured: Option<&str>,
    authority: &str,
) -> Result<Option<Intercept>, ConnectError> {
    let matcher = match configured {
        Some(proxy) => Matcher::builder().all(proxy).build(),
        // The demo, and a coordinator beside its operator: no proxy reaches this machine's loopback.
        None if is_loopback(authority) => return Ok(None),
        None => Matcher::from_env(),
    };
    let target: Uri = format!("https://{authority}")
        .parse()
        .map_err(|_| ConnectError::Address { address: authority.to_owned() })?;
    let Some(intercept) = matcher.intercept(&target) else {
        return match configured {
            Some(proxy) => Err(ConnectError::ProxyAddress { proxy: without_credentials(proxy) }),
            None => Ok(None),
        };
    };
    if intercept.uri().scheme_str() != Some("http") {
        return Err(ConnectError::ProxyAddress { proxy: display(&intercept) });
    }
    Ok(Some(intercept))
}

/// The written `proxy` without user and password.
fn without_credentials(proxy: &str) -> String {
    match proxy.rsplit_once('@') {
        Some((_, address)) => format!("...@{address}"),
        None => proxy.to_owned(),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `host:port` of the proxy, without credentials.
pub(super) fn display(proxy: &Intercept) -> String {
    let uri = proxy.uri();
    format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80))
}

/// Asks the proxy behind `socket` for a tunnel to `authority`.
pub(super) async fn tunnel(
    socket: &mut TcpStream,
    proxy: &Intercept,
    authority: &str,
) -> Result<(), ConnectError> {
    let failed = |detail: String| ConnectError::Proxy { proxy: display(proxy), detail };
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(credentials) = proxy.basic_auth() {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(credentials.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    socket.write_all(&request).await.map_err(|e| failed(e.to_string()))?;
    let mut answer = Vec::new();
    // One byte at a time: what follows the blank line belongs to TLS.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == ANSWER_BYTES_MAX {
            return Err(failed("its answer to CONNECT does not end".to_owned()));
        }
        match socket.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => return Err(failed("it closed the connection".to_owned())),
        }
    }
    let head = String::from_utf8_lossy(&answer);
    let status = head.lines().next().unwrap_or_default();
    let mut words = status.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let code = words.next().unwrap_or_default();
    if is_http && code.len() == 3 && code.starts_with('2') {
        return Ok(());
    }
    let line = printable_start(status, 120);
    Err(failed(format!("it answered CONNECT with `{line}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A13d. Failed before: a proxy that did not parse was printed with its password.
    #[test]
    fn a_refused_proxy_is_named_without_its_password() {
        for proxy in ["ht tp://doctor:secret@gate:8080", "socks5://doctor:p@ss@gate:1080"] {
            let refused = choose(Some(proxy), "coordinator.example.org:8443").err().unwrap();
            let told = format!("{refused}");
            assert!(told.contains("gate") && !told.contains("doctor"), "{told}");
            assert!(!told.contains("secret") && !told.contains("ss@"), "{told}");
        }
    }
}
