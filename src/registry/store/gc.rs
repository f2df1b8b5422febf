//! What may go, and taking it away: records first, then layers that no record names, by way of tmp. A crash in between
//! leaves layers without an image, which are found the next time, as are those of a pull that failed. Nothing is made on the way:
//! the disk may be full to its last byte and inode.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sizes::measure;
use super::{PullError, Store, Temporary, dirs, layer_path};
use crate::config::agent::{ImagesConfig, MinFree};
use crate::types::{Digest, ImageRef, Timestamp};

/// A use, or a pull of what is here, is written down no more often than this.
pub(super) const NOTED_EVERY: Duration = Duration::from_secs(600);

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Collection {
    /// Images.
    pub images: Vec<Gone>,
    /// Layers that no image had.
    pub unused: Vec<Digest>,
    /// Bytes of those.
    pub unused_bytes: u64,
    /// Bytes of all of it.
    pub freed: u64,
    /// Whether there is less free space than there should be.
    pub short_of_space: bool,
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gone {
    /// Its manifest.
    pub digest: Digest,
    /// What it was pulled as.
    pub references: Vec<ImageRef>,
    /// When it was last needed, or pulled.
    pub used_at: Option<Timestamp>,
    /// Layers that go with it; one that goes with several images is counted for the first.
    pub layers: usize,
    /// Bytes of those, of its record, and of its own directories.
    pub bytes: u64,
}

/// An image as the choice sees it.
#[derive(Debug, Clone)]
struct Known {
    digest: Digest,
    layers: BTreeSet<Digest>,
    references: BTreeSet<ImageRef>,
    pulled_at: Option<Timestamp>,
    used_at: Option<Timestamp>,
}

impl Known {
    /// When anybody last wanted it.
    fn last(&self, now: Timestamp) -> Timestamp {
        let pulled_at = if self.used_at.is_some() { self.credibly_pulled_at(now) } else { self.pulled_at };
        self.used_at.max(pulled_at).unwrap_or(Timestamp::MIN)
    }

    /// Whether it was pulled, and not used since.
    fn is_ahead(&self, now: Timestamp) -> bool {
        self.credibly_pulled_at(now).is_some_and(|at| Some(at) > self.used_at)
    }

    /// `None` also where that was by a clock that was ahead: it would be newer than every use for as long.
    fn credibly_pulled_at(&self, now: Timestamp) -> Option<Timestamp> {
        // One beside this collection may be somewhat newer.
        self.pulled_at.filter(|at| *at <= now || at.duration_since(now).unsigned_abs() < NOTED_EVERY)
    }
}

/// How much room there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// What the configuration wants free.
    Configured,
    /// A pull did not fit: all that is not needed may go.
    Everything,
}

/// What is on its way out: it has no name any more.
#[derive(Debug)]
pub struct Doomed {
    collection: Collection,
    images: Vec<(usize, Vec<Going>)>,
    unused: Vec<Going>,
}

/// A layer that goes, or would.
#[derive(Debug)]
enum Going {
    /// It has no name any more, and goes with this value.
    Gone(Temporary),
    /// It stays.
    Here(PathBuf),
}

impl Going {
    fn bytes(&self) -> u64 {
        match self {
            Self::Gone(place) => measure(place.path()),
            Self::Here(path) => measure(path),
        }
    }
}

impl Doomed {
    /// Measures it, and removes it for good.
    pub fn finish(mut self) -> Collection {
        for (index, layers) in &self.images {
            let bytes: u64 = layers.iter().map(Going::bytes).sum();
            if let Some(gone) = self.collection.images.get_mut(*index) {
                gone.bytes += bytes;
            }
            self.collection.freed += bytes;
        }
        self.collection.unused_bytes = self.unused.iter().map(Going::bytes).sum();
        self.collection.freed += self.collection.unused_bytes;
        self.collection
    }
}

impl Store {
    /// Writes down that images are needed now: a collection counts from then.
    pub fn note_uses(&self, needed: &BTreeSet<Digest>, now: Timestamp) {
        for digest in needed {
            let path = self.image_path(digest);
            let recent = self.used_at(digest).is_some_and(|at| {
                let pulled = || self.image_record(digest).and_then(|record| record.pulled_at);
                // One that was pulled since is no longer ahead of its use.
                now.duration_since(at).unsigned_abs() < NOTED_EVERY && pulled() <= Some(at)
            });
            if recent || !path.exists() {
                continue;
            }
            let file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path.with_extension("used"));
            // A time that is lost makes an image look older than it is, and needed it is all the same.
            let _ = file.and_then(|file| file.set_modified(now.into()));
        }
    }

    /// Takes what is not needed out of use, or only says what that would be. Quick: what takes long is
    /// [`Doomed::finish`]'s.
    pub fn collect(
        &self,
        config: &ImagesConfig,
        needed: &BTreeSet<Digest>,
        pressure: Pressure,
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Doomed, PullError> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.digests("images")?;
        let known: Vec<Known> = names.iter().filter_map(|digest| self.known(digest)).collect();
        let lacking = match pressure {
            Pressure::Everything => u64::MAX,
            Pressure::Configured => self.lacking(config.min_free)?,
        };
        let size = |layer: &Digest| {
            // What it has unpacked is close to what it takes.
            let unpacked = self.layer_record(layer).map_or(0, |record| record.size);
            unpacked.saturating_add(self.blob_bytes(layer))
        };
        // A record that cannot be read may name any layer.
        let unused: Vec<Digest> = if known.len() == names.len() {
            let all = self.digests("layers")?;
            let named = |layer: &Digest| known.iter().any(|image| image.layers.contains(layer));
            all.into_iter()
                .filter(|layer| !named(layer) && !pins.contains_key(layer))
                .filter(|layer| lacking > 0 || self.is_old(layer, config.keep, now))
                .collect()
        } else {
            Vec::new()
        };
        // What a pull left behind goes before an image does.
        let still = match lacking {
            u64::MAX => u64::MAX,
            lacking => unused.iter().map(size).fold(lacking, u64::saturating_sub),
        };
        let chosen = choose(&known, needed, config, still, now, &size);
        let kept: BTreeSet<&Digest> = known
            .iter()
            .filter(|image| !chosen.contains(&image.digest))
            .flat_map(|image| &image.layers)
            .chain(pins.keys())
            .collect();
        let mut going = BTreeSet::new();
        let mut parts = Vec::new();
        for image in chosen.iter().filter_map(|digest| known.iter().find(|image| image.digest == *digest)) {
            let layers = image.layers.iter().filter(|layer| !kept.contains(layer) && self.has_layer(layer));
            let layers: Vec<Digest> =
                layers.filter(|layer| going.insert((*layer).clone())).cloned().collect();
            parts.push((image, layers));
        }
        if !dry_run && known.len() == names.len() {
            let staying = known.iter().filter(|image| !chosen.contains(&image.digest));
            self.forget_notes(staying.map(|image| (&image.digest, &image.references)), config.keep, now);
        }
        let mut doomed = Doomed {
            collection: Collection { short_of_space: lacking > 0, ..Collection::default() },
            images: Vec::new(),
            unused: Vec::new(),
        };
        let take = |layers: &[Digest]| -> Result<Vec<Going>, PullError> {
            let here = |layer| Ok(Going::Here(layer_path(&self.root, layer)));
            let gone = |layer| self.take_out(layer).map(Going::Gone);
            layers.iter().map(|layer| if dry_run { here(layer) } else { gone(layer) }).collect()
        };
        for (index, (image, layers)) in parts.iter().enumerate() {
            let record = self.record_bytes(&image.digest);
            if !dry_run {
                self.forget_image(&image.digest)?;
            }
            doomed.collection.freed += record;
            doomed.collection.images.push(Gone {
                digest: image.digest.clone(),
                references: image.references.iter().cloned().collect(),
                used_at: image.used_at.max(image.pulled_at),
                layers: layers.len(),
                bytes: record,
            });
            crate::failpoint::hit("gc::after_record");
            doomed.images.push((index, take(layers)?));
        }
        doomed.unused = take(&unused)?;
        doomed.collection.unused = unused;
        let nothing = doomed.images.is_empty() && doomed.unused.is_empty();
        if !(dry_run || nothing) {
            self.sync_names().map_err(|error| PullError::io("removing layers", &error))?;
        }
        Ok(doomed)
    }

    fn known(&self, digest: &Digest) -> Option<Known> {
        let record = self.image_record(digest)?;
        Some(Known {
            digest: record.digest,
            layers: record.diff_ids.into_iter().collect(),
            references: record.references,
            pulled_at: record.pulled_at,
            used_at: self.used_at(digest),
        })
    }

    fn record_bytes(&self, digest: &Digest) -> u64 {
        let path = self.image_path(digest);
        let files = ["json", "previous.json", "used", dirs::EXTENSION]
            .map(|extension| path.with_extension(extension));
        files.iter().map(|file| measure(file)).sum()
    }

    /// Whether a layer that no image has was there for long: the pull that it belongs to may go on after a restart.
    fn is_old(&self, layer: &Digest, keep: Duration, now: Timestamp) -> bool {
        let modified = std::fs::metadata(layer_path(&self.root, layer)).and_then(|meta| meta.modified());
        let modified = modified.ok().and_then(|modified| Timestamp::try_from(modified).ok());
        modified.is_none_or(|modified| is_over(modified, keep, now))
    }

    /// Bytes that are missing to what is to be free.
    fn lacking(&self, min_free: MinFree) -> Result<u64, PullError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|error| {
            PullError::io(format_args!("looking for room below {}", self.root.display()), &error.into())
        })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let wanted = match min_free {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Percent(percent) => {
                stat.f_blocks.saturating_mul(stat.f_frsize) / 100 * u64::from(percent)
            }
        };
        Ok(wanted.saturating_sub(free))
    }
}

pub(super) fn is_over(since: Timestamp, keep: Duration, now: Timestamp) -> bool {
    let age = now.duration_since(since);
    !age.is_negative() && age.unsigned_abs() >= keep
}

/// Which images go. What is needed stays, and so does what was pulled and not used since, and is not old. Of the rest those go that
/// are old and not among the newest of their repository; where bytes are lacking, also further ones, oldest first.
fn choose(
    known: &[Known],
    needed: &BTreeSet<Digest>,
    config: &ImagesConfig,
    lacking: u64,
    now: Timestamp,
    size: &dyn Fn(&Digest) -> u64,
) -> BTreeSet<Digest> {
    let mut oldest: Vec<&Known> = known.iter().collect();
    oldest.sort_by_key(|image| (image.last(now), &image.digest));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut newest = BTreeSet::new();
    for image in oldest.iter().rev() {
        for repository in repositories(image) {
            let count = counts.entry(repository).or_default();
            *count += 1;
            if *count <= config.keep_count {
                newest.insert(&image.digest);
            }
        }
    }
    let old = |image: &Known| is_over(image.last(now), config.keep, now);
    let ahead = |image: &Known| image.is_ahead(now) && !old(image);
    let free: Vec<&Known> =
        oldest.into_iter().filter(|image| !needed.contains(&image.digest) && !ahead(image)).collect();
    let mut chosen: BTreeSet<Digest> = free
        .iter()
        .filter(|image| old(image) && !newest.contains(&image.digest))
        .map(|image| image.digest.clone())
        .collect();
    if lacking == 0 {
        return chosen;
    }
    let layers: BTreeSet<&Digest> = free.iter().flat_map(|image| &image.layers).collect();
    let sizes: BTreeMap<&Digest, u64> = layers.into_iter().map(|layer| (layer, size(layer))).collect();
    let freed = |chosen: &BTreeSet<Digest>| -> u64 {
        let (gone, kept): (Vec<&Known>, Vec<&Known>) =
            known.iter().partition(|image| chosen.contains(&image.digest));
        let kept: BTreeSet<&Digest> = kept.into_iter().flat_map(|image| &image.layers).collect();
        let gone: BTreeSet<&Digest> = gone.into_iter().flat_map(|image| &image.layers).collect();
        gone.difference(&kept)
            .filter_map(|layer| sizes.get(*layer))
            .fold(0, |sum, size| sum.saturating_add(*size))
    };
    for image in free {
        if lacking != u64::MAX && freed(&chosen) >= lacking {
            break;
        }
        chosen.insert(image.digest.clone());
    }
    chosen
}

/// The repositories that an image was pulled from; one without a name is on its own.
fn repositories(image: &Known) -> BTreeSet<String> {
    let name = |reference: &ImageRef| match reference {
        ImageRef::Registry(reference) => format!("{}/{}", reference.registry, reference.repository),
        ImageRef::Archive(url) => versionless(&url.to_string()),
    };
    let names: BTreeSet<String> = image.references.iter().map(name).collect();
    if names.is_empty() { BTreeSet::from([image.digest.to_string()]) } else { names }
}

/// What the archives of one program have in common, each version of which has a name of its own: the place, and all parts of the path
/// that have no digit.
fn versionless(url: &str) -> String {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let path = url[authority..].find('/').map_or(url.len(), |at| authority + at);
    let parts = url[path..].split(|letter: char| !letter.is_alphanumeric());
    let kept =
        parts.filter(|part| !part.is_empty() && !part.contains(|letter: char| letter.is_ascii_digit()));
    kept.fold(url[..path].to_owned(), |name, part| name + "/" + part)
}

#[cfg(test)]
mod tests;
