//! What the core answers: at most one step a service.

use std::collections::BTreeMap;
use std::fmt;

use super::changes::{Difference, listed};
use super::record::{Cause, Phase, Spec};
use crate::types::{
    CommitInfo, Exit, Generation, InstanceId, Job, Refusal, ReplicaIndex, ServiceName, Timestamp,
};

/// One effect. Each names the generation it is about; none leaves a choice to whoever carries it out.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write down a new candidate: its number, its address, its spec.
    Begin {
        /// Its number.
        generation: Generation,
        /// What it is to run.
        spec: Box<Spec>,
        /// The commit that asks for it.
        commit: Box<CommitInfo>,
        /// Who asks.
        cause: Cause,
    },
    /// Make the image of a generation local.
    Pull(Generation),
    /// Start the candidate's `deploy.pre`.
    Prepare(Generation),
    /// Start the incumbent's `deploy.post`.
    Finish(Generation),
    /// Start a run of a scheduled service.
    Run(Generation),
    /// Write down how a one-shot ended.
    Ended {
        /// Which.
        job: Job,
        /// Of this generation.
        generation: Generation,
        /// How.
        exit: Box<Exit>,
        /// Its time is over, and it has not ended.
        late: bool,
    },
    /// Stop and take away the container of a one-shot.
    Clear(Generation, Job),
    /// Stop a container, keeping what it wrote: the incumbent that yields under `recreate`.
    Stop(Generation),
    /// Start the container of a generation: the candidate, or an incumbent that is not running.
    Start(Generation),
    /// Write down the containers that a generation is to have beside its first one.
    Scale(Generation),
    /// Start one of these.
    StartReplica(Generation, ReplicaIndex),
    /// Stop one of these that is too many, or that no record names, and take it away.
    DropReplica(Generation, ReplicaIndex),
    /// Write down that the candidate has come further; the world already shows it.
    Advance(Phase),
    /// Send a part of new connections to the candidate, and the rest to the incumbent.
    Canary(Generation),
    /// Send new connections to the candidate's containers too, and to fewer of the incumbent's.
    Batch {
        /// The candidate.
        generation: Generation,
        /// How many of the incumbent's containers stay, from the first on.
        stay: u32,
    },
    /// Write down that the candidate is to have more containers than it has.
    Widen {
        /// The candidate.
        generation: Generation,
        /// How many, from the first on.
        to: u32,
    },
    /// Send new connections to the candidate.
    Switch(Generation),
    /// Make the candidate the incumbent.
    Promote(Generation),
    /// Give the candidate up.
    Fail(Refusal),
    /// Send new connections back to the incumbent, and end the candidate's.
    Return {
        /// The incumbent; `None` = take the route away.
        to: Option<Generation>,
        /// The candidate.
        from: Generation,
    },
    /// Stop and take away a candidate that was given up.
    Discard(Generation),
    /// Write down the end of a rollout that was given up.
    Conclude,
    /// Stop and take away the former incumbent.
    Retire(Generation),
    /// Take a new spec over that needs no new container.
    Amend(Box<Amendment>),
    /// Put the route of a generation right.
    Route(Generation),
    /// Write the receipt of a restart that a crash, or a disk that could not be written to, left without one.
    Report(Generation),
    /// Write down how the incumbent ended, which its restart policy leaves so.
    Note(Generation, Exit),
    /// Take away a container that no record names.
    Sweep(Generation),
    /// Take away a route that no record names.
    Withdraw,
    /// Take the service off this host.
    Remove(Box<CommitInfo>),
    /// End a hold whose time is up.
    Release,
}

/// A change of the incumbent in place.
#[derive(Debug, Clone, PartialEq)]
pub struct Amendment {
    /// The incumbent.
    pub generation: Generation,
    /// What it is to be.
    pub spec: Spec,
    /// The commit that asks for it.
    pub commit: CommitInfo,
    /// What is another than it was; nothing where a change is taken back that a crash cut short.
    pub differences: Vec<Difference>,
    /// Whether the limits of its container and the rules that lead to it are to be made as `spec` has them.
    pub touches: bool,
}

impl Step {
    /// Its name, as failpoints and messages spell it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "begin",
            Self::Pull(_) => "pull",
            Self::Prepare(_) => "prepare",
            Self::Finish(_) => "finish",
            Self::Run(_) => "run",
            Self::Ended { .. } => "ended",
            Self::Clear(..) => "clear",
            Self::Stop(_) => "stop",
            Self::Start(_) => "start",
            Self::Scale(_) => "scale",
            Self::StartReplica(..) => "start-replica",
            Self::DropReplica(..) => "drop-replica",
            Self::Advance(_) => "advance",
            Self::Canary(_) => "canary",
            Self::Batch { .. } => "batch",
            Self::Widen { .. } => "widen",
            Self::Switch(_) => "switch",
            Self::Promote(_) => "promote",
            Self::Fail(_) => "fail",
            Self::Return { .. } => "return",
            Self::Discard(_) => "discard",
            Self::Conclude => "conclude",
            Self::Retire(_) => "retire",
            Self::Amend(_) => "amend",
            Self::Route(_) => "route",
            Self::Report(_) => "report",
            Self::Note(..) => "note",
            Self::Sweep(_) => "sweep",
            Self::Withdraw => "withdraw",
            Self::Remove(_) => "remove",
            Self::Release => "release",
        }
    }

    /// The container of a generation that it starts.
    pub fn starts(&self, service: &ServiceName) -> Option<InstanceId> {
        match self {
            Self::Start(generation) => Some(InstanceId::new(service, *generation)),
            Self::StartReplica(generation, index) => Some(InstanceId::replica(service, *generation, *index)),
            _ => None,
        }
    }

    /// Whether it takes away containers that a record names and nothing leads to: it may last for hours, and what cannot
    /// wait goes on beside. What no record names may be anything: nothing is started before that is away.
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Retire(_) | Self::Discard(_) | Self::DropReplica(..) | Self::Clear(..))
    }

    /// Every word of [`Step::word`], for the test that kills the agent around each of them.
    pub const WORDS: &[&str] = &[
        "begin",
        "pull",
        "prepare",
        "stop",
        "start",
        "advance",
        "canary",
        "switch",
        "promote",
        "fail",
        "return",
        "discard",
        "conclude",
        "retire",
        "amend",
        "route",
        "report",
        "note",
        "sweep",
        "withdraw",
        "remove",
        "release",
        "finish",
        "run",
        "ended",
        "clear",
        "scale",
        "start-replica",
        "drop-replica",
        "batch",
        "widen",
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word();
        match self {
            Self::Begin { generation, spec, .. } => write!(f, "{word} {generation} {}", spec.image.reference),
            Self::Pull(g)
            | Self::Prepare(g)
            | Self::Finish(g)
            | Self::Run(g)
            | Self::Stop(g)
            | Self::Start(g)
            | Self::Scale(g)
            | Self::Canary(g)
            | Self::Switch(g)
            | Self::Promote(g)
            | Self::Discard(g)
            | Self::Retire(g)
            | Self::Route(g)
            | Self::Report(g)
            | Self::Sweep(g) => write!(f, "{word} {g}"),
            Self::StartReplica(g, index) | Self::DropReplica(g, index) => write!(f, "{word} {g}-{index}"),
            Self::Batch { generation, stay } => write!(f, "{word} {generation}: {stay} of the old ones stay"),
            Self::Widen { generation, to } => write!(f, "{word} {generation} to {to}"),
            Self::Note(g, exit) => write!(f, "{word} {g}: {exit}"),
            Self::Ended { job, generation, late: true, .. } => {
                write!(f, "{word} {generation} {}: late", job.word())
            }
            Self::Ended { job, generation, exit, .. } => {
                write!(f, "{word} {generation} {}: {exit}", job.word())
            }
            Self::Clear(g, job) => write!(f, "{word} {g} {}", job.word()),
            Self::Advance(phase) => write!(f, "{word} to {}", phase.word()),
            Self::Fail(refusal) => write!(f, "{word}: {refusal}"),
            Self::Return { to: Some(to), from } => write!(f, "{word} {from} -> {to}"),
            Self::Return { to: None, from } => write!(f, "{word} {from} -> nothing"),
            Self::Amend(amendment) => {
                write!(f, "{word} {}: {}", amendment.generation, listed(&amendment.differences))
            }
            Self::Conclude | Self::Withdraw | Self::Remove(_) | Self::Release => f.write_str(word),
        }
    }
}

/// What a service does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// It is as the repo wants it.
    Settled,
    /// Do this one thing.
    Do(Step),
    /// Look again then, or when something happens.
    Wait {
        /// `None`: only an event can change it.
        until: Option<Timestamp>,
        /// What is waited for.
        why: String,
    },
    /// It is not as the repo wants it, and stays so until a person, a commit or `until` changes that.
    Held {
        /// Why.
        refusal: Refusal,
        /// When that changes by itself.
        until: Option<Timestamp>,
    },
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settled => f.write_str("settled"),
            Self::Do(step) => write!(f, "do {step}"),
            Self::Wait { why, .. } => write!(f, "wait: {why}"),
            Self::Held { refusal, .. } => write!(f, "held: {refusal}"),
        }
    }
}

/// What is the case for a service, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Situation {
    /// Never run here, and not about to.
    Absent,
    /// Runs what the repo wants.
    Current,
    /// Runs what the repo wants, but the host does not show it as it should: a dead container, a lost rule.
    Drifted,
    /// The repo wants something else than what runs.
    Outdated,
    /// The repo no longer wants it.
    Orphaned,
    /// A candidate is under way.
    Rolling(Phase),
    /// The former incumbent is on its way out.
    Retiring,
    /// The last candidate failed, and its commit is not tried again.
    Quarantined,
    /// An operator holds it.
    OnHold,
}

/// One service's part of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What is the case.
    pub situation: Situation,
    /// What comes next.
    pub next: Next,
}

/// What a round does. Made once, never changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// At most one step a service.
    pub services: BTreeMap<ServiceName, Planned>,
    /// The earliest time at which the answer can differ without an event.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Whether nothing is left to do: every service settled.
    pub fn in_sync(&self) -> bool {
        self.services.values().all(|planned| planned.next == Next::Settled)
    }

    /// Whether nothing is under way: every service settled or held.
    pub fn at_rest(&self) -> bool {
        self.services.values().all(|planned| matches!(planned.next, Next::Settled | Next::Held { .. }))
    }

    /// Whether nothing will change by itself at this commit: every service settled, or held without a rollout that is
    /// tried again.
    pub fn is_over(&self) -> bool {
        self.services.values().all(|planned| match &planned.next {
            Next::Settled => true,
            Next::Held { until, .. } => {
                until.is_none() || !matches!(planned.situation, Situation::Rolling(_))
            }
            Next::Do(_) | Next::Wait { .. } => false,
        })
    }

    /// The steps, by service.
    pub fn steps(&self) -> impl Iterator<Item = (&ServiceName, &Step)> {
        self.services.iter().filter_map(|(name, planned)| match &planned.next {
            Next::Do(step) => Some((name, step)),
            _ => None,
        })
    }
}

impl fmt::Display for Plan {
    /// One line a service: what the golden files of `tests/plan` hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, planned) in &self.services {
            writeln!(f, "{name}: {}", planned.next)?;
        }
        Ok(())
    }
}
