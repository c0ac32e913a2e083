//! Counts what travels: a TCP relay on loopback between the sites and the coordinator.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A relay that counts the bytes of both directions: TLS records and handshakes, without TCP and
/// IP headers. It lives until the process ends.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Relay {
    /// Listens on a free port of loopback and relays every connection to `target`.
    pub fn open(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for incoming in listener.incoming().flatten() {
                // A connection that cannot be relayed is closed; the site tries again.
                let _ = relay(incoming, target, &counter);
            }
        });
        Ok(Self { address, bytes })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes relayed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn relay(incoming: TcpStream, target: SocketAddr, bytes: &Arc<AtomicU64>) -> io::Result<()> {
    let outgoing = TcpStream::connect(target)?;
    incoming.set_nodelay(true)?;
    outgoing.set_nodelay(true)?;
    pump(incoming.try_clone()?, outgoing.try_clone()?, Arc::clone(bytes));
    pump(outgoing, incoming, Arc::clone(bytes));
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, bytes: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            bytes.fetch_add(read as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // Fails when the other direction has ended it already.
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_relayed_and_counted() {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::open(echo.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"12345").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, _) = echo.accept().unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).unwrap();
        server.write_all(b"123").unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!((heard.len(), answer.len(), relay.bytes()), (5, 3, 8));
    }
}
