//! From a step that was carried out to the message about it.

use crate::reconcile::canary;
use crate::reconcile::changes::of_the_host;
use crate::reconcile::drain::leads_to_incumbent;
use crate::reconcile::receipt::{ReceiptResult, Transition};
use crate::reconcile::record::{Cause, Deployed, Phase, Rollout, ServiceRecord};
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{ByteSize, Exit, Generation, Job, ServiceName, format_duration};

/// What is said about a step, given the record before it and the receipt it earned; `None` = nothing new.
pub fn of(
    service: &ServiceName,
    before: Option<&ServiceRecord>,
    step: &Step,
    outcome: &Outcome,
    receipt: Option<&Transition>,
) -> Option<Message> {
    let rollout = before.and_then(|record| record.rollout.as_ref());
    let candidate = rollout.map(|rollout| &rollout.to);
    let say = |kind, text: String| Message::of(kind, service, text);
    let message = match (step, outcome) {
        // The end of `deploy.pre` is that of its rollout.
        (Step::Ended { job, generation, exit, .. }, Outcome::Failed(refusal)) if *job != Job::Pre => {
            let text = format!("{service}: {}", refusal.message);
            let mut message = say(Kind::JobFailed, text).because(refusal);
            message.exit = Some((**exit).clone());
            with(message, before.and_then(|record| record.live(*generation)))
        }
        (Step::Ended { job, generation, exit, .. }, Outcome::Done) => {
            let text =
                format!("{service}: {job} of generation {generation} has ended{}", took(before, *job, exit));
            let mut message = say(Kind::JobEnded, text);
            message.exit = Some((**exit).clone());
            with(message, before.and_then(|record| record.live(*generation)))
        }
        (Step::Ended { .. }, Outcome::Pulled(_) | Outcome::Dropped) => return None,
        (Step::Finish(generation), Outcome::Done) => {
            let text = format!("{service}: deploy.post of generation {generation} runs");
            with(say(Kind::JobBegun, text), named(before, step))
        }
        (Step::Run(generation), Outcome::Done) => {
            let text = format!("{service}: a run of generation {generation} has begun");
            with(say(Kind::JobBegun, text), named(before, step))
        }
        (Step::Prepare(generation), Outcome::Done) => {
            let text = format!("{service}: deploy.pre of generation {generation} runs");
            with(say(Kind::JobBegun, text), candidate)
        }
        (Step::Finish(_) | Step::Run(_), Outcome::Pulled(_) | Outcome::Dropped) => return None,
        (step, Outcome::Failed(refusal) | Outcome::Retry(refusal)) => {
            let about = named(before, step);
            let will_end = matches!(outcome, Outcome::Failed(_)) && about.is_some() && about == candidate;
            let kind = if will_end { Kind::RollingBack } else { Kind::EffectFailed };
            with(
                say(kind, format!("{service}: {step} did not work: {}", refusal.message)).because(refusal),
                about,
            )
        }
        (Step::Begin { generation, spec, commit, cause }, _) => {
            let image = &spec.image.reference;
            let incumbent = before.and_then(|record| record.incumbent.as_ref());
            let host = incumbent.and_then(|incumbent| of_the_host(&incumbent.spec, spec));
            let why = match (cause, host) {
                (Cause::Commit, Some(said)) => said,
                (Cause::Commit, None) => {
                    format!("commit {} by {}: {}", commit.id.short(), commit.author, commit.subject)
                }
                (Cause::Rollback, _) => "an operator goes back".to_owned(),
            };
            let mut text = format!("{service}: generation {generation} of {image} is begun ({why})");
            if let (Some(alone), Some(incumbent)) = (spec.alone_because(), incumbent) {
                let old = incumbent.generation;
                text.push_str(&format!("; generation {old} is stopped before it starts, as {alone}"));
            }
            let mut message = say(Kind::RolloutBegun, text);
            message.image = Some(image.clone());
            message.generation = Some(*generation);
            message.at(&commit.id)
        }
        (Step::Pull(generation), Outcome::Pulled(cost)) => {
            let size = ByteSize(cost.bytes).human();
            let text = format!(
                "{service}: the image of generation {generation} is here ({size} in {:.1} s)",
                cost.seconds
            );
            with(say(Kind::ImagePulled, text), candidate)
        }
        (Step::Start(generation), _) if candidate.is_some_and(|c| c.generation == *generation) => with(
            say(
                Kind::CandidateStarted,
                format!("{service}: generation {generation} runs and is being proved"),
            ),
            candidate,
        ),
        (Step::Start(generation), _) => {
            let text = format!("{service}: generation {generation} was not running and is started again");
            with(say(Kind::Restarted, text), named(before, step))
        }
        (Step::StartReplica(generation, index), _) => {
            let replica = before.and_then(|record| record.live(*generation)?.replicas.get(index));
            let candidate = candidate.is_some_and(|candidate| candidate.generation == *generation);
            let again = !candidate && replica.is_some_and(|replica| replica.restarts > 0);
            let (kind, text) = match again {
                true => (Kind::Restarted, "was not running and is started again"),
                false => (Kind::ReplicaStarted, "runs and is being proved"),
            };
            let text = format!("{service}: replica {index} of generation {generation} {text}");
            with(say(kind, text), named(before, step))
        }
        (Step::DropReplica(generation, index), _) => {
            let text = format!("{service}: replica {index} of generation {generation} is away");
            with(say(Kind::ReplicaGone, text), named(before, step))
        }
        (Step::Canary(generation), _) => {
            let canary = rollout.and_then(canary::progress)?.0;
            if rollout.is_some_and(|rollout| rollout.canary_since.is_some()) {
                let text = format!(
                    "{service}: the route with {} for generation {generation} was put right",
                    canary.share
                );
                with(say(Kind::RouteRestored, text), candidate)
            } else {
                let time = format_duration(canary.time);
                let text = format!(
                    "{service}: {} of new connections go to generation {generation}, for {time}",
                    canary.share
                );
                with(say(Kind::CanaryBegun, text), candidate)
            }
        }
        (Step::Batch { generation, stay }, _) => {
            let candidate = candidate?;
            let (done, all) = (candidate.size(), candidate.spec.deploy.replicas);
            let text = format!(
                "{service}: {done} of {all} containers of generation {generation} have new connections, beside {stay} of the old ones"
            );
            with(say(Kind::BatchTaken, text), Some(candidate))
        }
        (Step::Switch(generation), _) => {
            let text = format!("{service}: new connections go to generation {generation}");
            with(say(Kind::Switched, text), candidate)
        }
        (Step::Fail(refusal), _) => {
            let generation = candidate?.generation;
            let text = format!("{service}: generation {generation} is given up: {}", refusal.message);
            with(say(Kind::RollingBack, text).because(refusal), candidate)
        }
        (Step::Promote(_) | Step::Conclude | Step::Remove(_), _) => ended(service, before, receipt?),
        (Step::Retire(generation), _) => with(
            say(Kind::Retired, format!("{service}: generation {generation} is away")),
            named(before, step),
        ),
        (Step::Amend(amendment), _) => {
            let what = match receipt {
                Some(receipt) => receipt.message.clone(),
                None => "a change in place was taken back".to_owned(),
            };
            let generation = amendment.generation;
            let about = before.and_then(|record| record.live(generation));
            let text = format!("{service}: generation {generation}: {what}");
            with(say(Kind::Amended, text), about).at(&amendment.commit.id)
        }
        (Step::Route(generation), _) if rollout.is_some_and(|it| stands_in(it, *generation)) => {
            let text = format!(
                "{service}: all new connections go to generation {generation} until the old one, which ended, is back"
            );
            with(say(Kind::RouteRestored, text), candidate)
        }
        (Step::Route(generation), _) => {
            let about = named(before, step);
            let several = about.is_some_and(|deployed| !deployed.replicas.is_empty());
            let (kind, text) = match several {
                true => (
                    Kind::SpreadChanged,
                    format!(
                        "new connections go to those containers of generation {generation} that are well"
                    ),
                ),
                false => (Kind::RouteRestored, format!("the route to generation {generation} was put right")),
            };
            with(say(kind, format!("{service}: {text}")), about)
        }
        (Step::Sweep(generation), _) => {
            say(Kind::Swept, format!("{service}: what was left of generation {generation} is away"))
        }
        (Step::Withdraw, _) if before.is_some_and(leads_to_incumbent) => {
            let text = format!("{service}: it is not in the repo any more, and gets no new connections");
            with(say(Kind::Leaving, text), before.and_then(|record| record.incumbent.as_ref()))
        }
        (Step::Withdraw, _) => say(Kind::Swept, format!("{service}: a route that led nowhere is away")),
        (Step::Release, _) => say(Kind::HoldEnded, format!("{service}: it follows the repo again")),
        (Step::Report(_), _) => ended(service, before, receipt?),
        (Step::Note(generation, exit), _) => {
            let mut message = say(Kind::Ended, format!("{service}: generation {generation} {exit}"));
            message.exit = Some(exit.clone());
            with(message, named(before, step))
        }
        (
            Step::Pull(_)
            | Step::Prepare(_)
            | Step::Clear(..)
            | Step::Stop(_)
            | Step::Scale(_)
            | Step::Widen { .. }
            | Step::Advance(_)
            | Step::Return { .. }
            | Step::Discard(_),
            _,
        ) => return None,
    };
    Some(message)
}

/// How long a one-shot ran.
fn took(before: Option<&ServiceRecord>, job: Job, exit: &Exit) -> String {
    let begun = before.and_then(|record| record.jobs.get(job)?.begun);
    let took = begun.map(|begun| exit.at.duration_since(begun).as_secs_f64().max(0.0));
    took.map_or_else(String::new, |took| format!(", {took:.1} s after it was begun"))
}

fn ended(service: &ServiceName, before: Option<&ServiceRecord>, receipt: &Transition) -> Message {
    let (kind, text) = match receipt.result {
        ReceiptResult::Deployed => (Kind::Deployed, format!("{service}: {}", receipt.message)),
        ReceiptResult::RolledBack => {
            (Kind::RolledBack, format!("{service}: rolled back: {}", receipt.message))
        }
        ReceiptResult::Failed => {
            (Kind::DeployFailed, format!("{service}: not deployed: {}", receipt.message))
        }
        ReceiptResult::Removed => (Kind::Removed, receipt.message.clone()),
        ReceiptResult::Restarted => (Kind::Restarted, format!("{service}: {}", receipt.message)),
    };
    let candidate = before.and_then(|record| record.rollout.as_ref()).map(|rollout| &rollout.to);
    let mut message = with(Message::of(kind, service, text), candidate).at(&receipt.commit);
    message.reason = receipt.reason;
    message.exit = receipt.exit.clone();
    message.log.clone_from(&receipt.log);
    message
}

/// Whether a candidate with a part of new connections gets all, for an incumbent that has ended.
fn stands_in(rollout: &Rollout, generation: Generation) -> bool {
    matches!(rollout.phase, Phase::Canary | Phase::Batches) && rollout.to.generation == generation
}

/// The generation that a step is about.
fn named<'a>(record: Option<&'a ServiceRecord>, step: &Step) -> Option<&'a Deployed> {
    match step {
        Step::Pull(g)
        | Step::Prepare(g)
        | Step::Finish(g)
        | Step::Run(g)
        | Step::Stop(g)
        | Step::Start(g)
        | Step::Canary(g)
        | Step::Batch { generation: g, .. }
        | Step::Switch(g)
        | Step::Promote(g)
        | Step::Discard(g)
        | Step::Retire(g)
        | Step::Route(g)
        | Step::Scale(g)
        | Step::StartReplica(g, _)
        | Step::DropReplica(g, _)
        | Step::Note(g, _) => record?.live(*g),
        Step::Amend(amendment) => record?.live(amendment.generation),
        _ => None,
    }
}

fn with(mut message: Message, about: Option<&Deployed>) -> Message {
    if let Some(deployed) = about {
        message.generation = Some(deployed.generation);
        message.image = Some(deployed.spec.image.reference.clone());
        message.commit = Some(deployed.commit.id.clone());
    }
    message
}
