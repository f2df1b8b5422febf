//! A proxy in front of a registry that counts, and does damage to order. One request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::server::Server;

/// What a client asked for, and how many bytes of content it got.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
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
}

impl Answer {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
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
                let (rule, log) = (rule.clone(), its_log.clone());
                // A client that goes away is no trouble of ours.
                std::thread::spawn(move || serve(stream.unwrap(), &*rule, upstream, &log));
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

fn serve(stream: TcpStream, rule: &Rule, upstream: u16, log: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (first, headers) = head(&mut reader)?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, headers, sent: 0 };
    let answer = rule(&request, &Upstream(upstream));
    let sent = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    request.sent = sent;
    log.lock().unwrap().push(request);
    let mut text = format!(
        "HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = stream;
    stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    stream.write_all(&answer.body[..sent]).ok()?;
    if answer.hold {
        // Until the client goes.
        let _ = reader.read_to_end(&mut Vec::new());
    }
    stream.shutdown(Shutdown::Both).ok()
}

/// First line and headers, their names in lower case.
fn head(reader: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
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
