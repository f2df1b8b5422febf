//! What SIGTERM does: it owns the signal, and says how far the end is.

use std::io;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a program takes SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Goes on answering, each answer with the word that the connection is over; ends when nobody is left.
    Polite,
    /// As Go's net/http does in Shutdown: no listener, no idle connections, what is under way is finished.
    Go,
    /// Is gone at once, as what has no handler.
    Dies,
    /// Goes on as if nothing had happened.
    Ignores,
}

impl FromStr for Manner {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "polite" => Ok(Self::Polite),
            "go" => Ok(Self::Go),
            "dies" => Ok(Self::Dies),
            "ignores" => Ok(Self::Ignores),
            other => Err(format!("{other}: not polite, go, dies or ignores")),
        }
    }
}

/// What a connection is to do now, and since when.
#[derive(Debug, Clone, Copy)]
pub enum Ending {
    /// Serve.
    NotYet,
    /// See [`Manner::Polite`].
    Polite(Instant),
    /// See [`Manner::Go`].
    Shutdown(Instant),
}

impl Ending {
    /// As of now.
    pub fn now(manner: Manner) -> Self {
        if !TOLD.load(Ordering::Acquire) {
            return Self::NotYet;
        }
        let since = *SINCE.get_or_init(Instant::now);
        match manner {
            Manner::Polite => Self::Polite(since),
            Manner::Go => Self::Shutdown(since),
            Manner::Dies | Manner::Ignores => Self::NotYet,
        }
    }
}

static TOLD: AtomicBool = AtomicBool::new(false);
static SINCE: OnceLock<Instant> = OnceLock::new();

const SIGTERM: i32 = 15;
/// `SIG_IGN`: handler number 1.
const IGNORE: usize = 1;
/// What `signal` gives when it could not.
const FAILED: usize = usize::MAX;

// The two calls of libc that this needs; both are in every one.
unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn _exit(code: i32) -> !;
}

extern "C" fn take_note(_: i32) {
    TOLD.store(true, Ordering::Release);
}

extern "C" fn die(_: i32) {
    // SAFETY: _exit(2) is async-signal-safe.
    unsafe { _exit(0) }
}

/// Takes SIGTERM in this manner from now on. The first process of a container ignores a signal without a handler
/// (pid_namespaces(7)), so that dying has to be asked for, too.
pub fn watch(manner: Manner) -> io::Result<()> {
    let handler = match manner {
        Manner::Polite | Manner::Go => take_note as extern "C" fn(i32) as usize,
        Manner::Dies => die as extern "C" fn(i32) as usize,
        Manner::Ignores => IGNORE,
    };
    // SAFETY: both handlers do nothing but what is async-signal-safe, and live as long as the program.
    if unsafe { signal(SIGTERM, handler) } == FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
