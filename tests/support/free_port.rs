//! Ports for what is to listen later: a server in another process, the rules of an agent.

use std::fs::{File, TryLockError, create_dir_all};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below those that the kernel gives to whoever asks for any one: nobody listens on a port that rules lead to,
/// so it would give that one to the next test, whose clients then come to a container of this one.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Held until this process ends.
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port that nobody listens on, TCP or UDP, and that no other caller gets as long as this process lives.
pub fn free_port() -> u16 {
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let dir = std::env::temp_dir().join(format!("gitopsd-test-ports-{user}"));
    create_dir_all(&dir).unwrap();
    // Processes begin at different ones, so that one that was given back rests for a while.
    let begin = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let port = FIRST + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(port).unwrap();
        let file = File::create(dir.join(port.to_string())).unwrap();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => panic!("locking port {port}: {error}"),
        }
        if TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok() {
            HELD.lock().unwrap().push(file);
            return port;
        }
    }
    panic!("no port of {FIRST} to {} is free", FIRST + COUNT)
}
