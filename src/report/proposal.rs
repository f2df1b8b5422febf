//! What a change of the config repo would do on a host, told from its receipts: for those who review it elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::config::agent::HostIdentity;
use crate::config::repo::{self, RepoFiles};
use crate::config::without_agent;
use crate::reconcile::preview::{Change, follow};
use crate::reconcile::receipt::{ReceiptResult, Side, Transition};
use crate::state::receipts::Receipt;
use crate::types::{CommitId, Declared, HostName, Refusal, ServiceName};

/// What is known of a host.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its name.
    pub host: &'a HostName,
    /// What it calls itself, as far as it said.
    pub labels: &'a [String],
    /// Its receipts, oldest first.
    pub receipts: &'a [Receipt],
}

/// What it would do on one host.
#[derive(Debug)]
pub struct OnHost {
    /// Of each service that it has, or would have.
    pub changes: BTreeMap<ServiceName, Change>,
    /// Of services whose new version failed there before, as it is: what came of it.
    pub failed: BTreeMap<ServiceName, String>,
}

/// What `files` would do on a host. `files_at` gives the files of a commit that a receipt names; of one that is not
/// there only images are compared.
pub fn on_host(
    known: Known<'_>,
    files: &RepoFiles,
    files_at: &mut dyn FnMut(&CommitId) -> Option<Rc<RepoFiles>>,
) -> OnHost {
    let latest: BTreeMap<&ServiceName, &Transition> =
        known.receipts.iter().map(|receipt| (&receipt.transition.service, &receipt.transition)).collect();
    let serving: BTreeMap<&ServiceName, &Side> =
        latest.iter().filter_map(|(name, last)| Some((*name, last.serving()?))).collect();
    let run: BTreeSet<ServiceName> = serving.keys().map(|name| (*name).clone()).collect();
    let wanted = wanted(known, files, &run);
    let mut changes = BTreeMap::new();
    let mut failed = BTreeMap::new();
    for (name, declared) in &wanted {
        let declared = match declared {
            Ok(declared) => declared,
            Err(refusal) => {
                changes.insert(name.clone(), Change::Refuse(refusal.clone()));
                continue;
            }
        };
        let mut at = |commit: &CommitId| -> Option<Declared> {
            files_at(commit).and_then(|files| self::wanted(known, &files, &run).remove(name)?.ok())
        };
        let change = match serving.get(name) {
            None => Change::Create { image: declared.image.clone() },
            Some(side) => {
                let commit = commit_of(known.receipts, name, side);
                let running = commit.and_then(&mut at).filter(|running| running.image == side.image);
                change(side, running, declared)
            }
        };
        let last = latest.get(name).filter(|last| {
            matches!(last.result, ReceiptResult::Failed | ReceiptResult::RolledBack)
                && last.to.as_ref().is_some_and(|to| to.image == declared.image)
        });
        if let Some(last) = last.filter(|last| at(&last.commit).is_some_and(|then| then == *declared)) {
            failed.insert(name.clone(), last.message.clone());
        }
        changes.insert(name.clone(), change);
    }
    follow(&mut changes, &wanted, &BTreeMap::new());
    for (name, side) in serving.into_iter().filter(|(name, _)| !wanted.contains_key(*name)) {
        changes.insert(name.clone(), Change::Remove { image: Some(side.image.clone()) });
    }
    OnHost { changes, failed }
}

/// What files want of a host. Services that it has by labels which it never told are those that it runs.
fn wanted(
    known: Known<'_>,
    files: &RepoFiles,
    run: &BTreeSet<ServiceName>,
) -> BTreeMap<ServiceName, Result<Declared, Refusal>> {
    let (_, policy) = without_agent();
    let identity = HostIdentity { name: known.host.clone(), labels: known.labels.to_vec() };
    let guess = if known.labels.is_empty() { repo::by_labels(files, run) } else { BTreeSet::new() };
    repo::read_for(files, &identity, &policy, &guess).services
}

/// The commit that asked for a generation, or changed it last in place.
fn commit_of<'a>(receipts: &'a [Receipt], name: &ServiceName, side: &Side) -> Option<&'a CommitId> {
    let asked = receipts.iter().rev().map(|receipt| &receipt.transition).find(|transition| {
        transition.service == *name
            && transition.result == ReceiptResult::Deployed
            && transition.to.as_ref().is_some_and(|to| to.generation == side.generation)
    });
    asked.map(|transition| &transition.commit)
}

fn change(side: &Side, running: Option<Declared>, declared: &Declared) -> Change {
    let image = side.image.clone();
    // What its files said is not known here: the image is.
    let running = running.unwrap_or_else(|| Declared { image: image.clone(), ..declared.clone() });
    Change::between(image, &running, declared)
}
