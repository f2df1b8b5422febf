//! An image's own directories, on top of its layers: those that its layers only imply, where they look otherwise in this
//! image than in the one that a shared layer was unpacked for. Most images need none.
//!
//! What is in them follows from the image alone (`unpack::merged`): they are made once, and stay until the image goes.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rustix::fs::{CWD, Mode, openat};

use super::record::ImageRecord;
use super::walk::{self, Event, FOLDER};
use super::{PullError, Store, Temporary};
use crate::registry::unpack::{Error, Merged};
use crate::state::atomic;
use crate::types::Digest;

/// The end of their name.
pub(super) const EXTENSION: &str = "dirs";

/// What an image is to have.
pub(super) enum Dirs {
    /// None: all looks as it ought to.
    None,
    /// Those that are here.
    Here,
    /// These, which are durable.
    Made(Arc<Temporary>),
}

impl Store {
    pub(super) fn dirs_path(&self, image: &Digest) -> PathBuf {
        self.image_path(image).with_extension(EXTENSION)
    }

    fn merged(&self, diff_ids: &[Digest]) -> Result<Merged, Error> {
        let layers: Vec<_> = diff_ids
            .iter()
            .rev()
            .map(|layer| {
                // Without a record, or by a version that did not write it down: the layer has said all that it has.
                let implied = self.layer_record(layer).map(|record| record.implied).unwrap_or_default();
                (self.tree(layer), implied)
            })
            .collect();
        Merged::of(&layers)
    }

    /// Makes what an image needs whose layers are all here. `has`: its record says that it has some.
    pub(super) fn make_dirs(
        &self,
        image: &Digest,
        diff_ids: &[Digest],
        has: bool,
    ) -> Result<Dirs, PullError> {
        let failed = |error: Error| error.into_pull_error(&format!("directories of image {image}"));
        let merged = self.merged(diff_ids).map_err(failed)?;
        if merged.otherwise.is_none() && !has {
            return Ok(Dirs::None);
        }
        let here = self.dirs_path(image);
        if here.is_dir() && amiss(&merged, &here).map_err(failed)?.is_none() {
            return Ok(Dirs::Here);
        }
        let barrier = self.barrier()?;
        let place = self.temporary()?;
        merged.make(&place.tree()).map_err(failed)?;
        if !crate::failpoint::is_set("pull::skip_sync") {
            let synced = rustix::fs::syncfs(&barrier);
            synced.map_err(|error| failed(Error::Disk("making them durable".to_owned(), error.into())))?;
        }
        Ok(Dirs::Made(place))
    }

    /// Gives them their name, before the record that says so; whether the image has any. What may be mounted is put aside.
    pub(super) fn put_dirs(&self, image: &Digest, dirs: &Dirs) -> Result<bool, PullError> {
        let place = match dirs {
            Dirs::None => return Ok(false),
            Dirs::Here => return Ok(true),
            Dirs::Made(place) => place,
        };
        let failed = |error: std::io::Error| {
            PullError::io(format_args!("putting directories of image {image} in place"), &error)
        };
        let path = self.dirs_path(image);
        if path.exists() {
            self.exchange(image, &place.tree(), &path)?;
        } else {
            std::fs::rename(place.tree(), &path).map_err(failed)?;
        }
        File::open(self.root.join("images")).and_then(|folder| folder.sync_all()).map_err(failed)?;
        crate::failpoint::hit("pull::after_dirs");
        Ok(true)
    }

    /// Gives an image that is here what it needs.
    pub(in crate::registry) fn dress(&self, image: &Digest) -> Result<(), PullError> {
        let Some(record) = self.image_record(image) else { return Ok(()) };
        if !record.diff_ids.iter().all(|layer| self.has_layer(layer)) {
            // The pull that brings them does it.
            return Ok(());
        }
        let dirs = self.make_dirs(image, &record.diff_ids, record.dirs)?;
        // As in `note_pull`.
        let _pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut record) = self.image_record(image) else { return Ok(()) };
        // Somebody else may have found that it needs some, meanwhile.
        let has = self.put_dirs(image, &dirs)? || record.dirs;
        if has == record.dirs {
            return Ok(());
        }
        record.dirs = has;
        atomic::write(&self.image_path(image), &record).map_err(|error| super::from_state(&error))
    }

    /// The same for all images that have one of these layers, which were unpacked for one of them. One that cannot have what it
    /// needs keeps no other from it.
    pub(in crate::registry) fn dress_users<'a>(
        &self,
        layers: impl Iterator<Item = &'a Digest> + Clone,
    ) -> Result<(), PullError> {
        let has = |record: &ImageRecord| layers.clone().any(|layer| record.diff_ids.contains(layer));
        let users = self.image_records().into_iter().filter(has);
        users.map(|record| self.dress(&record.digest)).fold(Ok(()), Result::and)
    }

    /// The same for all images: an agent may have been ended when a layer had come back, and not been looked at for others yet.
    pub(super) fn dress_all(&self) {
        for record in self.image_records() {
            if let Err(error) = self.dress(&record.digest) {
                // `fsck` tells of it.
                tracing::warn!("{error}");
            }
        }
    }

    /// What is wrong with an image's own directories, or with its having none.
    pub(super) fn dirs_trouble(&self, record: &ImageRecord) -> Option<String> {
        let path = self.dirs_path(&record.digest);
        if record.dirs && !path.is_dir() {
            return Some("its own directories are not here".to_owned());
        }
        let told =
            |path: &Path, what: &str| Some(format!("its directory /{} {what}", super::fsck::shown(path)));
        let unreadable = |error| {
            let error: PullError = Error::into_pull_error(error, "its own directories");
            Some(error.to_string())
        };
        match self.merged(&record.diff_ids) {
            Ok(merged) if record.dirs => match amiss(&merged, &path) {
                Ok(found) => found.and_then(|(path, what)| told(&path, &what)),
                Err(error) => unreadable(error),
            },
            Ok(merged) => {
                let otherwise = merged.otherwise.as_deref();
                otherwise.and_then(|path| told(path, "looks as it does in another image that shares a layer"))
            }
            Err(error) => unreadable(error),
        }
    }

    /// Removes what belongs to no image: a crash came before its record, or after that went.
    pub(super) fn sweep_dirs(&self) {
        for entry in std::fs::read_dir(self.root.join("images")).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION);
            let has_record = ["json", "previous.json"].iter().any(|end| path.with_extension(end).exists());
            if is_ours && !has_record {
                remove(&path);
            }
        }
    }
}

/// Removes the directories of an image that has no record any more.
pub(super) fn remove(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// The first thing in `root` that is not as it ought to be.
fn amiss(merged: &Merged, root: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    if let Some((path, what)) = merged.amiss(root)? {
        return Ok(Some((path.to_owned(), what)));
    }
    let opened = openat(CWD, root, FOLDER, Mode::empty());
    let root: OwnedFd =
        opened.map_err(|error| Error::Disk(format!("opening {}", root.display()), error.into()))?;
    let mut found = None;
    walk::walk(&root, &mut |event| {
        let (path, what) = match event {
            Event::Entry(entry) if merged.has(entry.path) => return,
            Event::Entry(entry) => (entry.path, "is no part of the image".to_owned()),
            Event::Trouble(path, error) => (path, format!("cannot be looked at: {error}")),
        };
        found.get_or_insert((path.to_owned(), what));
    });
    Ok(found)
}
