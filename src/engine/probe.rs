//! One attempt at finding out whether a container works: HTTP, TCP, or a command inside it.
//!
//! What it says on failure is one short line for people. How often to ask and what to make of it is not decided here.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::{EngineError, ExecOutput};
use crate::types::{Probe, Protocol, ServiceSpec};

/// A status line that is longer is no HTTP: `HTTP/1.1 200 ` and a reason phrase fit many times over.
const MAX_STATUS_LINE: usize = 1024;
/// Shown of what a command wrote.
const MAX_OUTPUT: usize = 200;

/// Asks the container at `address` once. `exec` runs a [`Probe::Test`]'s command inside it, within the time given.
pub async fn attempt<E, F>(probe: &Probe, address: Ipv4Addr, timeout: Duration, exec: E) -> Result<(), String>
where
    E: FnOnce(Vec<String>, Duration) -> F,
    F: Future<Output = Result<ExecOutput, EngineError>>,
{
    match probe {
        Probe::Http { path, port } => {
            let what = format!("GET {path} on port {port}");
            within(timeout, &what, get(SocketAddrV4::new(address, *port), path)).await
        }
        Probe::Tcp { port } => {
            let what = format!("connecting to port {port}");
            let connect = async {
                TcpStream::connect(SocketAddrV4::new(address, *port)).await.map(drop).map_err(plain)
            };
            within(timeout, &what, connect).await
        }
        Probe::Test { command } => test(command, timeout, exec(command.clone(), timeout)).await,
    }
}

/// The ports of the container that a service without a health check has to accept connections on.
pub fn default_probe_ports<I>(spec: &ServiceSpec<I>) -> Vec<u16> {
    let tcp = spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let mut ports: Vec<u16> = tcp.map(|port| port.container_port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Bounds a question in time, and names it in the answer.
async fn within(
    timeout: Duration,
    what: &str,
    question: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    match timeout_at(tokio::time::Instant::now() + timeout, question).await {
        Ok(answer) => answer.map_err(|message| format!("{what}: {message}")),
        Err(_) => Err(format!("{what}: no answer within {}", crate::types::format_duration(timeout))),
    }
}

/// Sends a GET and looks at the status alone (RFC 9112 sections 3 and 4). Redirects are not followed: 3xx is an answer.
async fn get(server: SocketAddrV4, path: &str) -> Result<(), String> {
    // A path with a line break could smuggle in headers; the configuration refuses it, and so does this.
    if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') {
        return Err("the path is not one that HTTP can carry".to_owned());
    }
    let mut stream = TcpStream::connect(server).await.map_err(plain)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: gitopsd/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.map_err(plain)?;
    let mut head = Vec::new();
    let mut chunk = [0; MAX_STATUS_LINE];
    while !head.contains(&b'\n') && head.len() < MAX_STATUS_LINE {
        match stream.read(&mut chunk).await.map_err(plain)? {
            0 => break,
            length => head.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
    }
    match status(&head) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None if head.is_empty() => Err("connection closed without an answer".to_owned()),
        None => Err("the answer is not HTTP/1".to_owned()),
    }
}

/// The status code of an answer's first line.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let version = words.next()?;
    let code = words.next().filter(|code| code.len() == 3)?;
    version.starts_with("HTTP/1.").then(|| code.parse().ok())?
}

async fn test(
    command: &[String],
    timeout: Duration,
    run: impl Future<Output = Result<ExecOutput, EngineError>>,
) -> Result<(), String> {
    let program = command.first().map_or("the command", String::as_str);
    let output = run.await.map_err(|error| format!("{program}: {}", error.to_refusal().message))?;
    let last = output.output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.trim().chars().filter(|c| !c.is_control()).take(MAX_OUTPUT).collect();
    let tail = if last.is_empty() { String::new() } else { format!(": {last}") };
    match output.code {
        Some(0) => Ok(()),
        Some(code) => Err(format!("{program} ended with {code}{tail}")),
        None => Err(format!("{program}: not done within {}{tail}", crate::types::format_duration(timeout))),
    }
}

/// The kernel's words without its number.
fn plain(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to the container".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reason;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    async fn no_exec(_: Vec<String>, _: Duration) -> Result<ExecOutput, EngineError> {
        Err(EngineError::plain(Reason::Internal, "not asked for"))
    }

    /// A server that answers one connection with `answer`; gives its port and what it was asked.
    fn server(answer: &'static str) -> (u16, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 4096];
            let length = stream.read(&mut question).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&question[..length]).into_owned()
        });
        (port, thread)
    }

    async fn http(port: u16, path: &str) -> Result<(), String> {
        let probe = Probe::Http { path: path.to_owned(), port };
        attempt(&probe, Ipv4Addr::LOCALHOST, SECOND, no_exec).await
    }

    #[tokio::test]
    async fn http_judges_by_status() {
        let (port, asked) = server("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(http(port, "/healthz?full=1").await, Ok(()));
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")), "{asked}");

        for (answer, says) in [
            ("HTTP/1.0 503 Busy\r\n\r\n", "status 503"),
            ("SSH-2.0-OpenSSH\r\n", "the answer is not HTTP/1"),
            ("HTTP/1.1 2000 \r\n", "the answer is not HTTP/1"),
            ("", "connection closed without an answer"),
        ] {
            let (port, asked) = server(answer);
            assert_eq!(http(port, "/").await, Err(format!("GET / on port {port}: {says}")));
            asked.join().unwrap();
        }
        let (port, _asked) = server("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n");
        assert_eq!(http(port, "/").await, Ok(()));
    }

    #[tokio::test]
    async fn http_cannot_be_smuggled_into() {
        let (port, _asked) = server("HTTP/1.1 200 OK\r\n\r\n");
        assert!(http(port, "/ HTTP/1.1\r\nX: y").await.is_err());
    }

    #[tokio::test]
    async fn silence_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = Probe::Http { path: "/".to_owned(), port };
        let answer = attempt(&probe, Ipv4Addr::LOCALHOST, Duration::from_millis(100), no_exec).await;
        assert!(answer.as_ref().is_err_and(|line| line.contains("no answer within")), "{answer:?}");
    }

    #[tokio::test]
    async fn tcp_needs_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(attempt(&Probe::Tcp { port }, Ipv4Addr::LOCALHOST, SECOND, no_exec).await, Ok(()));
        drop(listener);
        let answer = attempt(&Probe::Tcp { port }, Ipv4Addr::LOCALHOST, SECOND, no_exec).await;
        assert_eq!(answer, Err(format!("connecting to port {port}: connection refused")));
    }

    #[tokio::test]
    async fn commands_are_judged_by_code() {
        let probe = Probe::Test { command: vec!["bin/check".to_owned(), "-q".to_owned()] };
        for (code, output, says) in [
            (Some(0), "fine\n", Ok(())),
            (Some(3), "a\ndisk is full\n\n", Err("bin/check ended with 3: disk is full".to_owned())),
            (Some(1), "", Err("bin/check ended with 1".to_owned())),
            (None, "", Err("bin/check: not done within 1s".to_owned())),
        ] {
            let exec = |command: Vec<String>, _: Duration| async move {
                assert_eq!(command, ["bin/check", "-q"]);
                Ok(ExecOutput { code, output: output.to_owned() })
            };
            assert_eq!(attempt(&probe, Ipv4Addr::LOCALHOST, SECOND, exec).await, says);
        }
    }
}
