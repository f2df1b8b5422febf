//! What the store takes on the disk, as du(1) counts it: blocks of 512 bytes, a file with several names once.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use rustix::fs::{CWD, Mode, Stat, fstat, openat};
use serde::Serialize;

use super::record::ImageRecord;
use super::walk::{self, Event, FOLDER};
use super::{PullError, Store};
use crate::types::{Digest, ImageRef, Timestamp};

/// An image and its part of the disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageUsage {
    /// Its manifest.
    pub digest: Digest,
    /// What it was pulled as.
    pub references: Vec<ImageRef>,
    /// Lowest first.
    pub layers: Vec<Digest>,
    /// Of these, layers that are not here, as they were damaged: it is pulled again when something needs it.
    pub missing: Vec<Digest>,
    /// Bytes of all its layers, unpacked: unique and shared.
    pub size: u64,
    /// Bytes of layers that no other image has.
    pub unique: u64,
    /// Bytes of layers that other images have too.
    pub shared: u64,
    /// When it was recorded; `None`: by a version that did not write it down.
    pub pulled_at: Option<Timestamp>,
    /// When a service was last seen to need it.
    pub used_at: Option<Timestamp>,
}

/// The whole store. The parts make up the total exactly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    /// Each image, the one used or pulled last first.
    pub images: Vec<ImageUsage>,
    /// Bytes of layers that one image has.
    pub unique: u64,
    /// Bytes of layers that several images have, each once.
    pub shared: u64,
    /// Bytes of layers that no image has.
    pub unused: u64,
    /// Bytes of records, of directories, and of what is under way or put aside.
    pub other: u64,
    /// All of it.
    pub total: u64,
}

/// Bytes on the disk, by layer, and of all the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::registry) struct Sizes {
    pub layers: BTreeMap<Digest, u64>,
    pub other: u64,
}

/// Adds up, each inode once.
#[derive(Default)]
struct Blocks(HashSet<(u64, u64)>);

impl Blocks {
    fn of(&mut self, stat: &Stat) -> u64 {
        let several = stat.st_nlink > 1 && !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if several && !self.0.insert((stat.st_dev, stat.st_ino)) {
            return 0;
        }
        u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
    }
}

/// Bytes of what is at a path, all of it. What goes meanwhile counts nothing.
pub(super) fn measure(path: &Path) -> u64 {
    let mut bytes = 0;
    each(path, &mut |_, part| bytes += part);
    bytes
}

/// Tells of each path below a directory, and of itself as the empty one.
fn each(path: &Path, tell: &mut dyn FnMut(&Path, u64)) {
    let mut blocks = Blocks::default();
    let Ok(root) = openat(CWD, path, FOLDER, Mode::empty()) else {
        // No directory: a record.
        if let Ok(stat) = rustix::fs::lstat(path) {
            tell(Path::new(""), blocks.of(&stat));
        }
        return;
    };
    if let Ok(stat) = fstat(&root) {
        tell(Path::new(""), blocks.of(&stat));
    }
    walk::walk(&root, &mut |event| {
        if let Event::Entry(found) = event {
            tell(found.path, blocks.of(&found.stat));
        }
    });
}

impl Store {
    /// Measures the layers that `which` names, all others as the rest. Takes as long as looking at every path does.
    pub(in crate::registry) fn measure_all(&self) -> Sizes {
        let mut sizes = Sizes::default();
        each(&self.root, &mut |path, bytes| match layer_of(path) {
            Some(layer) => *sizes.layers.entry(layer).or_default() += bytes,
            None => sizes.other += bytes,
        });
        sizes
    }

    /// When an image was last seen to be needed.
    pub(super) fn used_at(&self, digest: &Digest) -> Option<Timestamp> {
        let path = self.image_path(digest).with_extension("used");
        let modified = std::fs::metadata(path).ok()?.modified().ok()?;
        Timestamp::try_from(modified).ok()
    }

    /// Every image with its size.
    pub fn usage(&self) -> Result<Usage, PullError> {
        let records = self.image_records();
        let sizes = self.measure_all();
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for record in &records {
            let layers: HashSet<&Digest> = record.diff_ids.iter().collect();
            for layer in layers {
                *users.entry(layer).or_default() += 1;
            }
        }
        let mut images: Vec<ImageUsage> =
            records.iter().map(|record| self.image_usage(record, &sizes, &users)).collect();
        images.sort_by_key(|image| {
            std::cmp::Reverse((image.used_at.max(image.pulled_at), image.digest.clone()))
        });
        let of = |wanted: fn(usize) -> bool| -> u64 {
            let layers = sizes.layers.iter();
            layers.filter(|(id, _)| wanted(users.get(id).copied().unwrap_or(0))).map(|(_, size)| size).sum()
        };
        let (unique, shared, unused) =
            (of(|users| users == 1), of(|users| users > 1), of(|users| users == 0));
        let total = unique + shared + unused + sizes.other;
        Ok(Usage { images, unique, shared, unused, other: sizes.other, total })
    }

    fn image_usage(
        &self,
        record: &ImageRecord,
        sizes: &Sizes,
        users: &BTreeMap<&Digest, usize>,
    ) -> ImageUsage {
        let (mut unique, mut shared) = (0, 0);
        let layers: HashSet<&Digest> = record.diff_ids.iter().collect();
        for layer in layers {
            let size = sizes.layers.get(layer).copied().unwrap_or(0);
            match users.get(layer) {
                Some(1) => unique += size,
                _ => shared += size,
            }
        }
        ImageUsage {
            digest: record.digest.clone(),
            references: record.references.iter().cloned().collect(),
            layers: record.diff_ids.clone(),
            missing: record.diff_ids.iter().filter(|layer| !self.has_layer(layer)).cloned().collect(),
            size: unique + shared,
            unique,
            shared,
            pulled_at: record.pulled_at,
            used_at: self.used_at(&record.digest),
        }
    }
}

/// The layer that a path of the store belongs to.
fn layer_of(path: &Path) -> Option<Digest> {
    let mut parts = path.components().map(|part| part.as_os_str().to_str());
    match (parts.next()??, parts.next()??) {
        ("layers", hex) => format!("sha256:{hex}").parse().ok(),
        _ => None,
    }
}
