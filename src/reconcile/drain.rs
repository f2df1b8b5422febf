//! What has lost its traffic and is on its way out, the former incumbent, a candidate that was given up though it is well,
//! a container that is too many, or a service that the repo no longer wants: until when its connections are waited for, and how long it is given to end.

use std::time::Duration;

use super::record::{Cause, Deployed, Phase, Rollout, ServiceRecord};
use super::step::{Next, Step};
use super::view::View;
use super::{jobs, joined, later, preflight, repair, replicas};
use crate::types::{CommitInfo, DrainSignal, InstanceId, Reason, ReplicaIndex, Strategy, Timestamp};

/// After the switch, before the first look at the old generation's sockets: connections whose first packet is still
/// on its way are not counted yet.
pub const GRACE: Duration = Duration::from_secs(2);

/// From one look at a retiring generation's sockets to the next.
pub const IDLE_POLL: Duration = Duration::from_millis(250);

/// This many looks in a row without a connection, and it is idle.
pub const IDLE_POLLS: u32 = 2;

/// A generation, or a container of one, that has had no new connections for a while.
#[derive(Debug, Clone, Copy)]
pub struct Drain<'a> {
    of: &'a Deployed,
    since: Timestamp,
    limit: Duration,
    is_early: bool,
}

impl<'a> Drain<'a> {
    fn new(of: &'a Deployed, since: Timestamp, limit: Duration) -> Self {
        Self { of, since, limit, is_early: of.spec.deploy.drain_signal == DrainSignal::Early }
    }

    /// That of the former incumbent.
    pub fn former(record: &'a ServiceRecord) -> Option<Self> {
        let retiring = record.retiring.as_ref()?;
        // What was just deployed says how long: the incumbent. Who goes back by hand does not wait for it.
        let says = record.incumbent.as_ref().filter(|_| !goes_back(record));
        let limit = says.map_or(Duration::ZERO, |incumbent| incumbent.spec.deploy.drain);
        Some(Self::new(&retiring.old, retiring.since, limit))
    }

    /// That of what serves, once the repo no longer wants it. It is told to end late, whatever its `drain_signal`: it may be
    /// wanted back meanwhile.
    pub fn unwanted(record: &'a ServiceRecord) -> Option<Self> {
        let of = record.incumbent.as_ref()?;
        let late = Self::new(of, record.leaving_since?, of.spec.deploy.drain);
        Some(Self { is_early: false, ..late })
    }

    /// That of a container which the incumbent has too much.
    pub fn too_many(record: &'a ServiceRecord, index: ReplicaIndex) -> Option<Self> {
        let incumbent = record.incumbent.as_ref()?;
        let since = incumbent.replicas.get(&index)?.leaving_since?;
        let newest = record.rollout.as_ref().map_or(incumbent, |rollout| &rollout.to);
        Some(Self::new(incumbent, since, newest.spec.deploy.drain))
    }

    /// That of a candidate which was given up, is well, and had new connections until they went back, or until somebody took
    /// its rules away: connections outlive those. A sick one goes at once, and so does one that has to make room for the
    /// incumbent.
    pub fn given_up(record: &'a ServiceRecord) -> Option<Self> {
        let rollout = record.rollout.as_ref().filter(|rollout| rollout.phase == Phase::Abandoning)?;
        let of = &rollout.to;
        let stays = of.spec.strategy() == Strategy::BlueGreen && !is_sick(rollout);
        let had_them = rollout.switched_at.or(rollout.canary_since).map(|_| rollout.phase_since);
        let since = rollout.returned_at.or(had_them)?;
        Some(Self::new(of, since, of.spec.deploy.drain)).filter(|_| stays)
    }

    /// Those of whole generations; what all else hangs on comes first.
    pub fn all(record: &'a ServiceRecord) -> impl Iterator<Item = Self> {
        [Self::unwanted(record), Self::former(record), Self::given_up(record)].into_iter().flatten()
    }

    /// Which generation it is, or which one it is a container of.
    pub fn of(&self) -> &'a Deployed {
        self.of
    }

    /// Since when it has had no new connections.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// When old connections have had their time.
    pub fn over(&self) -> Timestamp {
        later(self.since, self.limit)
    }

    /// Whether it is told to end at once, and ends its connections by itself. Its own spec rules: it is its own program
    /// that has to know how.
    pub fn is_early(&self) -> bool {
        self.is_early
    }

    /// From the stop signal to SIGKILL.
    pub fn patience(&self, now: Timestamp) -> Duration {
        let grace = self.of.spec.stop_grace_period;
        match self.is_early() {
            // Of its connections it takes care itself: it has all of the drain for that.
            true => {
                grace.saturating_add(Duration::try_from(self.over().duration_since(now)).unwrap_or_default())
            }
            false => grace,
        }
    }

    /// Whether these containers may go: none runs, their connections have ended, or their time is over. Else when to look
    /// again.
    pub(super) fn look(
        &self,
        view: &View<'_>,
        containers: impl Iterator<Item = InstanceId>,
    ) -> Result<(), Timestamp> {
        let running: Vec<_> = containers.filter(|id| view.observed.runs(id)).collect();
        let is_idle = |id| view.observed.idle_polls.get(id).copied().unwrap_or(0) >= IDLE_POLLS;
        let grace = later(self.since, GRACE.min(self.limit));
        let ready = view.now >= grace && (self.is_early() || running.iter().all(is_idle));
        if running.is_empty() || view.now >= self.over() || ready {
            return Ok(());
        }
        Err(if view.now < grace { grace } else { later(view.now, IDLE_POLL) }.min(self.over()))
    }
}

/// Whether an operator has it go back to the version before.
fn goes_back(record: &ServiceRecord) -> bool {
    record.rollout.as_ref().is_some_and(|rollout| rollout.cause == Cause::Rollback)
}

/// Whether a candidate is given up for what ails it.
fn is_sick(rollout: &Rollout) -> bool {
    match rollout.trouble.as_ref().map(|trouble| trouble.reason) {
        Some(Reason::Unhealthy | Reason::Exited | Reason::OutOfMemory | Reason::ErrorRate) => true,
        // Of several containers one without traffic was late: those that have it are well.
        Some(Reason::DeployTimeout) => !replicas::is_several(&rollout.to),
        _ => false,
    }
}

/// What is waited for before the containers of a candidate go that was given up: that its connections have ended, or its
/// `drain` is over.
pub(super) fn given_up(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let drain = Drain::given_up(record)?;
    let look = drain.look(view, drain.of.instances(view.name)).err()?;
    // What serves meanwhile is looked after, and gets the containers back that it gave up: a drain may last for hours.
    let serves = match repair::next(view, record) {
        next @ Some(Next::Do(_)) => return next,
        waiting => waiting,
    };
    let grows = record.incumbent.as_ref().is_some_and(|incumbent| preflight::can_come_back(view, incumbent));
    match replicas::scaling(view, record) {
        Some(next @ Next::Do(Step::DropReplica(..))) => return Some(next),
        Some(next @ Next::Do(Step::Scale(_))) if grows => return Some(next),
        _ => {}
    }
    let why = format!("generation {} was given up and is draining", drain.of.generation);
    Some(replicas::or_sooner(Next::Wait { until: Some(look), why }, serves))
}

/// Takes in where new connections are about to be led: away from a candidate that is given up or from what serves no more, or
/// back to what is wanted again. Each time anew: as long as that does not work, they are where they were.
pub(super) fn led(record: &mut ServiceRecord, step: &Step, now: Timestamp) {
    match step {
        Step::Route(_) => record.leaving_since = None,
        Step::Withdraw => {
            // Where what serves now runs at times, until now the former one had them.
            if let Some(retiring) = &mut record.retiring {
                retiring.since = now;
            }
        }
        _ => {}
    }
    let given_up = |rollout: &&mut Rollout| rollout.phase == Phase::Abandoning;
    if let Some(rollout) =
        record.rollout.as_mut().filter(given_up).filter(|_| !matches!(step, Step::Route(_)))
    {
        rollout.returned_at = Some(now);
    }
}

/// New connections are led nowhere any more: what serves, and is not wanted, leaves. Only once that is done: what has its
/// connections all the same stays as it is if it is wanted again.
pub(super) fn withdrawn(record: &mut ServiceRecord, now: Timestamp) {
    record.leaving_since = leads_to_incumbent(record).then_some(now);
}

/// Whether a route leads to what serves, and not to a former generation: nothing leads to what runs at times.
pub fn leads_to_incumbent(record: &ServiceRecord) -> bool {
    record.incumbent.as_ref().is_some_and(|incumbent| incumbent.spec.schedule.is_none())
}

/// What the repo no longer wants: nobody is led to it from now on, and it goes once its connections have ended, or their time
/// is over. Should a commit want it meanwhile, it is there. What is always stopped before another one starts goes at once:
/// others may wait for what it has.
///
/// A former generation has what is left of its own drain first.
pub(super) fn unwanted(view: &View<'_>, record: &ServiceRecord, commit: &CommitInfo) -> Next {
    match (leaving(view, record, commit), next(view, record)) {
        (withdraw @ Next::Do(Step::Withdraw), _) => withdraw,
        (Next::Do(_), Some(former)) | (_, Some(former @ Next::Do(_))) => former,
        (own, former) => replicas::or_sooner(own, former),
    }
}

/// What serves, and the repo no longer wants.
fn leaving(view: &View<'_>, record: &ServiceRecord, commit: &CommitInfo) -> Next {
    let remove = Next::Do(Step::Remove(commit.clone().into()));
    let drains = |it: &&Deployed| {
        let spec = &it.spec;
        spec.schedule.is_none() && spec.strategy() == Strategy::BlueGreen && !spec.deploy.drain.is_zero()
    };
    let Some(serves) = record.incumbent.as_ref().filter(drains).filter(|it| view.any_runs(it)) else {
        let former = record.retiring.is_some() && view.route().is_some();
        return if former { Next::Do(Step::Withdraw) } else { remove };
    };
    let Some(drain) = Drain::unwanted(record).filter(|_| view.route().is_none()) else {
        return Next::Do(Step::Withdraw);
    };
    match drain.look(view, serves.instances(view.name)) {
        Ok(()) => remove,
        Err(look) => {
            let why =
                format!("it is not in the repo any more, and generation {} is draining", serves.generation);
            Next::Wait { until: Some(look), why }
        }
    }
}

/// Two generations at a time are enough: where somebody goes back by hand, the former one goes first, though it may have drained
/// for hours. `step`: what else there is to do.
pub(super) fn before(view: &View<'_>, record: &ServiceRecord, rollout: &Rollout, step: Next) -> Next {
    // Where rules could not be written it may have new connections still.
    let former = record.retiring.as_ref().map(|retiring| retiring.old.generation);
    let is_led_to = view.route().is_some_and(|route| Some(route.generation) == former);
    if rollout.cause != Cause::Rollback || rollout.phase > Phase::Starting || is_led_to {
        return step;
    }
    let starts =
        |step: &Step| step.starts(view.name).is_some_and(|id| id.generation == rollout.to.generation);
    match (step, next(view, record)) {
        (_, Some(retire @ Next::Do(_))) => retire,
        // Others that share its network have not left it.
        (Next::Do(step), Some(wait)) if starts(&step) => wait,
        (step, _) => step,
    }
}

/// The former incumbent goes once its connections have ended, or `drain` is over.
pub(super) fn next(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let drain = Drain::former(record)?;
    let generation = drain.of.generation;
    // A run of a scheduled service is not cut short for the next version, and keeps nobody waiting.
    if jobs::busy(record, generation).is_some() {
        return None;
    }
    // Its network goes with it.
    let kept = later(drain.over(), joined::KEPT);
    if let Some(guest) = joined::guest(view, generation).filter(|_| view.now < kept) {
        let why = format!("generation {generation} is kept for {guest}, which shares its network");
        return Some(Next::Wait { until: Some(kept), why });
    }
    Some(match drain.look(view, drain.of.instances(view.name)) {
        Ok(()) => Next::Do(Step::Retire(generation)),
        Err(look) => Next::Wait { until: Some(look), why: format!("generation {generation} is draining") },
    })
}
