//! A web server with one file, whose manners are to order; plain or behind TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// From 1.
    pub number: usize,
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// First and last byte of a range.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes after which the connection ends.
    pub cut: Option<usize>,
    /// The pause after each hundred bytes.
    pub slow: Option<Duration>,
}

impl Answer {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self { status, body: body.to_vec(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A file as a good server gives it: ranges, an ETag, `If-Match`.
pub fn file(request: &Request, bytes: &[u8], tag: &str) -> Answer {
    if request.header("if-match").is_some_and(|wanted| wanted != tag) {
        return Answer::new(412, b"");
    }
    let answer = match request.range() {
        Some((first, _)) if first >= bytes.len() => {
            Answer::new(416, b"").header("Content-Range", format!("bytes */{}", bytes.len()))
        }
        Some((first, last)) => {
            let last = last.min(bytes.len() - 1);
            Answer::new(206, &bytes[first..=last])
                .header("Content-Range", format!("bytes {first}-{last}/{}", bytes.len()))
        }
        None => Answer::new(200, bytes),
    };
    answer.header("ETag", tag)
}

type Rule = dyn Fn(&Request) -> Answer + Send + Sync;

pub struct Server {
    pub port: u16,
    secure: bool,
    log: Arc<Mutex<Vec<Request>>>,
    sent: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Server {
    pub fn new(rule: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(rule))
    }

    pub fn secure(
        certificates: &Certificates,
        rule: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let chain = CertificateDer::pem_file_iter(&certificates.certificate).unwrap();
        let chain = chain.map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificates.key).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        Self::start(Some(Arc::new(config.with_single_cert(chain, key).unwrap())), Arc::new(rule))
    }

    fn start(tls: Option<Arc<rustls::ServerConfig>>, rule: Arc<Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            port,
            secure: tls.is_some(),
            log: Arc::default(),
            sent: Arc::default(),
            ended: Arc::default(),
        };
        let (log, sent, ended) = (server.log.clone(), server.sent.clone(), server.ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let (rule, log, sent, tls) = (rule.clone(), log.clone(), sent.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    // A client that goes away is no trouble of ours.
                    None => serve(stream, &*rule, &log, &sent).unwrap_or_default(),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let stream = rustls::StreamOwned::new(connection, stream);
                        serve(stream, &*rule, &log, &sent).unwrap_or_default();
                    }
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", if self.secure { "https" } else { "http" }, self.port)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Bytes of bodies that went out.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: impl Read + Write,
    rule: &Rule,
    log: &Mutex<Vec<Request>>,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request {
        number: 0,
        method: method.to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        body: String::new(),
    };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    {
        let mut log = log.lock().unwrap();
        request.number = log.len() + 1;
        log.push(request.clone());
    }
    let answer = rule(&request);
    let stream = stream.get_mut();
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{head}Content-Length: {}\r\n\r\n", answer.body.len())?;
    let part = if answer.slow.is_some() { 100 } else { 64 << 10 };
    for part in answer.body[..answer.cut.unwrap_or(answer.body.len())].chunks(part) {
        stream.write_all(part)?;
        sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        if let Some(pause) = answer.slow {
            stream.flush()?;
            std::thread::sleep(pause);
        }
    }
    stream.flush()
}

/// A certificate authority, and a certificate for 127.0.0.1 by it.
pub struct Certificates {
    pub ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

pub fn certificates(dir: &Path) -> Certificates {
    let openssl = |line: &str| {
        let output = Command::new("openssl").current_dir(dir).args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(dir.join("ext"), "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\n")
        .unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -subj /CN=lab -days 2 -keyout ca.key -out ca.pem"));
    openssl(&format!("req {key} -subj /CN=files -keyout its.key -out its.csr"));
    openssl(
        "x509 -req -in its.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile ext -days 2 -out its.pem",
    );
    Certificates { ca: dir.join("ca.pem"), certificate: dir.join("its.pem"), key: dir.join("its.key") }
}
