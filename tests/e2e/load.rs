//! A client that opens a new connection for each request, and counts what goes wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One GET; the body.
pub fn get(port: u16, path: &str) -> std::io::Result<String> {
    get_at(SocketAddr::from(([127, 0, 0, 1], port)), path)
}

/// One GET at an address; the body of a 200, else an error.
pub fn get_at(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("answer: {answer:?}"))),
    }
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: usize,
    pub failures: Vec<String>,
    pub slowest: Duration,
}

/// A load under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to ask for `/`, so many times a second, from two threads.
    pub fn begin(port: u16, rate: u32) -> Self {
        Self::of(port, "/", rate, 2)
    }

    /// The same for another path, whose answers may take their time, from so many threads.
    pub fn of(port: u16, path: &'static str, rate: u32, threads: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let threads = (0..threads).map(|_| {
            let (stop, tally) = (stop.clone(), tally.clone());
            let pause = Duration::from_secs(threads.into()) / rate;
            std::thread::spawn(move || {
                let mut due = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let result = get(port, path);
                    let mut tally = tally.lock().unwrap();
                    tally.requests += 1;
                    tally.slowest = tally.slowest.max(asked.elapsed());
                    match result {
                        Ok(body) if body.starts_with("version ") => {}
                        Ok(body) => tally.failures.push(format!("body {body:?}")),
                        Err(error) => tally.failures.push(error.to_string()),
                    }
                    drop(tally);
                    due += pause;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, tally, threads }
    }

    /// Ends it. Something was killed meanwhile: what it had taken on ended with it, one request of each of two threads. None
    /// was refused, and none got no answer at all.
    #[track_caller]
    pub fn end_without_refusal(self) -> Tally {
        let tally = self.end();
        let words = ["reset by peer", "Broken pipe", "answer: \"\"", "body \"\""];
        let cut = |failure: &&String| words.iter().any(|word| failure.contains(word));
        let others: Vec<_> = tally.failures.iter().filter(|failure| !cut(failure)).collect();
        assert!(others.is_empty() && tally.failures.len() <= 2, "{:?} of {}", tally.failures, tally.requests);
        tally
    }

    /// Ends it.
    pub fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.tally.lock().unwrap())
    }

    /// Ends it, and fails the test if a single request failed.
    #[track_caller]
    pub fn end_without_failure(self) -> usize {
        let tally = self.end();
        assert!(
            tally.failures.is_empty(),
            "{} of {} failed: {:?}",
            tally.failures.len(),
            tally.requests,
            tally.failures
        );
        assert!(tally.requests > 0);
        tally.requests
    }
}
