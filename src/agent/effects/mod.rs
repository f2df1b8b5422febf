//! Long effects: carried out beside the loop, one at a time for each service, and beside that a pull and an end of
//! containers.

mod carry;
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::wake::{Wake, Waker};
use crate::engine::{ContainerRequest, Engine, Traffic};
use crate::reconcile::record::{Phase, ServiceRecord, Spec};
use crate::reconcile::step::Step;
use crate::reconcile::world::{Busy, Ending};
use crate::registry::{Progress, Registry};
use crate::types::{
    InstanceId, PinnedImage, PortMapping, Reason, Refusal, ReplicaIndex, Route, ServiceName, Timestamp,
};
use pace::Pace;

/// How often a start that is cut short is looked at.
const UNDO: Duration = Duration::from_millis(50);

/// What carries effects out.
#[derive(Clone)]
pub struct Hands {
    /// Runs containers.
    pub engine: Arc<dyn Engine>,
    /// Points traffic.
    pub traffic: Arc<dyn Traffic>,
    /// Pulls images.
    pub registry: Arc<Registry>,
    /// For what is async.
    pub runtime: Handle,
}

impl Hands {
    /// Why ports of the host cannot be published, as somebody has them who is not of this instance.
    pub fn port_conflict(&self, ports: &[PortMapping]) -> Option<Refusal> {
        match self.traffic.port_conflict(ports) {
            Ok(None) => None,
            Ok(Some(who)) => Some(Refusal::new(Reason::PortInUse, who)),
            // Not knowing is no reason to refuse: the rule works beside a listener, which just gets nothing any more.
            Err(error) => {
                tracing::warn!("cannot tell whether a port is taken: {}", error.to_refusal());
                None
            }
        }
    }
}

/// A long effect, with all that it needs: nothing is looked up while it runs.
#[derive(Debug)]
pub enum Effect {
    /// Make an image local; the archives are for when its registry cannot serve.
    Pull(PinnedImage, Vec<String>),
    /// Start a container; the ports are those that must be free on the host first.
    Start(Box<ContainerRequest>, Vec<PortMapping>),
    /// Change a container, and the rules that lead to it, in place.
    Amend(Box<Change>),
    /// Start a one-shot.
    Job(Box<ContainerRequest>),
    /// Stop containers.
    Stop(Vec<InstanceId>, Duration),
    /// Stop containers and take them away.
    Remove(Vec<(InstanceId, Duration)>),
    /// Take the route away, then stop containers and take them away.
    RemoveService(ServiceName, Vec<(InstanceId, Duration)>),
}

/// A change in place of a generation.
#[derive(Debug)]
pub struct Change {
    /// Its containers.
    pub ids: Vec<InstanceId>,
    /// What it is.
    pub former: Spec,
    /// What it is to be.
    pub spec: Spec,
    /// The rules that lead to it.
    pub route: Route,
    /// The services that lose a port to it.
    pub givers: BTreeSet<ServiceName>,
    /// Ports that have to be free on the host first.
    pub new: Vec<PortMapping>,
}

/// An effect under way.
struct Running {
    busy: Busy,
    step: Step,
    /// The containers that it takes away.
    ids: BTreeSet<InstanceId>,
    /// What it starts, and how long that has to end.
    start: Option<(InstanceId, Duration)>,
    /// Ends it where that is possible: a pull, or a start.
    cut: watch::Sender<bool>,
    /// How far a pull is.
    progress: Arc<Mutex<Progress>>,
}

/// What is under way, and what has to wait after it did not work.
pub struct Effects {
    hands: Hands,
    waker: Waker,
    running: BTreeMap<ServiceName, Running>,
    /// Pulls: beside everything else of their service.
    pulling: BTreeMap<ServiceName, Running>,
    /// Containers on their way out: beside what cannot wait for them.
    ending: BTreeMap<ServiceName, Running>,
    pace: Pace,
}

impl Effects {
    /// Nothing under way.
    pub fn new(hands: Hands, waker: Waker) -> Self {
        let nothing = BTreeMap::new;
        Self {
            hands,
            waker,
            running: nothing(),
            pulling: nothing(),
            ending: nothing(),
            pace: Pace::default(),
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        [&self.running, &self.pulling, &self.ending].iter().all(|slot| slot.is_empty())
    }

    /// What the core is told is under way.
    pub fn busy(&self) -> BTreeMap<ServiceName, Busy> {
        self.running.iter().map(|(name, running)| (name.clone(), running.busy.clone())).collect()
    }

    /// The images that are on their way.
    pub fn pulling(&self) -> BTreeMap<ServiceName, Busy> {
        self.pulling.iter().map(|(name, running)| (name.clone(), running.busy.clone())).collect()
    }

    /// The containers that are on their way out.
    pub fn ending(&self) -> BTreeMap<ServiceName, Ending> {
        let ending = |running: &Running| Ending { what: running.busy.what.clone(), ids: running.ids.clone() };
        self.ending.iter().map(|(name, running)| (name.clone(), ending(running))).collect()
    }

    /// The pauses after what did not work.
    pub fn pauses(&self, now: Timestamp) -> BTreeMap<ServiceName, Busy> {
        self.pace.pauses(now)
    }

    /// How far the pull of a service's image is.
    pub fn progress(&self, service: &ServiceName) -> Option<Progress> {
        let pull = self.pulling.get(service)?;
        Some(*pull.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the next pause ends.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.pace.next_end(now)
    }

    /// Why the last repair of a service did not work.
    pub fn trouble(&self, service: &ServiceName) -> Option<&Refusal> {
        self.pace.trouble(service)
    }

    /// See [`Pace::pause`].
    pub fn pause(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        self.pace.pause(service, refusal, now)
    }

    /// See [`Pace::note`].
    pub fn note(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        self.pace.note(service, refusal, now)
    }

    /// See [`Pace::hurry`].
    pub fn hurry(&mut self, service: Option<&ServiceName>, now: Timestamp) {
        self.pace.hurry(service, now);
    }

    /// See [`Pace::repeated`].
    pub fn repeated(&mut self, service: &ServiceName, step: &Step, now: Timestamp) -> Option<Refusal> {
        self.pace.repeated(service, step, now)
    }

    /// An effect worked.
    pub fn clear(&mut self, service: &ServiceName) {
        self.pace.clear(service);
    }

    /// Begins an effect; its end is a wake. `yields`: see [`Busy::yields`].
    pub fn begin(&mut self, service: &ServiceName, step: Step, effect: Effect, yields: bool, now: Timestamp) {
        let (cut, cutting) = watch::channel(false);
        let progress = Arc::<Mutex<Progress>>::default();
        let running = Running {
            busy: Busy { what: describe(&step, &effect), since: now, yields },
            ids: match &effect {
                Effect::Remove(containers) => containers.iter().map(|(id, _)| id.clone()).collect(),
                _ => BTreeSet::new(),
            },
            start: match &effect {
                Effect::Start(request, _) => Some((request.id.clone(), request.spec.stop_grace_period)),
                _ => None,
            },
            step: step.clone(),
            cut,
            progress: progress.clone(),
        };
        self.slot(&step).insert(service.clone(), running);
        let (hands, waker, service) = (self.hands.clone(), self.waker.clone(), service.clone());
        self.hands.runtime.spawn_blocking(move || {
            let outcome = carry::carry_out(&hands, &step, effect, &progress, cutting);
            super::execute::failpoint(&step, "after");
            // The loop may be gone: the next agent finds what was done.
            let _ = waker.send(Wake::Effect { service, step, outcome });
        });
    }

    /// An effect has ended.
    pub fn ended(&mut self, service: &ServiceName, step: &Step) {
        self.slot(step).remove(service);
    }

    fn slot(&mut self, step: &Step) -> &mut BTreeMap<ServiceName, Running> {
        match step {
            Step::Pull(_) => &mut self.pulling,
            step if step.is_ending() => &mut self.ending,
            _ => &mut self.running,
        }
    }

    /// Has containers that are on their way out end within `grace` from now: somebody waits for it.
    pub fn hurry_ending(&self, service: &ServiceName, grace: Duration) {
        let ids = self.ending.get(service).map(|running| running.ids.clone()).unwrap_or_default();
        for id in ids {
            let engine = self.hands.engine.clone();
            self.hands.runtime.spawn_blocking(move || {
                if let Err(error) = engine.stop(&id, grace) {
                    tracing::warn!("{id}: {}", error.to_refusal());
                }
            });
        }
    }

    /// Cuts short what nothing in the service's record hangs on any more: the pull, or the start, of a candidate that is given
    /// up. A start takes long where it fills a volume.
    pub fn cut_short(&self, service: &ServiceName, record: Option<&ServiceRecord>) {
        let rollout = record.and_then(|record| record.rollout.as_ref());
        let candidate = rollout.filter(|rollout| rollout.phase != Phase::Abandoning);
        let candidate = candidate.map(|rollout| rollout.to.generation);
        let incumbent = record.and_then(|record| record.incumbent.as_ref()).map(|it| it.generation);
        for running in self.running.get(service).into_iter().chain(self.pulling.get(service)) {
            let needed = match running.step {
                Step::Pull(generation) | Step::Start(generation) => {
                    [incumbent, candidate].contains(&Some(generation))
                }
                _ => true,
            };
            if !needed
                && !running.cut.send_replace(true)
                && let Some(start) = &running.start
            {
                self.undo(start.clone(), running.cut.clone());
            }
        }
    }

    /// Takes away what is being started, until the start has come to its end: it may not have come to its shim yet.
    fn undo(&self, (id, grace): (InstanceId, Duration), cut: watch::Sender<bool>) {
        let engine = self.hands.engine.clone();
        self.hands.runtime.spawn_blocking(move || {
            while !cut.is_closed() {
                // What is left of it is discarded in any case, and why it cannot be is told then.
                let _ = engine.stop(&id, grace).and_then(|()| engine.remove(&id));
                std::thread::sleep(UNDO);
            }
        });
    }
}

fn describe(step: &Step, effect: &Effect) -> String {
    match effect {
        Effect::Pull(image, _) => format!("pulling {}", image.reference),
        Effect::Start(request, _) => match request.id.index {
            ReplicaIndex::FIRST => format!("starting generation {}", request.id.generation),
            index => format!("starting replica {index} of generation {}", request.id.generation),
        },
        Effect::Amend(change) => format!("changing generation {} in place", change.route.generation),
        Effect::Job(request) => {
            let job = request.id.job.map_or_else(String::new, |job| job.to_string());
            format!("starting {job} of generation {}", request.id.generation)
        }
        Effect::Stop(ids, _) => {
            let generation =
                ids.first().map_or_else(String::new, |id| format!(" generation {}", id.generation));
            format!("stopping{generation}")
        }
        Effect::Remove(_) => format!("taking containers away ({})", step.word()),
        Effect::RemoveService(..) => "taking it off this host".to_owned(),
    }
}
