//! A real registry in a temporary directory. Several may serve the same storage, each in its own way.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

pub use self::free_port::free_port;
use super::wait_for;

#[path = "../free_port.rs"]
mod free_port;

pub struct Server {
    pub port: u16,
    dir: Arc<tempfile::TempDir>,
    process: Option<Child>,
}

/// How a registry is to be reached.
#[derive(Default)]
pub struct Face<'a> {
    /// A line of `htpasswd -B`.
    pub htpasswd: Option<&'a str>,
    /// Certificate and key.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// The authority of certificates that clients have to show.
    pub clients_by: Option<&'a Path>,
    /// Whether it is on all addresses, and not on loopback alone.
    pub everywhere: bool,
}

impl Server {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-registry-").tempdir().unwrap();
        Self::start(Arc::new(dir), &Face::default())
    }

    /// On all addresses.
    pub fn everywhere(face: &Face<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-registry-").tempdir().unwrap();
        Self::start(Arc::new(dir), &Face { everywhere: true, ..*face })
    }

    /// A further registry with the same images.
    pub fn face(&self, face: &Face<'_>) -> Self {
        Self::start(self.dir.clone(), face)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn start(dir: Arc<tempfile::TempDir>, face: &Face<'_>) -> Self {
        let port = free_port();
        let root = dir.path().join("storage");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            root.display()
        );
        if let Some(line) = face.htpasswd {
            let file = dir.path().join(format!("{port}.htpasswd"));
            fs::write(&file, format!("{line}\n")).unwrap();
            writeln!(text, "auth: {{htpasswd: {{realm: lab, path: {}}}}}", file.display()).unwrap();
        }
        let address = if face.everywhere { "" } else { "127.0.0.1" };
        write!(text, "http:\n  addr: {address}:{port}\n").unwrap();
        if let Some((certificate, key)) = face.tls {
            let (certificate, key) = (certificate.display(), key.display());
            let clients = face.clients_by.map(|ca| format!(", clientcas: [{}]", ca.display()));
            let clients = clients.unwrap_or_default();
            writeln!(text, "  tls: {{certificate: {certificate}, key: {key}{clients}}}").unwrap();
        }
        let config = dir.path().join(format!("{port}.yml"));
        fs::write(&config, text).unwrap();
        let log = fs::File::create(dir.path().join(format!("{port}.log"))).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_for("the registry", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, dir, process: Some(process) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
