//! The record of one transition: what goes to git, to `history` and to the journal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{Deployed, Rollout};
use crate::types::{CommitId, Digest, Exit, Generation, ImageRef, Reason, ServiceName, Timestamp};

/// What a transition came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptResult {
    /// The new generation serves.
    Deployed,
    /// The new generation had traffic and lost it again, or an operator went back.
    RolledBack,
    /// The new generation never had traffic.
    Failed,
    /// The service is off this host.
    Removed,
    /// The same generation was started again.
    Restarted,
}

impl ReceiptResult {
    /// The word in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployed => "deployed",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Removed => "removed",
            Self::Restarted => "restarted",
        }
    }
}

/// One side of a transition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Its number.
    pub generation: Generation,
    /// As the service file named it.
    pub image: ImageRef,
    /// The bytes it stood for.
    pub digest: Digest,
}

impl Side {
    /// The side that a generation is.
    pub fn of(deployed: &Deployed) -> Self {
        Self {
            generation: deployed.generation,
            image: deployed.spec.image.reference.clone(),
            digest: deployed.spec.image.digest.clone(),
        }
    }
}

/// One transition of one service. The agent adds who it is: see `report::receipt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// The service.
    pub service: ServiceName,
    /// The commit that asked for it.
    pub commit: CommitId,
    /// What had traffic before.
    pub from: Option<Side>,
    /// What was to have it.
    pub to: Option<Side>,
    /// What came of it.
    pub result: ReceiptResult,
    /// Why, where it did not go as the commit wanted.
    pub reason: Option<Reason>,
    /// One line for people.
    pub message: String,
    /// When it began. With the service it names the transition: see [`Transition::id`].
    pub started_at: Timestamp,
    /// When it was over.
    pub finished_at: Timestamp,
    /// Over the network.
    pub pulled_bytes: u64,
    /// Wall time of the pull.
    pub pull_seconds: f64,
    /// From the candidate's start to healthy.
    pub healthy_seconds: Option<f64>,
    /// When a part of new connections went to it, where it was to have one first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_at: Option<Timestamp>,
    /// When new connections went to it.
    pub switched_at: Option<Timestamp>,
    /// How the container ended, where that is what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl Transition {
    /// A name that is the same when the transition is written down a second time, after a crash in between. The result
    /// is a part of it: a generation whose `deployed` was written, and its record was not, can fail after the reboot,
    /// and neither receipt may hide the other.
    pub fn id(&self) -> String {
        let generation = self.to.as_ref().or(self.from.as_ref()).map_or(0, |side| side.generation.0);
        let began = self.started_at.as_microsecond();
        format!("{}.{generation}-{began:x}-{}", self.service, self.result.word())
    }

    /// The end of a rollout.
    pub fn of_rollout(
        service: &ServiceName,
        from: Option<&Deployed>,
        rollout: &Rollout,
        result: ReceiptResult,
        now: Timestamp,
    ) -> Self {
        let trouble = rollout.trouble.as_ref().filter(|_| result != ReceiptResult::Deployed);
        let took = Duration::try_from(now.duration_since(rollout.started_at)).unwrap_or_default();
        let image = &rollout.to.spec.image.reference;
        let message = match trouble {
            Some(trouble) => trouble.message.clone(),
            None => format!("{image} serves, {:.1} s after it was begun", took.as_secs_f64()),
        };
        Self {
            service: service.clone(),
            commit: rollout.to.commit.id.clone(),
            from: from.map(Side::of),
            to: Some(Side::of(&rollout.to)),
            result,
            reason: trouble.map(|trouble| trouble.reason),
            message,
            started_at: rollout.started_at,
            finished_at: now,
            pulled_bytes: rollout.pull.bytes,
            pull_seconds: rollout.pull.seconds,
            healthy_seconds: rollout.healthy_seconds,
            canary_at: rollout.canary_since,
            switched_at: rollout.switched_at,
            exit: rollout
                .to
                .last_exit
                .clone()
                .filter(|_| trouble.is_some_and(|it| it.reason == Reason::Exited)),
        }
    }
}
