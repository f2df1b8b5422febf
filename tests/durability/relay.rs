//! A slow, counting line between a host and its registry: bytes, and nothing of what they mean.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::support::server::Server;

/// What may come over a connection between two looks at the clock.
const PART: usize = 16 << 10;

pub struct Relay {
    port: u16,
    sent: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    /// A line of so many bytes a second over all of its connections.
    pub fn new(server: &Server, rate: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (its_sent, its_end, upstream) = (sent.clone(), ended.clone(), server.port);
        let line = Arc::new(std::sync::Mutex::new(Instant::now()));
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if its_end.load(Ordering::Relaxed) {
                    break;
                }
                let (near, far) = (near.unwrap(), TcpStream::connect(("127.0.0.1", upstream)).unwrap());
                let (to, mut from) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                // Either side may go at any time: that ends both directions.
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut &to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let (sent, line) = (its_sent.clone(), line.clone());
                std::thread::spawn(move || {
                    let _ = pass(&far, &near, &sent, |bytes| {
                        let until = {
                            let mut next = line.lock().unwrap();
                            let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
                            *next = (*next).max(Instant::now()) + took;
                            *next
                        };
                        std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    });
                    let _ = near.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { port, sent, ended }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Bytes that went to the host's side, headers included.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener, so that it sees it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    sent: &AtomicU64,
    wait: impl Fn(usize),
) -> std::io::Result<()> {
    let mut buffer = vec![0; PART];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        wait(count);
        to.write_all(&buffer[..count])?;
        sent.fetch_add(count as u64, Ordering::Relaxed);
    }
}
