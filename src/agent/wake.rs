//! Why the loop comes round.

use std::sync::mpsc;

use super::control::{Answers, Command};
use super::source::Looked;
use super::tags::Moved;
use crate::forge::PostError;
use crate::git::Place;
use crate::reconcile::step::Step;
use crate::reconcile::transition::Outcome;
use crate::registry::{Collection, PullError};
use crate::types::{CommitId, Digest, InstanceId, Refusal, ServiceName};

/// Everything that can wake the loop. A wake says "look"; what some carry is only what was seen beside the loop.
#[derive(Debug)]
pub enum Wake {
    /// Something happened on the host.
    Look(&'static str),
    /// The repo may have moved.
    RepoMoved(&'static str),
    /// A look at the repo is over.
    Fetched(Box<Result<Looked, Refusal>>),
    /// A tag was looked up.
    Resolved {
        /// For this commit.
        commit: CommitId,
        /// And this service.
        service: ServiceName,
        /// What it stands for.
        result: Result<Digest, PullError>,
    },
    /// A tag that others looked up stands for something else now.
    TagMoved(Box<Moved>),
    /// A long effect is over.
    Effect {
        /// Of this service.
        service: ServiceName,
        /// The step it was.
        step: Step,
        /// What came of it.
        outcome: Outcome,
    },
    /// Containers that had lost their supervisor were to be given another one.
    Adopted {
        /// Those that have none yet.
        failed: Vec<InstanceId>,
    },
    /// Receipts were pushed: the names of those that are in git now.
    Pushed(Result<Pushed, Refusal>),
    /// The forge has answered.
    Shown(Result<(), PostError>),
    /// Images are away; `None` = it was an operator's, who heard of it.
    Collected(Option<Collection>),
    /// An operator asks.
    Operator(Command, Answers),
    /// The agent is to end; containers go on.
    Stop,
}

/// Receipts that are in git now.
#[derive(Debug)]
pub struct Pushed {
    /// Their names in the outbox.
    pub names: Vec<String>,
    /// Where they are.
    pub place: Place,
}

/// Where wakes are sent. Never blocks.
pub type Waker = mpsc::Sender<Wake>;
