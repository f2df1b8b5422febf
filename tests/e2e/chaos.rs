//! Swaps while things go wrong: agent, shims and candidates are killed, rules are flushed, registry and repo go away, at random
//! moments by a seed. Clients of a polite program see none of it, nothing is left over, and a receipt tells how each
//! commit ended.
//!
//! `scripts/chaos --seed N --swaps N` runs more of it. All of it is in a network namespace of its own: a flush there takes
//! nobody else's rules away.

mod clients;
mod dice;
mod faults;
#[path = "../support/load/mod.rs"]
#[allow(dead_code, reason = "the program beside it uses more of it")]
mod generator;
mod host;
mod judge;

use std::time::{Duration, Instant};

use dice::Dice;
use faults::Fault;
use host::Host;

/// For `make test-all`: every kind of fault, most of them before the switch.
const SWAPS: u64 = 8;
const SEED: u64 = 2397;
/// No other swap is begun after this, where their number was not asked for.
const LIMIT: Duration = Duration::from_secs(50);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
#[ignore = "what happens when depends on the machine: scripts/chaos, make test-all"]
fn swaps_in_chaos_lose_no_request() {
    let (seed, swaps) = (number("GITOPSD_CHAOS_SEED", SEED), number("GITOPSD_CHAOS_SWAPS", SWAPS));
    println!("chaos: seed {seed}, {swaps} swaps");
    let limit = if std::env::var_os("GITOPSD_CHAOS_SWAPS").is_some() { Duration::MAX } else { LIMIT };
    let (mut dice, born) = (Dice::new(seed), Instant::now());
    let mut host = Host::new();
    host.spares = std::env::var_os("GITOPSD_CHAOS_SPARE").is_some();
    let clients = clients::Clients::begin(&host);
    for swap in 1..=swaps {
        if born.elapsed() > limit {
            break;
        }
        let mut faults: Vec<(Duration, Fault)> =
            (0..dice.below(4)).map(|_| (Fault::moment(&mut dice), Fault::any(&mut dice))).collect();
        faults.sort_by_key(|(at, _)| *at);
        let before = host.serving();
        let commit = host.commit(&format!("{swap}"));
        let begun = Instant::now();
        let mut done = Vec::new();
        for (at, fault) in faults {
            host.wait_until(begun + at);
            let moment = begun.elapsed().as_millis();
            done.push((moment, fault.name(), host.inflict(fault, before.generation, &mut dice)));
        }
        host.calm();
        let end = judge::settled(&host, &before, &commit, &done);
        println!("  {swap:>3} {:>5.1} s  {end:<28} {}", begun.elapsed().as_secs_f64(), judge::told(&done));
    }
    let windows = host.windows();
    let reports = clients.end();
    judge::requests(&reports, &windows);
    judge::gaps(&windows);
}
