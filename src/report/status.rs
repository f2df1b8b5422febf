//! The shape of `gitopsd status --json`. Names in it are a contract: `docs/json.md`.

use serde::{Deserialize, Serialize};

use crate::types::{
    CommitId, Digest, Exit, Generation, HostName, ImageRef, Reason, ReplicaIndex, ServiceName, Share,
    Timestamp,
};

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who this host is.
    pub host: HostName,
    /// The agent itself.
    pub agent: AgentStatus,
    /// The config repo.
    pub repo: RepoStatus,
    /// The commit that is acted on; `null` before the first.
    pub revision: Option<RevisionStatus>,
    /// Each service, by name.
    pub services: Vec<ServiceStatus>,
    /// Receipts that are not in git yet.
    pub outbox: usize,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// In a word.
    pub state: AgentState,
    /// Why it cannot do its work as it should: its state cannot be written.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// The same for people.
    #[serde(default)]
    pub message: Option<String>,
}

/// The host in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Everything is as the repo wants it.
    InSync,
    /// Something is under way.
    Progressing,
    /// Something is not as the repo wants it, and stays so for now.
    Degraded,
    /// The repo was not reached for too long.
    Stale,
    /// The agent has not looked at the repo yet.
    Starting,
}

impl AgentState {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::InSync => "in-sync",
            Self::Progressing => "progressing",
            Self::Degraded => "degraded",
            Self::Stale => "stale",
            Self::Starting => "starting",
        }
    }
}

/// The config repo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepoStatus {
    /// Without user info.
    pub url: String,
    /// The branch that is followed.
    pub branch: String,
    /// When it was last reached.
    pub reached_at: Option<Timestamp>,
    /// Why it is not followed right now.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: Option<String>,
    /// The listener for webhooks, where one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookStatus>,
}

/// The listener for webhooks. All numbers since the start of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookStatus {
    /// Where it listens; `null` while it cannot.
    pub listen: Option<std::net::SocketAddr>,
    /// Deliveries whose signature was right.
    pub deliveries: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// The commit that is acted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevisionStatus {
    /// Its name.
    pub commit: CommitId,
    /// First line of its message.
    pub subject: String,
    /// `Name <mail>`.
    pub author: String,
    /// The committer's time.
    pub committed_at: Timestamp,
    /// When this host last saw it at the branch's head.
    pub fetched_at: Option<Timestamp>,
    /// Whether its signature was checked.
    pub verified: bool,
    /// Who signed it, by the host's list of allowed signers.
    #[serde(default)]
    pub signer: Option<String>,
}

/// A service in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It runs what the repo wants.
    Running,
    /// A new generation is under way.
    Deploying,
    /// An operator holds it.
    Held,
    /// It does not run what the repo wants.
    Failed,
    /// Nothing of it runs.
    Stopped,
}

impl ServiceState {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Deploying => "deploying",
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// One service. What serves is in the upper part, what is wrong or under way in the lower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// In a word.
    pub state: ServiceState,
    /// The image that serves.
    pub image: Option<ImageRef>,
    /// Its digest.
    pub digest: Option<Digest>,
    /// The generation that serves.
    pub generation: Option<Generation>,
    /// Its colour.
    pub color: Option<String>,
    /// The commit that it came from.
    pub commit: Option<CommitId>,
    /// Who wrote that commit.
    pub author: Option<String>,
    /// Since when it serves.
    pub since: Option<Timestamp>,
    /// Name of its container.
    pub container: Option<String>,
    /// The service's stable address.
    pub ip: Option<std::net::Ipv4Addr>,
    /// `0.0.0.0:80->8080/tcp` each.
    pub ports: Vec<String>,
    /// `healthy`, `unhealthy`, `starting` or `stopped`; `null` when nothing serves.
    pub health: Option<String>,
    /// Starts in a row after the first.
    pub restarts: u32,
    /// The last one of these.
    #[serde(default)]
    pub restarted_at: Option<Timestamp>,
    /// How its container ended last.
    #[serde(default)]
    pub last_exit: Option<Exit>,
    /// How often the kernel killed a process in the container that runs for want of memory.
    #[serde(default)]
    pub oom_kills: u64,
    /// Its containers, where it has several; what stands above is of the first, health is that of the worst.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaStatus>,
    /// Of one that runs at times: when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
    /// The new generation under way.
    pub rollout: Option<RolloutStatus>,
    /// The former generation, or a new one that was given up though it is well, until its connections have ended.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// What is being done or waited for, for people.
    pub doing: Option<String>,
    /// Why it is not as the repo wants it.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: Option<String>,
    /// When it is tried again by itself.
    pub retry_at: Option<Timestamp>,
}

/// One of several containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its number, from 1.
    pub index: ReplicaIndex,
    /// Its name.
    pub container: String,
    /// `healthy`, `unhealthy`, `starting` or `stopped`.
    pub health: String,
    /// Its address inside the instance's subnet.
    pub ip: std::net::Ipv4Addr,
    /// Whether it gets new connections.
    pub serves: bool,
    /// Starts in a row after the first.
    pub restarts: u32,
    /// Since when it gets no new connections, as there is to be one less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving_since: Option<Timestamp>,
    /// Connections of clients that it still has then; left out until they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<usize>,
}

/// A generation that has lost its traffic and still has connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Which one.
    pub generation: Generation,
    /// Connections of clients that it has; `null` until they were counted.
    pub connections: Option<usize>,
    /// When it lost its traffic.
    pub since: Timestamp,
    /// When it is told to end all the same.
    pub until: Timestamp,
}

/// A new generation under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// What serves.
    pub from: Option<Generation>,
    /// What is to.
    pub to: Generation,
    /// How far it is.
    pub phase: String,
    /// Its image.
    pub image: ImageRef,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When the phase is given up, where it has a limit: `deploy.pre`, and the health check of a candidate.
    #[serde(default)]
    pub times_out_at: Option<Timestamp>,
    /// Under `recreate`: since when nothing serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since: Option<Timestamp>,
    /// The part of new connections that it has, in the phases `canary` and `batches`.
    #[serde(default)]
    pub share: Option<Share>,
    /// When it is to get all of them, in phase `canary`.
    #[serde(default)]
    pub switches_at: Option<Timestamp>,
    /// While its image is pulled, for those who ask: the file has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<PullStatus>,
}

/// The times of a service that does not run all the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// As the service file has it.
    pub calendar: String,
    /// When it runs next.
    pub next_run: Option<Timestamp>,
    /// Since when it runs, while it does.
    pub running_since: Option<Timestamp>,
    /// When it ran last.
    pub last_run: Option<Timestamp>,
    /// How that ended.
    pub last_exit: Option<Exit>,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullStatus {
    /// Bytes of missing layers that are here.
    pub bytes: u64,
    /// Bytes that all missing layers have, as they are packed.
    pub total: u64,
}
