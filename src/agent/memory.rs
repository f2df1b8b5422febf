//! Containers that ran into their limit of memory and go on: the kernel chose another process than the first one.

use std::collections::BTreeMap;

use super::Agent;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{ContainerState, ObservedContainer, ReplicaIndex, plural};

impl Agent {
    /// Takes in how often that happened, and says where it is more often than at the last look.
    pub(super) fn note_oom_kills(&mut self, containers: &[ObservedContainer]) {
        let running = |seen: &&ObservedContainer| matches!(seen.state, ContainerState::Running { .. });
        let hit = containers.iter().filter(running).filter(|seen| seen.oom_kills > 0);
        let now: BTreeMap<_, _> = hit.map(|seen| (seen.id.clone(), seen.oom_kills)).collect();
        let former = std::mem::replace(&mut self.oom_kills, now);
        // What an agent finds at its start, the one before has told.
        if self.status.is_none() {
            return;
        }
        let mut news = Vec::new();
        for (id, count) in &self.oom_kills {
            let known = former.get(id).copied().unwrap_or(0);
            if *count > known {
                let replica = match id.index {
                    ReplicaIndex::FIRST => String::new(),
                    index => format!("replica {index} of "),
                };
                let times = usize::try_from(count - known).unwrap_or(usize::MAX);
                let text = format!(
                    "{}: the kernel killed {} in {}generation {} for want of memory; the container goes on",
                    id.service,
                    plural(times, "process", "processes"),
                    replica,
                    id.generation
                );
                let mut message = Message::of(Kind::OomKilled, &id.service, text);
                message.generation = Some(id.generation);
                news.push(message);
            }
        }
        news.into_iter().for_each(|message| self.tell(Some(message)));
    }
}
