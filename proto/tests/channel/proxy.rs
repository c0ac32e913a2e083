//! Out of a hospital through its HTTP proxy.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tributary_proto::channel::{ConnectOptions, connect, connect_failure};
use tributary_proto::v1;
use tributary_shared::outcome::ExitCode;

use crate::fixture::{Authority, Server};

/// A proxy that gives one client `answer`, and a tunnel when `answer` says 200; returns what the
/// client asked.
async fn proxy(answer: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(client.read_u8().await.unwrap());
        }
        let asked = String::from_utf8(asked).unwrap();
        client.write_all(answer.as_bytes()).await.unwrap();
        if answer.contains(" 200 ") {
            let target = asked.split(' ').nth(1).unwrap();
            let mut server = TcpStream::connect(target).await.unwrap();
            // Ends with the test's client.
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
        asked
    });
    (address, task)
}

fn through(proxy: String) -> ConnectOptions {
    ConnectOptions { proxy: Some(proxy), ..ConnectOptions::default() }
}

#[tokio::test]
async fn a_tunnel_carries_the_same_mutual_tls() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let (address, task) =
        proxy("HTTP/1.1 200 Connection established\r\nVia: 1.1 gate\r\n\r\n").await;
    let options = through(format!("http://doctor:secret@{address}"));
    let channel = connect(&server.address, &authority.site("isar"), &options).await.unwrap();
    let mut client = v1::site_client::SiteClient::new(channel);
    let reply = client.hello(v1::HelloRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.member, "site/isar");
    drop(client);
    let asked = task.await.unwrap();
    assert!(asked.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", server.address)), "{asked}");
    // RFC 7617: base64 of doctor:secret.
    assert!(asked.contains("Proxy-Authorization: Basic ZG9jdG9yOnNlY3JldA==\r\n"), "{asked}");
}

#[tokio::test]
async fn a_proxy_that_opens_no_tunnel_is_named_with_its_answer() {
    let isar = Authority::new().site("isar");
    for (answer, words) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "`HTTP/1.1 403 Forbidden`"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "SSH-2.0"),
        ("HTTP/1.1 2", "closed the connection"),
    ] {
        let (address, task) = proxy(answer).await;
        let options = through(format!("http://doctor:secret@{address}"));
        let error = connect("coordinator.invalid:443", &isar, &options).await.unwrap_err();
        let failure = connect_failure(&error);
        assert_eq!((failure.code, failure.exit), ("proxy", ExitCode::Connection), "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert!(failure.message.contains(&address), "{failure}");
        assert!(!failure.to_string().contains("secret"), "{failure}");
        task.await.unwrap();
    }
}

/// An unreachable proxy used to be told as if the coordinator's port were closed.
#[tokio::test]
async fn a_proxy_that_is_not_there_is_named_and_not_the_coordinator() {
    let isar = Authority::new().site("isar");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Accepted by the kernel, answered by nobody.
    let hasty = ConnectOptions {
        connect_timeout: std::time::Duration::from_millis(20),
        ..through(format!("http://{address}"))
    };
    let error = connect("coordinator.invalid:443", &isar, &hasty).await.unwrap_err();
    let failure = connect_failure(&error);
    assert_eq!((failure.code, failure.exit), ("timeout", ExitCode::Timeout), "{failure}");
    assert!(failure.message.starts_with(&format!("the proxy {address} did not")), "{failure}");

    drop(listener);
    let options = through(format!("http://doctor:secret@{address}"));
    let error = connect("coordinator.invalid:443", &isar, &options).await.unwrap_err();
    let failure = connect_failure(&error);
    assert_eq!((failure.code, failure.exit), ("proxy_unreachable", ExitCode::Connection));
    let told = failure.to_string();
    assert!(told.starts_with(&format!("cannot reach the proxy {address}")), "{told}");
    assert!(told.contains("HTTPS_PROXY") && !told.contains("secret"), "{told}");
    assert!(!told.contains("nothing listens there: is the coordinator"), "{told}");
}

#[tokio::test]
async fn a_proxy_setting_that_cannot_work_is_an_error_of_configuration() {
    let isar = Authority::new().site("isar");
    for bad in ["https://gate:8080", "socks5://gate:1080", "", "http://"] {
        let error = connect("localhost:1", &isar, &through(bad.to_owned())).await.unwrap_err();
        let failure = connect_failure(&error);
        assert_eq!((failure.code, failure.exit), ("proxy_address", ExitCode::Invalid), "{bad}");
    }
}
