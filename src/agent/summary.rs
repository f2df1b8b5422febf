//! The status: for `gitopsd status`, for `systemctl status`, and in a file for other tools.

use std::time::Duration;

use super::{Agent, clock};
use crate::git::Signer;
use crate::reconcile::canary;
use crate::reconcile::health::{Verdict, judge};
use crate::reconcile::later;
use crate::reconcile::record::{Deployed, Phase, Rollout, ServiceRecord};
use crate::reconcile::rolling::deadline;
use crate::reconcile::schedule::next_run;
use crate::reconcile::step::{Next, Planned, Situation};
use crate::report::status::{
    AgentState, AgentStatus, PullStatus, ReplicaStatus, RepoStatus, RevisionStatus, RolloutStatus,
    ScheduleStatus, ServiceState, ServiceStatus, Status, WebhookStatus,
};
use crate::types::{
    CommitInfo, ContainerState, Exit, InstanceId, Job, Reason, ServiceName, Share, Timestamp,
};

/// The repo counts as lost for too long after this many polls, and at least [`STALE_AT_LEAST`].
const STALE_POLLS: u32 = 10;
const STALE_AT_LEAST: Duration = Duration::from_secs(300);

impl Agent {
    /// Makes the status known, on every exit of a round. Written only where it differs.
    pub(super) fn publish(&mut self) {
        let status = self.summary(clock::now());
        self.notifier.status(&one_line(&status));
        let differs = self.status.as_ref().is_none_or(|former| {
            // That the repo was reached once more is no change.
            let mut former = former.clone();
            former.repo.reached_at = status.repo.reached_at;
            if let (Some(former), Some(now)) = (&mut former.revision, &status.revision) {
                former.fetched_at = now.fetched_at;
            }
            former != status
        });
        if differs && let Err(error) = write_file(&self.config.run_dir, &status) {
            tracing::warn!("cannot write the status file: {error}");
        }
        self.status = Some(status);
    }

    /// The status for somebody who asks: with what changes all the time.
    pub(super) fn status_now(&self) -> Option<Status> {
        let mut status = self.status.clone()?;
        for service in &mut status.services {
            let progress = self.effects.progress(&service.name).filter(|progress| progress.total > 0);
            if let (Some(rollout), Some(progress)) = (&mut service.rollout, progress) {
                rollout.progress = Some(PullStatus { bytes: progress.bytes, total: progress.total });
            }
        }
        Some(status)
    }

    fn summary(&self, now: Timestamp) -> Status {
        let services: Vec<ServiceStatus> = self
            .plan
            .services
            .iter()
            .filter_map(|(name, planned)| self.service(name, planned, now))
            .collect();
        let waits = self.source.waits.as_ref();
        let refusal = self
            .source
            .refusal
            .as_ref()
            .or(self.blind.as_ref())
            .or(waits.map(|waits| &waits.refusal))
            .or(self.source.old.as_ref());
        Status {
            host: self.config.host.name.clone(),
            agent: AgentStatus {
                version: crate::state::version::version(),
                pid: std::process::id(),
                state: self.agent_state(&services, now),
                reason: self.fault.as_ref().map(|fault| fault.reason),
                message: self.fault.as_ref().map(|fault| fault.message.clone()),
            },
            repo: RepoStatus {
                url: self.config.repo.url.to_string(),
                branch: self.config.repo.branch.clone(),
                reached_at: self.source.reached_at,
                reason: refusal.map(|refusal| refusal.reason),
                message: refusal.map(|refusal| refusal.message.clone()),
                webhook: self.watches.webhook.as_ref().map(|webhook| WebhookStatus {
                    listen: webhook.address(),
                    deliveries: webhook.deliveries(),
                    refused: webhook.refused(),
                }),
            },
            revision: self.desired.as_ref().map(|desired| RevisionStatus {
                commit: desired.commit.id.clone(),
                subject: desired.commit.subject.clone(),
                author: desired.commit.author.clone(),
                committed_at: desired.commit.committed_at,
                fetched_at: self.source.reached_at,
                verified: self.signer_of(&desired.commit).is_some(),
                signer: self.signer_of(&desired.commit).map(|signer| signer.principal.clone()),
            }),
            services,
            outbox: self.outbox.waiting,
        }
    }

    fn signer_of(&self, commit: &CommitInfo) -> Option<&Signer> {
        self.signer.as_ref().filter(|(signed, _)| *signed == commit.id).map(|(_, signer)| signer)
    }

    fn agent_state(&self, services: &[ServiceStatus], now: Timestamp) -> AgentState {
        let patience = (self.config.repo.poll * STALE_POLLS).max(STALE_AT_LEAST);
        let lost =
            self.source.refusal.as_ref().is_some_and(|refusal| refusal.reason == Reason::GitUnreachable);
        let long = self.source.reached_at.is_none_or(|at| now >= later(at, patience));
        if self.source.looks == 0 {
            AgentState::Starting
        } else if (lost && long) || (self.source.old.is_some() && self.in_sync()) {
            AgentState::Stale
        } else if self.in_sync() {
            AgentState::InSync
        } else if self.source.refusal.is_some()
            || self.blind.is_some()
            || self.fault.is_some()
            || self.source.waits.as_ref().is_some_and(|waits| waits.stopped)
            || (self.at_rest() && self.source.waits.is_none())
            || services.iter().any(|service| service.state == ServiceState::Failed)
        {
            AgentState::Degraded
        } else {
            AgentState::Progressing
        }
    }

    /// `None` for a name that is neither wanted nor remembered.
    fn service(&self, name: &ServiceName, planned: &Planned, now: Timestamp) -> Option<ServiceStatus> {
        let record = self.journal.records.get(name).filter(|record| !record.is_absent());
        let wanted = self.desired.as_ref().is_some_and(|desired| desired.services.contains_key(name));
        if record.is_none() && !wanted && !self.journal.frozen.contains_key(name) {
            return None;
        }
        // While a candidate is baking, it is what serves.
        let serving = record.and_then(|record| self.serving(name, record));
        let refusal = match &planned.next {
            Next::Held { refusal, until } => Some((refusal, *until)),
            _ => self.effects.trouble(name).map(|refusal| (refusal, None)),
        };
        let said = refusal.or_else(|| self.ailing.get(name).map(|refusal| (refusal, None)));
        let doing = match &planned.next {
            Next::Wait { why, .. } => Some(why.clone()),
            Next::Do(step) => Some(step.to_string()),
            Next::Settled | Next::Held { .. } => None,
        };
        let rollout = record.and_then(|record| record.rollout.as_ref());
        let runs = |run: &crate::reconcile::jobs::JobRun| run.begun.is_some() && run.ended.is_none();
        let job = record.and_then(|record| record.jobs.run.as_ref()).is_some_and(runs);
        let running = job || serving.is_some_and(|deployed| self.any_runs(name, deployed));
        Some(ServiceStatus {
            name: name.clone(),
            state: state(planned, refusal.is_some(), running, rollout.is_some()),
            image: serving.map(|deployed| deployed.spec.image.reference.clone()),
            digest: serving.map(|deployed| deployed.spec.image.digest.clone()),
            generation: serving.map(|deployed| deployed.generation),
            color: serving.map(|deployed| deployed.generation.color().to_string()),
            commit: serving.map(|deployed| deployed.commit.id.clone()),
            author: serving.map(|deployed| deployed.commit.author.clone()),
            since: serving.map(|deployed| deployed.since),
            container: serving.map(|deployed| InstanceId::new(name, deployed.generation).to_string()),
            ip: record.map(|record| record.service_address),
            ports: serving.map_or_else(Vec::new, |d| d.spec.ports.iter().map(ToString::to_string).collect()),
            health: serving.map(|deployed| self.health(name, deployed, now).to_owned()),
            restarts: serving.map_or(0, |deployed| deployed.restarts),
            restarted_at: serving.and_then(|deployed| deployed.restarted_at),
            last_exit: serving.and_then(|deployed| self.last_exit(name, deployed)),
            oom_kills: serving.map_or(0, |deployed| self.oom_kills_of(name, deployed)),
            replicas: serving.map_or_else(Vec::new, |deployed| self.replicas(name, deployed, now)),
            schedule: record.and_then(|record| self.schedule(record, now)),
            rollout: rollout.map(|rollout| RolloutStatus {
                from: record
                    .and_then(|record| record.incumbent.as_ref())
                    .map(|incumbent| incumbent.generation),
                to: rollout.to.generation,
                phase: rollout.phase.word().to_owned(),
                image: rollout.to.spec.image.reference.clone(),
                started_at: rollout.started_at,
                times_out_at: self.times_out_at(name, rollout),
                down_since: rollout.yielded_at.filter(|_| rollout.switched_at.is_none()),
                share: self.share(name, rollout),
                switches_at: canary::progress(rollout).and_then(|(_, at)| at),
                progress: None,
            }),
            drain: record.and_then(|_| self.drain(name)),
            doing,
            reason: said.map(|(refusal, _)| refusal.reason),
            message: said.map(|(refusal, _)| refusal.message.clone()),
            retry_at: refusal.and_then(|(_, until)| until),
        })
    }

    /// The part of new connections that a candidate has or is about to have, beside the old generation.
    fn share(&self, name: &ServiceName, rollout: &Rollout) -> Option<Share> {
        let declared = canary::progress(rollout).map(|(canary, _)| canary.share);
        let batches = self.seen.routes.get(name).filter(|_| rollout.phase == Phase::Batches);
        declared.or_else(|| Some(batches?.canary.as_ref()?.share))
    }

    /// The generation that new connections reach, as the kernel says; the incumbent where it says nothing.
    fn serving<'a>(&self, name: &ServiceName, record: &'a ServiceRecord) -> Option<&'a Deployed> {
        let routed = self.seen.routes.get(name).and_then(|route| record.live(route.generation));
        routed.or(record.incumbent.as_ref())
    }

    /// Whether any container of a generation runs.
    pub(super) fn any_runs(&self, name: &ServiceName, deployed: &Deployed) -> bool {
        deployed.instances(name).any(|id| self.seen.runs(&id))
    }

    /// The containers of a generation that has several.
    fn replicas(&self, name: &ServiceName, deployed: &Deployed, now: Timestamp) -> Vec<ReplicaStatus> {
        if deployed.replicas.is_empty() {
            return Vec::new();
        }
        let route = self.seen.routes.get(name).filter(|route| route.generation == deployed.generation);
        let status = |index| {
            let id = InstanceId::replica(name, deployed.generation, index);
            let replica = deployed.replicas.get(&index);
            let ip = deployed.address_of(index)?;
            Some(ReplicaStatus {
                index,
                health: self.health_of(&id, deployed, now).to_owned(),
                container: id.to_string(),
                ip,
                serves: route.is_some_and(|route| route.lanes().any(|lane| lane == ip)),
                restarts: replica.map_or(deployed.restarts, |replica| replica.restarts),
                leaving_since: replica.and_then(|replica| replica.leaving_since),
                connections: self.connections(&id),
            })
        };
        deployed.indices().filter_map(status).collect()
    }

    /// How its container ended last: as it is seen now, or as it is remembered.
    fn last_exit(&self, name: &ServiceName, deployed: &Deployed) -> Option<Exit> {
        match self.seen.containers.get(&InstanceId::new(name, deployed.generation)) {
            Some(ContainerState::Exited(exit)) => Some(exit.clone()),
            _ => deployed.last_exit.clone(),
        }
    }

    fn oom_kills_of(&self, name: &ServiceName, deployed: &Deployed) -> u64 {
        let of = |id: InstanceId| self.oom_kills.get(&id).copied();
        deployed.instances(name).filter_map(of).sum()
    }

    fn times_out_at(&self, name: &ServiceName, rollout: &Rollout) -> Option<Timestamp> {
        match rollout.phase {
            Phase::Preparing => self.job_deadline(name, rollout),
            Phase::Proving => {
                rollout.candidate_started_at.map(|_| deadline(name, rollout, &self.seen, clock::now()))
            }
            _ => None,
        }
    }

    fn schedule(&self, record: &ServiceRecord, now: Timestamp) -> Option<ScheduleStatus> {
        let incumbent = record.incumbent.as_ref()?;
        let schedule = incumbent.spec.schedule.as_ref()?;
        let run = record.jobs.run.as_ref();
        Some(ScheduleStatus {
            calendar: schedule.calendar.to_string(),
            next_run: next_run(record, incumbent, &self.seen.zones, now),
            running_since: run.filter(|run| run.ended.is_none()).and_then(|run| run.begun),
            last_run: run.filter(|run| run.ended.is_some()).and_then(|run| run.begun),
            last_exit: run.and_then(|run| run.ended.clone()),
        })
    }

    fn job_deadline(&self, name: &ServiceName, rollout: &Rollout) -> Option<Timestamp> {
        let id = InstanceId::of_job(name, rollout.to.generation, Job::Pre);
        let begun = self.journal.records.get(name).and_then(|record| record.jobs.of(&id)?.begun)?;
        let started = match self.seen.containers.get(&id) {
            Some(ContainerState::Running { started_at, .. }) => *started_at,
            _ => begun,
        };
        Some(later(started, rollout.to.spec.deploy.timeout))
    }

    /// Of several containers the worst that runs; one that does not run is on its way.
    fn health(&self, name: &ServiceName, deployed: &Deployed, now: Timestamp) -> &'static str {
        let all: Vec<&'static str> =
            deployed.instances(name).map(|id| self.health_of(&id, deployed, now)).collect();
        let is = |word: &'static str| all.contains(&word);
        match *all.as_slice() {
            [one] => one,
            _ if is("unhealthy") => "unhealthy",
            _ if all.iter().all(|known| *known == "stopped") => "stopped",
            _ if is("starting") || is("stopped") => "starting",
            _ => "healthy",
        }
    }

    fn health_of(&self, id: &InstanceId, deployed: &Deployed, now: Timestamp) -> &'static str {
        let Some(ContainerState::Running { started_at, .. }) = self.seen.containers.get(id) else {
            return "stopped";
        };
        let (started_at, history) = (*started_at, self.seen.health.get(id));
        match judge(&self.seen.check(&deployed.spec), history, started_at, now) {
            Verdict::Healthy => "healthy",
            Verdict::Unhealthy(_) => "unhealthy",
            Verdict::Undecided { .. } if history.is_some_and(|history| history.ever_passed) => "healthy",
            Verdict::Undecided { .. } => "starting",
        }
    }
}

fn state(planned: &Planned, refused: bool, running: bool, rolling: bool) -> ServiceState {
    match planned.situation {
        Situation::OnHold => ServiceState::Held,
        _ if rolling => ServiceState::Deploying,
        _ if refused => ServiceState::Failed,
        _ if running => ServiceState::Running,
        _ => ServiceState::Stopped,
    }
}

/// For `systemctl status`.
fn one_line(status: &Status) -> String {
    let mut parts = vec![status.agent.state.word().to_owned()];
    if let Some(revision) = &status.revision {
        parts.push(format!("at {}", revision.commit.short()));
    }
    let total = status.services.len();
    let running = status.services.iter().filter(|service| service.state == ServiceState::Running).count();
    parts.push(format!("{running} of {total} services as wanted"));
    if let Some(message) = &status.agent.message {
        parts.push(format!("state cannot be written: {message}"));
    }
    if let Some(message) = &status.repo.message {
        parts.push(message.clone());
    }
    for service in &status.services {
        match (&service.rollout, &service.message) {
            (_, Some(message)) => parts.push(format!("{}: {message}", service.name)),
            (Some(rollout), None) => {
                let share = rollout.share.map_or_else(String::new, |share| format!(" {share}"));
                parts.push(format!("{}: {}{share} {}", service.name, rollout.phase, rollout.image))
            }
            (None, None) => {}
        }
    }
    parts.join("; ").replace(['\n', '\r'], " ")
}

/// A view for other tools, in the run directory: whole, but not durable.
fn write_file(run_dir: &std::path::Path, status: &Status) -> std::io::Result<()> {
    let temporary = run_dir.join("status.json.tmp");
    std::fs::write(&temporary, serde_json::to_vec_pretty(status)?)?;
    std::fs::rename(&temporary, run_dir.join("status.json"))
}
