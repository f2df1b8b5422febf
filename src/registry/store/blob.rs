//! Layers as they came, where the host keeps them: what a damaged one is rebuilt from without anybody.
//!
//! A blob is the layer's from its first byte: written, made durable, named and collected with it. What it should be, the
//! layer's record says. One that is missing is not missed: the host may not have kept any when the layer came.

use std::fs::File;
use std::path::PathBuf;

use super::record::LayerRecord;
use super::{PullError, Store, layer_path};
use crate::registry::layer::Unpacked;
use crate::types::Digest;

/// Its name in a layer's directory.
pub(super) const NAME: &str = "blob";

impl Store {
    /// A layer as it came, and what is written down of it. Whether it still is that, its digest says.
    pub(in crate::registry) fn blob(&self, diff_id: &Digest) -> Option<(PathBuf, LayerRecord)> {
        let path = self.blob_path(diff_id);
        let there = std::fs::symlink_metadata(&path).is_ok();
        self.layer_record(diff_id).filter(|_| there).map(|record| (path, record))
    }

    /// Bytes that are kept of a layer.
    pub(super) fn blob_bytes(&self, diff_id: &Digest) -> u64 {
        std::fs::symlink_metadata(self.blob_path(diff_id)).map_or(0, |blob| blob.len())
    }

    /// Gives a layer whose tree is sound the blob of one that came again; what is written down of it goes along. After a
    /// crash in between its digest is wrong, as it was.
    pub(in crate::registry) fn replace_blob(
        &self,
        barrier: &File,
        diff_id: &Digest,
        layer: &Unpacked,
    ) -> Result<(), PullError> {
        let failed =
            |error: std::io::Error| PullError::io(format_args!("keeping layer {diff_id} packed"), &error);
        rustix::fs::syncfs(barrier).map_err(|error| failed(error.into()))?;
        let folder = layer_path(&self.root, diff_id);
        for from in [layer.place.record(), layer.place.blob()] {
            let Some(name) = from.file_name() else { continue };
            std::fs::rename(&from, folder.join(name)).map_err(failed)?;
        }
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Does without a layer's blob.
    pub(in crate::registry) fn remove_blob(&self, diff_id: &Digest) -> Result<(), PullError> {
        let path = self.blob_path(diff_id);
        std::fs::remove_file(&path)
            .map_err(|error| PullError::io(format_args!("removing {}", path.display()), &error))
    }

    fn blob_path(&self, diff_id: &Digest) -> PathBuf {
        layer_path(&self.root, diff_id).join(NAME)
    }
}
