//! Keeps networks as the records say: who is a part of which, and the names that running containers find.

use super::Agent;
use crate::reconcile::networks;
use crate::reconcile::world::Observed;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{ContainerState, Hosts, ServiceName};

impl Agent {
    /// Lets those reach each other who share a network, and nobody else. What cannot be done is told once, and tried
    /// again at the next look.
    pub(super) fn connect(&mut self) {
        let members = networks::membership(&self.journal.records);
        // What a record that cannot be read is about stays as it is.
        let keep = !self.journal.frozen.is_empty();
        let refusal = self.hands.traffic.connect(&members, keep).err().map(|error| error.to_refusal());
        if let Some(refusal) = refusal.as_ref().filter(|refusal| self.unconnected.as_ref() != Some(refusal)) {
            let message = Message::new(Kind::EffectFailed, refusal.message.clone()).because(refusal);
            self.tell(Some(message));
        }
        self.unconnected = refusal;
    }

    /// Tells running containers of names that came, went or lead elsewhere, and of the host's resolvers when it gets some: at
    /// a boot containers are there before its network is.
    pub(super) fn renew_names(&mut self, seen: &Observed) {
        // Of a service whose record cannot be read the address is not known: its name is not taken away.
        if !self.journal.frozen.is_empty() {
            return;
        }
        let resolvers = self.hands.engine.resolvers();
        if std::mem::replace(&mut self.resolvers, resolvers.clone()) != resolvers {
            self.named.clear();
        }
        let mut told = std::mem::take(&mut self.named);
        for (id, state) in &seen.containers {
            // What another version started is left alone.
            if seen.frozen.contains_key(&id.service) {
                continue;
            }
            let record = self.journal.records.get(&id.service);
            let deployed = record.and_then(|record| record.live(id.generation));
            let (Some(deployed), ContainerState::Running { .. }) = (deployed, state) else { continue };
            let hosts = networks::hosts(&self.journal.records, &id.service, &deployed.spec);
            let known = told.remove(id);
            if known.as_ref() != Some(&hosts)
                && let Err(error) = self.hands.engine.write_hosts(id, &hosts)
            {
                // It still works by address, and the next look tries again.
                tracing::warn!("{}", error.to_refusal());
                continue;
            }
            self.named.insert(id.clone(), hosts);
        }
    }

    /// The names that a generation of a service is started with.
    pub(super) fn hosts(&self, service: &ServiceName, spec: &crate::reconcile::record::Spec) -> Hosts {
        networks::hosts(&self.journal.records, service, spec)
    }
}
