//! Every message about a transition: one id, one priority, one wording each.

use crate::types::{CommitId, Exit, Generation, ImageRef, Reason, Refusal, ServiceName};

/// How urgent a message is: the syslog priorities that the agent uses (syslog(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody should look.
    Error,
    /// Somebody may want to look.
    Warning,
    /// Worth a line.
    Info,
}

/// Declares the kinds of messages once: variant, stable name, MESSAGE_ID, priority, when. `docs/messages.md` is
/// generated from it.
macro_rules! kinds {
    ($($variant:ident $name:literal $id:literal $priority:ident $when:literal)*) => {
        /// What a message is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $(#[doc = $when] $variant,)*
        }

        impl Kind {
            /// Every kind, in the order of `docs/messages.md`.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name, in `gitopsd events`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The journal's MESSAGE_ID, a random 128-bit number (sd_journal_print(3), journalctl(1) --new-id128).
            pub fn message_id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }

            /// How urgent it is.
            pub fn priority(self) -> Priority {
                match self { $(Self::$variant => Priority::$priority,)* }
            }

            /// When it is sent.
            pub fn when(self) -> &'static str {
                match self { $(Self::$variant => $when,)* }
            }
        }
    };
}

kinds! {
    AgentStarted "agent-started" "7c1f0a5b3e9d4c0f8a61d2e7b4930f51" Info "The agent is up and has looked at the host."
    AgentStopping "agent-stopping" "0b9e6d2c57a84d31b6f4c8a1e03d7f92" Info "The agent ends; containers go on."
    RevisionAdmitted "revision-admitted" "e2a4b8c613f7490d95d80c6f1b7e3a24" Info "A new commit of the config repo is believed and acted on."
    RevisionRefused "revision-refused" "49d07f3ab1c84e62a5e9f0d3c7b81264" Error "A commit is not believed, or cannot be read: nothing of it is acted on."
    TrustReset "trust-reset" "68427e64751fff52804b9bf67950d65a" Warning "An operator has the host believe a rewritten history, or forget the commit that it believed last."
    RevisionWaits "revision-waits" "5ab0e2d7f61c4893b7d3f08ac94e1d26" Info "A commit is believed, and waits for the hosts of earlier waves."
    RevisionStopped "revision-stopped" "c80f3d6a29e547b1a1f47bd05e92c6d3" Warning "A commit failed in an earlier wave of hosts: this one does not act on it."
    SourceLost "source-lost" "b3f85c0e9a2d47618c4b7de05f1a9326" Warning "The config repo cannot be reached; everything stays as it is."
    SourceFound "source-found" "18c6ae94d7f04b25b0e3a95c62f8d147" Info "The config repo can be reached again."
    SourceOld "source-old" "91c4d27e5ab0463f8e1d7b2f60a3c958" Warning "The newest commit of the config repo is older than repo.max_age: nobody commits, or an old state is shown."
    TagMoved "tag-moved" "f47d1e9c03ab42d68c15e07ab62d9f38" Warning "A tag stands for another image by now than the one that was found for the commit in force; nothing comes of it."
    ServiceRefused "service-refused" "d5a07be82f164c93a8c1064fe7b92d38" Error "What a commit wants of a service cannot be done, or not now; it stays as it is."
    RolloutBegun "rollout-begun" "5e93c1d80b7a4f26b9d4e8f2a6037c15" Info "A new generation of a service is on its way."
    ImagePulled "image-pulled" "a17c4f6de0b3485295f8d3b0c2e6914a" Info "The image of a generation is complete on this host."
    CandidateStarted "candidate-started" "c84e20f5a96b4d1783b5c7d9ef014a62" Info "The container of a new generation runs, without traffic."
    ReplicaStarted "replica-started" "766cc4f18f9310a10067e6861edad894" Info "A further container of a generation runs; it gets new connections once it is healthy."
    SpreadChanged "spread-changed" "e674fc2bbeff75c52fd05fa72d0f6a54" Info "New connections go to other containers of the same generation: one has ended or is sick, or is well again."
    ReplicaGone "replica-gone" "27fa8472b5ba4e0531b6528e06e2e7aa" Info "A container of a generation that was one too many is away."
    CanaryBegun "canary-begun" "28d959203b154663b87375a893d7a6b0" Info "A part of new connections goes to the new generation, which was judged healthy."
    BatchTaken "batch-taken" "6f1a7c0e52d84b0f9c31a0d5e4b7c286" Info "Containers of the new generation have taken the places of as many of the old one."
    Switched "switched" "3b6a9d4e72c1480fa0e5f8b7d1c92e54" Info "New connections go to the new generation."
    Deployed "deployed" "f01d7c3b58e94a6c92b8a4e6d05f3c71" Info "The new generation is the incumbent."
    RollingBack "rolling-back" "86f2b5d0c4e7491ba3d9f6c81e0a7b25" Error "A new generation is given up."
    RolledBack "rolled-back" "2d94e7a1f60b4c38b5c2d8f3a97e1046" Error "The old generation has its traffic back, and the new one is away."
    DeployFailed "deploy-failed" "9ac58d3f0e174b62a6f1c7e4d2b8503f" Error "A new generation was given up before it had traffic; the old one went on serving."
    Leaving "leaving" "c5f2a8d07b314e69a1d40e93b67c85f1" Info "A service that the repo no longer wants gets no new connections from now on; it goes once those that it has have ended, or their time is over."
    Removed "removed" "6f0e8b2d94c34a17b8e5d1a7c3f96024" Info "A service is off this host."
    Ended "ended" "6a4b1f0d92c84e75b8d3e60c7f15a2e8" Info "A container ended, and its restart policy leaves it so."
    OomKilled "oom-killed" "e91d7c3a5f0b4826a4c7d2f8b63e1095" Warning "The kernel killed a process in a container for want of memory, and the container goes on."
    JobBegun "job-begun" "4d2e8b7a90c14f36b5d8e1a7c3f06294" Info "A one-shot has been started: `deploy.pre`, `deploy.post`, or a run of a scheduled service."
    JobEnded "job-ended" "b05c7f1e6a934d28a4f0c9d3e8172b56" Info "A one-shot did what it is for."
    JobFailed "job-failed" "7e93a1c4d85f4b06923bd6f7e0c1a548" Error "`deploy.post` or a run of a scheduled service ended with an error or ran out of time."
    Restarted "restarted" "b7d1c5e04f8a4926a9c3e0f7d682b51e" Warning "A container that was not running was started again."
    RouteRestored "route-restored" "4e8d0a6bc3f74152b6d9c8f1e5a0732b" Warning "A traffic rule that was lost or changed was put right."
    Unhealthy "unhealthy" "8b2f4c61d7e04a95b3c8e1f60a7d2594" Error "What serves fails its health check, and no newer version is under way."
    Recovered "recovered" "c60d9e37a1f84b52949b2e75d8c3f016" Info "What serves no longer fails its health check."
    Drained "drained" "c1b7e05d3f924a86905e4d8a7b62f3c9" Info "A generation, or one of its containers, that has lost its traffic is told to end: its connections have ended, or their time is over."
    Retired "retired" "d29f6b4c0e8a4713a5b7c1d8f34e9062" Info "The former generation is away."
    Swept "swept" "71b8e3d5f0c6492ea4d7b9c2e8f51a03" Warning "Something that no record names was taken away."
    EffectFailed "effect-failed" "eac40d7f1b9546238f3c6a5d0e7b9281" Error "A repair did not work; it is tried again."
    Amended "amended" "05d7f9c2a8e64b31b4c6d0e9f17a8352" Info "New settings were taken over without a new container."
    HoldBegan "hold-began" "c3a5e7b1d94f40628bd6f0c8a2e7195d" Info "An operator holds a service as it is."
    HoldEnded "hold-ended" "58e1d0f7b6c94a23a7f4b8d3c9e0256a" Info "A service follows the repo again."
    ReceiptsPushed "receipts-pushed" "fb20c6d8e5a7413b9d1f7c4e0a8b6352" Info "Receipts are in git."
    ReceiptsStuck "receipts-stuck" "17d9a3e6c0f84b52b8e4d7f1c5a69038" Warning "Receipts cannot be pushed; they wait in the outbox."
    ReceiptsOnBranch "receipts-on-branch" "a7e27e6c44c0ce2cde84c6eaa0a14a59" Warning "The git server refuses git notes of this host; its receipts are pushed to a branch from now on."
    StatusStuck "status-stuck" "0879a1a57b4c3e0c3def76ad37c8c2c3" Warning "The forge does not take the commit status of this host; it is tried again."
    ImagesCollected "images-collected" "3d5b8f07c2e14a96b0f7d9a4c6e21853" Info "Images that nothing needs were removed."
    StoreDamaged "store-damaged" "94c1f6a8e0d74b3586a2c7f3d9e05b1f" Error "A layer is not as it was unpacked: nothing new runs on it, and it is rebuilt from what is kept of it, or pulled again."
    StateTrouble "state-trouble" "a6e8c2f4d0b7495183c9f5e1b7d02a46" Error "State could not be read or written."
    StateMended "state-mended" "1f7ac93b5e284d60b8d2046cf3917ea5" Info "State can be written again."
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// What it is about.
    pub kind: Kind,
    /// One line for people.
    pub text: String,
    /// The service, where it is about one.
    pub service: Option<ServiceName>,
    /// The commit behind it.
    pub commit: Option<CommitId>,
    /// The generation.
    pub generation: Option<Generation>,
    /// Its image.
    pub image: Option<ImageRef>,
    /// The phase of the rollout.
    pub phase: Option<&'static str>,
    /// Why, where something did not happen.
    pub reason: Option<Reason>,
    /// How a container ended.
    pub exit: Option<Exit>,
    /// The last lines of a generation that is given up.
    pub log: Vec<String>,
}

impl Message {
    /// A message about the agent itself, or the repo.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            service: None,
            commit: None,
            generation: None,
            image: None,
            phase: None,
            reason: None,
            exit: None,
            log: Vec::new(),
        }
    }

    /// A message about a service.
    pub fn of(kind: Kind, service: &ServiceName, text: impl Into<String>) -> Self {
        Self { service: Some(service.clone()), ..Self::new(kind, text) }
    }

    /// How urgent it is: that of its kind, but for what somebody asked for.
    pub fn priority(&self) -> Priority {
        match self.reason {
            // A newer commit came, or an operator said so: nothing went wrong.
            Some(Reason::Superseded | Reason::OperatorRollback | Reason::Held) => Priority::Info,
            _ => self.kind.priority(),
        }
    }

    /// Adds why.
    pub fn because(mut self, refusal: &Refusal) -> Self {
        self.reason = Some(refusal.reason);
        self
    }

    /// Adds the commit.
    pub fn at(mut self, commit: &CommitId) -> Self {
        self.commit = Some(commit.clone());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_somebody_asked_for_is_no_error() {
        let service = "web".parse().unwrap();
        let with = |reason| {
            Message::of(Kind::DeployFailed, &service, "").because(&Refusal::new(reason, "")).priority()
        };
        assert_eq!(with(Reason::Unhealthy), Priority::Error);
        assert_eq!(with(Reason::Superseded), Priority::Info);
        assert_eq!(with(Reason::OperatorRollback), Priority::Info);
    }

    #[test]
    fn ids_are_unique_and_well_formed() {
        let ids: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.message_id()).collect();
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!((ids.len(), names.len()), (Kind::ALL.len(), Kind::ALL.len()));
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
