//! A proxy in front of a registry that counts, and does damage to order. One request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::certificates::Certificates;
use super::server::Server;

/// What a client asked for, and how many bytes of content it got.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    pub body: String,
    pub sent: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// For another path.
    pub fn to(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    /// Everything that was sent.
    pub fn all(&self) -> String {
        format!("{self:?}")
    }
}

#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    pub cut: Option<usize>,
    /// Whether the connection then stays open instead, until the client goes.
    pub hold: bool,
    /// Whether the body comes in chunks, and its length is not said.
    pub chunked: bool,
    /// The pause after each hundred bytes.
    pub slow: Option<Duration>,
}

impl Answer {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Who it is has to be said first.
    pub fn challenge(challenge: &str) -> Self {
        Self::new(401, b"{}").header("WWW-Authenticate", challenge)
    }
}

type Rule = dyn Fn(&Request, &Upstream) -> Answer + Send + Sync;

/// The registry behind.
pub struct Upstream(u16);

impl Upstream {
    pub fn get(&self, request: &Request) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0)).unwrap();
        // 1.0: an answer without chunks, and an end to it.
        let mut text = format!("GET {} HTTP/1.0\r\n", request.path);
        for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let (first, headers) = head(&mut reader).unwrap();
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = Vec::new();
        reader.read_to_end(&mut body).unwrap();
        let dropped = ["content-length", "connection", "transfer-encoding"];
        let headers = headers.into_iter().filter(|(name, _)| !dropped.contains(&name.as_str())).collect();
        Answer { status, headers, body, ..Answer::default() }
    }
}

pub struct Proxy {
    pub port: u16,
    log: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Answers every request as `rule` says.
    pub fn new(
        server: &Server,
        rule: impl Fn(&Request, &Upstream) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(server, None, rule)
    }

    /// The same, by https.
    pub fn secure(
        server: &Server,
        certificates: &Certificates,
        rule: impl Fn(&Request, &Upstream) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start(server, Some(certificates.server()), rule)
    }

    fn start(
        server: &Server,
        tls: Option<Arc<rustls::ServerConfig>>,
        rule: impl Fn(&Request, &Upstream) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let rule: Arc<Rule> = Arc::new(rule);
        let upstream = server.port;
        let (its_log, its_end) = (log.clone(), ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if its_end.load(Ordering::Relaxed) {
                    break;
                }
                let (rule, log, tls) = (rule.clone(), its_log.clone(), tls.clone());
                // A client that goes away is no trouble of ours.
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let ending = stream.try_clone().ok()?;
                    match tls {
                        None => serve(stream, &*rule, upstream, &log),
                        Some(tls) => {
                            let connection = rustls::ServerConnection::new(tls).ok()?;
                            let mut stream = rustls::StreamOwned::new(connection, stream);
                            let served = serve(&mut stream, &*rule, upstream, &log);
                            stream.conn.send_close_notify();
                            let _ = stream.flush();
                            served
                        }
                    };
                    ending.shutdown(Shutdown::Both).ok()
                });
            }
        });
        Self { port, log, ended }
    }

    /// Passes everything on, and counts.
    pub fn counting(server: &Server) -> Self {
        Self::new(server, |request, upstream| upstream.get(request))
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// How many requests there were for paths with this in them.
    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.path.contains(part)).count()
    }

    /// Bytes of blobs that were sent.
    pub fn blob_bytes(&self) -> usize {
        self.requests().iter().filter(|request| request.is_blob()).map(|request| request.sent).sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener, so that it sees it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: impl Read + Write, rule: &Rule, upstream: u16, log: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (first, headers) = head(&mut reader)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = Request { method, path, headers, body: String::new(), sent: 0 };
    let length: u64 = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    (&mut reader).take(length).read_to_string(&mut request.body).ok()?;
    let answer = rule(&request, &Upstream(upstream));
    let sent = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    request.sent = sent;
    log.lock().unwrap().push(request);
    let mut text = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", answer.status);
    match answer.chunked {
        true => text.push_str("Transfer-Encoding: chunked\r\n"),
        false => text.push_str(&format!("Content-Length: {}\r\n", answer.body.len())),
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let stream = reader.get_mut();
    stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    let part = if answer.slow.is_some() { 100 } else { 60_000 };
    for part in answer.body[..sent].chunks(part) {
        if answer.chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).ok()?;
        }
        stream.write_all(part).ok()?;
        if answer.chunked {
            stream.write_all(b"\r\n").ok()?;
        }
        if let Some(pause) = answer.slow {
            stream.flush().ok()?;
            std::thread::sleep(pause);
        }
    }
    if answer.chunked && sent == answer.body.len() {
        stream.write_all(b"0\r\n\r\n").ok()?;
    }
    stream.flush().ok()?;
    if answer.hold {
        // Until the client goes.
        let _ = reader.read_to_end(&mut Vec::new());
    }
    Some(())
}

/// First line and headers, their names in lower case.
pub fn head(reader: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    (!first.is_empty()).then_some((first, headers))
}
