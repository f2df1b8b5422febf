//! What a step does to a service's record: before the effect ([`intend`]) and after it ([`conclude`]). Pure, so that
//! the agent and the model host of the property tests remember alike.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::canary;
use super::changes::listed;
use super::receipt::{ReceiptResult, Side, Transition};
use super::record::{
    Amending, Cause, Deployed, Down, Failure, Phase, PullCost, Removing, Retiring, Rollout, ServiceRecord,
};
use super::restarts::{count, ended, told, told_replica, yielded};
use super::rolling::after_pull;
use super::step::{Amendment, Step};
use super::{batches, drain, irreversible, jobs, later, replicas};
use crate::types::{Exit, Generation, Job, Reason, Refusal, ServiceName, Timestamp};

/// First pause before an effect that may be tried again; doubled for each further one.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// Longest pause between two tries of an effect of the same candidate.
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// What came of an effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is done: a pull, and this is what it cost.
    Pulled(PullCost),
    /// It did not work now, and may later.
    Retry(Refusal),
    /// It will not work.
    Failed(Refusal),
    /// It was cut short, as nothing hung on it any more.
    Dropped,
}

/// What is remembered after a step, and the receipt that it earns.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The record; `None` = there was none. One that [`ServiceRecord::is_absent`] is kept for its numbers.
    pub record: Option<ServiceRecord>,
    /// To be durable before the record is.
    pub receipt: Option<Transition>,
}

/// The addresses a new generation is given.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The service's own, where it has none yet.
    pub service: Ipv4Addr,
    /// The generation's.
    pub generation: Ipv4Addr,
    /// The generation of another service whose network, and address, it shares.
    pub joined: Option<Generation>,
}

/// The record that has to be durable before the effect of `step` begins. Equal to `record` for most steps, because
/// the record names the generation and the phase already.
/// `end`: how the container that the step is about has ended, where it has.
pub fn intend(record: &ServiceRecord, step: &Step, end: Option<&Exit>, now: Timestamp) -> ServiceRecord {
    let mut record = record.clone();
    jobs::intend(&mut record, step, now);
    match step {
        Step::Canary(_) => enter(&mut record, Phase::Canary, now),
        Step::Batch { stay, .. } => {
            enter(&mut record, Phase::Batches, now);
            batches::begins(&mut record, *stay);
        }
        Step::Widen { to, .. } => batches::widened(&mut record, *to),
        Step::Switch(_) => enter(&mut record, Phase::Switching, now),
        Step::Start(generation) | Step::Pull(generation) => {
            let tells = matches!(step, Step::Start(_)) && !yielded(&record);
            match (&mut record.incumbent, &mut record.rollout) {
                (Some(incumbent), _) if incumbent.generation == *generation => {
                    count(incumbent, tells, now);
                    if matches!(step, Step::Start(_)) {
                        ended(incumbent, end);
                    }
                }
                (_, Some(rollout))
                    if rollout.to.generation == *generation && matches!(step, Step::Start(_)) =>
                {
                    rollout.candidate_started_at.get_or_insert(now);
                }
                _ => {}
            }
        }
        Step::StartReplica(generation, index) => replicas::begins(&mut record, *generation, *index, now),
        Step::DropReplica(generation, index) => replicas::ends(&mut record, *generation, *index),
        Step::Stop(generation) => {
            if let Some(rollout) = &mut record.rollout {
                rollout.yielded_at.get_or_insert(now);
            }
            if let Some(incumbent) = record.incumbent.as_mut().filter(|it| it.generation == *generation) {
                // Whatever its restart policy says: should the candidate fail, it is to run again.
                incumbent.down = incumbent.down.or(Some(Down::Wanted));
            }
        }
        Step::Fail(_) => {
            if let Some(rollout) = &mut record.rollout {
                rollout.to.last_exit = end.cloned().or_else(|| rollout.to.last_exit.take());
            }
        }
        Step::Return { .. } | Step::Withdraw | Step::Route(_) => drain::led(&mut record, step, now),
        Step::Amend(amendment) => {
            if let Some(incumbent) = record.incumbent.as_mut() {
                let since = incumbent.amending.take().filter(|it| it.commit == amendment.commit.id);
                let since = since.map_or(now, |begun| begun.since);
                incumbent.amending =
                    Some(Amending { since, commit: amendment.commit.id.clone(), refused: None });
            }
        }
        Step::Remove(commit) => {
            record.removing.get_or_insert(Removing { commit: (**commit).clone(), since: now });
        }
        _ => {}
    }
    record
}

/// A new record with a candidate under way.
pub fn begin(
    record: Option<&ServiceRecord>,
    step: &Step,
    addresses: Addresses,
    now: Timestamp,
) -> Option<ServiceRecord> {
    let Step::Begin { generation, spec, commit, cause } = step else { return None };
    let mut record = record.cloned().unwrap_or_else(|| ServiceRecord::new(addresses.service));
    record.last_generation = record.last_generation.max(*generation);
    (record.failure, record.jobs.pre, record.leaving_since) = (None, None, None);
    record.rollout = Some(Rollout {
        to: Deployed {
            generation: *generation,
            address: addresses.generation,
            spec: (**spec).clone(),
            commit: (**commit).clone(),
            since: now,
            restarts: 0,
            restarted_at: None,
            joined: addresses.joined,
            untold: None,
            last_exit: None,
            ends: 0,
            down: None,
            amending: None,
            replicas: BTreeMap::new(),
            quota: batches::first(record.incumbent.as_ref(), spec, *cause),
        },
        cause: *cause,
        phase: Phase::Pulling,
        started_at: now,
        phase_since: now,
        candidate_started_at: None,
        canary_since: None,
        switched_at: None,
        healthy_seconds: None,
        pull: PullCost::default(),
        attempts: 0,
        retry_at: None,
        trouble: None,
        culprit: None,
        yielded_at: None,
        returned_at: None,
    });
    Some(record)
}

/// The record after the effect of `step` has ended with `outcome`.
pub fn conclude(
    name: &ServiceName,
    record: &ServiceRecord,
    step: &Step,
    outcome: &Outcome,
    now: Timestamp,
) -> Applied {
    let mut record = record.clone();
    let mut receipt = None;
    if let Some(receipt) = job_ended(name, &mut record, step, outcome, now) {
        return Applied { record: Some(record), receipt };
    }
    if let Outcome::Failed(refusal) | Outcome::Retry(refusal) = outcome {
        let retry = matches!(outcome, Outcome::Retry(_));
        trouble(&mut record, step, refusal, retry, now);
        return Applied { record: Some(record), receipt: None };
    }
    if *outcome == Outcome::Dropped {
        return Applied { record: Some(record), receipt: None };
    }
    match step {
        Step::Pull(generation) => {
            batches::worked(&mut record, *generation);
            pulled(&mut record, *generation, outcome, now);
        }
        Step::Clear(generation, job) => jobs::cleared(&mut record, *generation, *job),
        Step::Start(generation) => {
            if record.rollout.as_ref().is_some_and(|rollout| rollout.to.generation == *generation) {
                enter(&mut record, Phase::Proving, now);
            } else if let Some(incumbent) = &mut record.incumbent {
                receipt = told(name, incumbent, now);
            }
        }
        Step::Report(generation) => {
            let incumbent = record.incumbent.as_mut().filter(|it| it.generation == *generation);
            receipt = incumbent.and_then(|incumbent| {
                told(name, incumbent, now).or_else(|| told_replica(name, incumbent, None, now))
            });
        }
        Step::StartReplica(generation, index) => {
            batches::worked(&mut record, *generation);
            let incumbent = record.incumbent.as_mut().filter(|it| it.generation == *generation);
            receipt = incumbent.and_then(|incumbent| told_replica(name, incumbent, Some(*index), now));
        }
        Step::Scale(generation) => batches::worked(&mut record, *generation),
        Step::DropReplica(generation, index) => replicas::dropped(&mut record, *generation, *index),
        Step::Canary(_) | Step::Batch { .. } => canary::begun(&mut record, now),
        Step::Advance(Phase::Baking) | Step::Switch(_) => switched(&mut record, now),
        Step::Advance(phase) => enter(&mut record, *phase, now),
        Step::Promote(_) => receipt = promote(name, &mut record, now),
        Step::Fail(refusal) => {
            // Who asks for the old version gets it, also after one that could not be undone.
            let asked = refusal.reason == Reason::OperatorRollback;
            if let Some(incumbent) =
                record.incumbent.as_mut().filter(|it| asked && it.down == Some(Down::Barred))
            {
                incumbent.down = Some(Down::Wanted);
            }
            if let Some(rollout) = &mut record.rollout {
                rollout.trouble = Some(refusal.clone());
            }
            enter(&mut record, Phase::Abandoning, now);
        }
        Step::Conclude => receipt = give_up(name, &mut record, now),
        Step::Retire(_) => record.retiring = None,
        Step::Amend(amendment) => receipt = amended(name, &mut record, amendment, now),
        Step::Release => record.hold = None,
        Step::Remove(_) => {
            receipt = record.removing.as_ref().map(|removing| removed(name, &record, removing, now));
            record = record.removed();
        }
        Step::Stop(generation) => {
            if let Some(incumbent) = record.incumbent.as_mut().filter(|it| it.generation == *generation) {
                // It was asked to stop, which is not the end of a row of crashes: it may be wanted back at once.
                (incumbent.restarts, incumbent.restarted_at) = (0, None);
            }
        }
        Step::Note(generation, exit) => {
            if let Some(incumbent) = record.incumbent.as_mut().filter(|it| it.generation == *generation) {
                incumbent.last_exit = Some(exit.clone());
                incumbent.down = Some(Down::Ended);
            }
        }
        Step::Begin { .. }
        | Step::Prepare(_)
        | Step::Finish(_)
        | Step::Run(_)
        | Step::Ended { .. }
        | Step::Return { .. }
        | Step::Discard(_)
        // Written down before.
        | Step::Widen { .. }
        | Step::Route(_)
        | Step::Sweep(_) => {}
        Step::Withdraw => drain::withdrawn(&mut record, now),
    }
    Applied { record: Some(record), receipt }
}

/// A one-shot has ended, or could not be started, which is the end of it too. The inner `None`: that earns no receipt.
fn job_ended(
    name: &ServiceName,
    record: &mut ServiceRecord,
    step: &Step,
    outcome: &Outcome,
    now: Timestamp,
) -> Option<Option<Transition>> {
    let refusal = match outcome {
        Outcome::Failed(refusal) | Outcome::Retry(refusal) => Some(refusal),
        Outcome::Done | Outcome::Pulled(_) => None,
        Outcome::Dropped => return None,
    };
    let unseen = Exit { code: None, signal: None, oom_killed: false, at: now };
    let (job, generation, exit) = match (step, refusal) {
        (Step::Ended { job, generation, exit, .. }, _) => (*job, *generation, (**exit).clone()),
        (Step::Prepare(generation), Some(_)) => (Job::Pre, *generation, unseen),
        (Step::Finish(generation), Some(_)) => (Job::Post, *generation, unseen),
        (Step::Run(generation), Some(_)) => (Job::Run, *generation, unseen),
        _ => return None,
    };
    let not_started = |refusal: &Refusal| match (step, job) {
        (Step::Finish(_), _) => jobs::not_started(Reason::PostFailed, job, generation, refusal),
        (Step::Run(_), _) => jobs::not_started(Reason::RunFailed, job, generation, refusal),
        _ => refusal.clone(),
    };
    let refusal = refusal.map(not_started);
    let receipt = jobs::ended(name, record, (job, generation), &exit, refusal.as_ref(), now);
    if let (Job::Pre, Some(refusal)) = (job, &refusal) {
        trouble(record, &Step::Prepare(generation), refusal, false, now);
    }
    Some(receipt)
}

fn enter(record: &mut ServiceRecord, phase: Phase, now: Timestamp) {
    if phase == Phase::Abandoning {
        batches::given_up(record);
    }
    if let Some(rollout) = &mut record.rollout {
        // What was given up stays so: a long effect may end after an operator gave its candidate up.
        if rollout.phase == Phase::Abandoning {
            return;
        }
        if rollout.phase != phase {
            rollout.phase = phase;
            rollout.phase_since = now;
            // What was waited for in the former phase is over; what it is given up for is not.
            rollout.retry_at = None;
            if phase != Phase::Abandoning {
                rollout.trouble = None;
            }
        }
        if phase == Phase::Starting {
            rollout.candidate_started_at = None;
            rollout.canary_since = None;
        }
    }
}

fn pulled(record: &mut ServiceRecord, generation: Generation, outcome: &Outcome, now: Timestamp) {
    if let Some(incumbent) = record.incumbent.as_mut().filter(|it| it.generation == generation) {
        // The tries were about the image: its start is a new row.
        (incumbent.restarts, incumbent.restarted_at) = (0, None);
    }
    // A pull for the incumbent says nothing about a candidate that was begun meanwhile.
    let Some(rollout) = record.rollout.as_mut().filter(|rollout| rollout.to.generation == generation) else {
        return;
    };
    if let Outcome::Pulled(cost) = outcome {
        rollout.pull.bytes = rollout.pull.bytes.saturating_add(cost.bytes);
        rollout.pull.seconds += cost.seconds;
    }
    let next = record
        .rollout
        .as_ref()
        .filter(|rollout| rollout.phase == Phase::Pulling)
        .map(|rollout| after_pull(record, rollout));
    if let Some(next) = next {
        enter(record, next, now);
    }
}

/// An effect did not work: a candidate is given up, or tried again later; what already serves is only tried again.
fn trouble(record: &mut ServiceRecord, step: &Step, refusal: &Refusal, retry: bool, now: Timestamp) {
    if let (Step::Amend(_), false, Some(incumbent)) = (step, retry, &mut record.incumbent)
        && let Some(amending) = &mut incumbent.amending
    {
        amending.refused = Some(refusal.clone());
    }
    let no_way_back = record.rollout.as_ref().is_some_and(|rollout| irreversible::holds(record, rollout));
    let Some(rollout) = &mut record.rollout else { return };
    let about_candidate = match step {
        Step::Pull(g)
        | Step::Start(g)
        | Step::Scale(g)
        | Step::StartReplica(g, _)
        | Step::Prepare(g)
        | Step::Canary(g)
        | Step::Batch { generation: g, .. }
        | Step::Switch(g) => *g == rollout.to.generation,
        _ => false,
    };
    // Once it is given up, the reason for that is the one that counts.
    if !about_candidate || rollout.phase == Phase::Abandoning {
        return;
    }
    rollout.trouble = Some(refusal.clone());
    if retry || no_way_back {
        let pause = FIRST_RETRY.saturating_mul(1 << rollout.attempts.min(16)).min(LONGEST_RETRY);
        rollout.attempts = rollout.attempts.saturating_add(1);
        rollout.retry_at = Some(later(now, pause));
    } else {
        enter(record, Phase::Abandoning, now);
    }
}

fn switched(record: &mut ServiceRecord, now: Timestamp) {
    enter(record, Phase::Baking, now);
    if let Some(rollout) = &mut record.rollout {
        // The latest one: after a reboot it is proved, switched to and watched anew.
        rollout.switched_at = Some(now);
        healthy(rollout, now);
    }
}

/// Notes how long it took to be healthy: until it first had new connections.
pub(super) fn healthy(rollout: &mut Rollout, now: Timestamp) {
    if rollout.healthy_seconds.is_none() {
        rollout.healthy_seconds = rollout
            .candidate_started_at
            .map(|start| Duration::try_from(now.duration_since(start)).unwrap_or_default().as_secs_f64());
    }
}

fn promote(name: &ServiceName, record: &mut ServiceRecord, now: Timestamp) -> Option<Transition> {
    let rollout = record.rollout.take()?;
    let old = record.incumbent.take();
    let result = match rollout.cause {
        Cause::Commit => ReceiptResult::Deployed,
        Cause::Rollback => ReceiptResult::RolledBack,
    };
    let mut receipt = Transition::of_rollout(name, old.as_ref(), &rollout, result, now);
    if rollout.cause == Cause::Rollback {
        receipt.reason = Some(Reason::OperatorRollback);
        receipt.serves = Some(rollout.to.generation);
    }
    let since = rollout.switched_at.unwrap_or(now);
    if old.as_ref().is_none_or(|old| old.spec.schedule != rollout.to.spec.schedule) {
        record.jobs.served = rollout.to.spec.schedule.as_ref().map(|_| now);
    }
    record.jobs.pre = None;
    let generation = rollout.to.generation;
    record.jobs.post = (!rollout.to.spec.deploy.post.is_empty()).then(|| jobs::JobRun::due(generation, now));
    let mut incumbent = Deployed { since, quota: None, ..rollout.to };
    replicas::promoted(&mut incumbent, now);
    record.incumbent = Some(incumbent);
    record.retiring = old.clone().map(|old| Retiring { old, since });
    // What it had as containers goes with what retires.
    record.previous = old.map(|old| Deployed { replicas: BTreeMap::new(), quota: None, ..old });
    record.failure = None;
    Some(receipt)
}

fn give_up(name: &ServiceName, record: &mut ServiceRecord, now: Timestamp) -> Option<Transition> {
    let rollout = record.rollout.take()?;
    let pre = record.jobs.pre.take().filter(|run| run.ended.is_some() && run.trouble.is_none());
    if irreversible::leaves_down(record, &rollout)
        && let Some(incumbent) = &mut record.incumbent
    {
        incumbent.down = Some(Down::Barred);
    }
    let result = match rollout.switched_at.or(rollout.canary_since) {
        Some(_) => ReceiptResult::RolledBack,
        None => ReceiptResult::Failed,
    };
    let mut receipt = Transition::of_rollout(name, record.incumbent.as_ref(), &rollout, result, now);
    if pre.is_some() && !rollout.to.spec.deploy.reversible {
        receipt.message.push_str("; deploy.pre had run, and what it changed stays");
    }
    let refusal = rollout
        .trouble
        .unwrap_or_else(|| Refusal::new(Reason::Internal, "a rollout was given up without a reason"));
    if Failure::comes_of(&refusal) {
        let Deployed { commit, generation, spec, .. } = rollout.to;
        record.failure = Some(Failure { commit, generation, refusal, at: now, secrets: spec.secrets });
    }
    Some(receipt)
}

/// The incumbent is what a new spec says, in the same container.
fn amended(
    name: &ServiceName,
    record: &mut ServiceRecord,
    amendment: &Amendment,
    now: Timestamp,
) -> Option<Transition> {
    let incumbent = record.incumbent.as_mut().filter(|it| it.generation == amendment.generation)?;
    let from = Side::of(incumbent);
    // Times that another schedule names are due from now on, but for one that was served before the clock was set back a little.
    if incumbent.spec.schedule != amendment.spec.schedule {
        record.jobs.served = record.jobs.served.max(Some(now));
    }
    incumbent.spec = amendment.spec.clone();
    let begun = incumbent.amending.take();
    // What a crash cut short and a later commit took back: nothing has come of it.
    if amendment.differences.is_empty() {
        return None;
    }
    let changed = listed(&amendment.differences);
    let message = format!("{changed}: changed in place, without a new generation");
    let times = (begun.map_or(now, |begun| begun.since), now);
    Some(Transition {
        from: Some(from),
        to: Some(Side::of(incumbent)),
        serves: Some(incumbent.generation),
        ..Transition::plain(name, &amendment.commit.id, ReceiptResult::Deployed, message, times)
    })
}

fn removed(name: &ServiceName, record: &ServiceRecord, removing: &Removing, now: Timestamp) -> Transition {
    let message = format!("the repo no longer declares {name} for this host");
    let times = (removing.since, now);
    Transition {
        from: record.incumbent.as_ref().map(Side::of),
        ..Transition::plain(name, &removing.commit.id, ReceiptResult::Removed, message, times)
    }
}
