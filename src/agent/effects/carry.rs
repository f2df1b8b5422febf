//! Doing what takes long. Nothing is decided here, and no state of the loop is touched.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Change, Effect, Hands};
use crate::engine::{ContainerRequest, EngineError};
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::registry::Progress;
use crate::types::{InstanceId, PinnedImage, Reason, plural};

/// How long the kernel may take to deliver what a container wrote before it ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Does it, and says what came of it. `cut` is set when nothing hangs on it any more.
pub(super) fn carry_out(
    hands: &Hands,
    step: &Step,
    effect: Effect,
    progress: &Mutex<Progress>,
    cut: watch::Receiver<bool>,
) -> Outcome {
    let result = match effect {
        Effect::Pull(image, fallback) => return pull(hands, &image, &fallback, progress, cut),
        Effect::Start(request, ports) => match hands.port_conflict(&ports) {
            Some(refusal) => return Outcome::Failed(refusal),
            None => start(hands, step, &request),
        },
        Effect::Amend(change) => return amend(hands, step, &change),
        Effect::Job(request) => start(hands, step, &request),
        Effect::Stop(ids, grace) => at_once(&ids, |id| hands.engine.stop(id, grace)),
        Effect::Remove(instances) => remove_all(hands, &instances),
        Effect::RemoveService(service, instances) => {
            hands.traffic.withdraw(&service).and_then(|()| remove_all(hands, &instances))
        }
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(_) if *cut.borrow() => Outcome::Dropped,
        Err(error) => Outcome::Failed(error.to_refusal()),
    }
}

fn pull(
    hands: &Hands,
    image: &PinnedImage,
    fallback: &[String],
    progress: &Mutex<Progress>,
    mut cut: watch::Receiver<bool>,
) -> Outcome {
    let begun = Instant::now();
    let tell = |now| *progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let pulled = hands.runtime.block_on(async {
        tokio::select! {
            pulled = hands.registry.pull_or(image, fallback, &tell) => Some(pulled),
            Ok(_) = cut.wait_for(|cut| *cut) => None,
        }
    });
    let Some(pulled) = pulled else { return Outcome::Dropped };
    match pulled {
        Ok(pulled) => Outcome::Pulled(crate::reconcile::record::PullCost {
            bytes: pulled.bytes,
            seconds: begun.elapsed().as_secs_f64(),
        }),
        Err(error) if error.may_pass() => Outcome::Retry(error.to_refusal()),
        Err(error) => Outcome::Failed(error.to_refusal()),
    }
}

/// Changes a container and the rules that lead to it in place.
fn amend(hands: &Hands, step: &Step, change: &Change) -> Outcome {
    if let Some(refusal) = hands.port_conflict(&change.new) {
        return Outcome::Retry(refusal);
    }
    crate::agent::execute::failpoint(step, "effect");
    let limits = change.ids.iter().try_for_each(|id| hands.engine.update(id, &change.spec));
    crate::agent::execute::failpoint(step, "limited");
    let Err(error) = limits.and_then(|()| hands.traffic.take_over(&change.route, &change.givers)) else {
        return Outcome::Done;
    };
    match error.reason {
        // Another service may still publish a port: its own change of this commit is under way. The others are the host's.
        Reason::PortInUse | Reason::Network | Reason::DiskSpace | Reason::StorageIo => {
            Outcome::Retry(error.to_refusal())
        }
        _ => {
            // What it was until a new generation takes its place.
            for id in &change.ids {
                if let Err(error) = hands.engine.update(id, &change.former) {
                    tracing::warn!("{id}: {}", error.to_refusal());
                }
            }
            Outcome::Failed(error.to_refusal())
        }
    }
}

fn start(hands: &Hands, step: &Step, request: &ContainerRequest) -> Result<(), EngineError> {
    crate::agent::execute::failpoint(step, "effect");
    hands.engine.start(request)
}

fn remove_all(hands: &Hands, instances: &[(InstanceId, Duration)]) -> Result<(), EngineError> {
    at_once(instances, |(id, grace)| {
        // Only for clients that use a port again: nothing waits for what cannot be done.
        if let Err(error) = hands.traffic.turn_away(id) {
            tracing::warn!("{id}: {}", error.to_refusal());
        }
        let stopped = hands.engine.stop(id, *grace);
        if stopped.is_ok() {
            end_connections(hands, id);
        }
        stopped.and_then(|()| hands.engine.remove(id))
    })
}

/// For each, several beside each other: the time that one takes to end is not waited for as often as there are containers.
/// One that cannot be stopped or removed does not keep the others.
fn at_once<T: Sync>(
    all: &[T],
    work: impl Fn(&T) -> Result<(), EngineError> + Sync,
) -> Result<(), EngineError> {
    if let [one] = all {
        return work(one);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let begin = |one| std::thread::Builder::new().spawn_scoped(scope, move || work(one)).map_err(|_| one);
        let begun: Vec<_> = all.iter().map(begin).collect();
        let mut so_far = Ok(());
        for begun in begun {
            let panicked =
                |_| Err(EngineError::plain(Reason::Internal, "ending a container: its thread panicked"));
            let result = match begun {
                Ok(thread) => thread.join().unwrap_or_else(panicked),
                // No thread is to be had.
                Err(one) => work(one),
            };
            so_far = so_far.and(result);
        }
        so_far
    })
}

/// What a container wrote last reaches its clients before its network goes, and whoever is still connected hears that
/// it is over. Only a courtesy: nothing waits for what cannot be done.
fn end_connections(hands: &Hands, id: &InstanceId) {
    match hands.traffic.end_connections(id, LAST_WORDS) {
        Ok(0) => {}
        Ok(reset) => tracing::info!("{id}: {} reset", plural(reset, "connection was", "connections were")),
        Err(error) => tracing::warn!("{id}: {}", error.to_refusal()),
    }
}
