//! What the repo wants: fetched, believed, read and resolved beside the loop; taken over within it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;

use super::gate::{Mark, Passed, Porter, Read, Waits};
use super::tags::Moved;
use super::wake::{Wake, Waker};
use crate::config::agent::{AgentConfig, HostIdentity, RepoConfig};
use crate::config::repo::RepoView;
use crate::git::{Repository, Signer, Tags};
use crate::reconcile::pins::{known_digest, pin};
use crate::reconcile::record::ServiceRecord;
use crate::reconcile::world::{Desired, DesiredService};
use crate::reconcile::{later, pending};
use crate::registry::{PullError, Registry};
use crate::report::waves::Concerns;
use crate::state::trust::Reset;
use crate::types::{
    CommitId, CommitInfo, Declared, Digest, HostName, ImageRef, PinnedImage, Policy, Reason, Refusal,
    RegistryRef, SafeUrl, ServiceName, Timestamp,
};

/// First pause before a tag that could not be looked up is tried again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// Longest pause between two look-ups of a tag.
const LONGEST_RETRY: Duration = Duration::from_secs(120);

/// A commit that was believed and read.
#[derive(Debug)]
pub struct Revision {
    /// Which.
    pub commit: CommitInfo,
    /// What it says.
    pub view: RepoView,
    /// Who signed it, where that is checked.
    pub signer: Option<Signer>,
    /// The operator's word that it is believed by.
    pub reset: Option<Reset>,
    /// Its message says that windows do not count for it.
    pub waives_window: bool,
    /// What other hosts found that tags stand for, where this one goes by it.
    pub tags: Tags,
}

/// What came of a look at the repo.
#[derive(Debug)]
pub struct Looked {
    /// What is to be in force: the head, or, where that waits for other hosts, what is in force already.
    pub revision: Option<Revision>,
    /// The head, where it waits.
    pub waits: Option<Waits>,
}

/// What is known of the repo, and what is being found out.
pub struct Source {
    repository: Arc<Repository>,
    registry: Arc<Registry>,
    runtime: Handle,
    waker: Waker,
    repo: RepoConfig,
    host: HostIdentity,
    policy: Policy,
    poll: crate::git::Poll,
    /// Where hosts write to, if not to the repo itself.
    remote: Option<SafeUrl>,
    /// Whether tags stand for what other hosts found.
    follow: bool,
    /// What these found.
    tags: Tags,
    concerns: Arc<Mutex<Concerns>>,
    /// When tags of what runs are looked at again.
    tag_times: Option<crate::git::Poll>,
    next_tags: Option<Timestamp>,
    /// The wave of this host at the commit in force; `None`: it is in none.
    pub wave: Option<usize>,
    /// The head, where it waits for other hosts.
    pub waits: Option<Waits>,
    fetching: bool,
    again: bool,
    /// Looks that have ended.
    pub looks: u64,
    /// When the next look is due by itself.
    pub next_poll: Timestamp,
    /// This agent has taken a revision over.
    pub taken_over: bool,
    /// When the repo was last reached.
    pub reached_at: Option<Timestamp>,
    /// Why the repo, or its head, is not followed.
    pub refusal: Option<Refusal>,
    /// The head is older than the repo promises.
    pub old: Option<Refusal>,
    /// The services of the commit in force, as declared: what look-ups are tried again with.
    declared: BTreeMap<ServiceName, Declared>,
    attempts: BTreeMap<ServiceName, u32>,
}

impl Source {
    /// Nothing is known yet.
    pub fn new(
        repository: Arc<Repository>,
        registry: Arc<Registry>,
        runtime: Handle,
        waker: Waker,
        config: &AgentConfig,
    ) -> Self {
        let poll = crate::git::Poll::new(&config.instance, &config.host.name, config.repo.poll);
        Self {
            repository,
            registry,
            runtime,
            waker,
            repo: config.repo.clone(),
            host: config.host.clone(),
            policy: config.policy.clone(),
            poll,
            remote: config.report.remote.clone(),
            follow: config.follow,
            tags: Tags::new(),
            concerns: Arc::default(),
            tag_times: config
                .check_tags
                .map(|every| crate::git::Poll::new(&config.instance, &config.host.name, every)),
            next_tags: None,
            wave: None,
            waits: None,
            fetching: false,
            again: false,
            looks: 0,
            // At once.
            next_poll: Timestamp::UNIX_EPOCH,
            taken_over: false,
            reached_at: None,
            refusal: None,
            old: None,
            declared: BTreeMap::new(),
            attempts: BTreeMap::new(),
        }
    }

    /// Looks at the repo, beside the loop. While a look is under way, one more is put down for after it. Gives the
    /// number of the look that will have seen everything up to now.
    ///
    /// `reset`: what an operator has it believe instead of descendants of the mark. `in_force`: what a head that waits
    /// for other hosts leaves as it is; `waives`: none waits.
    pub fn look(
        &mut self,
        high_water: Option<CommitId>,
        reset: Option<Reset>,
        in_force: Option<CommitId>,
        waives: bool,
        now: Timestamp,
    ) -> u64 {
        if self.fetching {
            self.again = true;
            return self.looks + 2;
        }
        self.fetching = true;
        self.next_poll = self.poll.after(now);
        // Should this look fail, the next one is due at the next poll.
        if let Some(waits) = &mut self.waits {
            waits.until = None;
        }
        let porter = Porter {
            repository: self.repository.clone(),
            host: self.host.clone(),
            policy: self.policy.clone(),
            remote: self.remote.clone(),
            in_force,
            first: !self.taken_over,
            follow: self.follow,
            concerns: self.concerns.clone(),
        };
        let trust = Trust { high_water, reset, repo_id: self.repo.repo_id.clone(), waives };
        let waker = self.waker.clone();
        self.runtime.spawn_blocking(move || {
            let result = read_head(&porter, &trust);
            // The loop may be gone: then nobody is left to tell.
            let _ = waker.send(Wake::Fetched(Box::new(result)));
        });
        self.looks + 1
    }

    /// A look has ended; whether another one is due at once.
    pub fn looked(&mut self) -> bool {
        self.looks += 1;
        self.fetching = false;
        std::mem::take(&mut self.again)
    }

    /// When the next look is due by itself: at the next poll, or when others have been well for long enough.
    pub fn next_look(&self) -> Timestamp {
        let over = self.waits.as_ref().and_then(|waits| waits.until);
        over.map_or(self.next_poll, |over| over.min(self.next_poll))
    }

    /// Whether a look is due by itself. A time too far ahead is one from before the clock was set back.
    pub fn is_due(&self, now: Timestamp) -> bool {
        !self.fetching && (now >= self.next_look() || self.next_poll > self.poll.latest(now))
    }

    /// Whether a look is under way.
    pub fn is_looking(&self) -> bool {
        self.fetching
    }

    /// Makes what a revision wants of this host. A service whose file says what it said before keeps its digest, so
    /// that a tag that has moved since changes nothing by itself; the others are looked up beside the loop.
    pub fn desire(
        &mut self,
        revision: Revision,
        former: Option<&Desired>,
        records: &BTreeMap<ServiceName, ServiceRecord>,
    ) -> Desired {
        self.taken_over = true;
        self.attempts.clear();
        self.declared.clear();
        self.tags = revision.tags;
        self.wave = Some(revision.view.place).filter(|place| *place < revision.view.waves.len());
        let (mut services, mut ports) = (BTreeMap::new(), BTreeMap::new());
        for (name, wanted) in revision.view.services {
            let service = match wanted {
                Err(refusal) => {
                    // What it is to have is what it was to have, as far as anybody knows.
                    let before = former.and_then(|former| former.ports.get(&name));
                    ports.extend(before.map(|before| (name.clone(), before.clone())));
                    DesiredService::Refused { refusal, retry_at: None }
                }
                Ok(spec) => {
                    let known =
                        known_digest(&spec, former.and_then(|f| f.services.get(&name)), records.get(&name));
                    self.declared.insert(name.clone(), spec.clone());
                    if spec.schedule.is_none() {
                        ports.insert(name.clone(), spec.ports.clone());
                    }
                    match known {
                        Some(digest) => DesiredService::Run(Box::new(pin(spec, digest))),
                        None => {
                            self.resolve(&revision.commit.id, &name, &spec);
                            DesiredService::Resolving
                        }
                    }
                }
            };
            services.insert(name, service);
        }
        Desired {
            commit: revision.commit,
            declared_in_repo: revision.view.declared_in_repo,
            services,
            ports,
            removed: revision.view.removed,
            window_waived: revision.waives_window,
        }
    }

    /// The contents of config files that declared services name, their tags looked up or not.
    pub fn contents(&self) -> impl Iterator<Item = Digest> {
        self.declared.values().flat_map(|spec| spec.configs.iter().map(|config| config.content.clone()))
    }

    /// Takes the end of a look-up in.
    pub fn resolved(
        &mut self,
        name: &ServiceName,
        result: Result<Digest, PullError>,
        now: Timestamp,
    ) -> Option<DesiredService> {
        let spec = self.declared.get(name)?.clone();
        Some(match result {
            Ok(digest) => {
                self.attempts.remove(name);
                DesiredService::Run(Box::new(pin(spec, digest)))
            }
            Err(error) => {
                let attempts = self.attempts.entry(name.clone()).or_insert(0);
                let pause = FIRST_RETRY.saturating_mul(1 << (*attempts).min(16)).min(LONGEST_RETRY);
                *attempts += 1;
                // A tag that is not there may be pushed a moment after its commit.
                let again = error.may_pass() || error.reason == Reason::ImageNotFound;
                let retry_at = again.then(|| later(now, pause));
                DesiredService::Refused { refusal: error.to_refusal(), retry_at }
            }
        })
    }

    /// Looks the tag of a service up, beside the loop.
    pub fn resolve(&self, commit: &CommitId, name: &ServiceName, spec: &Declared) {
        let (registry, waker) = (self.registry.clone(), self.waker.clone());
        let (commit, service, image) = (commit.clone(), name.clone(), spec.image.clone());
        let fallback = spec.fallback.clone();
        let recorded = self.recorded(&image);
        self.runtime.spawn(async move {
            let looked_for = match (&image, &recorded) {
                (ImageRef::Registry(bare), Some((digest, _))) => {
                    ImageRef::Registry(RegistryRef { digest: Some(digest.clone()), ..bare.clone() })
                }
                _ => image.clone(),
            };
            let result = registry.resolve_or(&looked_for, &fallback).await;
            // The loop may be gone: then nobody is left to tell.
            let _ = waker.send(Wake::Resolved { commit, service: service.clone(), result });
            // Only for a message: no deploy waits for this.
            if let (ImageRef::Registry(bare), Some((recorded, by))) = (&image, recorded)
                && let Some(now) = registry.top(bare).await.filter(|now| *now != recorded)
            {
                // The loop may be gone: then nobody is left to tell.
                let _ = waker.send(Wake::TagMoved(Box::new(Moved { service, image, recorded, by, now })));
            }
        });
    }

    /// Looks, when it is time, whether the tags of what runs stand for something else by now: one after the other, and only
    /// to say so.
    pub fn check_tags(&mut self, desired: &Desired, now: Timestamp) {
        let Some(times) = self.tag_times else { return };
        let due = self.next_tags.get_or_insert_with(|| times.after(now));
        if now < *due && *due <= times.latest(now) {
            return;
        }
        *due = times.after(now);
        let tagged = |service: &DesiredService| match service {
            DesiredService::Run(spec) => match &spec.image.reference {
                ImageRef::Registry(it) if it.tag.is_some() && it.digest.is_none() => Some(spec.image.clone()),
                _ => None,
            },
            _ => None,
        };
        let all: Vec<(ServiceName, PinnedImage)> =
            desired.services.iter().filter_map(|(name, it)| Some((name.clone(), tagged(it)?))).collect();
        let (registry, waker, by) = (self.registry.clone(), self.waker.clone(), self.host.name.clone());
        self.runtime.spawn(async move {
            for (service, PinnedImage { reference: image, digest: recorded }) in all {
                // A registry that does not answer is news for whoever needs it.
                let Ok(now) = registry.resolve_or(&image, &[]).await else { continue };
                if now != recorded {
                    let by = by.clone();
                    // The loop may be gone: then nobody is left to tell.
                    let _ = waker.send(Wake::TagMoved(Box::new(Moved { service, image, recorded, by, now })));
                }
            }
        });
    }

    /// When that is next.
    pub fn next_tags(&self) -> Option<Timestamp> {
        self.next_tags
    }

    /// What another host found that a reference stands for.
    fn recorded(&self, image: &ImageRef) -> Option<(Digest, HostName)> {
        match image {
            ImageRef::Registry(reference) if reference.digest.is_none() => {
                self.tags.get(&image.to_string()).cloned()
            }
            _ => None,
        }
    }

    /// The image of a service whose tag this host looked up by itself.
    pub fn looked_up(&self, name: &ServiceName) -> Option<ImageRef> {
        let image = &self.declared.get(name)?.image;
        self.recorded(image).is_none().then(|| image.clone())
    }

    /// Looks those tags up again whose time has come.
    pub fn retry(&self, desired: &mut Desired, now: Timestamp) {
        for (name, service) in &mut desired.services {
            let due = match service {
                DesiredService::Refused { retry_at: Some(at), .. } => !pending(now, *at, LONGEST_RETRY),
                _ => false,
            };
            if let (true, Some(spec)) = (due, self.declared.get(name)) {
                *service = DesiredService::Resolving;
                self.resolve(&desired.commit.id, name, spec);
            }
        }
    }

    /// Has the tags of a service (`None`: of all) that could not be looked up looked up again at once.
    pub fn hurry(&mut self, desired: &mut Desired, service: Option<&ServiceName>, now: Timestamp) {
        let chosen = |name: &ServiceName| service.is_none_or(|service| service == name);
        for (name, wanted) in desired.services.iter_mut().filter(|(name, _)| chosen(name)) {
            if let DesiredService::Refused { retry_at: Some(at), .. } = wanted {
                *at = now;
                self.attempts.remove(name);
            }
        }
    }

    /// When the first of those times comes.
    pub fn next_retry(desired: &Desired) -> Option<Timestamp> {
        let times = desired.services.values().filter_map(|service| match service {
            DesiredService::Refused { retry_at, .. } => *retry_at,
            _ => None,
        });
        times.min()
    }
}

/// What a head has to be to be believed.
struct Trust {
    /// It descends from this one.
    high_water: Option<CommitId>,
    /// Or from what an operator said.
    reset: Option<Reset>,
    /// The repo calls itself so.
    repo_id: Option<String>,
    /// An operator does not wait for other hosts.
    waives: bool,
}

/// Stages 2 to 4 of the loop.
fn read_head(porter: &Porter, trust: &Trust) -> Result<Looked, Refusal> {
    let repository = &porter.repository;
    let head = repository.fetch().map_err(|error| error.to_refusal())?;
    let reset = match &trust.reset {
        Some(Reset { commit: Some(commit), .. }) => {
            repository.leads_to(&head, commit).map_err(|error| error.to_refusal())?
        }
        Some(_) => true,
        None => false,
    };
    let reset = trust.reset.as_ref().filter(|_| reset);
    let mark = reset.map_or(trust.high_water.as_ref(), |reset| reset.commit.as_ref());
    let trusted = repository.admit(&head, mark).map_err(|error| error.to_refusal())?;
    let read = porter.read(trusted)?;
    if let Some(refusal) = &read.view.fatal {
        return Err(refusal.clone());
    }
    if let (Some(expected), found) = (trust.repo_id.as_deref(), &read.view.repo_id)
        && found.as_deref() != Some(expected)
    {
        let found = found.as_deref().unwrap_or("nothing");
        let message = format!("the repo calls itself `{found}`, and repo.repo_id expects `{expected}`");
        return Err(Refusal::new(Reason::RepoIdMismatch, message));
    }
    let passed = match trust.waives {
        true => Passed { read: Some(read), waits: None },
        false => porter.pass(read, Mark { commit: mark, acted_on: reset.is_none() })?,
    };
    let revision = passed.read.map(|read| {
        // An operator's word is about the head, which may have to wait; but what a host without anything begins with
        // meanwhile is believed by it too.
        let reset = reset.filter(|_| porter.in_force.is_none() || read.commit.id() == head.id()).cloned();
        Revision::of(porter, read, reset)
    });
    Ok(Looked { revision: revision.transpose()?, waits: passed.waits })
}

impl Revision {
    fn of(porter: &Porter, read: Read, reset: Option<Reset>) -> Result<Self, Refusal> {
        let repository = &porter.repository;
        let tags = porter.tags(&read)?;
        let commit = repository.info(&read.commit).map_err(|error| error.to_refusal())?;
        let waives_window = repository.waives_window(&read.commit).map_err(|error| error.to_refusal())?;
        let signer = read.commit.signer().cloned();
        Ok(Self { commit, view: read.view, signer, reset, waives_window, tags })
    }
}
