//! The only place that asks what time it is.

use std::collections::BTreeMap;

use super::Agent;
use crate::reconcile::clock::put_right;
use crate::types::{ContainerState, InstanceId, ObservedContainer, Timestamp};

/// Now, by the system's clock.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Containers that were started later than now, as the clock was set back since: when they are said to have been started,
/// and when that was first seen, which counts.
pub type Starts = BTreeMap<InstanceId, (Timestamp, Timestamp)>;

impl Agent {
    /// Puts times right that lie ahead though they are past.
    pub(super) fn follow_clock(&mut self, containers: &mut [ObservedContainer], now: Timestamp) {
        for (service, record) in &mut self.journal.records {
            if put_right(record, now) {
                tracing::info!("{service}: the clock was set back; what is waited for begins anew");
                self.unsaved.insert(service.clone());
            }
        }
        self.starts = put_starts_right(&self.starts, containers, now);
    }
}

/// Lets no container be started later than now. `former`: what this gave the last time.
fn put_starts_right(former: &Starts, containers: &mut [ObservedContainer], now: Timestamp) -> Starts {
    let mut starts = Starts::new();
    for container in containers {
        let ContainerState::Running { started_at, .. } = &mut container.state else { continue };
        let said = *started_at;
        let known = former.get(&container.id).filter(|(other, _)| *other == said);
        let first = known.map_or(said, |(_, first)| *first).min(now);
        if first != said {
            starts.insert(container.id.clone(), (said, first));
            *started_at = first;
        }
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_lies_ahead_was_when_it_was_first_seen() {
        let at = |second| Timestamp::from_second(second).unwrap_or_default();
        let mut starts = Starts::new();
        let mut seen = |said, now| {
            let mut containers = [ObservedContainer {
                id: "web.1".parse().unwrap(),
                address: None,
                state: ContainerState::Running { pid: 1, started_at: at(said) },
                oom_kills: 0,
                supervisor: None,
                unsupervised: false,
                foreign: None,
            }];
            starts = put_starts_right(&starts, &mut containers, at(now));
            match containers[0].state {
                ContainerState::Running { started_at, .. } => started_at.as_second(),
                _ => unreachable!(),
            }
        };
        assert_eq!(seen(100, 200), 100);
        // Set back, and what follows; the clock comes to where it was.
        assert_eq!([seen(100, 50), seen(100, 60), seen(100, 300)], [50, 50, 50]);
        // Set back once more, and another start.
        assert_eq!([seen(100, 10), seen(100, 20), seen(30, 40)], [10, 10, 30]);
    }
}
