//! Real git servers for tests, each on a free loopback port and gone with its value: `git http-backend` behind a
//! few lines of HTTP (plain or TLS), and sshd. Also a scrubbed `git`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A directory of one test, readable by all.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-git-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `git` in a directory below the lab, with an environment of its own. Returns what it wrote.
    pub fn git(&self, at: &str, args: &[&str]) -> String {
        let output = self.command(at, args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The same, with bytes for its standard input.
    pub fn git_stdin(&self, at: &str, args: &[&str], input: &[u8]) -> String {
        let mut child = self.command(at, args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "git {args:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn command(&self, at: &str, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(self.path(at));
        scrub(&mut command, self.dir.path());
        command
    }

    /// A bare repository `config.git` and a clone `work` with a first commit on `main`.
    pub fn with_repo(self) -> Self {
        self.git("", &["init", "-q", "--bare", "-b", "main", "config.git"]);
        self.git("", &["clone", "-q", "config.git", "work"]);
        self.git("work", &["checkout", "-q", "-b", "main"]);
        fs::create_dir_all(self.path("work/services")).unwrap();
        fs::write(self.path("work/gitopsd.toml"), "format = 1\n").unwrap();
        fs::write(self.path("work/README.md"), "not read\n").unwrap();
        self.commit("services/shop.toml", "image = \"r.io/shop:1.0\"\n", "shop 1.0");
        self
    }

    /// Writes a file, commits everything, pushes; returns the commit.
    pub fn commit(&self, file: &str, text: &str, subject: &str) -> String {
        let path = self.path("work").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.git("work", &["add", "-A"]);
        self.git("work", &["commit", "-q", "-m", subject]);
        self.git("work", &["push", "-q", "--force", "origin", "HEAD:main"]);
        self.git("work", &["rev-parse", "HEAD"])
    }
}

/// Takes the caller's environment and configuration away from a git.
pub fn scrub(command: &mut Command, home: &Path) {
    command.env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home).env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("GIT_CONFIG_COUNT", "2");
    command.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    command.env("GIT_CONFIG_KEY_1", "advice.detachedHead").env("GIT_CONFIG_VALUE_1", "false");
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), "Ann Admin")
            .env(format!("GIT_{who}_EMAIL"), "ann@example.org");
    }
}

/// How the HTTP server answers.
#[derive(Default)]
pub struct Behaviour {
    /// `user:password` that it wants.
    pub credentials: Option<String>,
    /// Answers every request with this status instead.
    pub status: Option<u16>,
    /// Sends every request there instead.
    pub redirect: Option<String>,
}

/// `git http-backend` over HTTP/1.1, one request a connection.
pub struct HttpServer {
    port: u16,
    scheme: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub requests: Arc<AtomicUsize>,
    /// The most connections that there were at once.
    pub peak: Arc<AtomicUsize>,
    /// The credentials of each request.
    pub shown: Arc<Mutex<Vec<Option<String>>>>,
}

impl HttpServer {
    pub fn start(root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        let requests = Arc::new(AtomicUsize::new(0));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (active, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let thread = {
            let (stop, behaviour, requests) = (stop.clone(), behaviour.clone(), requests.clone());
            let (peak, shown) = (peak.clone(), shown.clone());
            let root = root.to_owned();
            std::thread::spawn(move || {
                let mut workers = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let Ok(stream) = stream else { continue };
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                    let (behaviour, requests) = (behaviour.clone(), requests.clone());
                    let (root, tls, shown) = (root.clone(), tls.clone(), shown.clone());
                    peak.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let active = active.clone();
                    workers.push(std::thread::spawn(move || {
                        // A client may hang up at any time: its own error tells.
                        let _ = match tls {
                            Some(tls) => {
                                let session = rustls::ServerConnection::new(tls).unwrap();
                                let mut stream = rustls::StreamOwned::new(session, stream);
                                let result = serve(&root, &mut stream, &behaviour, &requests, &shown);
                                stream.conn.send_close_notify();
                                let _ = stream.flush();
                                result
                            }
                            None => serve(&root, &mut { stream }, &behaviour, &requests, &shown),
                        };
                        active.fetch_sub(1, Ordering::SeqCst);
                    }));
                }
                for worker in workers {
                    worker.join().unwrap();
                }
            })
        };
        Self { port, scheme, stop, thread: Some(thread), behaviour, requests, peak, shown }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}/{path}", self.scheme, self.port)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(
    root: &Path,
    stream: &mut (impl Read + Write),
    behaviour: &Mutex<Behaviour>,
    requests: &AtomicUsize,
    shown: &Mutex<Vec<Option<String>>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(&mut *stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(()) };
    requests.fetch_add(1, Ordering::SeqCst);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (mut length, mut chunked) = (0, false);
    let mut variables = Vec::new();
    let mut authorization = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "transfer-encoding" => chunked = value == "chunked",
            "content-type" => variables.push(("CONTENT_TYPE", value.to_owned())),
            "content-encoding" => variables.push(("HTTP_CONTENT_ENCODING", value.to_owned())),
            // Twice is once too often: no server would know which one counts.
            "authorization" if authorization.is_some() => authorization = Some("two of them".to_owned()),
            "authorization" => authorization = Some(value.to_owned()),
            "expect" => {
                reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                reader.get_mut().flush()?;
            }
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).unwrap();
            (&mut reader).take(size).read_to_end(&mut body)?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else {
        (&mut reader).take(length).read_to_end(&mut body)?;
    }
    drop(reader);
    shown.lock().unwrap().push(authorization.clone());
    let answer = |stream: &mut dyn Write, head: &str| {
        stream.write_all(
            format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        stream.flush()
    };
    {
        let behaviour = behaviour.lock().unwrap();
        if let Some(status) = behaviour.status {
            return answer(stream, &format!("{status} No"));
        }
        if let Some(place) = &behaviour.redirect {
            return answer(stream, &format!("302 Found\r\nLocation: {place}{target}"));
        }
        if let Some(credentials) = &behaviour.credentials {
            use base64::Engine as _;
            let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
            if authorization.as_ref() != Some(&wanted) {
                return answer(stream, "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"");
            }
        }
    }
    let mut backend = Command::new("git");
    backend.arg("http-backend");
    scrub(&mut backend, root);
    backend.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_USER", "tester");
    backend.env("REQUEST_METHOD", method).env("PATH_INFO", path).env("QUERY_STRING", query);
    backend.env("CONTENT_LENGTH", body.len().to_string()).envs(variables);
    let mut child = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output)?;
    child.wait()?;
    writer.join().unwrap();
    let split = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(output.len().saturating_sub(4));
    let (head, body) = output.split_at(split + 4);
    let head = String::from_utf8_lossy(head);
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let headers: String = head
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with("Status:"))
        .map(|l| format!("{l}\r\n"))
        .collect();
    let length = body.len();
    stream.write_all(
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    stream.write_all(body)?;
    stream.flush()
}

/// A certificate for 127.0.0.1 and the file of the authority that signed it.
pub fn tls(dir: &Path) -> (Arc<rustls::ServerConfig>, PathBuf) {
    let openssl = |args: &str| {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=gitopsd-test-ca");
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=127.0.0.1");
    fs::write(dir.join("san.cnf"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile san.cnf",
    );
    openssl("x509 -in server.pem -outform DER -out server.der");
    openssl("pkcs8 -topk8 -nocrypt -in server.key -outform DER -out server.key.der");
    let certificate = fs::read(dir.join("server.der")).unwrap().into();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(fs::read(dir.join("server.key.der")).unwrap().into());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
    (Arc::new(config), dir.join("ca.pem"))
}

/// A real sshd with keys of its own; whoever has `client` may log in as root.
pub struct SshServer {
    child: Child,
    pub port: u16,
    pub client_key: PathBuf,
    dir: PathBuf,
}

impl SshServer {
    pub fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        for (name, kind) in [
            ("host_ed25519", "ed25519"),
            ("host_ecdsa", "ecdsa"),
            ("host_rsa", "rsa"),
            ("client", "ed25519"),
            ("user_ca", "ed25519"),
            ("host_ca", "ed25519"),
        ] {
            let status = Command::new("ssh-keygen")
                .args(["-q", "-N", "", "-t", kind, "-f"])
                .arg(dir.join(name))
                .status()
                .unwrap();
            assert!(status.success());
        }
        fs::copy(dir.join("client.pub"), dir.join("authorized_keys")).unwrap();
        loop {
            // Another process may take the port in between: then sshd ends, and it is tried with the next one.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(server) = Self::start_on(dir, port, "") {
                return server;
            }
        }
    }

    /// The same server anew, with more lines in its configuration.
    pub fn restarted_with(self, more: &str) -> Self {
        let (dir, port) = (self.dir.clone(), self.port);
        drop(self);
        Self::start_on(&dir, port, more).unwrap()
    }

    fn start_on(dir: &Path, port: u16, more: &str) -> Option<Self> {
        let d = dir.display();
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {d}/host_ed25519\nHostKey {d}/host_ecdsa\nHostKey {d}/host_rsa\n\
             TrustedUserCAKeys {d}/user_ca.pub\nAuthorizedKeysFile {d}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n\
             SetEnv GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*\n{more}\n"
        );
        fs::write(dir.join("sshd_config"), text).unwrap();
        let log = fs::File::create(dir.join("sshd.log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, port, client_key: dir.join("client"), dir: dir.to_owned() };
        let until = Instant::now() + Duration::from_secs(30);
        while !server.log().contains("Server listening") {
            if server.child.try_wait().unwrap().is_some() {
                assert!(server.log().contains("in use"), "{}", server.log());
                return None;
            }
            assert!(Instant::now() < until, "{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.log")).unwrap()
    }

    /// `type base64` of one of its host keys.
    pub fn host_key(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join(format!("{name}.pub"))).unwrap();
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
