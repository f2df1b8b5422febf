//! A small HTTP/1.1 client that tells every way in which a request can fail. It owns the wire, not the schedule.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// An answer larger than this is a failure: a page of the demo has a dozen bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// `http://host[:port]/path`.
#[derive(Debug, Clone)]
pub struct Target {
    place: Place,
    host: String,
    path: String,
}

/// Where it is.
#[derive(Debug, Clone)]
enum Place {
    Address(SocketAddr),
    /// Host and port: looked up for each connection, as who is called so may have moved.
    Name(String),
}

impl Place {
    fn find(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(name) => name.to_socket_addrs().ok()?.next(),
        }
    }
}

impl Target {
    /// Reads a URL; only plain http, and only of a host that is known now.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: not an http:// URL"))?;
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) => (host, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let place = with_port.parse().map_or(Place::Name(with_port), Place::Address);
        place.find().ok_or_else(|| format!("{url}: no address of this host"))?;
        Ok(Self { place, host: host.to_owned(), path })
    }
}

impl Target {
    /// Where it is now.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        self.place.find().ok_or(Failure::Unknown)
    }

    /// Host and port as the URL has them.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// From the first slash on.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Why a request has no good answer. The names are those of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody knows the name.
    Unknown,
    /// Nobody listens.
    ConnectRefused,
    /// No answer to the connection attempt in time.
    ConnectTimeout,
    /// The connection attempt failed in another way.
    ConnectOther,
    /// The peer reset the connection.
    Reset,
    /// The peer closed the connection before the answer was whole.
    Closed,
    /// The answer did not come in time.
    Timeout,
    /// The answer is not 200.
    Status(u16),
    /// The answer is not HTTP, or not of a kind that this client reads.
    Malformed,
    /// The peer said that it is going away, before it looked at this.
    GoingAway,
    /// Any other error of the socket.
    Other,
}

impl Failure {
    /// Its name in the report.
    pub fn name(self) -> String {
        match self {
            Self::Unknown => "unknown-name".to_owned(),
            Self::ConnectRefused => "connect-refused".to_owned(),
            Self::ConnectTimeout => "connect-timeout".to_owned(),
            Self::ConnectOther => "connect-other".to_owned(),
            Self::Reset => "reset".to_owned(),
            Self::Closed => "closed".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Status(code) => format!("status-{code}"),
            Self::Malformed => "malformed".to_owned(),
            Self::GoingAway => "going-away".to_owned(),
            Self::Other => "other".to_owned(),
        }
    }

    fn connect(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::ConnectRefused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::ConnectTimeout,
            _ => Self::ConnectOther,
        }
    }

    /// Of an error of an open connection.
    pub fn transfer(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            _ => Self::Other,
        }
    }
}

/// A good answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// What follows `version ` in the body, up to white space; empty when there is none.
    pub version: String,
    /// Whether the server wants the connection closed.
    pub close: bool,
}

/// One connection, which may carry several requests one after the other.
pub struct Connection {
    stream: TcpStream,
    used: bool,
}

/// How a request on a connection went wrong.
pub struct Broken {
    /// Why.
    pub failure: Failure,
    /// The connection had served before and not one byte of this answer came: a request that is safe to repeat may
    /// be sent once more on a new connection (RFC 9112, section 9.3.1).
    pub stale: bool,
}

impl Connection {
    /// Opens one.
    pub fn open(target: &Target, timeout: Duration) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&target.address()?, timeout)
            .map_err(|error| Failure::connect(&error))?;
        let set = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(timeout)))
            .and_then(|()| stream.set_write_timeout(Some(timeout)));
        set.map_err(|_| Failure::Other)?;
        Ok(Self { stream, used: false })
    }

    /// Whether the server has already closed its side: a good client looks before it uses a connection again.
    pub fn is_closed(&self) -> bool {
        let mut byte = [0];
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let looked = self.stream.peek(&mut byte);
        if self.stream.set_nonblocking(false).is_err() {
            return true;
        }
        // Bytes without a request are as bad as an end.
        !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends one GET and reads the whole answer.
    pub fn get(&mut self, target: &Target, keep: bool) -> Result<Answer, Broken> {
        let reused = std::mem::replace(&mut self.used, true);
        let connection = if keep { "keep-alive" } else { "close" };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: load\r\nConnection: {connection}\r\n\r\n",
            target.path, target.host
        );
        if let Err(error) = self.stream.write_all(request.as_bytes()) {
            return Err(Broken { failure: Failure::transfer(&error), stale: reused });
        }
        let mut bytes = Vec::with_capacity(512);
        self.read_answer(&mut bytes).map_err(|failure| {
            let quiet_end = matches!(failure, Failure::Reset | Failure::Closed);
            Broken { failure, stale: reused && quiet_end && bytes.is_empty() }
        })
    }

    fn read_answer(&mut self, bytes: &mut Vec<u8>) -> Result<Answer, Failure> {
        let body_at = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.read_more(bytes)? == 0 {
                return Err(Failure::Closed);
            }
        };
        let head = Head::parse(bytes.get(..body_at).unwrap_or_default())?;
        let body_end = match head.length {
            Some(length) => {
                let end = body_at.saturating_add(length);
                while bytes.len() < end {
                    if self.read_more(bytes)? == 0 {
                        return Err(Failure::Closed);
                    }
                }
                end
            }
            // Without a length the body ends with the connection.
            None => {
                while self.read_more(bytes)? > 0 {}
                bytes.len()
            }
        };
        if head.status != 200 {
            return Err(Failure::Status(head.status));
        }
        let body = String::from_utf8_lossy(bytes.get(body_at..body_end).unwrap_or_default());
        Ok(Answer { version: version_in(&body), close: head.close || head.length.is_none() })
    }

    /// The bytes themselves.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Waits for more; how many came, 0 at the end.
    pub fn read_more(&mut self, bytes: &mut Vec<u8>) -> Result<usize, Failure> {
        if bytes.len() > MAX_ANSWER {
            return Err(Failure::Malformed);
        }
        let mut chunk = [0; 4096];
        let count = self.stream.read(&mut chunk).map_err(|error| Failure::transfer(&error))?;
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The lines of an answer before its body, as far as this client cares.
struct Head {
    status: u16,
    length: Option<usize>,
    close: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(bytes).map_err(|_| Failure::Malformed)?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let (protocol, rest) = first.split_once(' ').ok_or(Failure::Malformed)?;
        if !protocol.starts_with("HTTP/1.") {
            return Err(Failure::Malformed);
        }
        let status = rest.get(..3).and_then(|code| code.parse().ok()).ok_or(Failure::Malformed)?;
        let mut head = Self { status, length: None, close: protocol == "HTTP/1.0" };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = Some(value.parse().map_err(|_| Failure::Malformed)?);
            } else if name.eq_ignore_ascii_case("connection") {
                let has = |word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
                head.close = has("close") || (head.close && !has("keep-alive"));
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                // Chunked bodies are not read here: better an honest failure than a wrong count.
                return Err(Failure::Malformed);
            }
        }
        Ok(head)
    }
}

/// The word after `version ` in a body.
pub fn version_in(body: &str) -> String {
    let after = body.split_once("version ").map_or("", |(_, after)| after);
    after.split_whitespace().next().unwrap_or_default().to_owned()
}
