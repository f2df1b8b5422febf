//! What is on disk, and what it is worth.
//!
//! ```text
//! store/layers/<diff-id>/fs           the layer's tree
//!                       /listing      each path of it, so that a flipped bit can be found
//!                       /layer.json   where it can be had again
//!                       /blob         its bytes as they came, where the host keeps them
//! store/images/<manifest>.json        an image: its layers, its configuration, its names
//!              <manifest>.used        its time is when a service last needed the image
//!              <manifest>.dirs        directories above its layers, where its record says so
//! store/archives/<address>.json       what an archive held, as long as it is the same
//! store/configs/<manifest>.json       the configuration of an image whose archives may have to stand in for it
//! store/quarantine/<diff-id>.…        damaged layers, for as long as something may still run on them
//! store/tmp/                          all that is unfinished
//! ```

mod archives;
mod blob;
mod block_groups;
mod clock;
mod dirs;
mod fsck;
mod gc;
mod quarantine;
pub(super) mod record;
mod sizes;
mod walk;
mod wipe;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::PullError;
use super::layer::Unpacked;
use super::unpack::{self, listing};
use crate::engine::LocalImage;
use crate::state::{StateError, atomic};
use crate::types::{Digest, Reason};
pub(super) use clock::now;
pub use fsck::{Checked, Depth, Finding, ImageReport, LayerReport, LayerState, Report};
pub use gc::{Collection, Doomed, Gone, Pressure};
pub use quarantine::Aside;
use record::from_state;
pub use sizes::{ImageUsage, Usage};

/// Layers and images of this host.
#[derive(Debug, Default)]
pub struct Store {
    root: PathBuf,
    count: AtomicU64,
    /// Layers that somebody counts on, and how many do: they are not collected.
    pins: Mutex<BTreeMap<Digest, usize>>,
}

/// Layers that stay as long as this does.
#[derive(Debug)]
pub(super) struct Pins {
    store: Arc<Store>,
    layers: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.store.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &self.layers {
            if let Some(count) = pins.get_mut(layer) {
                *count -= 1;
            }
        }
        pins.retain(|_, count| *count > 0);
    }
}

/// A directory for something unfinished. It goes with its last user, unless it got another name.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The layer's root.
    pub fn tree(&self) -> PathBuf {
        self.0.join("fs")
    }

    /// What the layer holds, path by path.
    pub fn listing(&self) -> PathBuf {
        self.0.join("listing")
    }

    /// Its bytes as they come.
    pub fn blob(&self) -> PathBuf {
        self.0.join(blob::NAME)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: the next start wipes what is left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// Opens the store below a state directory. What a crash left unfinished is wiped.
    pub fn open(state_dir: &Path) -> Result<Self, PullError> {
        let root = state_dir.join("store");
        let failed = |error: &std::io::Error| {
            PullError::io(format_args!("opening the store {}", root.display()), error)
        };
        let temporary = root.join("tmp");
        wipe::wipe(&temporary, wipe::LIMIT).map_err(|error| failed(&error))?;
        for folder in ["", "tmp", "layers", "images", "archives", "configs"] {
            // 0700: set-id programs of images are nobody's to run from here (CVE-2021-41091).
            atomic::make_dir(&root.join(folder)).map_err(|error| from_state(&error))?;
        }
        block_groups::keep_children_apart(&temporary);
        // Names differ from one start to the next: ext4 takes the place of a directory from a hash of its name.
        let count = AtomicU64::new(now().as_millisecond().unsigned_abs());
        let store = Self { root, count, ..Self::default() };
        store.sweep_dirs();
        store.dress_all();
        Ok(store)
    }

    /// The store below a state directory that an agent may be at work on: to read only.
    pub fn beside(state_dir: &Path) -> Self {
        Self { root: state_dir.join("store"), ..Self::default() }
    }

    /// An image whose layers are all here.
    pub fn image(&self, digest: &Digest) -> Option<LocalImage> {
        let record = self.image_record(digest)?;
        let mut layers: Vec<PathBuf> = record.diff_ids.iter().map(|diff_id| self.tree(diff_id)).collect();
        if record.dirs {
            layers.push(self.dirs_path(&record.digest));
        }
        let complete = layers.iter().all(|layer| layer.is_dir());
        complete.then_some(LocalImage { digest: record.digest, layers, config: record.config })
    }

    /// Keeps layers from being collected, those that are here and those that come.
    pub(super) fn pin(self: &Arc<Self>, layers: &[Digest]) -> Pins {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in layers {
            *pins.entry(layer.clone()).or_default() += 1;
        }
        drop(pins);
        Pins { store: self.clone(), layers: layers.to_vec() }
    }

    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.tree(diff_id).is_dir()
    }

    /// Where all of it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The unpacked tree of a layer.
    pub(super) fn tree(&self, diff_id: &Digest) -> PathBuf {
        layer_path(&self.root, diff_id).join("fs")
    }

    /// A fresh directory for something unfinished, on the same file system as the final names.
    pub(super) fn temporary(&self) -> Result<Arc<Temporary>, PullError> {
        let place = self.nameless();
        atomic::make_dir(&place.tree()).map_err(|error| from_state(&error))?;
        // A layer that says nothing of its root has an ordinary one (the store above it is root's alone).
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(place.tree(), mode)
            .map_err(|error| PullError::io(format_args!("preparing {}", place.0.display()), &error))?;
        Ok(Arc::new(place))
    }

    /// A place for something unfinished, where nothing is yet.
    fn nameless(&self) -> Temporary {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        Temporary(self.root.join("tmp").join(number.to_string()))
    }

    /// Takes a layer's name away. What it was goes with the result, or with the next start. Nothing is made for that: a full
    /// disk has no room for a directory.
    fn take_out(&self, diff_id: &Digest) -> Result<Temporary, PullError> {
        let doomed = self.nameless();
        match atomic::rename(&layer_path(&self.root, diff_id), doomed.path()) {
            Err(StateError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(doomed),
            Err(error) => Err(from_state(&error)),
            Ok(()) => Ok(doomed),
        }
    }

    /// What [`Self::admit`] syncs by. To be had before the first write: a descriptor hears of those errors only that
    /// came after it was opened, or that nobody heard of yet (syncfs(2)).
    pub(super) fn barrier(&self) -> Result<File, PullError> {
        File::open(&self.root)
            .map_err(|error| PullError::io(format_args!("opening {}", self.root.display()), &error))
    }

    /// Gives the disk something to do while layers are still being unpacked. Only a head start: what counts is what
    /// [`Self::admit`] hears, which by a descriptor of its own hears also of what went wrong here (syncfs(2)).
    pub(super) fn flush(&self) {
        if let Ok(root) = File::open(&self.root)
            && !crate::failpoint::is_set("pull::skip_sync")
        {
            let _ = rustix::fs::syncfs(root);
        }
    }

    /// Gives the directories that layers only imply what the layers of the image below them say, lowest layer first.
    pub(super) fn settle(
        &self,
        diff_ids: &[Digest],
        finished: &BTreeMap<Digest, Unpacked>,
    ) -> Result<(), PullError> {
        for (place, diff_id) in diff_ids.iter().enumerate() {
            let Some(layer) = finished.get(diff_id) else { continue };
            let lowers: Vec<&Digest> =
                diff_ids[..place].iter().rev().filter(|lower| *lower != diff_id).collect();
            let trees: Vec<PathBuf> = lowers
                .iter()
                .map(|lower| finished.get(lower).map_or_else(|| self.tree(lower), |layer| layer.place.tree()))
                .collect();
            let inherited = unpack::inherit(&layer.place.tree(), &layer.implied, &trees);
            let inherited = inherited.map_err(|error| match error {
                unpack::Unsettled::NoLower(index) => {
                    let lower = lowers.get(index).map_or_else(String::new, ToString::to_string);
                    let what = format!("layer {diff_id} needs layer {lower} below it, which is not here");
                    PullError::retry(Reason::LayerMissing, what)
                }
                unpack::Unsettled::Failed(error) => error.into_pull_error(&format!("layer {diff_id}")),
            })?;
            listing::seal(&layer.place.listing(), &inherited.records, &inherited.gone)
                .map_err(|error| PullError::io(format_args!("listing layer {diff_id}"), &error))?;
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
        crate::failpoint::hit("pull::before_sync");
        if !finished.is_empty() && !crate::failpoint::is_set("pull::skip_sync") {
            rustix::fs::syncfs(barrier).map_err(|error| failed(&error.into()))?;
        }
        crate::failpoint::hit("pull::before_rename");
        for (diff_id, layer) in finished {
            // Somebody else may have been faster with the same bytes.
            if !self.has_layer(diff_id) {
                std::fs::rename(layer.place.path(), layers.join(diff_id.hex()))
                    .map_err(|error| failed(&error))?;
            }
        }
        crate::failpoint::hit("pull::after_rename");
        File::open(&layers).and_then(|folder| folder.sync_all()).map_err(|error| failed(&error))
    }

    /// Removes a layer that no image has; whether it may be. By way of tmp, so that no half of it keeps its name.
    pub(super) fn discard(&self, diff_id: &Digest) -> Result<bool, PullError> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.contains_key(diff_id) {
            return Ok(false);
        }
        let _doomed = self.take_out(diff_id)?;
        drop(pins);
        self.sync_names().map_err(|error| PullError::io(format_args!("removing layer {diff_id}"), &error))?;
        Ok(true)
    }

    /// The layers that came last: those that came within `span` before the newest.
    pub fn newest_layers(&self, span: Duration) -> Result<Vec<Digest>, PullError> {
        let mut came = Vec::new();
        for layer in self.digests("layers")? {
            // Written once, just before the layer got its name.
            let listing = std::fs::metadata(layer_path(&self.root, &layer).join("listing"));
            if let Ok(at) = listing.and_then(|meta| meta.modified()) {
                came.push((at, layer));
            }
        }
        let newest = came.iter().map(|(at, _)| *at).max();
        let since = newest.and_then(|newest| newest.checked_sub(span));
        came.retain(|(at, _)| since.is_none_or(|since| *at >= since));
        Ok(came.into_iter().map(|(_, layer)| layer).collect())
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }
}

/// Where a layer is below the store's root.
pub(super) fn layer_path(root: &Path, diff_id: &Digest) -> PathBuf {
    root.join("layers").join(diff_id.hex())
}
