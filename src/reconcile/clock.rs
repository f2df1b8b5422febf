//! A clock that was set back: times in a record that lie ahead though they are past.
//!
//! How long something is waited for is told from when something else happened: a drain from the switch, a deadline from the
//! start. Such a time never lies ahead of now; where it does, the clock was set back, and what hangs on it would last that
//! much longer, up to years. From then on it counts as now: what is waited for begins anew, and lasts as long as it is to. It is
//! not over at once, which would cut a drain short.
//!
//! The end of a pause is another matter (`reconcile::pending`), and a time that names a receipt stays what it is.

use super::later;
use super::record::ServiceRecord;
use super::schedule::SLACK;
use crate::types::Timestamp;

/// Puts the times of a record right by what the clock says now; whether there was anything to do.
pub fn put_right(record: &mut ServiceRecord, now: Timestamp) -> bool {
    let mut changed = false;
    let mut past = |at: &mut Timestamp| {
        changed |= *at > now;
        *at = (*at).min(now);
    };
    if let Some(rollout) = &mut record.rollout {
        past(&mut rollout.phase_since);
        let times = [
            &mut rollout.candidate_started_at,
            &mut rollout.canary_since,
            &mut rollout.switched_at,
            &mut rollout.returned_at,
        ];
        times.into_iter().flatten().for_each(&mut past);
    }
    let leaving = record.leaving_since.iter_mut();
    leaving.chain(record.retiring.as_mut().map(|retiring| &mut retiring.since)).for_each(&mut past);
    if let Some(incumbent) = &mut record.incumbent {
        let replicas = incumbent.replicas.values_mut();
        replicas.filter_map(|replica| replica.leaving_since.as_mut()).for_each(&mut past);
        // Its next run is the next time that is due from now on. Few seconds are waited for, as none is to run twice.
        let served = record.jobs.served.or(incumbent.spec.schedule.as_ref().map(|_| incumbent.since));
        if served.is_some_and(|served| served > later(now, SLACK)) {
            record.jobs.served = Some(now);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with every time that is past.
    fn record(at: &str) -> ServiceRecord {
        let text = r#"{
            "service_address": "10.98.191.255", "last_generation": 2,
            "incumbent": DEPLOYED, "previous": null,
            "rollout": {
                "to": DEPLOYED, "cause": "commit", "phase": "abandoning", "started_at": "AT", "phase_since": "AT",
                "candidate_started_at": "AT", "canary_since": "AT", "switched_at": "AT", "healthy_seconds": null,
                "pull": { "bytes": 0, "seconds": 0 }, "attempts": 0, "retry_at": "AT", "trouble": null, "returned_at": "AT"
            },
            "retiring": { "old": DEPLOYED, "since": "AT" },
            "failure": null, "hold": null, "removing": null, "jobs": { "served": "AT" }
        }"#;
        let deployed = r#"{
            "generation": 1, "address": "10.98.0.2",
            "spec": {
                "image": {
                    "reference": "registry.local/shop:1",
                    "digest": "sha256:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
                },
                "fallback": [], "entrypoint": null, "command": null, "environment": {}, "user": null,
                "working_dir": null, "ports": [], "volumes": [], "depends_on": [],
                "stop_grace_period": {"secs": 10, "nanos": 0}, "mem_limit": null, "milli_cpus": null, "pids_limit": null,
                "healthcheck": null,
                "deploy": {
                    "strategy": null, "drain": {"secs": 30, "nanos": 0}, "bake": {"secs": 60, "nanos": 0},
                    "timeout": {"secs": 300, "nanos": 0}, "pre": []
                }
            },
            "commit": {
                "id": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff", "subject": "", "author": "", "committed_at": "AT"
            },
            "since": "AT", "restarts": 0, "restarted_at": "AT",
            "replicas": { "2": { "address": "10.98.0.3", "leaving_since": "AT" } }
        }"#;
        serde_json::from_str(&text.replace("DEPLOYED", deployed).replace("AT", at)).unwrap()
    }

    #[test]
    fn what_is_past_never_lies_ahead() {
        let then = "2026-01-02T00:00:00Z";
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut after = record(then);
        assert!(put_right(&mut after, now));
        let rollout = after.rollout.as_ref().unwrap();
        let times =
            [rollout.candidate_started_at, rollout.canary_since, rollout.switched_at, rollout.returned_at];
        assert_eq!((rollout.phase_since, times), (now, [Some(now); 4]));
        assert_eq!(after.retiring.as_ref().unwrap().since, now);
        let incumbent = after.incumbent.as_ref().unwrap();
        assert!(incumbent.replicas.values().all(|replica| replica.leaving_since == Some(now)));
        assert_eq!(after.jobs.served, Some(now));
        // It names the receipt; a pause has an end of its own.
        assert_eq!(
            (rollout.started_at, rollout.retry_at),
            (then.parse().unwrap(), Some(then.parse().unwrap()))
        );
        assert!(!put_right(&mut after, now), "once");
        let mut before = record("2025-12-31T00:00:00Z");
        assert!(!put_right(&mut before, now));
        assert_eq!(before, record("2025-12-31T00:00:00Z"));
    }

    #[test]
    fn no_time_of_a_schedule_comes_twice_for_a_few_seconds() {
        let mut record = record("2026-01-01T00:00:00Z");
        (record.rollout, record.retiring) = (None, None);
        if let Some(incumbent) = &mut record.incumbent {
            incumbent.replicas.clear();
        }
        assert!(!put_right(&mut record, "2025-12-31T23:59:30Z".parse().unwrap()));
        assert!(put_right(&mut record, "2025-12-31T23:58:30Z".parse().unwrap()));
    }
}
