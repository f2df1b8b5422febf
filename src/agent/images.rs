//! What operators ask of the store. All of it runs beside the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::Agent;
use super::control::{Answer, Answers, Reply};
use super::wake::Wake;
use crate::reconcile::uses::uses;
use crate::reconcile::world::{Desired, DesiredService};
use crate::registry::{
    Depth, Known, LayerReport, LayerState, PullError, PullResult, Remedy, Repaired, Wanted,
};
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{ContainerState, Digest, ImageRef, Reason, Refusal, ServiceName, plural};

/// Layers that came within this time before the newest are looked at after a crash: a disk may take that long to make
/// durable what it promised.
const RECENT: Duration = Duration::from_secs(3600);

/// The look after a crash may take as long as it takes; only this long without a path that was looked at, it has hung.
/// What follows it has as much time until the agent is ready.
const LONGEST_SILENCE: Duration = Duration::from_secs(90);

/// How many agents may end during that look before it is left out: services that never come back would be worse.
const MOST_LOOKS: u32 = 3;

/// The images that the repo wants on this host: pinned where their tags are known.
pub fn wanted(desired: Option<&Desired>) -> Vec<Wanted> {
    let mut seen = BTreeSet::new();
    let services = desired.into_iter().flat_map(|desired| &desired.services);
    let mut wanted = Vec::new();
    for (name, service) in services {
        match service {
            DesiredService::Run(spec) => {
                if seen.insert((spec.image.reference.clone(), spec.image.digest.clone())) {
                    wanted.push(Wanted::Pinned(spec.image.clone(), spec.fallback.clone()));
                }
            }
            DesiredService::Resolving => {
                let what = format!("the tag of {name} is being looked up: try again");
                wanted
                    .push(Wanted::Refused(name.to_string(), Refusal::new(Reason::RegistryUnreachable, what)));
            }
            DesiredService::Refused { refusal, .. } => {
                wanted.push(Wanted::Refused(name.to_string(), refusal.clone()));
            }
        }
    }
    wanted
}

impl Agent {
    /// Pulls beside the loop, for as long as the asker listens.
    pub(super) fn pull_ahead(&self, images: Vec<ImageRef>, all: bool, answer: Answers) {
        let mut list: Vec<Wanted> = images.into_iter().map(Wanted::Named).collect();
        if all {
            list.extend(wanted(self.desired.as_ref()));
        }
        let registry = self.hands.registry.clone();
        self.hands.runtime.spawn(async move {
            let gone = Notify::new();
            let tell = |progress| {
                let told = serde_json::to_value(progress).unwrap_or_default();
                if answer.send(Answer::Progress(told)).is_err() {
                    gone.notify_one();
                }
            };
            let results = tokio::select! {
                results = registry.pull_all(list, &tell) => results,
                () = gone.notified() => return,
            };
            // The asker may be gone: its own business.
            let _ = answer.send(Answer::Reply(reply(&results)));
        });
    }
}

fn reply(results: &[PullResult]) -> Reply {
    let ok = results.iter().all(|result| result.ok);
    Reply { code: u8::from(!ok), message: String::new(), body: serde_json::to_value(results).ok() }
}

/// What came of repairs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Mended {
    /// Each.
    pub repaired: Vec<Repaired>,
    /// The first process of each service's containers.
    pub pids: BTreeMap<ServiceName, Vec<i32>>,
}

impl Agent {
    fn pids(&self) -> BTreeMap<ServiceName, Vec<i32>> {
        let mut pids: BTreeMap<ServiceName, Vec<i32>> = BTreeMap::new();
        for (id, state) in &self.seen.containers {
            if let ContainerState::Running { pid, .. } = state {
                pids.entry(id.service.clone()).or_default().push(*pid);
            }
        }
        pids
    }

    /// Has damaged layers again beside the loop, whether the asker listens or not: half a repair helps nobody.
    pub(super) fn repair(&self, layers: Vec<Digest>, images: Vec<Digest>, answer: Answers) {
        let uses = uses(self.desired.as_ref(), &self.journal.records);
        let known: Vec<Known> = uses.into_iter().map(Known::from).collect();
        let (registry, waker) = (self.hands.registry.clone(), self.waker.clone());
        let pids = self.pids();
        self.hands.runtime.spawn(async move {
            let tell = |progress| {
                let told = serde_json::to_value(progress).unwrap_or_default();
                // The asker may be gone: its own business.
                let _ = answer.send(Answer::Progress(told));
            };
            let results = registry.repair(layers, images, &known, &tell).await;
            let ok = results.iter().all(Repaired::is_well);
            let body = serde_json::to_value(Mended { repaired: results, pids }).ok();
            let _ = answer.send(Answer::Reply(Reply { code: u8::from(!ok), message: String::new(), body }));
            // The loop may be gone: the next one looks anyway.
            let _ = waker.send(Wake::Look("the store was repaired"));
        });
    }
}

impl Agent {
    /// After a power cut: what was pulled last is looked at before anything runs on it. What is not whole is rebuilt from
    /// what is kept of it, else taken out of use, and pulled again like anything that is not here.
    pub(super) fn look_at_store(&mut self) {
        match self.state.begin_look() {
            Ok(tries) if tries > MOST_LOOKS => {
                return tracing::error!(
                    "{MOST_LOOKS} agents ended while they looked at what was pulled before the last power cut; it is \
                     used as it is: `gitopsd fsck --full` looks at all of it"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{}", error.to_refusal()),
        }
        let layers = match self.store.newest_layers(RECENT) {
            Ok(layers) => layers,
            Err(error) => return tracing::warn!("{error}"),
        };
        tracing::info!(
            "the last boot did not end in order: looking at {}",
            plural(layers.len(), "layer", "layers")
        );
        for layer in layers {
            let report = self.check_at_start(&layer);
            crate::failpoint::hit("look::after_layer");
            let report = match report {
                // What has no listing was not pulled by this version, and is older than the crash.
                Ok(Some(report)) if report.state == LayerState::Damaged => report,
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!("{error}");
                    continue;
                }
            };
            let first = report.findings.first().map(|found| format!("{} {}", found.path, found.what));
            let what = format!(
                "layer {} is damaged after a crash of the host: {}",
                layer.short(),
                first.unwrap_or_default()
            );
            let refusal = Refusal::new(Reason::StorageIo, what.clone());
            self.tell(Some(Message::new(Kind::StoreDamaged, what).because(&refusal)));
            // At once: should this agent be ended during the rest of the look, nothing runs on it all the same.
            for Repaired { digest, remedy, .. } in self.repair_at_start(vec![layer]) {
                if remedy == Remedy::Rebuilt {
                    tracing::info!("layer {} is rebuilt from what this host keeps of it", digest.short());
                }
            }
        }
    }

    /// Nothing waits for the network before the agent is ready.
    fn repair_at_start(&self, layers: Vec<Digest>) -> Vec<Repaired> {
        let repair = async {
            let mut repair = std::pin::pin!(self.hands.registry.repair_alone(layers));
            // Whatever it is at: a sync may take long, too.
            let mut ticks = tokio::time::interval(LONGEST_SILENCE / 10);
            loop {
                tokio::select! {
                    repaired = &mut repair => return repaired,
                    _ = ticks.tick() => self.notifier.not_yet(LONGEST_SILENCE),
                }
            }
        };
        self.hands.runtime.block_on(repair)
    }

    /// A quick look at a layer before the agent is ready: the service manager hears that it goes on.
    fn check_at_start(&self, layer: &Digest) -> Result<Option<LayerReport>, PullError> {
        self.notifier.not_yet(LONGEST_SILENCE);
        let mut told = Instant::now();
        self.store.check_layer(layer, Depth::Quick, &mut |_| {
            if told.elapsed() >= LONGEST_SILENCE / 10 {
                self.notifier.not_yet(LONGEST_SILENCE);
                told = Instant::now();
            }
        })
    }
}
