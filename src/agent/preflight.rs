//! What is left of the host for a candidate, as the core is told it: memory, addresses. Looked at only while something
//! may be begun or changed; a settled host is not asked.

use std::collections::BTreeMap;

use super::Agent;
use crate::reconcile::batches;
use crate::reconcile::record::{Phase, Spec};
use crate::reconcile::world::{Desired, DesiredService, Observed, Room};
use crate::types::{ContainerState, NetworkMode, Reason, Refusal, ServiceName};

/// Where the kernel says how much memory programs can have. Source: proc_meminfo(5).
const MEMINFO: &str = "/proc/meminfo";

impl Agent {
    /// Looks at what is left, if a decision may hang on it.
    pub(super) fn look_for_room(&self, desired: &Desired, seen: &mut Observed) {
        let begins: BTreeMap<_, _> = desired
            .services
            .iter()
            .filter_map(|(name, wanted)| match wanted {
                DesiredService::Run(spec) => Some((name, spec)),
                _ => None,
            })
            .filter(|(name, spec)| {
                let record = self.journal.records.get(*name);
                let differs = |spec: &Spec| {
                    let incumbent = record.and_then(|record| record.incumbent.as_ref());
                    incumbent.is_none_or(|incumbent| incumbent.spec != *spec)
                };
                record.is_none_or(|it| it.rollout.is_none() && it.hold.is_none()) && differs(spec)
            })
            .map(|(name, spec)| (name.clone(), spec.clone()))
            .collect();
        // What takes traffic back may have to become more.
        let to_start = |phase| phase <= Phase::Switching || phase == Phase::Abandoning;
        let rollouts = self.journal.records.values().filter_map(|record| record.rollout.as_ref());
        if begins.is_empty() && !rollouts.into_iter().any(|rollout| to_start(rollout.phase)) {
            return;
        }
        let running =
            seen.containers.iter().filter(|(_, state)| matches!(state, ContainerState::Running { .. }));
        let used = running.filter_map(|(id, _)| Some((id.clone(), self.hands.engine.memory(id)?)));
        let memory = (!self.config.policy.memory_overcommit).then(available).flatten();
        seen.room = Room { memory, used: used.collect(), no_address: BTreeMap::new() };
        let addresses = self.used_addresses();
        for (service, spec) in begins {
            let own = matches!(spec.network_mode(), NetworkMode::Bridge | NetworkMode::None);
            let known =
                self.journal.records.contains_key(&service) || self.pool.service(&addresses).is_some();
            let wanted = if own { self.further(&service, &spec) } else { Further::default() };
            let free = self.pool.left(&addresses, wanted.count);
            if !known || free < wanted.count {
                let (containers, services) = self.pool.sizes();
                let none_left = |all, whom| {
                    format!(
                        "the subnet has no free address left: all {all} for {whom} are in use (engine.subnet)"
                    )
                };
                let message = match wanted {
                    _ if !known => none_left(services, "services"),
                    Further { count: 0 | 1, .. } => none_left(containers, "containers"),
                    Further { count, advice } => format!(
                        "the subnet has {free} free addresses left (engine.subnet), and {count} more containers are wanted{advice}"
                    ),
                };
                seen.room.no_address.insert(service, Refusal::new(Reason::Network, message));
            }
        }
    }

    /// What `spec` needs beside what runs: all of it or a batch, or where only its number changes, what is new.
    fn further(&self, service: &ServiceName, spec: &Spec) -> Further {
        let incumbent = self.journal.records.get(service).and_then(|record| record.incumbent.as_ref());
        let all = spec.deploy.replicas;
        let (count, advice) = match incumbent {
            None => (all, ""),
            // Nothing of `[deploy]` makes a new generation.
            Some(incumbent)
                if incumbent.spec == (Spec { deploy: incumbent.spec.deploy.clone(), ..spec.clone() }) =>
            {
                (all.saturating_sub(incumbent.spec.deploy.replicas), "")
            }
            Some(incumbent) => (batches::further(incumbent, spec), batches::advice(Some(incumbent), spec)),
        };
        Further { count: usize::try_from(count).unwrap_or(usize::MAX), advice }
    }
}

/// Containers that are wanted beside those that run.
#[derive(Debug, Clone, Copy, Default)]
struct Further {
    count: usize,
    /// What to say where there is no room for them.
    advice: &'static str,
}

/// Bytes that programs can have without swapping.
fn available() -> Option<u64> {
    of_meminfo(&std::fs::read_to_string(MEMINFO).ok()?)
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_can_be_had() {
        let text = "MemTotal:        4030456 kB\nMemFree:          123 kB\nMemAvailable:     200000 kB\n";
        assert_eq!(of_meminfo(text), Some(200_000 << 10));
        assert_eq!(of_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(of_meminfo("MemAvailable: x kB\n"), None);
        assert!(available().is_some_and(|bytes| bytes > 1 << 20), "this machine has some");
    }
}
