//! What is on disk: `layers/<diff-id>/fs`, `images/<manifest>.json`, and `tmp/` for all that is unfinished.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::PullError;
use super::unpack::{self, Implied};
use crate::engine::{ImageConfig, LocalImage};
use crate::state::atomic;
use crate::types::Digest;

/// Layers and images of this host.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    count: AtomicU64,
}

/// A directory for something unfinished. It goes with its last user, unless it got another name.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    pub fn tree(&self) -> PathBuf {
        self.0.join("fs")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: the next start wipes what is left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A layer that is unpacked and verified, and has no name yet.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub place: Arc<Temporary>,
    pub implied: Implied,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    digest: Digest,
    /// Lowest first.
    diff_ids: Vec<Digest>,
    config: ImageConfig,
}

impl Store {
    /// Opens the store below a state directory. What a crash left unfinished is wiped.
    pub fn open(state_dir: &Path) -> Result<Self, PullError> {
        let root = state_dir.join("store");
        let failed = |error: &std::io::Error| {
            PullError::io(format_args!("opening the store {}", root.display()), error)
        };
        let temporary = root.join("tmp");
        match std::fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&error)),
            _ => {}
        }
        for folder in [&root, &temporary, &root.join("layers"), &root.join("images")] {
            // 0700: set-id programs of images are nobody's to run from here (CVE-2021-41091).
            atomic::make_dir(folder)
                .map_err(|error| PullError::retry(error.reason(), error.to_refusal().message))?;
        }
        Ok(Self { root, count: AtomicU64::new(0) })
    }

    /// An image whose layers are all here.
    pub fn image(&self, digest: &Digest) -> Option<LocalImage> {
        let record: Record = atomic::read(&self.image_path(digest)).ok().flatten()?;
        let layers: Vec<PathBuf> = record.diff_ids.iter().map(|diff_id| self.tree(diff_id)).collect();
        let complete = record.digest == *digest && layers.iter().all(|layer| layer.is_dir());
        complete.then_some(LocalImage { digest: record.digest, layers, config: record.config })
    }

    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.tree(diff_id).is_dir()
    }

    /// The unpacked tree of a layer.
    pub(super) fn tree(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex()).join("fs")
    }

    /// A fresh directory for something unfinished, on the same file system as the final names.
    pub(super) fn temporary(&self) -> Result<Arc<Temporary>, PullError> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let place = Temporary(self.root.join("tmp").join(number.to_string()));
        atomic::make_dir(&place.tree())
            .map_err(|error| PullError::retry(error.reason(), error.to_refusal().message))?;
        // A layer that says nothing of its root has an ordinary one (the store above it is root's alone).
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(place.tree(), mode)
            .map_err(|error| PullError::io(format_args!("preparing {}", place.0.display()), &error))?;
        Ok(Arc::new(place))
    }

    /// What [`Self::admit`] syncs by. To be had before the first write: a descriptor hears of those errors only that
    /// came after it was opened, or that nobody heard of yet (syncfs(2)).
    pub(super) fn barrier(&self) -> Result<File, PullError> {
        File::open(&self.root)
            .map_err(|error| PullError::io(format_args!("opening {}", self.root.display()), &error))
    }

    /// Gives the directories that layers only imply what the layers of the image below them say, lowest layer first.
    pub(super) fn settle(
        &self,
        diff_ids: &[Digest],
        finished: &BTreeMap<Digest, Unpacked>,
    ) -> Result<(), PullError> {
        for (place, diff_id) in diff_ids.iter().enumerate() {
            let Some(layer) = finished.get(diff_id) else { continue };
            let lowers: Vec<PathBuf> = diff_ids[..place]
                .iter()
                .rev()
                .filter(|lower| *lower != diff_id)
                .map(|lower| finished.get(lower).map_or_else(|| self.tree(lower), |layer| layer.place.tree()))
                .collect();
            unpack::inherit(&layer.place.tree(), &layer.implied, &lowers)
                .map_err(|error| error.into_pull_error(&format!("layer {diff_id}")))?;
        }
        Ok(())
    }

    /// Gives layers their final names: after one checked sync of all that was written for them. An error of the sync
    /// means that nothing of it may be believed.
    pub(super) fn admit(
        &self,
        barrier: &File,
        finished: &BTreeMap<Digest, Unpacked>,
    ) -> Result<(), PullError> {
        let layers = self.root.join("layers");
        let failed = |error: &std::io::Error| PullError::io("making layers durable", error);
        if !finished.is_empty() {
            rustix::fs::syncfs(barrier).map_err(|error| failed(&error.into()))?;
        }
        crate::failpoint::hit("pull::before_rename");
        for (diff_id, layer) in finished {
            // Somebody else may have been faster with the same bytes.
            if !self.has_layer(diff_id) {
                std::fs::rename(&layer.place.0, layers.join(diff_id.hex()))
                    .map_err(|error| failed(&error))?;
            }
        }
        crate::failpoint::hit("pull::after_rename");
        File::open(&layers).and_then(|folder| folder.sync_all()).map_err(|error| failed(&error))
    }

    /// Writes down that an image is complete.
    pub(super) fn record(
        &self,
        digest: &Digest,
        diff_ids: &[Digest],
        config: ImageConfig,
    ) -> Result<(), PullError> {
        crate::failpoint::hit("pull::before_record");
        let record = Record { digest: digest.clone(), diff_ids: diff_ids.to_vec(), config };
        atomic::write(&self.image_path(digest), &record)
            .map_err(|error| PullError::retry(error.reason(), error.to_refusal().message))
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }
}
