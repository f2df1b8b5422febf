//! The socket, and who may hold a connection to it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::request::{self, Answer};
use super::{Shared, signature};
use crate::config::agent::Listen;
use crate::report::handed_over::{self, RULES};

/// Longest time for one request, its answer included. A delivery takes some milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most connections. One more ends the oldest: a real one has had its answer by then, and one that drips has not.
const MOST: usize = 64;

/// Until it is tried again to listen.
const RETRY: Duration = Duration::from_secs(5);

/// Opens the socket, within a runtime.
pub(super) fn bind(listen: &Listen) -> std::io::Result<TcpListener> {
    let listener = match listen {
        Listen::Address(address) => std::net::TcpListener::bind(address)?,
        Listen::Systemd => of_systemd()?,
    };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// The socket that systemd has opened for this process.
fn of_systemd() -> std::io::Result<std::net::TcpListener> {
    let other = |why: &str| std::io::Error::other(why.to_owned());
    let (_, socket) = handed_over::all()?
        .into_iter()
        .find(|(name, _)| name != RULES)
        .ok_or_else(|| other("systemd has handed over no socket: `systemctl stop gitopsd`, `systemctl enable --now gitopsd-webhook.socket`, `systemctl start gitopsd`"))?;
    let listener = std::net::TcpListener::from(socket);
    listener.local_addr().map_err(|_| other("what systemd has handed over is no socket of TCP"))?;
    if !rustix::net::sockopt::socket_acceptconn(&listener)? {
        return Err(other("the socket that systemd has handed over is not listened to"));
    }
    Ok(listener)
}

/// Listens for ever; `first` is what the first try came to.
pub(super) async fn run(listen: Listen, first: std::io::Result<TcpListener>, shared: Arc<Shared>) {
    let mut tried = first;
    let mut said = String::new();
    let listener = loop {
        match tried {
            Ok(listener) => break listener,
            Err(error) => {
                let text = format!("webhook: cannot listen at {listen}: {error}; it is tried again");
                if text != said {
                    tracing::warn!("{text}");
                    said = text;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
        tried = bind(&listen).inspect(|listener| shared.listens(listener));
    };
    let mut connections: VecDeque<Connection> = VecDeque::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // Out of descriptors, or the client is gone already: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() >= MOST
            && let Some(oldest) = connections.pop_front()
        {
            oldest.task.abort();
            if !oldest.judged.load(Ordering::Acquire) {
                shared.judged(Answer::Slow, oldest.peer);
            }
        }
        let judged = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(serve(stream, peer, shared.clone(), judged.clone()));
        connections.push_back(Connection { peer, task, judged });
    }
}

struct Connection {
    peer: SocketAddr,
    task: JoinHandle<()>,
    /// Each is counted once: what comes after its answer is only its end.
    judged: Arc<AtomicBool>,
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, judged: Arc<AtomicBool>) {
    let answered = tokio::time::timeout(DEADLINE, async {
        let answer = match signature::secrets(&shared.secret_file) {
            Ok(secrets) => request::judge(&mut stream, &secrets, &shared.pace).await?,
            Err(_) => Answer::NoSecret,
        };
        // Counted, and the wake sent, before the forge hears of it.
        judged.store(true, Ordering::Release);
        shared.judged(answer, peer);
        request::say(&mut stream, answer).await
    });
    match answered.await {
        // The client has gone: it is told nothing, and nothing has come of it.
        Ok(Ok(()) | Err(_)) => {}
        Err(_) if judged.load(Ordering::Acquire) => {}
        Err(_) => shared.judged(Answer::Slow, peer),
    }
}
