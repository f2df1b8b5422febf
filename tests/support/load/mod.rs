//! Load on a server, with a count of everything that went wrong: what the demo, the swap tests and the benchmarks
//! measure with. Standard library only, so that a test can take it in with `#[path]` or run it as a program.
//!
//! Requests follow a fixed schedule that does not wait for slow answers of other workers. Latency is the time from the
//! start of a request (of its connection, where it opens one) to the last byte of its answer; how late the generator
//! itself was is reported beside it.

pub mod client;
mod http2;
#[path = "../http2_frame.rs"]
mod http2_frame;
pub mod report;
mod udp;
mod websocket;
#[path = "../websocket_key.rs"]
pub mod websocket_key;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::{Answer, Broken, Connection, Failure, Target};
use report::Report;

/// Whether connections are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A new connection for each request.
    New,
    /// A few connections that are kept until the server wants them closed.
    KeepAlive,
    /// The same in HTTP/2, by prior knowledge.
    Http2,
    /// WebSockets that are kept, a message and its echo at a time.
    WebSocket,
    /// A few sockets that are kept, a datagram and its echo at a time.
    Udp,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where requests go.
    pub target: Target,
    /// Requests a second, of all workers together.
    pub rate: u32,
    /// How many workers, each with at most one connection at a time.
    pub workers: u32,
    /// Whether connections are used again.
    pub mode: Mode,
    /// How long at most.
    pub duration: Duration,
    /// Ends as soon as this file exists.
    pub until_file: Option<PathBuf>,
    /// Sends a request once more when a kept connection turned out to be dead before the first byte of an answer.
    pub retry_stale: bool,
    /// A kept connection that is older is not used again: what pools call a maximal life.
    pub max_age: Option<Duration>,
    /// How long a connection attempt, and each wait for bytes, may take.
    pub timeout: Duration,
}

/// Runs the load to its end.
pub fn run(options: &Options) -> Report {
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let mut total = Report::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.workers)
            .map(|index| {
                let stop = &stop;
                scope.spawn(move || Worker::new(options, index, start).run(stop))
            })
            .collect();
        if let Some(file) = &options.until_file {
            while !file.exists() && start.elapsed() < options.duration {
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
            // Workers find out at their next slots: that nobody asks any more is no gap.
            total.elapsed = start.elapsed();
        }
        for worker in workers {
            match worker.join() {
                Ok(report) => total.merge(report),
                // A bug of this program must not look like a good result.
                Err(_) => total.failure(Failure::Other),
            }
        }
    });
    if options.until_file.is_none() {
        total.elapsed = start.elapsed();
    }
    total
}

struct Worker<'a> {
    options: &'a Options,
    index: u32,
    start: Instant,
    kept: Option<Kept>,
    opened: Instant,
    report: Report,
}

impl<'a> Worker<'a> {
    fn new(options: &'a Options, index: u32, start: Instant) -> Self {
        Self { options, index, start, kept: None, opened: start, report: Report::default() }
    }

    fn run(mut self, stop: &AtomicBool) -> Report {
        let interval = 1.0 / f64::from(self.options.rate.max(1));
        let mut slot = u64::from(self.index);
        loop {
            // Slots of all workers interleave: worker i has slots i, i + workers, i + 2 * workers …
            #[expect(clippy::cast_precision_loss, reason = "a slot number stays far below 2^52")]
            let due = Duration::from_secs_f64(interval * slot as f64);
            if due >= self.options.duration {
                break;
            }
            let now = self.start.elapsed();
            if now < due {
                std::thread::sleep(due - now);
            } else {
                self.report.behind = self.report.behind.max(now - due);
            }
            // Checked after the sleep: a slow schedule must not send one more request after the stop.
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if self.start.elapsed() >= self.options.duration {
                break;
            }
            self.request();
            slot = slot.saturating_add(u64::from(self.options.workers.max(1)));
        }
        self.report
    }

    fn request(&mut self) {
        let began = Instant::now();
        match self.attempt() {
            Ok(answer) => self.report.success(self.start.elapsed(), began.elapsed(), answer.version),
            Err(failure) => {
                let span = (began.saturating_duration_since(self.start), self.start.elapsed());
                self.report.failure_at(failure, span);
            }
        }
    }

    fn attempt(&mut self) -> Result<Answer, Failure> {
        let young = self.options.max_age.is_none_or(|age| self.opened.elapsed() < age);
        let kept =
            self.kept.take().filter(|_| young).and_then(|mut kept| (!kept.is_closed()).then_some(kept));
        let connection = match kept {
            Some(connection) => connection,
            None => self.open()?,
        };
        match self.exchange(connection) {
            // Told by the server, a client needs no setting to ask again.
            Err(Broken { stale: true, failure })
                if self.options.retry_stale || failure == Failure::GoingAway =>
            {
                self.report.retries += 1;
                let fresh = self.open()?;
                self.exchange(fresh).map_err(|broken| broken.failure)
            }
            other => other.map_err(|broken| broken.failure),
        }
    }

    fn open(&mut self) -> Result<Kept, Failure> {
        self.report.connections += 1;
        self.opened = Instant::now();
        Kept::open(self.options)
    }

    fn exchange(&mut self, mut connection: Kept) -> Result<Answer, Broken> {
        let answer = connection.exchange(self.options)?;
        if self.options.mode != Mode::New && !answer.close {
            self.kept = Some(connection);
        }
        Ok(answer)
    }
}

/// What a worker asks through.
enum Kept {
    Http(Connection),
    Http2(http2::Http2),
    WebSocket(websocket::WebSocket),
    Udp(udp::Udp),
}

impl Kept {
    fn open(options: &Options) -> Result<Self, Failure> {
        let connect = || Connection::open(&options.target, options.timeout);
        Ok(match options.mode {
            Mode::New | Mode::KeepAlive => Self::Http(connect()?),
            Mode::Http2 => Self::Http2(http2::Http2::open(connect()?)?),
            Mode::WebSocket => Self::WebSocket(websocket::WebSocket::open(connect()?, &options.target)?),
            Mode::Udp => Self::Udp(udp::Udp::open(&options.target, options.timeout)?),
        })
    }

    /// Whether it cannot be used again: a good client looks before it does.
    fn is_closed(&mut self) -> bool {
        match self {
            Self::Http(connection) => connection.is_closed(),
            Self::Http2(connection) => connection.is_closed(),
            Self::WebSocket(socket) => socket.is_closed(),
            Self::Udp(_) => false,
        }
    }

    fn exchange(&mut self, options: &Options) -> Result<Answer, Broken> {
        match self {
            Self::Http(connection) => connection.get(&options.target, options.mode != Mode::New),
            Self::Http2(connection) => connection.get(&options.target),
            Self::WebSocket(socket) => socket.ask(),
            Self::Udp(socket) => socket.ask(),
        }
    }
}
