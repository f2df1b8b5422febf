//! What is remembered of archives and for archives: savings, each of which can be had again or done without.
//!
//! A note that was not used for as long as images are kept, and that belongs to no image of the store, is collected.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::gc::is_over;
use super::{Store, clock};
use crate::registry::manifest::sha256;
use crate::state::atomic;
use crate::types::{Digest, ImageRef, SafeUrl, Timestamp};

/// A use is written down no more often than this.
const USED_EVERY: Duration = Duration::from_secs(600);

impl Store {
    /// What was remembered of an archive.
    pub(in crate::registry) fn archive_note<T: DeserializeOwned>(&self, url: &SafeUrl) -> Option<T> {
        let path = self.archive_path(url);
        let note = atomic::read(&path).ok().flatten()?;
        let used = std::fs::metadata(&path).and_then(|meta| meta.modified());
        let now = clock::now();
        let recent = used
            .ok()
            .and_then(|at| Timestamp::try_from(at).ok())
            .is_some_and(|at| !is_over(at, USED_EVERY, now));
        if !recent {
            // A time that is lost makes it look older than it is.
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            let _ = file.and_then(|file| file.set_modified(now.into()));
        }
        Some(note)
    }

    /// Remembers it. Only a saving: the next look reads the archive again.
    pub(in crate::registry) fn note_archive(&self, url: &SafeUrl, note: &impl Serialize) {
        let _ = atomic::write(&self.archive_path(url), note);
    }

    /// The digest of an image's configuration, where it was written down.
    pub(in crate::registry) fn config_of(&self, image: &Digest) -> Option<Digest> {
        let recorded = self.image_record(image).and_then(|record| record.config_digest);
        recorded.or_else(|| atomic::read(&self.config_path(image)).ok().flatten())
    }

    /// Writes it down before the image is here: a restart in between must not cost its fallbacks.
    pub(in crate::registry) fn note_config(&self, image: &Digest, config: &Digest) {
        if self.config_of(image).as_ref() != Some(config)
            && let Err(error) = atomic::write(&self.config_path(image), config)
        {
            tracing::warn!("{}", error.to_refusal());
        }
    }

    fn archive_path(&self, url: &SafeUrl) -> PathBuf {
        self.root.join("archives").join(format!("{}.json", sha256(url.as_str().as_bytes()).hex()))
    }

    fn config_path(&self, image: &Digest) -> PathBuf {
        self.root.join("configs").join(format!("{}.json", image.hex()))
    }

    /// Removes the notes that nothing needs: not of the images that stay, and not used for `keep`.
    pub(super) fn forget_notes<'a>(
        &self,
        images: impl Iterator<Item = (&'a Digest, &'a BTreeSet<ImageRef>)>,
        keep: Duration,
        now: Timestamp,
    ) {
        let mut needed = BTreeSet::new();
        for (digest, references) in images {
            needed.insert(self.config_path(digest));
            needed.extend(references.iter().filter_map(|reference| match reference {
                ImageRef::Archive(url) => Some(self.archive_path(url)),
                ImageRef::Registry(_) => None,
            }));
        }
        for folder in ["archives", "configs"] {
            for entry in std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(stem) = name.to_str().and_then(atomic::stem_of) else { continue };
                let path = self.root.join(folder).join(format!("{stem}.json"));
                let used = entry.metadata().and_then(|meta| meta.modified());
                let used = used.ok().and_then(|at| Timestamp::try_from(at).ok());
                if !needed.contains(&path) && used.is_none_or(|at| is_over(at, keep, now)) {
                    // The next collection tries again.
                    let _ = atomic::remove(&path);
                }
            }
        }
    }
}
