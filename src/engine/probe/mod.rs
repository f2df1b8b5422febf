//! One attempt at finding out whether a container works: HTTP, gRPC, TCP, or a command inside it.
//!
//! What it says on failure is one short line for people. How often to ask and what to make of it is not decided here.

mod dial;
mod grpc;
mod http;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::time::timeout_at;

use self::dial::{Target, plain};
use super::{EngineError, ExecOutput};
use crate::types::{Notified, Probe};

/// Shown of what a command wrote.
const MAX_OUTPUT: usize = 200;

/// What can be found out without the container's network.
pub trait Inside {
    /// Runs a command in the container, within the time given.
    fn exec(
        &self,
        command: Vec<String>,
        timeout: Duration,
    ) -> impl Future<Output = Result<ExecOutput, EngineError>> + Send;

    /// What the container's program has said to its `NOTIFY_SOCKET`.
    fn notified(&self) -> impl Future<Output = Option<Notified>> + Send;
}

/// Asks the container at `address`, which others reach by the name `service`, once.
pub async fn attempt(
    probe: &Probe,
    service: &str,
    address: Ipv4Addr,
    timeout: Duration,
    inside: &impl Inside,
) -> Result<(), String> {
    let at = |port| Target { address: SocketAddrV4::new(address, port), service };
    match probe {
        Probe::Http(probe) => {
            let target = at(probe.port);
            within(timeout, &http::named(probe), http::ask(probe, &target)).await
        }
        Probe::Grpc(probe) => {
            let target = at(probe.port);
            within(timeout, &grpc::named(probe), grpc::ask(probe, &target)).await
        }
        Probe::Tcp { port } => {
            let what = format!("connecting to port {port}");
            let connect =
                async { dial::dial(at(*port).address).await.map(drop).map_err(|error| plain(&error)) };
            within(timeout, &what, connect).await
        }
        Probe::Test { command } => test(command, timeout, inside.exec(command.clone(), timeout)).await,
        Probe::Notify => notified(inside.notified().await),
        // The check in force never holds these: they stand for others.
        Probe::Image(_) | Probe::Ports => Err("the check stands for another one".to_owned()),
    }
}

fn notified(said: Option<Notified>) -> Result<(), String> {
    let Some(said) = said else { return Err("it has no NOTIFY_SOCKET".to_owned()) };
    let status = said.status.map(|status| format!(": {status}")).unwrap_or_default();
    match (said.ready, said.stopping) {
        (_, true) => Err(format!("it says that it stops{status}")),
        (true, false) => Ok(()),
        (false, false) => Err(format!("it has not said READY=1 yet{status}")),
    }
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

#[cfg(test)]
mod tests {
    use super::http::MAX_BODY;
    use super::*;
    use crate::types::{HttpProbe, Reason};
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    /// A container that gives this answer to commands and has said that.
    struct Answers(Option<ExecOutput>, Option<Notified>);

    const NOBODY: Answers = Answers(None, None);

    impl Inside for Answers {
        async fn exec(&self, command: Vec<String>, _: Duration) -> Result<ExecOutput, EngineError> {
            assert_eq!(command, ["bin/check", "-q"]);
            self.0.clone().ok_or_else(|| EngineError::plain(Reason::Internal, "not asked for"))
        }
        async fn notified(&self) -> Option<Notified> {
            self.1.clone()
        }
    }

    async fn ask(probe: &Probe) -> Result<(), String> {
        attempt(probe, "web", Ipv4Addr::LOCALHOST, SECOND, &NOBODY).await
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
        ask(&Probe::http(path, port)).await
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
    async fn bodies_are_looked_through_and_only_so_far() {
        let asking = |port, contains: &str| {
            let Probe::Http(probe) = Probe::http("/", port) else { unreachable!() };
            Probe::Http(HttpProbe { contains: Some(contains.to_owned()), ..probe })
        };
        let long: &'static str = format!("HTTP/1.1 200 OK\r\n\r\n{}late", "x".repeat(MAX_BODY - 2)).leak();
        for (answer, passes) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is up", true),
            // In two pieces, which belong together.
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nis u\r\n1\r\np\r\n0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nis down.", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false),
        ] {
            let (port, _asked) = server(answer);
            let expected = match passes {
                true => Ok(()),
                false => {
                    Err(format!("GET / on port {port}: status 200, and the body does not contain `is up`"))
                }
            };
            assert_eq!(ask(&asking(port, "is up")).await, expected, "{answer}");
        }
        let (port, _asked) = server(long);
        assert!(ask(&asking(port, "late")).await.is_err(), "it is beyond what is read");
        let (port, _asked) = server(long);
        assert_eq!(ask(&asking(port, "xl")).await, Ok(()));
    }

    #[tokio::test]
    async fn what_was_said_is_judged() {
        for (said, says) in [
            (None, Err("it has no NOTIFY_SOCKET".to_owned())),
            (Some((false, false, None)), Err("it has not said READY=1 yet".to_owned())),
            (Some((false, false, Some("half"))), Err("it has not said READY=1 yet: half".to_owned())),
            (Some((true, false, Some("up"))), Ok(())),
            (Some((true, true, None)), Err("it says that it stops".to_owned())),
        ] {
            let said = said.map(|(ready, stopping, status)| Notified {
                ready,
                stopping,
                status: status.map(str::to_owned),
            });
            let inside = Answers(None, said);
            assert_eq!(attempt(&Probe::Notify, "web", Ipv4Addr::LOCALHOST, SECOND, &inside).await, says);
        }
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
        let probe = Probe::http("/", port);
        let answer = attempt(&probe, "web", Ipv4Addr::LOCALHOST, Duration::from_millis(100), &NOBODY).await;
        assert!(answer.as_ref().is_err_and(|line| line.contains("no answer within")), "{answer:?}");
    }

    #[tokio::test]
    async fn tcp_needs_a_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ask(&Probe::Tcp { port }).await, Ok(()));
        drop(listener);
        let answer = ask(&Probe::Tcp { port }).await;
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
            let inside = Answers(Some(ExecOutput { code, output: output.to_owned() }), None);
            assert_eq!(attempt(&probe, "web", Ipv4Addr::LOCALHOST, SECOND, &inside).await, says);
        }
    }
}
