//! Where new connections are led, as it is carried out: the route, who gives ports up for it, and what becomes of the clients of
//! a version that is no good.

use std::collections::BTreeSet;

use super::{Agent, clock};
use crate::engine::EngineError;
use crate::reconcile::drain::Drain;
use crate::reconcile::handover;
use crate::reconcile::record::{Deployed, ServiceRecord};
use crate::reconcile::view::route_for;
use crate::types::{Generation, Route, ServiceName};

impl Agent {
    /// Leads new connections along a route, and ports with it that others keep for it.
    pub(super) fn lead(&mut self, route: &Route) -> Result<(), EngineError> {
        let givers = self.givers(route);
        self.hands.traffic.take_over(route, &givers)?;
        // The other steps of this round know of it.
        self.seen.routes.insert(route.service.clone(), route.clone());
        for giver in &givers {
            if let Some(theirs) = self.seen.routes.get_mut(giver) {
                theirs.ports.retain(|port| !route.ports.iter().any(|taken| taken.clashes(port)));
            }
        }
        Ok(())
    }

    /// The services that lose a port to a route.
    pub(super) fn givers(&self, route: &Route) -> BTreeSet<ServiceName> {
        let records = &self.journal.records;
        handover::givers(self.desired.as_ref(), &self.seen, records, &self.config.policy, route)
    }

    /// The route of a generation, over those of its containers that are well as they were last seen.
    pub(super) fn route(&self, service: &ServiceName, record: &ServiceRecord, deployed: &Deployed) -> Route {
        route_for(service, record, deployed, self.desired.as_ref(), &self.seen, clock::now())
    }

    /// Ends the connections of a candidate that is given up for what ails it: their clients come back at once, and reach the
    /// generation that works. What is well, and goes for another reason, may end what it has begun before it is removed.
    pub(super) fn end_of_sick(&self, service: &ServiceName, generation: Generation) {
        let Ok((record, deployed)) = self.live(service, generation) else { return };
        // Of a network that it shares the connections are not its own.
        if deployed.spec.network_mode().is_shared() || Drain::given_up(record).is_some() {
            return;
        }
        for id in self.instances(service, generation) {
            if let Err(error) = self.hands.traffic.reset_connections(&id) {
                tracing::warn!("{service}: {}", error.to_refusal());
            }
        }
    }

    /// Of a service's containers that have ended: who has asked one of them, and got no answer, asks again, and is to be led by
    /// the rules as they are now.
    pub(super) fn forget_dead(&self, service: &ServiceName) {
        for id in self.seen.instances_of(service).filter(|id| !self.hands.engine.runs(id)) {
            self.hands.traffic.forget_unanswered(id);
        }
    }
}
