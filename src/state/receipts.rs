//! Receipts: kept here, and in the outbox until they are in git.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic};
use crate::reconcile::receipt::Transition;
use crate::types::HostName;

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

impl StateDir {
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
    pub fn outbox(&self) -> Result<Vec<(String, Receipt)>, StateError> {
        let folder = self.root().join("outbox");
        let mut found = Vec::new();
        for name in names(&folder)? {
            if let Some(receipt) = read_receipt(&folder.join(&name)) {
                found.push((name, receipt));
            }
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
