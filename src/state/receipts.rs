//! Receipts: kept here, and in the outbox until they are in git.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::trust::Reset;
use super::{StateDir, StateError, atomic};
use crate::reconcile::receipt::Transition;
use crate::types::{CommitId, HostName, Timestamp};

/// So many are kept on the host; git keeps all.
const KEPT: usize = 1000;

/// A transition with the name of who saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Stable: the same when it is written a second time.
    pub id: String,
    /// The host.
    pub host: HostName,
    /// What happened.
    #[serde(flatten)]
    pub transition: Transition,
    /// Version of the agent.
    pub agent_version: String,
    /// The boot it happened in.
    pub boot_id: String,
}

impl Receipt {
    /// Signs a transition with the host's name.
    pub fn new(transition: Transition, host: &HostName) -> Self {
        Self {
            id: transition.id(),
            host: host.clone(),
            transition,
            agent_version: super::version::version(),
            boot_id: super::boot::boot_id(),
        }
    }

    /// Sorts by time, then by id.
    fn file_name(&self) -> String {
        format!("{:016x}-{}.json", self.transition.started_at.as_microsecond().max(0), self.id)
    }
}

/// The word for it, beside which other receipts have none.
pub const TRUST_RESET: &str = "trust-reset";

/// An operator had this host believe a commit that it would not have believed by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustReceipt {
    /// Stable: the same when it is written a second time.
    pub id: String,
    /// [`TRUST_RESET`].
    pub kind: String,
    /// The host.
    pub host: HostName,
    /// The commit that is believed by it.
    pub commit: CommitId,
    /// What was believed before.
    pub former: Option<CommitId>,
    /// Who said so.
    pub by: String,
    /// Why, in their words.
    pub message: String,
    /// When it was said.
    pub at: Timestamp,
    /// When the commit was admitted.
    pub admitted_at: Timestamp,
    /// Version of the agent.
    pub agent_version: String,
    /// The boot it happened in.
    pub boot_id: String,
}

impl TrustReceipt {
    /// The receipt for a word by which `commit` was admitted.
    pub fn new(reset: &Reset, commit: &CommitId, host: &HostName, admitted_at: Timestamp) -> Self {
        Self {
            id: format!("trust-{:016x}", reset.at.as_microsecond().max(0)),
            kind: TRUST_RESET.to_owned(),
            host: host.clone(),
            commit: commit.clone(),
            former: reset.former.clone(),
            by: reset.by.clone(),
            message: reset.reason.clone(),
            at: reset.at,
            admitted_at,
            agent_version: super::version::version(),
            boot_id: super::boot::boot_id(),
        }
    }
}

/// A receipt on its way to git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The commit that it is about.
    pub commit: CommitId,
    /// Its id.
    pub id: String,
    /// All of it, as JSON on one line.
    pub line: String,
}

impl Outgoing {
    fn of(commit: &CommitId, id: &str, receipt: &impl Serialize) -> Option<Self> {
        let line = serde_json::to_string(receipt).ok()?;
        Some(Self { commit: commit.clone(), id: id.to_owned(), line })
    }
}

impl StateDir {
    /// Makes the receipt of an operator's word durable in the outbox.
    pub fn save_trust_receipt(&self, receipt: &TrustReceipt) -> Result<(), StateError> {
        let name = format!("{:016x}-{}.json", receipt.at.as_microsecond().max(0), receipt.id);
        let path = self.root().join("outbox").join(name);
        if path.exists() { Ok(()) } else { atomic::write(&path, receipt) }
    }

    /// Makes a receipt durable, here and in the outbox when `push` is on. Writing it twice is writing it once.
    pub fn save_receipt(&self, receipt: &Receipt, push: bool) -> Result<(), StateError> {
        let name = receipt.file_name();
        if push {
            write_once(&self.root().join("outbox").join(&name), receipt)?;
        }
        write_once(&self.root().join("receipts").join(&name), receipt)?;
        self.prune_receipts()
    }

    /// Receipts that are not in git yet, oldest first, each with the name to take it out by.
    pub fn outbox(&self) -> Result<Vec<(String, Outgoing)>, StateError> {
        let folder = self.root().join("outbox");
        let mut found = Vec::new();
        for name in names(&folder)? {
            let path = folder.join(&name);
            let of_service = read_receipt(&path)
                .and_then(|receipt| Outgoing::of(&receipt.transition.commit, &receipt.id, &receipt));
            let outgoing = of_service.or_else(|| {
                let receipt: TrustReceipt = atomic::read(&path).ok().flatten()?;
                Outgoing::of(&receipt.commit, &receipt.id, &receipt)
            });
            found.extend(outgoing.map(|outgoing| (name, outgoing)));
        }
        Ok(found)
    }

    /// Takes a receipt out of the outbox: it is in git.
    pub fn clear_outbox(&self, name: &str) -> Result<(), StateError> {
        atomic::remove(&self.root().join("outbox").join(name))
    }

    fn prune_receipts(&self) -> Result<(), StateError> {
        let folder = self.root().join("receipts");
        let names = names(&folder)?;
        let surplus = names.len().saturating_sub(KEPT);
        for name in &names[..surplus] {
            atomic::remove(&folder.join(name))?;
        }
        Ok(())
    }
}

/// The receipts below a state directory, by the time they were over. Needs no lock: files appear whole.
pub fn read_receipts(state_dir: &Path) -> Result<Vec<Receipt>, StateError> {
    let folder = state_dir.join("receipts");
    let mut receipts: Vec<Receipt> =
        names(&folder)?.iter().filter_map(|name| read_receipt(&folder.join(name))).collect();
    receipts.sort_by_key(|receipt| receipt.transition.finished_at);
    Ok(receipts)
}

/// A receipt never changes its meaning, so a second write needs no former version.
fn write_once(path: &Path, receipt: &Receipt) -> Result<(), StateError> {
    if path.exists() {
        return Ok(());
    }
    atomic::write(path, receipt)
}

/// A damaged receipt is passed over: it is history, and nothing is decided by it.
fn read_receipt(path: &Path) -> Option<Receipt> {
    atomic::read(path).ok().flatten()
}

fn names(folder: &Path) -> Result<Vec<String>, StateError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StateError::io("reading", folder, error)),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| atomic::stem_of(name).is_some())
        .collect();
    names.sort_unstable();
    Ok(names)
}
