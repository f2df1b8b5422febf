//! The pure core: what is wanted and what is, in; at most one step a service, out.
//!
//! **The law.** Here it is decided, and nothing is done; in `agent::execute` it is done, and nothing is decided. No
//! I/O, no clock, no async, no logging below this folder: time and the world are arguments (`tests/tidy.rs` enforces
//! it). [`plan`] cannot fail: trouble of one service is that service's answer, never the others'.
//!
//! Reading order: [`record`] (what is remembered), [`world`] (what is told), [`step`] (what is answered), [`next`] (the
//! decision), [`rolling`] (the same for a candidate under way), [`transition`] (what a step does to the memory).

pub mod amend;
pub mod arrival;
pub mod batches;
pub mod canary;
pub mod changes;
pub mod clock;
pub mod drain;
pub mod errors;
mod exchange;
pub mod handover;
pub mod health;
mod irreversible;
pub mod jobs;
pub mod joined;
pub mod limits;
pub mod networks;
pub mod next;
pub mod operator;
mod order;
pub mod pins;
pub mod ports;
pub mod postponed;
pub mod preflight;
pub mod preview;
pub mod receipt;
pub mod record;
pub mod repair;
pub mod replace;
pub mod replicas;
mod restarts;
pub mod rolling;
pub mod schedule;
pub mod secrets;
pub mod sharing;
pub mod step;
pub mod tagged;
pub mod transition;
pub mod uses;
pub(crate) mod view;
pub mod waves;
mod window;
pub mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{Policy, Refusal, ServiceName, Timestamp};
use record::ServiceRecord;
use step::{Next, Plan};
use view::View;
use world::{Desired, Observed};

/// Decides what every service does next.
///
/// `desired` is `None` as long as no revision was ever admitted: then what runs is kept running and nothing else.
pub fn plan(
    desired: Option<&Desired>,
    observed: &Observed,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    policy: &Policy,
    now: Timestamp,
) -> Plan {
    let desired = desired.map(|desired| secrets::settled(desired, &observed.secrets));
    let desired = desired.as_deref();
    let removal_refusal = removals(desired, observed, records, policy);
    let strays = observed.containers.keys().map(|id| &id.service).chain(observed.routes.keys());
    let strays = strays.chain(observed.frozen.keys());
    let names = records.keys().chain(desired.iter().flat_map(|d| d.services.keys())).chain(strays);
    let mut services = BTreeMap::new();
    let mut times = Vec::new();
    for name in names {
        if services.contains_key(name) {
            continue;
        }
        let view = View {
            name,
            desired,
            record: records.get(name),
            records,
            observed,
            removal_refusal: removal_refusal.as_ref(),
            now,
        };
        services.insert(name.clone(), next::decide(&view));
        // What goes on beside whatever else there is.
        times.extend([jobs::wake_at(&view), schedule::wake_at(&view)].into_iter().flatten());
    }
    let wake_at = services
        .values()
        .filter_map(|planned| match &planned.next {
            Next::Wait { until, .. } | Next::Held { until, .. } => *until,
            Next::Do(_) | Next::Settled => None,
        })
        .chain(times)
        .min();
    Plan { services, wake_at }
}

/// Why services that the repo no longer names stay all the same.
fn removals(
    desired: Option<&Desired>,
    observed: &Observed,
    records: &BTreeMap<ServiceName, ServiceRecord>,
    policy: &Policy,
) -> Option<Refusal> {
    let unread = observed.frozen.keys().filter(|name| !records.contains_key(*name)).count();
    limits::removal_refusal(&limits::Named::of(desired?), records, unread, policy)
}

/// `at` plus `by`, held at the end of time rather than overflowing.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Whether `at` still lies ahead of `now`. A time further ahead than any pause is left over from a wrong clock, and
/// nobody waits for it: otherwise one boot in the year 2038 would keep a service down until then.
pub(crate) fn pending(now: Timestamp, at: Timestamp, longest: Duration) -> bool {
    now < at && at <= later(now, longest)
}
