//! The least that a round's bytes cost on this machine: moving them over loopback, enciphering
//! them and summing them, one after the other and nothing else.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::command::Failed;

/// Bytes written to a socket at once.
const WRITE_BYTES: usize = 256 * 1024;
/// Plain bytes of a full TLS record.
const RECORD_BYTES: usize = 16 * 1024;
/// The median of so many measurements counts.
const REPEATS: usize = 3;

/// What a round's bytes cost at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// 2NP bytes through one loopback TCP connection.
    pub(super) tcp: Duration,
    /// AES-256-GCM over 2NP bytes in TLS-sized records, on one core.
    pub(super) cipher: Duration,
    /// NP bytes of f32 times a weight added into one sum, on one core.
    pub(super) sum: Duration,
}

impl Floor {
    /// Measures a round of `sites` deltas of `payload` bytes.
    pub(super) fn measure(sites: usize, payload: u64) -> Result<Self, Failed> {
        let moved = 2 * sites as u64 * payload;
        let failed = |e: io::Error| Failed::io("measuring loopback TCP", &e);
        let tcp: Result<Vec<_>, _> = (0..REPEATS).map(|_| transfer(moved)).collect();
        let cipher: Result<Vec<_>, _> = (0..REPEATS).map(|_| encipher(moved)).collect();
        Ok(Self {
            tcp: median(tcp.map_err(failed)?),
            cipher: median(cipher?),
            sum: median((0..REPEATS).map(|_| add_up(sites, payload)).collect()),
        })
    }

    /// All of it, one after the other.
    pub(super) fn total(&self) -> Duration {
        self.tcp + self.cipher + self.sum
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn transfer(bytes: u64) -> io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let began = Instant::now();
    let sending = std::thread::spawn(move || {
        let block = vec![7; WRITE_BYTES];
        let mut left = bytes;
        while left > 0 {
            let take = left.min(block.len() as u64) as usize;
            sender.write_all(&block[..take])?;
            left -= take as u64;
        }
        Ok::<_, io::Error>(())
    });
    let mut block = vec![0; WRITE_BYTES];
    while receiver.read(&mut block)? > 0 {}
    let took = began.elapsed();
    sending.join().unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")))?;
    Ok(took)
}

fn encipher(bytes: u64) -> Result<Duration, Failed> {
    let failed = |_| Failed::new("measuring AES-256-GCM", None, "ring refused the key or a block");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?);
    let mut record = vec![7; RECORD_BYTES];
    let began = Instant::now();
    for number in 0..bytes.div_ceil(RECORD_BYTES as u64) {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut record);
        let _ = std::hint::black_box(tag.map_err(failed)?);
    }
    Ok(began.elapsed())
}

fn add_up(sites: usize, payload: u64) -> Duration {
    let delta = vec![0.5f32; (payload / 4) as usize];
    let mut sum = vec![0f32; delta.len()];
    let began = Instant::now();
    for site in 0..sites {
        let weight = 1.0 / (site + 1) as f32;
        for (sum, value) in sum.iter_mut().zip(&delta) {
            *sum += weight * value;
        }
    }
    let took = began.elapsed();
    // Or the loop above computes nothing that anybody sees.
    std::hint::black_box(&sum);
    took
}
