//! Clients that never stop: while something happens to the host, it is counted what they notice of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::host::*;

/// What was noticed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Noticed {
    /// Requests over new connections that were answered.
    pub answered: u64,
    /// Requests over new connections that were not.
    pub failed: u64,
    /// Connections held open that broke; each asks every few milliseconds.
    pub broken: u64,
    /// The longest time that one request over a new connection took.
    pub longest: Duration,
}

/// Clients from outside, on port 80 of the host: some with a new connection a request, as many with one for all.
pub struct Pressure {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Noticed>>,
}

impl Pressure {
    /// Begins; `clients` of each kind.
    pub fn begin(host: &Host, clients: usize) -> Self {
        let (over, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let client = |held: bool| {
            let (over, answers, outside) = (over.clone(), answers.clone(), host.outside.clone());
            std::thread::spawn(
                move || if held { hold(&outside, &over) } else { come(&outside, &over, &answers) },
            )
        };
        let clients = (0..clients * 2).map(|number| client(number % 2 == 1)).collect();
        Self { over, answers, clients }
    }

    /// Waits until some more requests were answered.
    pub fn runs(&self) {
        let before = self.answers.load(Ordering::SeqCst);
        wait_for("answers", || self.answers.load(Ordering::SeqCst) >= before + 10);
    }

    /// Ends it.
    pub fn end(self) -> Noticed {
        self.over.store(true, Ordering::SeqCst);
        let mut sum = Noticed::default();
        for client in self.clients {
            let one = client.join().unwrap();
            sum.answered += one.answered;
            sum.failed += one.failed;
            sum.broken += one.broken;
            sum.longest = sum.longest.max(one.longest);
        }
        sum
    }
}

fn come(outside: &Path, over: &AtomicBool, answers: &AtomicU64) -> Noticed {
    let mut noticed = Noticed::default();
    let work = || {
        while !over.load(Ordering::SeqCst) {
            let since = Instant::now();
            match ask((HOST, 80)) {
                Ok(_) => noticed.answered += 1,
                Err(_) => noticed.failed += 1,
            }
            answers.fetch_add(1, Ordering::SeqCst);
            noticed.longest = noticed.longest.max(since.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    inside(outside, work).unwrap();
    noticed
}

fn hold(outside: &Path, over: &AtomicBool) -> Noticed {
    let mut noticed = Noticed::default();
    let work = || {
        let mut client = Client::connect((HOST, 80))?;
        while !over.load(Ordering::SeqCst) {
            if client.ask().is_err() {
                noticed.broken += 1;
                client = Client::connect((HOST, 80))?;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    };
    if inside(outside, work).is_err() {
        noticed.failed += 1;
    }
    noticed
}
