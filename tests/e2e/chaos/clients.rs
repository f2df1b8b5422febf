//! Who asks all the time, each in another way.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::generator::client::Target;
use super::generator::report::Report;
use super::generator::{Mode, Options, run};
use super::host::Host;

/// Without a retry of their own: what a client would have to hide counts.
const KINDS: [(&str, Mode, u32); 4] = [
    ("new connections", Mode::New, 60),
    ("kept connections", Mode::KeepAlive, 60),
    ("HTTP/2", Mode::Http2, 30),
    ("WebSocket", Mode::WebSocket, 30),
];

/// What one kind found, and when it began.
pub struct Told {
    pub name: &'static str,
    pub begun: Instant,
    pub report: Report,
}

pub struct Clients {
    stop: std::path::PathBuf,
    threads: Vec<JoinHandle<Told>>,
}

impl Clients {
    pub fn begin(host: &Host) -> Self {
        let stop = host.lab.path("stop");
        let threads = KINDS.map(|(name, mode, rate)| {
            let options = Options {
                target: Target::parse(&format!("http://127.0.0.1:{}/", host.port)).unwrap(),
                rate,
                workers: 4,
                mode,
                duration: Duration::from_secs(24 * 3600),
                until_file: Some(stop.clone()),
                retry_stale: false,
                max_age: None,
                timeout: Duration::from_secs(5),
            };
            std::thread::spawn(move || {
                let begun = Instant::now();
                Told { name, begun, report: run(&options) }
            })
        });
        Self { stop, threads: threads.into() }
    }

    pub fn end(self) -> Vec<Told> {
        std::fs::write(&self.stop, "").unwrap();
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}
