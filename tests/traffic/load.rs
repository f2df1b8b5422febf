//! Changes of the rules while clients open one connection after the other: none of them may fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::host::*;

/// So many changes at the least.
const TURNS: usize = 200;
/// So many clients at the least: hundreds of changes are over before many were there.
const CLIENTS: u64 = 1000;

/// Ends the load also where a change panics: its threads are waited for.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes `change` over and over, numbered from 1, while clients from outside ask the host's port 80, and clients of the host
/// itself ask `local`.
pub fn changes_under_load(host: &Host, local: (std::net::Ipv4Addr, u16), mut change: impl FnMut(usize)) {
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = |address| {
        let mut failures = Vec::new();
        while failures.is_empty() && !stop.load(Ordering::Relaxed) {
            if let Err(error) = ask(address) {
                failures.push(error.to_string());
            }
            asked.fetch_add(1, Ordering::Relaxed);
            // A load, not a siege: two processors carry the clients, the host and the servers.
            std::thread::sleep(Duration::from_micros(500));
        }
        std::io::Result::Ok(failures)
    };
    let failures = std::thread::scope(|scope| {
        let outside = scope.spawn(|| inside(&host.outside, || load((HOST, 80))));
        let inside = scope.spawn(|| load(local));
        let end = End(&stop);
        let since = Instant::now();
        let few = || asked.load(Ordering::Relaxed) <= CLIENTS && since.elapsed() < Duration::from_secs(60);
        (1..).take_while(|turn| *turn <= TURNS || few()).for_each(&mut change);
        drop(end);
        [outside, inside].map(|thread| thread.join().unwrap().unwrap()).concat()
    });
    let asked = asked.load(Ordering::Relaxed);
    assert_eq!(failures, Vec::<String>::new(), "of {asked}");
    assert!(asked > CLIENTS, "no load to speak of: {asked}");
}
