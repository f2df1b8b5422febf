//! What is remembered of each service: intent before the effect, outcome after it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{StateDir, StateError, atomic};
use crate::reconcile::record::ServiceRecord;
use crate::types::{Refusal, ServiceName};

/// Everything that could be read, and what could not.
#[derive(Debug, Default)]
pub struct Journal {
    /// By service.
    pub records: BTreeMap<ServiceName, ServiceRecord>,
    /// Services whose record is damaged beyond its former version: nothing of theirs may be touched.
    pub frozen: BTreeMap<ServiceName, Refusal>,
}

impl StateDir {
    fn record_path(&self, service: &ServiceName) -> PathBuf {
        self.root().join("services").join(format!("{service}.json"))
    }

    /// Reads every record. A damaged one costs its own service only.
    pub fn load_journal(&self) -> Result<Journal, StateError> {
        read_journal(&self.root().join("services"))
    }

    /// Makes a record durable.
    pub fn save_record(&self, service: &ServiceName, record: &ServiceRecord) -> Result<(), StateError> {
        atomic::write(&self.record_path(service), record)
    }

    /// Forgets a service.
    pub fn forget_record(&self, service: &ServiceName) -> Result<(), StateError> {
        atomic::remove(&self.record_path(service))
    }
}

/// Reads the records below `folder` without holding the state directory: for `gitopsd plan`. None there = none.
pub fn read_journal(folder: &std::path::Path) -> Result<Journal, StateError> {
    let mut journal = Journal::default();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(journal),
        Err(error) => return Err(StateError::io("reading", folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| StateError::io("reading", folder, error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A lost current file still has its former version.
        let stem = name.strip_suffix(".previous.json").or_else(|| atomic::stem_of(&name));
        let Some(service) = stem.and_then(|stem| stem.parse::<ServiceName>().ok()) else { continue };
        if journal.records.contains_key(&service) || journal.frozen.contains_key(&service) {
            continue;
        }
        match atomic::read::<ServiceRecord>(&folder.join(format!("{service}.json"))) {
            Ok(Some(record)) => {
                journal.records.insert(service, record);
            }
            Ok(None) => {}
            Err(error) => {
                journal.frozen.insert(service, error.to_refusal());
            }
        }
    }
    Ok(journal)
}
