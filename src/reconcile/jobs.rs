//! One-shots: `deploy.pre`, `deploy.post`, and the runs of a scheduled service.
//!
//! Each runs at most once for what it is for, whatever crashes. That it begins is durable before it does, and that it has
//! ended before its container is taken away; in between its container says which of the two it is. One that is to run
//! and has no container has never run: the engine makes its directory durable before its program starts. One that was
//! running when the host went down counts as failed: how far it came is for a person to find out.

use serde::{Deserialize, Serialize};

use super::receipt::{ReceiptResult, Side, Transition};
use super::record::{Deployed, ServiceRecord};
use super::repair::{LONGEST_PAUSE, restart_at};
use super::step::{Next, Step};
use super::view::View;
use super::{later, pending};
use crate::types::{
    ContainerState, Exit, Generation, InstanceId, Job, Reason, Refusal, ServiceName, Timestamp,
};

/// The one-shots of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    /// `deploy.pre` of the candidate under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre: Option<JobRun>,
    /// `deploy.post` of the incumbent, until it has ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post: Option<JobRun>,
    /// The last run of a scheduled service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<JobRun>,
    /// Times that the schedule names are due after this: when the last run ended, or the schedule came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Timestamp>,
    /// Runs in a row that failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One run of a one-shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRun {
    /// Of this generation.
    pub generation: Generation,
    /// Since when it is to run.
    pub due: Timestamp,
    /// From then on it may have run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Timestamp>,
    /// How it ended. A start that did not work has no code and no signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Exit>,
    /// Why it counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Refusal>,
}

impl JobRun {
    /// One that is to run.
    pub fn due(generation: Generation, due: Timestamp) -> Self {
        Self { generation, due, begun: None, ended: None, trouble: None }
    }
}

impl Jobs {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The run of a kind.
    pub fn get(&self, job: Job) -> Option<&JobRun> {
        match job {
            Job::Pre => self.pre.as_ref(),
            Job::Post => self.post.as_ref(),
            Job::Run => self.run.as_ref(),
        }
    }

    /// The same, to change it.
    pub fn slot(&mut self, job: Job) -> &mut Option<JobRun> {
        match job {
            Job::Pre => &mut self.pre,
            Job::Post => &mut self.post,
            Job::Run => &mut self.run,
        }
    }

    /// The run that `id` is the container of.
    pub fn of(&self, id: &InstanceId) -> Option<&JobRun> {
        self.get(id.job?).filter(|run| run.generation == id.generation)
    }
}

/// How far a one-shot is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Progress {
    /// Something is to be done for it.
    Do(Step),
    /// It runs, until then at the most.
    Runs(Option<Timestamp>),
    /// It has ended, and nothing is left of it.
    Over,
}

/// How long a one-shot of `deployed` may take.
pub(super) fn limit(deployed: &Deployed, job: Job) -> Option<std::time::Duration> {
    match job {
        Job::Pre | Job::Post => Some(deployed.spec.deploy.timeout),
        Job::Run => deployed.spec.schedule.as_ref().and_then(|schedule| schedule.timeout),
    }
}

/// What a one-shot that was begun needs next, and one that is due.
pub(super) fn progress(view: &View<'_>, deployed: &Deployed, job: Job, run: &JobRun) -> Progress {
    let generation = run.generation;
    let id = InstanceId::of_job(view.name, generation, job);
    let ended =
        |exit: &Exit, late| Progress::Do(Step::Ended { job, generation, exit: Box::new(exit.clone()), late });
    match (run.begun, &run.ended, view.observed.containers.get(&id)) {
        // What is not begun has no container: one is left over from a hand.
        (None, _, Some(_)) | (_, Some(_), Some(_)) => Progress::Do(Step::Clear(generation, job)),
        (_, Some(_), None) => Progress::Over,
        // A start that was cut short goes on: it has not come to the program.
        (None, None, None) | (Some(_), None, None | Some(ContainerState::Remains)) => {
            Progress::Do(begin(generation, job))
        }
        (Some(_), None, Some(ContainerState::Exited(exit))) => ended(exit, false),
        (Some(_), None, Some(ContainerState::Running { started_at, .. })) => {
            let until = limit(deployed, job).map(|limit| later(*started_at, limit));
            match until.filter(|until| view.now >= *until) {
                Some(at) => {
                    let exit = Exit { code: None, signal: None, oom_killed: false, at };
                    ended(&exit, true)
                }
                None => Progress::Runs(until),
            }
        }
    }
}

fn begin(generation: Generation, job: Job) -> Step {
    match job {
        Job::Pre => Step::Prepare(generation),
        Job::Post => Step::Finish(generation),
        Job::Run => Step::Run(generation),
    }
}

/// What one-shots need that run beside whatever else there is: `deploy.post`, and a scheduled run that was begun. Only
/// what is to be done; that they run keeps nobody waiting.
pub(super) fn beside(view: &View<'_>, record: &ServiceRecord) -> Option<Step> {
    for job in [Job::Post, Job::Run] {
        let Some(run) = record.jobs.get(job) else { continue };
        // Its image may be lost, and its generation given up; what was begun is looked after all the same.
        let Some(deployed) = record.live(run.generation) else { continue };
        let local = view.has_image(deployed);
        match progress(view, deployed, job, run) {
            // Thrown away meanwhile, by a check of the disk or a hand. That of a run is for `schedule`.
            Progress::Do(Step::Finish(_)) if !local => {
                let waits = pending(view.now, restart_at(deployed), LONGEST_PAUSE);
                if !waits && !view.observed.pulling.contains_key(view.name) {
                    return Some(Step::Pull(run.generation));
                }
            }
            Progress::Do(Step::Run(_)) if !local => {}
            Progress::Do(step) => return Some(step),
            Progress::Runs(_) | Progress::Over => {}
        }
    }
    stray(view, record)
}

/// A container of a one-shot that nothing in the record is about.
fn stray(view: &View<'_>, record: &ServiceRecord) -> Option<Step> {
    let mut jobs = view.observed.jobs_of(view.name).map(|(id, _)| id);
    let stray = jobs.find(|id| {
        let known = record.jobs.of(id).is_some() && record.live(id.generation).is_some();
        let given_up = id.job == Some(Job::Pre) && record.rollout.is_some();
        !known && !given_up
    })?;
    Some(Step::Clear(stray.generation, stray.job?))
}

/// Whether a one-shot of `generation` runs or is about to.
pub(super) fn busy(record: &ServiceRecord, generation: Generation) -> Option<(Job, &JobRun)> {
    [Job::Post, Job::Run].into_iter().find_map(|job| {
        let run = record.jobs.get(job)?;
        let begun = job == Job::Post || run.begun.is_some();
        (run.generation == generation && run.ended.is_none() && begun).then_some((job, run))
    })
}

/// What the incumbent's `deploy.post` makes of a service that is otherwise settled.
pub(super) fn after_deploy(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let run = record.jobs.post.as_ref()?;
    if let Some(trouble) = &run.trouble {
        return Some(Next::Held { refusal: trouble.clone(), until: None });
    }
    if run.ended.is_some() {
        return None;
    }
    let until =
        record.live(run.generation).and_then(|deployed| match progress(view, deployed, Job::Post, run) {
            Progress::Runs(until) => until,
            _ => None,
        });
    let why = format!("deploy.post of generation {} runs", run.generation);
    Some(Next::Wait { until: until.filter(|until| *until > view.now), why })
}

/// When a one-shot that runs has to be looked at by the clock.
pub(super) fn wake_at(view: &View<'_>) -> Option<Timestamp> {
    let record = view.record?;
    let jobs = Job::ALL.into_iter().filter_map(|job| {
        let run = record.jobs.get(job)?;
        match progress(view, record.live(run.generation)?, job, run) {
            Progress::Runs(until) => until,
            _ => None,
        }
    });
    jobs.min()
}

/// Takes in that a one-shot is about to be begun.
pub(super) fn intend(record: &mut ServiceRecord, step: &Step, now: Timestamp) {
    let (job, generation) = match step {
        Step::Prepare(generation) => (Job::Pre, *generation),
        Step::Finish(generation) => (Job::Post, *generation),
        Step::Run(generation) => (Job::Run, *generation),
        _ => return,
    };
    let slot = record.jobs.slot(job);
    // A new run takes the place of one that is over.
    let same = slot.as_ref().is_some_and(|run| {
        run.generation == generation && run.ended.is_none() && (job != Job::Run || run.begun.is_some())
    });
    if !same {
        *slot = Some(JobRun::due(generation, now));
    }
    if let Some(run) = slot {
        run.begun.get_or_insert(now);
    }
}

/// Takes in how a one-shot ended; `trouble`: why that is a failure. Gives the receipt that it earns.
pub(super) fn ended(
    name: &ServiceName,
    record: &mut ServiceRecord,
    (job, generation): (Job, Generation),
    exit: &Exit,
    trouble: Option<&Refusal>,
    now: Timestamp,
) -> Option<Transition> {
    let run = record.jobs.slot(job).as_mut().filter(|run| run.generation == generation)?;
    run.ended = Some(exit.clone());
    run.trouble = trouble.cloned();
    let run = run.clone();
    if job == Job::Run {
        // Times that it ran through are not made up for, nor does its own come again where the clock was set back a little.
        record.jobs.served = Some(run.begun.unwrap_or(run.due).max(now));
        record.jobs.failures = if trouble.is_some() { record.jobs.failures.saturating_add(1) } else { 0 };
    }
    // The end of `deploy.pre` is that of its rollout. Of runs the first of a row of failures is told: one that fails
    // every minute must not fill the audit trail.
    let tells = job == Job::Post || (job == Job::Run && record.jobs.failures == 1);
    let (true, Some(trouble), Some(of)) = (tells, trouble, record.live(generation)) else { return None };
    // A run of the former generation may outlive it: what serves is another one by now.
    let serves = record.incumbent.as_ref().unwrap_or(of);
    Some(Transition {
        from: Some(Side::of(serves)),
        to: Some(Side::of(of)),
        serves: Some(serves.generation),
        reason: Some(trouble.reason),
        exit: Some(exit.clone()),
        ..Transition::plain(
            name,
            &of.commit.id,
            ReceiptResult::Failed,
            trouble.message.clone(),
            (run.begun.unwrap_or(run.due), now),
        )
    })
}

/// Forgets what is over once its container is away.
pub(super) fn cleared(record: &mut ServiceRecord, generation: Generation, job: Job) {
    let slot = record.jobs.slot(job);
    let done = slot
        .as_ref()
        .is_some_and(|run| run.generation == generation && run.ended.is_some() && run.trouble.is_none());
    // The last run of a schedule is worth showing; what comes before a generation is needed until that is there.
    if done && job == Job::Post {
        *slot = None;
    }
}

/// Why an end counts as a failure, without the last lines, which only the engine has; `None`: it ended well.
pub fn failure(deployed: &Deployed, job: Job, exit: &Exit, late: bool) -> Option<Refusal> {
    if exit.code == Some(0) && !late {
        return None;
    }
    let reason = match job {
        Job::Pre => Reason::PreFailed,
        Job::Post => Reason::PostFailed,
        Job::Run => Reason::RunFailed,
    };
    let what = match job {
        Job::Pre => format!("deploy.pre `{}`", deployed.spec.deploy.pre.join(" ")),
        Job::Post => format!("deploy.post `{}`", deployed.spec.deploy.post.join(" ")),
        Job::Run => format!("a run of generation {}", deployed.generation),
    };
    let message = match (late, limit(deployed, job), exit.code, exit.signal) {
        (true, Some(limit), ..) => {
            format!("{what} did not end within {}", crate::types::format_duration(limit))
        }
        (_, _, None, None) => {
            format!(
                "{what} was cut short, and nobody saw how it ended; it is not run a second time by itself"
            )
        }
        _ => format!("{what} {exit}"),
    };
    Some(Refusal::new(reason, message))
}

/// The failure of one that could not be started.
pub(super) fn not_started(reason: Reason, job: Job, generation: Generation, refusal: &Refusal) -> Refusal {
    let what = refusal.message.as_str();
    Refusal::new(reason, format!("{job} of generation {generation} could not be started: {what}"))
}
