//! What is written down of images and layers: enough to run them, and to get them again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::gc::NOTED_EVERY;
use super::{PullError, Store, Temporary, clock, dirs, layer_path};
use crate::engine::ImageConfig;
use crate::registry::layer::Unpacked;
use crate::registry::unpack::{self, Implied};
use crate::registry::worker;
use crate::state::atomic;
use crate::types::{Digest, ImageRef, Timestamp};

/// Most that a layer's record says of what it implies, as [`unpack::remembered`] counts: a state file has its bounds.
const MAX_IMPLIED: usize = 8 << 20;

/// An image whose layers are here: `images/<hex>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct ImageRecord {
    pub digest: Digest,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
    pub config: ImageConfig,
    /// Of the configuration: what an archive without a manifest is known by. `None`: by a version that did not write
    /// it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<Digest>,
    /// What it was pulled as.
    #[serde(default)]
    pub references: BTreeSet<ImageRef>,
    /// `None`: by a version that did not write it down.
    #[serde(default)]
    pub pulled_at: Option<Timestamp>,
    /// Whether it has directories of its own above its layers: `images/<hex>.dirs`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirs: bool,
}

/// A layer, and where it can be had again: `layers/<hex>/layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct LayerRecord {
    pub diff_id: Digest,
    pub blob: BlobRecord,
    /// Bytes of its tar stream.
    pub size: u64,
    /// An image that had it.
    pub reference: ImageRef,
    /// Directories of which it says nothing itself. None also by a version that did not write them down, and where
    /// there are more than fit.
    #[serde(default, skip_serializing_if = "Implied::is_empty", with = "worker::paths")]
    pub implied: Implied,
}

/// A layer as it is packed in a registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::registry) struct BlobRecord {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
}

/// The record's name in a layer's directory.
pub(super) const RECORD: &str = "layer.json";

impl Temporary {
    /// Where the layer came from.
    pub(super) fn record(&self) -> std::path::PathBuf {
        self.0.join(RECORD)
    }
}

impl Store {
    /// Writes down where an unfinished layer came from. Durable with the layer, by the sync of [`Store::admit`].
    pub(in crate::registry) fn describe(
        &self,
        layer: &Unpacked,
        media_type: &str,
        reference: &ImageRef,
    ) -> Result<(), PullError> {
        let (blob, size) = layer.blob.clone();
        let fits = layer.implied.keys().map(|path| unpack::remembered(path)).sum::<usize>() <= MAX_IMPLIED;
        let record = LayerRecord {
            diff_id: layer.diff_id.clone(),
            blob: BlobRecord { digest: blob, size, media_type: media_type.to_owned() },
            size: layer.size,
            reference: reference.clone(),
            implied: if fits { layer.implied.clone() } else { Implied::new() },
        };
        let path = layer.place.record();
        let text = atomic::encode(&path, &record).map_err(|error| from_state(&error))?;
        std::fs::write(&path, text)
            .map_err(|error| PullError::io(format_args!("writing {}", path.display()), &error))
    }

    /// Writes down that an image is complete, or one more name of it.
    pub(in crate::registry) fn record(
        &self,
        digest: &Digest,
        diff_ids: &[Digest],
        config: ImageConfig,
        config_digest: Option<Digest>,
        reference: &ImageRef,
    ) -> Result<(), PullError> {
        crate::failpoint::hit("pull::before_record");
        let former = self.image_record(digest);
        let mut references = former.as_ref().map(|former| former.references.clone()).unwrap_or_default();
        references.insert(reference.clone());
        let dirs = self.make_dirs(digest, diff_ids, former.is_some_and(|former| former.dirs))?;
        // A collection holds them: it must not take the directories from under the record.
        let _pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let record = ImageRecord {
            digest: digest.clone(),
            diff_ids: diff_ids.to_vec(),
            config,
            config_digest,
            references,
            pulled_at: Some(clock::now()),
            dirs: self.put_dirs(digest, &dirs)? || self.image_record(digest).is_some_and(|now| now.dirs),
        };
        atomic::write(&self.image_path(digest), &record).map_err(|error| from_state(&error))
    }

    /// An image that is here was pulled: it is kept as one that came now. Worth a write only if that says something new.
    /// `false`: it was collected meanwhile.
    pub(in crate::registry) fn note_pull(&self, digest: &Digest, reference: &ImageRef) -> bool {
        // A collection holds them: a record that it removed must not be written back.
        let _pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut record) = self.image_record(digest) else { return false };
        let now = clock::now();
        let recent = record.pulled_at.is_some_and(|at| {
            now.duration_since(at).unsigned_abs() < NOTED_EVERY && self.used_at(digest) < Some(at)
        });
        if !record.references.insert(reference.clone()) && recent {
            return true;
        }
        record.pulled_at = Some(now);
        if let Err(error) = atomic::write(&self.image_path(digest), &record) {
            // It is collected as if nobody had asked for it; what is needed stays all the same.
            tracing::warn!("{}", error.to_refusal());
        }
        true
    }

    pub(in crate::registry) fn image_record(&self, digest: &Digest) -> Option<ImageRecord> {
        atomic::read::<ImageRecord>(&self.image_path(digest))
            .ok()
            .flatten()
            .filter(|record| record.digest == *digest)
    }

    /// All images that can be read.
    pub(in crate::registry) fn image_records(&self) -> Vec<ImageRecord> {
        let digests = self.digests("images").unwrap_or_default();
        digests.iter().filter_map(|digest| self.image_record(digest)).collect()
    }

    /// Writes a record anew, over a damaged one: that must not become the former version.
    pub(in crate::registry) fn rewrite(&self, record: &ImageRecord) -> Result<(), PullError> {
        let path = self.image_path(&record.digest);
        let text = atomic::encode(&path, record).map_err(|error| from_state(&error))?;
        atomic::write_plain(&path, &text).map_err(|error| from_state(&error))
    }

    /// Forgets an image; its layers stay.
    pub(in crate::registry) fn forget_image(&self, digest: &Digest) -> Result<(), PullError> {
        let path = self.image_path(digest);
        // Only a time.
        let _ = std::fs::remove_file(path.with_extension("used"));
        atomic::remove(&path).map_err(|error| from_state(&error))?;
        crate::failpoint::hit("gc::before_dirs");
        dirs::remove(&self.dirs_path(digest));
        Ok(())
    }

    /// Where a layer came from; `None` where that is damaged, or was never written down.
    pub(in crate::registry) fn layer_record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        read_layer_record(&layer_path(&self.root, diff_id))
            .ok()
            .flatten()
            .filter(|record| record.diff_id == *diff_id)
    }
}

/// The record in a layer's directory. `Ok(None)`: it has none.
pub(super) fn read_layer_record(layer: &Path) -> Result<Option<LayerRecord>, crate::state::StateError> {
    atomic::read_one(&layer.join(RECORD))
}

/// The store's files are state files.
pub(super) fn from_state(error: &crate::state::StateError) -> PullError {
    PullError::retry(error.reason(), error.to_refusal().message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However short their paths are: what is written can be read.
    #[test]
    fn what_a_layer_implies_fits_a_state_file() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::from_sha256(&[7; 32]);
        let blob = BlobRecord { digest: digest.clone(), size: 1, media_type: "x".to_owned() };
        let paths = (0u32..).map(|number| std::path::PathBuf::from(format!("{number:x}")));
        let mut size = 0;
        let fitting = paths.take_while(|path| {
            size += unpack::remembered(path);
            size <= MAX_IMPLIED
        });
        let implied = fitting.map(|path| (path, false)).collect();
        let reference = "r.io/app:1".parse().unwrap();
        let record = LayerRecord { diff_id: digest, blob, size: 1, reference, implied };
        atomic::write_plain(
            &dir.path().join("layer.json"),
            &atomic::encode(Path::new("layer.json"), &record).unwrap(),
        )
        .unwrap();
        assert!(record.implied.len() > 100_000);
        assert_eq!(read_layer_record(dir.path()).unwrap(), Some(record));
    }
}
