//! The record of one transition: what goes to git, to `history` and to the journal.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::changes::of_the_host;
use super::record::{Deployed, Rollout};
use crate::types::{
    CommitId, Digest, Exit, Generation, ImageRef, Reason, ReplicaIndex, ServiceName, Timestamp,
};

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
    /// When a part of new connections first went to it, where it did not get all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_at: Option<Timestamp>,
    /// When new connections went to it.
    pub switched_at: Option<Timestamp>,
    /// How the container ended, where that is what it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// The generation that has traffic now that it is over. Receipts of before this field hold none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves: Option<Generation>,
    /// The last lines that a generation wrote which was given up. The agent adds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// Which of its containers it was given up for, where there are several: `log` is that one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaIndex>,
    /// How many containers of it there are, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Seconds for which nothing served, where the one was stopped before the other was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_seconds: Option<f64>,
}

impl Transition {
    /// The side that has traffic now that it is over.
    pub fn serving(&self) -> Option<&Side> {
        let sides = [self.from.as_ref(), self.to.as_ref()].into_iter().flatten();
        match (self.serves, self.result) {
            (Some(serves), _) => sides.into_iter().find(|side| side.generation == serves),
            (None, ReceiptResult::Deployed | ReceiptResult::Restarted) => self.to.as_ref(),
            (None, ReceiptResult::RolledBack | ReceiptResult::Failed) => self.from.as_ref(),
            (None, ReceiptResult::Removed) => None,
        }
    }

    /// Whether it is about a generation that did not do what it was to: what it wrote last may say why.
    pub fn went_wrong(&self) -> bool {
        let lost = matches!(self.result, ReceiptResult::Failed | ReceiptResult::RolledBack);
        let meant = [Reason::Superseded, Reason::OperatorRollback, Reason::Held];
        lost && self.reason.is_some_and(|reason| !meant.contains(&reason))
    }

    /// A name that is the same when the transition is written down a second time, after a crash in between. The result
    /// is a part of it: a generation whose `deployed` was written, and its record was not, can fail after the reboot,
    /// and neither receipt may hide the other.
    pub fn id(&self) -> String {
        let generation = self.to.as_ref().or(self.from.as_ref()).map_or(0, |side| side.generation.0);
        let began = self.started_at.as_microsecond();
        format!("{}.{generation}-{began:x}-{}", self.service, self.result.word())
    }

    /// One about nothing but itself. `times`: when it began, and when it was over.
    pub fn plain(
        service: &ServiceName,
        commit: &CommitId,
        result: ReceiptResult,
        message: String,
        times: (Timestamp, Timestamp),
    ) -> Self {
        Self {
            service: service.clone(),
            commit: commit.clone(),
            from: None,
            to: None,
            result,
            reason: None,
            message,
            started_at: times.0,
            finished_at: times.1,
            pulled_bytes: 0,
            pull_seconds: 0.0,
            healthy_seconds: None,
            canary_at: None,
            switched_at: None,
            exit: None,
            gap_seconds: None,
            replica: None,
            replicas: None,
            serves: None,
            log: Vec::new(),
        }
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
        let gap = rollout.gap(now);
        let several = Some(rollout.to.spec.deploy.replicas).filter(|count| *count > 1);
        let mut message = match (trouble, &rollout.to.spec.schedule) {
            (Some(trouble), _) => trouble.message.clone(),
            (None, Some(schedule)) => format!("{image} runs from its next time on ({})", schedule.calendar),
            (None, None) => {
                let several = several.map_or_else(String::new, |count| format!(" with {count} replicas"));
                format!("{image} serves{several}, {:.1} s after it was begun", took.as_secs_f64())
            }
        };
        if let Some(said) = from.and_then(|from| of_the_host(&from.spec, &rollout.to.spec)) {
            message.push_str(&format!("; {said}"));
        }
        if let Some(gap) = gap {
            message.push_str(&format!("; nothing served for {gap:.1} s"));
        }
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
            serves: match result {
                ReceiptResult::Deployed => Some(rollout.to.generation),
                _ => from.map(|from| from.generation),
            },
            log: Vec::new(),
            replica: rollout.culprit.filter(|_| trouble.is_some()),
            replicas: several,
            gap_seconds: gap,
        }
    }
}
