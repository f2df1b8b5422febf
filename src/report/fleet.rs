//! What the hosts of a fleet run, held against a commit: from their receipts alone, so that any clone can tell.
//!
//! A host writes when something changes. One whose services are as the commit wants them is in step, however long ago
//! it wrote; one that should have changed and has not written is behind, and nobody can tell a slow host from a dead one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::config::agent::HostIdentity;
use crate::config::repo::{self, RepoFiles};
use crate::config::without_agent;
use crate::reconcile::receipt::{ReceiptResult, Side, Transition};
use crate::reconcile::tagged::Tagged;
use crate::state::receipts::Receipt;
use crate::types::{CommitId, Declared, Digest, HostName, ImageRef, Reason, Refusal, ServiceName, Timestamp};

/// How a host, or a service on it, stands to the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It runs what the commit wants.
    InStep,
    /// It runs something else, and has not said why.
    Behind,
    /// It waits for the hosts of earlier waves.
    Waiting,
    /// It has never written a receipt.
    Silent,
    /// It tried what the commit wants, and that did not go well.
    Failed,
}

impl Standing {
    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::InStep => "in-step",
            Self::Behind => "behind",
            Self::Waiting => "waiting",
            Self::Silent => "silent",
            Self::Failed => "failed",
        }
    }
}

/// One service of a host.
#[derive(Debug, Serialize)]
pub struct ServiceOnHost {
    /// Its name.
    pub name: ServiceName,
    /// How it stands to the commit.
    pub state: Standing,
    /// The image that the commit names; `None`: the commit does not want it there.
    pub wanted: Option<ImageRef>,
    /// What has traffic, by its last receipt.
    pub serving: Option<Side>,
    /// Of the last receipt: its commit.
    pub commit: Option<CommitId>,
    /// Of the last receipt: when it was over.
    pub at: Option<Timestamp>,
    /// Of the last receipt: what came of it.
    pub result: Option<ReceiptResult>,
    /// Why it is not as the commit wants it, where that is known.
    pub reason: Option<Reason>,
    /// The same for people.
    pub message: Option<String>,
}

/// One host.
#[derive(Debug, Serialize)]
pub struct HostInFleet {
    /// Its name.
    pub host: HostName,
    /// The worst of its services.
    pub state: Standing,
    /// Its wave, counted from 1; `None`: the repo has none, or it is in none and comes last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wave: Option<usize>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<Refusal>,
    /// The last receipt.
    pub last: Option<Receipt>,
    /// Its services, by name.
    pub services: Vec<ServiceOnHost>,
}

/// A tag that hosts of one fleet found to be several images, at one commit that they still run.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DividedTag {
    /// As the repo names it.
    pub image: String,
    /// The commit for which they looked it up.
    pub commit: CommitId,
    /// Who found what.
    pub found: BTreeMap<Digest, Vec<HostName>>,
}

/// The tags of `images.follow` that were looked up by several hosts at the same moment, and moved in it.
pub fn divided<'a>(hosts: impl Iterator<Item = (&'a HostInFleet, &'a [Tagged])>) -> Vec<DividedTag> {
    let mut all: BTreeMap<(String, CommitId), BTreeMap<Digest, Vec<HostName>>> = BTreeMap::new();
    for (host, words) in hosts {
        for service in &host.services {
            let (Some(side), Some(commit)) = (&service.serving, &service.commit) else { continue };
            let image = side.image.to_string();
            let found = words.iter().filter(|word| word.commit == *commit && word.host == host.host);
            // One commit is looked up once; a later word says the same, and more.
            let Some(digest) = found.max_by_key(|word| word.at).and_then(|word| word.tags.get(&image)) else {
                continue;
            };
            let by = all.entry((image, commit.clone())).or_default().entry(digest.clone()).or_default();
            if !by.contains(&host.host) {
                by.push(host.host.clone());
            }
        }
    }
    all.retain(|_, found| found.len() > 1);
    all.into_iter().map(|((image, commit), found)| DividedTag { image, commit, found }).collect()
}

/// How a host stands to the commit that `files` are of; `receipts` are its own, oldest first.
pub fn host(name: &HostName, files: &RepoFiles, receipts: &[Receipt]) -> HostInFleet {
    let latest = latest(receipts);
    let serves = |transition: &&&Transition| transition.serving().is_some();
    // Which services it has by labels of its own configuration only it knows: those that it has run.
    let run: BTreeSet<ServiceName> =
        latest.values().filter(serves).map(|transition| transition.service.clone()).collect();
    let (_, policy) = without_agent();
    let identity = HostIdentity { name: name.clone(), labels: Vec::new() };
    let wanted = repo::read_for(files, &identity, &policy, &repo::by_labels(files, &run)).services;
    let names: BTreeSet<&ServiceName> = wanted.keys().chain(&run).collect();
    let services: Vec<ServiceOnHost> = names
        .into_iter()
        .map(|service| stands(service, wanted.get(service), latest.get(service).copied()))
        .collect();
    let worst = services.iter().map(|service| service.state).max().unwrap_or(Standing::InStep);
    let state = if receipts.is_empty() { Standing::Silent } else { worst };
    HostInFleet {
        host: name.clone(),
        state,
        wave: None,
        waits: None,
        last: receipts.last().cloned(),
        services,
    }
}

/// The last transition of each service.
fn latest(receipts: &[Receipt]) -> BTreeMap<&ServiceName, &Transition> {
    receipts.iter().map(|receipt| (&receipt.transition.service, &receipt.transition)).collect()
}

fn stands(
    name: &ServiceName,
    wanted: Option<&Result<Declared, Refusal>>,
    last: Option<&Transition>,
) -> ServiceOnHost {
    let serving = last.and_then(Transition::serving);
    let image = wanted.and_then(|wanted| wanted.as_ref().ok()).map(|declared| &declared.image);
    let tried = last.and_then(|last| last.to.as_ref()).map(|side| &side.image);
    let (state, reason, message) = match (wanted, serving) {
        // The file is broken: what is there stays.
        (Some(Err(refusal)), _) => (Standing::Failed, Some(refusal.reason), Some(refusal.message.clone())),
        (None, None) => (Standing::InStep, None, None),
        (Some(Ok(declared)), Some(side)) if side.image == declared.image => (Standing::InStep, None, None),
        (Some(Ok(declared)), _) if tried == Some(&declared.image) => {
            (Standing::Failed, last.and_then(|last| last.reason), last.map(|last| last.message.clone()))
        }
        _ => (Standing::Behind, None, None),
    };
    ServiceOnHost {
        name: name.clone(),
        state,
        wanted: image.cloned(),
        serving: serving.cloned(),
        commit: last.map(|last| last.commit.clone()),
        at: last.map(|last| last.finished_at),
        result: last.map(|last| last.result),
        reason,
        message,
    }
}
