//! Whether the store still is what was put into it. Changes nothing.

mod blob;
mod content;
mod tree;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::record::{ImageRecord, RECORD, read_layer_record};
use super::walk::{self, FOLDER};
use super::{PullError, Store};
use crate::registry::unpack::listing::{self, Kind};
use crate::state::atomic;
use crate::types::{Digest, ImageRef};

/// So much is said of one layer; the rest is counted.
const MAX_FINDINGS: usize = 50;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every path, without what is in the files.
    Quick,
    /// Every byte.
    Full,
}

/// How a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// As it was unpacked.
    Sound,
    /// Not as it was unpacked.
    Damaged,
    /// Unpacked by a version that listed nothing: there is nothing to compare it with.
    Unlisted,
}

impl LayerState {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Damaged => "damaged",
            Self::Unlisted => "unlisted",
        }
    }
}

/// One thing that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Within the layer's directory, with bytes that are not plain escaped.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// What was found out about a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Its diff-ID.
    pub layer: Digest,
    /// How it is.
    pub state: LayerState,
    /// What is wrong with it, the first so many.
    pub findings: Vec<Finding>,
    /// How many there are in all.
    pub count: usize,
    /// Paths that were looked at.
    pub paths: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

impl LayerReport {
    /// Whether all that is wrong is what is kept of it packed.
    pub(in crate::registry) fn lacks_its_blob_alone(&self) -> bool {
        self.count == 1 && self.findings.iter().any(|finding| finding.path == super::blob::NAME)
    }
}

/// What was found out about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// Its manifest.
    pub image: Digest,
    /// What it was pulled as; none where its record cannot be read.
    pub references: Vec<ImageRef>,
    /// Lowest first.
    pub layers: Vec<Digest>,
    /// What is wrong with its record, or with its own directories.
    pub trouble: Option<String>,
}

/// The whole store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each layer.
    pub layers: Vec<LayerReport>,
    /// Each image.
    pub images: Vec<ImageReport>,
    /// Paths below the store that are none of its.
    pub strays: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damaged_layers().next().is_none() && self.damaged_images().next().is_none()
    }

    /// Layers that are to be had anew.
    pub fn damaged_layers(&self) -> impl Iterator<Item = &LayerReport> {
        self.layers.iter().filter(|layer| layer.state != LayerState::Sound)
    }

    /// Images whose record is to be had anew.
    pub fn damaged_images(&self) -> impl Iterator<Item = &ImageReport> {
        self.images.iter().filter(|image| image.trouble.is_some())
    }
}

/// How far a look at the whole store has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Bytes that were looked at, read or not.
    pub bytes: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Layers that were looked at.
    pub layers_done: usize,
    /// All layers.
    pub layers: usize,
}

/// Notes what is wrong with one layer.
struct Findings {
    first: Vec<Finding>,
    count: usize,
}

impl Findings {
    fn note(&mut self, path: &Path, what: impl Into<String>) {
        self.count += 1;
        if self.first.len() < MAX_FINDINGS {
            self.first.push(Finding { path: shown(path), what: what.into() });
        }
    }
}

/// Names in images are anybody's: they are not to reach a terminal as they are.
pub(super) fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

/// What is in a folder of the store.
struct Names {
    known: Vec<Digest>,
    strays: Vec<String>,
}

impl Store {
    /// Looks at all of it. `tell` hears how far it is, with each path at least. What an agent removes meanwhile is passed over.
    pub fn check(&self, depth: Depth, tell: &mut dyn FnMut(Checked)) -> Result<Report, PullError> {
        let names = self.names("layers", |name| Some(name.to_owned()))?;
        let images = self.names("images", |name| {
            let stem = atomic::stem_of(name).or_else(|| name.strip_suffix(".previous.json"));
            let stem = stem.or_else(|| name.strip_suffix(".used"));
            stem.or_else(|| name.strip_suffix(".dirs")).map(str::to_owned)
        })?;
        let mut checked = Checked { layers: names.known.len(), ..Checked::default() };
        let blob = |layer: &Digest| if depth == Depth::Full { self.blob_bytes(layer) } else { 0 };
        checked.total = names.known.iter().map(|layer| self.listed_bytes(layer) + blob(layer)).sum();
        let mut layers = Vec::new();
        for layer in &names.known {
            layers.extend(self.check_layer(layer, depth, &mut |bytes| {
                checked.bytes += bytes;
                tell(checked);
            })?);
            checked.layers_done += 1;
            tell(checked);
        }
        let mut strays = names.strays;
        strays.extend(images.strays);
        let mut ids = images.known;
        ids.dedup();
        let unsound: BTreeSet<Digest> = layers
            .iter()
            .filter(|layer| layer.state != LayerState::Sound)
            .map(|layer| layer.layer.clone())
            .collect();
        let images = ids.iter().filter_map(|image| self.check_image(image, &unsound)).collect();
        Ok(Report { layers, images, strays })
    }

    /// Layers and images that are here, by name alone.
    pub(super) fn digests(&self, folder: &str) -> Result<Vec<Digest>, PullError> {
        let mut names = self.names(folder, |name| atomic::stem_of(name).or(Some(name)).map(str::to_owned))?;
        names.known.dedup();
        Ok(names.known)
    }

    fn names(&self, folder: &str, stem: impl Fn(&str) -> Option<String>) -> Result<Names, PullError> {
        let path = self.root.join(folder);
        let failed = |error: Errno| PullError::io(format_args!("reading {}", path.display()), &error.into());
        let fd = match openat(CWD, &path, FOLDER, Mode::empty()) {
            Ok(fd) => fd,
            // Nothing was ever pulled.
            Err(Errno::NOENT) => return Ok(Names { known: Vec::new(), strays: Vec::new() }),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Names { known: Vec::new(), strays: Vec::new() };
        for name in walk::names(&fd).map_err(failed)? {
            let digest = name.to_str().and_then(&stem).and_then(|stem| format!("sha256:{stem}").parse().ok());
            match digest {
                Some(digest) => names.known.push(digest),
                // A record that is about to get its name.
                None if name.as_bytes().ends_with(b".json.tmp") => {}
                None => names.strays.push(shown(&Path::new(folder).join(&name))),
            }
        }
        Ok(names)
    }

    /// For progress alone: what cannot be read counts nothing.
    fn listed_bytes(&self, layer: &Digest) -> u64 {
        let listing = listing::read(&super::layer_path(&self.root, layer).join("listing"));
        let size = |kind: &Kind| if let Kind::File(size, _) = kind { *size } else { 0 };
        listing.map_or(0, |listing| listing.values().map(|record| size(&record.kind)).sum())
    }

    /// Looks at one layer; `None`: it is not here (any more). `tell` hears of the bytes of each file.
    pub fn check_layer(
        &self,
        layer: &Digest,
        depth: Depth,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Option<LayerReport>, PullError> {
        let path = super::layer_path(&self.root, layer);
        let folder = match openat(CWD, &path, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => {
                return Err(PullError::io(format_args!("opening {}", path.display()), &error.into()));
            }
        };
        let mut findings = Findings { first: Vec::new(), count: 0 };
        // By the descriptor: whoever gives the name to another directory meanwhile does not mix two layers.
        let here = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder)));
        let (mut paths, mut bytes) = (0, 0);
        let unlisted = match listing::read(&here.join("listing")) {
            Ok(listing) => {
                let mut record = None;
                match read_layer_record(&here) {
                    Ok(Some(found)) if found.diff_id == *layer => record = Some(found),
                    Ok(Some(_)) => findings.note(Path::new(RECORD), "is of another layer"),
                    Ok(None) => findings.note(Path::new(RECORD), "is missing"),
                    Err(error) => findings.note(Path::new(RECORD), damage(&error)),
                }
                (paths, bytes) = tree::compare(&folder, &listing, depth, &mut findings, tell);
                if let Some(record) = record.filter(|_| depth == Depth::Full) {
                    bytes += blob::compare(&folder, &record.blob, &mut findings, tell);
                }
                false
            }
            Err(listing::ListingError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                findings.note(Path::new("listing"), "is missing: there is nothing to compare the layer with");
                // A layer of a version that knew no listing has no record either.
                !here.join(RECORD).exists()
            }
            Err(error) => {
                findings.note(Path::new("listing"), format!("is damaged: {error}"));
                false
            }
        };
        for name in walk::names(&folder).unwrap_or_default() {
            if ![TREE, "listing", RECORD, super::blob::NAME].map(OsStr::new).contains(&name.as_os_str()) {
                findings.note(Path::new(&name), "is no part of a layer");
            }
        }
        let state = match (unlisted, findings.count) {
            (true, _) => LayerState::Unlisted,
            (false, 0) => LayerState::Sound,
            (false, _) => LayerState::Damaged,
        };
        // It was on its way out while it was looked at.
        if state != LayerState::Sound && is_gone(&folder, &path) {
            return Ok(None);
        }
        let Findings { first, count } = findings;
        Ok(Some(LayerReport { layer: layer.clone(), state, findings: first, count, paths, bytes }))
    }

    /// Looks at the record of one image, and at its own directories where none of its layers is `unsound`: those have the
    /// say. `None`: it is not here (any more).
    fn check_image(&self, image: &Digest, unsound: &BTreeSet<Digest>) -> Option<ImageReport> {
        let path = self.image_path(image);
        let report = |record: Option<ImageRecord>, trouble| {
            let (references, layers) = record.map_or_else(Default::default, |record| {
                (record.references.into_iter().collect(), record.diff_ids)
            });
            Some(ImageReport { image: image.clone(), references, layers, trouble })
        };
        match atomic::read_one::<ImageRecord>(&path) {
            Ok(Some(record)) if record.digest != *image => {
                report(None, Some("its record is of another image".to_owned()))
            }
            Ok(Some(record)) => {
                let lost = record.diff_ids.iter().find(|layer| !self.has_layer(layer));
                let trouble = match lost {
                    Some(layer) => Some(format!("its layer {layer} is not here")),
                    None if record.diff_ids.iter().any(|layer| unsound.contains(layer)) => None,
                    // What an agent removes meanwhile loses its record first.
                    None => self.dirs_trouble(&record).filter(|_| path.exists()),
                };
                report(Some(record), trouble)
            }
            Ok(None) => None,
            // What the former version says may still be true; the file is not sound.
            Err(error) => report(self.image_record(image), Some(format!("its record {}", damage(&error)))),
        }
    }
}

/// Whether the name leads elsewhere than to the directory that is open.
fn is_gone(folder: &OwnedFd, path: &Path) -> bool {
    let same = rustix::fs::fstat(folder).ok().zip(rustix::fs::stat(path).ok());
    same.is_none_or(|(a, b)| (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino))
}

fn damage(error: &crate::state::StateError) -> String {
    match error {
        crate::state::StateError::Damaged { why, .. } => format!("is damaged: {why}"),
        crate::state::StateError::Io { source, .. } => format!("cannot be read: {source}"),
        other => other.to_string(),
    }
}

/// The name of the tree in a layer's directory.
const TREE: &str = "fs";

/// A path of the tree, from the layer's directory.
fn in_tree(path: &Path) -> PathBuf {
    match path.as_os_str() {
        empty if empty == OsStr::new("") => PathBuf::from(TREE),
        _ => Path::new(TREE).join(path),
    }
}
