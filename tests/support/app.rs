//! `app`: a server to swap, with the manners that programs have when they are told to end. One static program without
//! dependencies, so that it is an image by itself; the chaos test and `scripts/bench-swap` compile it with rustc.
//!
//! On one port: HTTP/1.1, HTTP/2 without TLS for who begins with it (RFC 9113, section 3.3), WebSocket echo for who asks for
//! an upgrade; beside it UDP echo. Every answer names the version.

#[path = "app/ending.rs"]
mod ending;
#[path = "app/http1.rs"]
mod http1;
#[path = "app/http2.rs"]
mod http2;
mod http2_frame;
#[path = "app/websocket.rs"]
mod websocket;
mod websocket_key;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ending::{Ending, Manner};

const USAGE: &str = "\
usage: app [--manner polite|go|dies|ignores] [options]

  --port N            TCP and UDP port (default 8080)
  --version WORD      what answers name (default: the file /version, else \"none\")
  --delay-ms N        each answer takes so long
  --start-ms N        it listens only after so long
  --silence-ms N      polite: a kept connection without a request for so long after SIGTERM is closed (default 1000)
";

/// From one look at the state of the program to the next, for whoever waits for bytes.
pub const LOOK: Duration = Duration::from_millis(40);
/// A polite program lets nobody begin any more once it was quiet for so long.
const QUIET: Duration = Duration::from_millis(200);

/// What every connection needs.
pub struct App {
    manner: Manner,
    version: String,
    delay: Duration,
    silence: Duration,
    /// Connections that are open.
    open: AtomicUsize,
    /// When the last connection began or ended, in milliseconds after the start.
    stirred: AtomicU64,
    begun: Instant,
}

impl App {
    fn stir(&self) {
        self.stirred.store(millis(self.begun.elapsed()), Ordering::Relaxed);
    }

    /// The body of an answer, after the time that it takes.
    pub fn answer(&self) -> String {
        std::thread::sleep(self.delay);
        format!("version {}\n", self.version)
    }

    /// What a connection is to do now.
    pub fn ending(&self) -> Ending {
        Ending::now(self.manner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn main() -> io::Result<()> {
    let mut app = App {
        manner: Manner::Polite,
        version: std::fs::read_to_string("/version")
            .map_or_else(|_| "none".to_owned(), |v| v.trim().to_owned()),
        delay: Duration::ZERO,
        silence: Duration::from_secs(1),
        open: AtomicUsize::new(0),
        stirred: AtomicU64::new(0),
        begun: Instant::now(),
    };
    let (port, start) = parse(&mut app).map_err(|message| io::Error::other(format!("{message}\n{USAGE}")))?;
    // Before it listens: from here on SIGTERM finds somebody.
    ending::watch(app.manner)?;
    std::thread::sleep(start);
    let app = Arc::new(app);
    let listener = either(port, TcpListener::bind)?;
    let echo = either(port, UdpSocket::bind)?;
    let answers = app.clone();
    std::thread::spawn(move || echo_datagrams(&answers, &echo));
    serve(&app, listener)
}

fn parse(app: &mut App) -> Result<(u16, Duration), String> {
    let (mut port, mut start) = (8080, Duration::ZERO);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} {value}: not a number"));
        match word.as_str() {
            "--manner" => app.manner = value.parse()?,
            "--port" => port = u16::try_from(number()?).map_err(|_| format!("{value}: not a port"))?,
            "--version" => app.version = value,
            "--delay-ms" => app.delay = Duration::from_millis(number()?),
            "--start-ms" => start = Duration::from_millis(number()?),
            "--silence-ms" => app.silence = Duration::from_millis(number()?),
            other => return Err(format!("{other}: no such option")),
        }
    }
    Ok((port, start))
}

/// IPv6 and IPv4 in one socket where the network has both.
fn either<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Takes connections until the program has ended in its own manner.
fn serve(app: &Arc<App>, listener: TcpListener) -> io::Result<()> {
    let address = listener.local_addr()?;
    let takes = app.clone();
    std::thread::spawn(move || take(&takes, &listener));
    let mut woken = false;
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let open = app.open.load(Ordering::Acquire);
        match app.ending() {
            Ending::NotYet => {}
            Ending::Polite(_) => {
                let stirred = Duration::from_millis(app.stirred.load(Ordering::Relaxed));
                if open == 0 && app.begun.elapsed().saturating_sub(stirred) >= QUIET {
                    return Ok(());
                }
            }
            Ending::Shutdown(_) => {
                if !std::mem::replace(&mut woken, true) {
                    // Nobody but a client can wake it.
                    let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port()));
                } else if open == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// As net/http's Shutdown has it: the listener goes first, then what is under way is waited for.
fn take(app: &Arc<App>, listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok(_) if matches!(app.ending(), Ending::Shutdown(_)) => return,
            Ok((stream, _)) => begin(app, stream),
            // A client that went away meanwhile; no descriptor free: both pass.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn begin(app: &Arc<App>, stream: TcpStream) {
    app.open.fetch_add(1, Ordering::AcqRel);
    app.stir();
    let app = app.clone();
    std::thread::spawn(move || {
        let mut counted = Some(Counted(&app));
        // How a connection ended is the client's to tell.
        let _ = talk(&app, stream, &mut counted);
    });
}

/// A connection that is waited for at the end.
struct Counted<'a>(&'a App);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.stir();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves one connection to its end.
fn talk<'a>(app: &'a App, stream: TcpStream, counted: &mut Option<Counted<'a>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    match http1::serve(app, stream)? {
        http1::After::Closed => Ok(()),
        http1::After::Http2(stream, read) => http2::serve(app, stream, read),
        http1::After::WebSocket(stream) => {
            // net/http does not wait for what was taken over from it.
            if app.manner == Manner::Go {
                *counted = None;
            }
            websocket::serve(app, stream)
        }
    }
}

fn echo_datagrams(app: &App, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("version {} ", app.version).into_bytes();
            answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
            // Nobody there any more: as with any datagram.
            let _ = socket.send_to(&answer, from);
        }
    }
}
