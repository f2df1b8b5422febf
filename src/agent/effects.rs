//! Long effects: carried out beside the loop, one at a time for each service.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::wake::{Wake, Waker};
use crate::engine::{ContainerRequest, Engine, EngineError, Traffic};
use crate::reconcile::later;
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::reconcile::world::Busy;
use crate::registry::{Progress, Registry};
use crate::types::{
    ContainerState, InstanceId, PinnedImage, PortMapping, Reason, Refusal, ServiceName, Timestamp,
};

/// First pause after an effect that did not work and that no record remembers; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The same step so often within [`REPEATS_WITHIN`] is no progress: something does not stay as it was made.
const REPEATS: u32 = 6;
const REPEATS_WITHIN: Duration = Duration::from_secs(10);

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

/// A long effect, with all that it needs: nothing is looked up while it runs.
#[derive(Debug)]
pub enum Effect {
    /// Make an image local; the archives are for when its registry cannot serve.
    Pull(PinnedImage, Vec<String>),
    /// Start a container; the ports are those that must be free on the host first.
    Start(Box<ContainerRequest>, Vec<PortMapping>),
    /// Run a one-shot to its end.
    Prepare(Box<ContainerRequest>, Duration),
    /// Stop a container.
    Stop(InstanceId, Duration),
    /// Stop containers and take them away.
    Remove(Vec<(InstanceId, Duration)>),
    /// Take the route away, then stop containers and take them away.
    RemoveService(ServiceName, Vec<(InstanceId, Duration)>),
}

/// What is under way, and what has to wait after it did not work.
pub struct Effects {
    hands: Hands,
    waker: Waker,
    busy: BTreeMap<ServiceName, Busy>,
    pulling: BTreeMap<ServiceName, Busy>,
    /// How far each pull is.
    progress: BTreeMap<ServiceName, Arc<Mutex<Progress>>>,
    pauses: BTreeMap<ServiceName, (u32, Timestamp, Refusal)>,
    /// The last step of each service, how often in a row, and since when.
    repeats: BTreeMap<ServiceName, (Step, u32, Timestamp)>,
}

impl Effects {
    /// Nothing under way.
    pub fn new(hands: Hands, waker: Waker) -> Self {
        Self {
            hands,
            waker,
            busy: BTreeMap::new(),
            pulling: BTreeMap::new(),
            progress: BTreeMap::new(),
            pauses: BTreeMap::new(),
            repeats: BTreeMap::new(),
        }
    }

    /// What the core is told is under way: also a pause after something did not work.
    pub fn busy(&self, now: Timestamp) -> BTreeMap<ServiceName, Busy> {
        let pauses = self.pauses.iter().filter(|(_, (_, until, _))| now < *until);
        let pauses = pauses.map(|(service, (_, until, refusal))| {
            (service.clone(), Busy { what: format!("{refusal}; tried again soon"), since: *until })
        });
        self.busy.clone().into_iter().chain(pauses).collect()
    }

    /// The images that are on their way.
    pub fn pulling(&self) -> BTreeMap<ServiceName, Busy> {
        self.pulling.clone()
    }

    /// How far the pull of a service's image is.
    pub fn progress(&self, service: &ServiceName) -> Option<Progress> {
        let progress = self.progress.get(service)?;
        Some(*progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the next pause ends.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.pauses.values().map(|(_, until, _)| *until).filter(|until| *until > now).min()
    }

    /// Why the last repair of a service did not work.
    pub fn trouble(&self, service: &ServiceName) -> Option<&Refusal> {
        self.pauses.get(service).map(|(_, _, refusal)| refusal)
    }

    /// An effect that no rollout remembers did not work: it waits before it is tried again. Gives whether that is
    /// news.
    pub fn pause(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        let former = self.pauses.get(service);
        let news = former.is_none_or(|(_, _, former)| former != refusal);
        let attempts = former.map_or(0, |(attempts, ..)| *attempts);
        let pause = FIRST_PAUSE.saturating_mul(1 << attempts.min(16)).min(LONGEST_PAUSE);
        self.pauses.insert(service.clone(), (attempts.saturating_add(1), later(now, pause), refusal.clone()));
        news
    }

    /// An effect did not work, and the record says when it is tried again: only why is kept, and nothing else of the
    /// service waits for it. Gives whether that is news.
    pub fn note(&mut self, service: &ServiceName, refusal: &Refusal, now: Timestamp) -> bool {
        let news = self.trouble(service) != Some(refusal);
        self.pauses.insert(service.clone(), (0, now, refusal.clone()));
        news
    }

    /// Notes that a step is about to be taken. `Some`: it was taken again and again, and has to wait.
    pub fn repeated(&mut self, service: &ServiceName, step: &Step, now: Timestamp) -> Option<Refusal> {
        let (count, since) = match self.repeats.get(service) {
            Some((last, count, since)) if last == step && now < later(*since, REPEATS_WITHIN) => {
                (count + 1, *since)
            }
            _ => (1, now),
        };
        self.repeats.insert(service.clone(), (step.clone(), count, since));
        (count > REPEATS).then(|| {
            Refusal::new(
                Reason::Internal,
                format!("`{step}` was done {REPEATS} times in a row and does not last"),
            )
        })
    }

    /// An effect worked.
    pub fn clear(&mut self, service: &ServiceName) {
        self.pauses.remove(service);
    }

    /// Begins an effect; its end is a wake.
    pub fn begin(&mut self, service: &ServiceName, step: Step, effect: Effect, now: Timestamp) {
        let slot = if matches!(effect, Effect::Pull(..)) { &mut self.pulling } else { &mut self.busy };
        slot.insert(service.clone(), Busy { what: describe(&step, &effect), since: now });
        let (hands, waker, service) = (self.hands.clone(), self.waker.clone(), service.clone());
        let progress = Arc::<Mutex<Progress>>::default();
        if matches!(effect, Effect::Pull(..)) {
            self.progress.insert(service.clone(), progress.clone());
        }
        self.hands.runtime.spawn_blocking(move || {
            let outcome = carry_out(&hands, &step, effect, &progress);
            super::execute::failpoint(&step, "after");
            // The loop may be gone: the next agent finds what was done.
            let _ = waker.send(Wake::Effect { service, step, outcome });
        });
    }

    /// An effect has ended.
    pub fn ended(&mut self, service: &ServiceName, step: &Step) {
        if matches!(step, Step::Pull(_)) {
            self.pulling.remove(service);
            self.progress.remove(service);
        } else {
            self.busy.remove(service);
        }
    }
}

fn describe(step: &Step, effect: &Effect) -> String {
    match effect {
        Effect::Pull(image, _) => format!("pulling {}", image.reference),
        Effect::Start(request, _) => format!("starting generation {}", request.id.generation),
        Effect::Prepare(request, _) => format!("running deploy.pre of generation {}", request.id.generation),
        Effect::Stop(id, _) => format!("stopping generation {}", id.generation),
        Effect::Remove(_) => format!("taking containers away ({})", step.word()),
        Effect::RemoveService(..) => "taking it off this host".to_owned(),
    }
}

fn carry_out(hands: &Hands, step: &Step, effect: Effect, progress: &Mutex<Progress>) -> Outcome {
    let result = match effect {
        Effect::Pull(image, fallback) => return pull(hands, &image, &fallback, progress),
        Effect::Start(request, ports) => match conflict(hands, &ports) {
            Some(refusal) => return Outcome::Failed(refusal),
            None => start(hands, step, &request),
        },
        Effect::Prepare(request, timeout) => match prepare(hands, &request, timeout) {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => return Outcome::Failed(refusal),
            Err(error) => Err(error),
        },
        Effect::Stop(id, grace) => hands.engine.stop(&id, grace),
        Effect::Remove(instances) => remove_all(hands, &instances),
        Effect::RemoveService(service, instances) => {
            hands.traffic.withdraw(&service).and_then(|()| remove_all(hands, &instances))
        }
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(error.to_refusal()),
    }
}

fn pull(hands: &Hands, image: &PinnedImage, fallback: &[String], progress: &Mutex<Progress>) -> Outcome {
    let begun = Instant::now();
    let tell = |now| *progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
    match hands.runtime.block_on(hands.registry.pull_or(image, fallback, &tell)) {
        Ok(pulled) => Outcome::Pulled(crate::reconcile::record::PullCost {
            bytes: pulled.bytes,
            seconds: begun.elapsed().as_secs_f64(),
        }),
        Err(error) if error.may_pass() => Outcome::Retry(error.to_refusal()),
        Err(error) => Outcome::Failed(error.to_refusal()),
    }
}

fn conflict(hands: &Hands, ports: &[PortMapping]) -> Option<Refusal> {
    match hands.traffic.port_conflict(ports) {
        Ok(None) => None,
        Ok(Some(who)) => Some(Refusal::new(Reason::PortInUse, who)),
        // Not knowing is no reason to refuse: the rule works beside a listener, which just gets nothing any more.
        Err(error) => {
            tracing::warn!("cannot tell whether a port is taken: {}", error.to_refusal());
            None
        }
    }
}

fn start(hands: &Hands, step: &Step, request: &ContainerRequest) -> Result<(), EngineError> {
    super::execute::failpoint(step, "effect");
    hands.engine.start(request)
}

/// Runs a one-shot to its end. `Ok(Some(…))`: it ran and did not succeed.
fn prepare(
    hands: &Hands,
    request: &ContainerRequest,
    timeout: Duration,
) -> Result<Option<Refusal>, EngineError> {
    let id = &request.id;
    // Whatever a crash left of the last attempt.
    hands.engine.remove(id)?;
    hands.engine.start(request)?;
    let begun = Instant::now();
    let ended = loop {
        let state = hands.engine.observe()?.into_iter().find(|seen| seen.id == *id).map(|seen| seen.state);
        match state {
            Some(ContainerState::Running { .. }) if begun.elapsed() >= timeout => break None,
            Some(ContainerState::Running { .. }) => std::thread::sleep(Duration::from_millis(50)),
            Some(ContainerState::Exited(exit)) => break Some(exit),
            Some(ContainerState::Remains) | None => {
                break Some(crate::types::Exit {
                    code: None,
                    signal: None,
                    oom_killed: false,
                    at: Timestamp::UNIX_EPOCH,
                });
            }
        }
    };
    let last = hands.engine.log_tail(id, 1).pop().unwrap_or_default();
    hands.engine.remove(id)?;
    let how = match ended {
        Some(exit) if exit.code == Some(0) => return Ok(None),
        Some(exit) => exit.to_string(),
        None => format!("did not end within {}", crate::types::format_duration(timeout)),
    };
    let command = request.one_shot.as_deref().unwrap_or_default().join(" ");
    Ok(Some(Refusal::new(Reason::PreFailed, format!("deploy.pre `{command}` {how}: {last}"))))
}

fn remove_all(hands: &Hands, instances: &[(InstanceId, Duration)]) -> Result<(), EngineError> {
    // One that cannot be removed must not keep the others.
    let mut trouble = None;
    for (id, grace) in instances {
        let result = hands.engine.stop(id, *grace).and_then(|()| hands.engine.remove(id));
        if let Err(error) = result {
            trouble.get_or_insert(error);
        }
    }
    trouble.map_or(Ok(()), Err)
}
