//! Doing what takes long. Nothing is decided here, and no state of the loop is touched.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Change, Effect, Hands};
use crate::engine::{ContainerRequest, EngineError};
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::registry::Progress;
use crate::types::{ContainerState, InstanceId, PinnedImage, Reason, Refusal, Timestamp};

/// From one look at a one-shot to the next.
const LOOK: Duration = Duration::from_millis(50);

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
        Effect::Prepare(request, timeout) => match prepare(hands, &request, timeout, &cut) {
            Ok(outcome) => return outcome,
            Err(error) => Err(error),
        },
        Effect::Amend(change) => return amend(hands, step, &change),
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
    let limits = hands.engine.update(&change.id, &change.spec);
    crate::agent::execute::failpoint(step, "limited");
    let Err(error) = limits.and_then(|()| hands.traffic.point(&change.route)) else { return Outcome::Done };
    match error.reason {
        // Another service may still publish a port: its own change of this commit is under way. The others are the host's.
        Reason::PortInUse | Reason::Network | Reason::DiskSpace | Reason::StorageIo => {
            Outcome::Retry(error.to_refusal())
        }
        _ => {
            // What it was until a new generation takes its place.
            if let Err(error) = hands.engine.update(&change.id, &change.former) {
                tracing::warn!("{}: {}", change.id, error.to_refusal());
            }
            Outcome::Failed(error.to_refusal())
        }
    }
}

fn start(hands: &Hands, step: &Step, request: &ContainerRequest) -> Result<(), EngineError> {
    crate::agent::execute::failpoint(step, "effect");
    hands.engine.start(request)
}

/// Runs a one-shot to its end.
fn prepare(
    hands: &Hands,
    request: &ContainerRequest,
    timeout: Duration,
    cut: &watch::Receiver<bool>,
) -> Result<Outcome, EngineError> {
    let id = &request.id;
    // Whatever a crash left of the last attempt.
    hands.engine.remove(id)?;
    hands.engine.start(request)?;
    let begun = Instant::now();
    let ended = loop {
        if *cut.borrow() {
            hands.engine.remove(id)?;
            return Ok(Outcome::Dropped);
        }
        let state = hands.engine.observe()?.into_iter().find(|seen| seen.id == *id).map(|seen| seen.state);
        match state {
            Some(ContainerState::Running { .. }) if begun.elapsed() >= timeout => break None,
            Some(ContainerState::Running { .. }) => std::thread::sleep(LOOK),
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
        Some(exit) if exit.code == Some(0) => return Ok(Outcome::Done),
        Some(exit) => exit.to_string(),
        None => format!("did not end within {}", crate::types::format_duration(timeout)),
    };
    let command = request.one_shot.as_deref().unwrap_or_default().join(" ");
    Ok(Outcome::Failed(Refusal::new(Reason::PreFailed, format!("deploy.pre `{command}` {how}: {last}"))))
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
