//! Room for a pull: refused before its first byte where it cannot fit, given up before it takes what others need.
//!
//! The least that a layer needs is known before it comes (its packed size), and what it really needs only after it came.
//! So only what is certain is refused, and what most layers take is said with it. A pull that turns out not to fit is
//! remembered with what it had written, and is not begun again in as little room.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::PullError;
use super::manifest::{self, Descriptor, Packing};
use super::store::{Temporary, layer_path};
use crate::types::{ByteSize, Digest, Reason, plural};

/// How often a pull looks at what is left: at 1 GB/s this is 25 MB.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(25);

/// One part in so many stays free for containers and state, of bytes and of inodes.
const KEPT_PART: u64 = 50;

/// More than this is not kept free, however large the file system: 256 MiB.
const MOST_KEPT_BYTES: u64 = 256 << 20;

/// The same for inodes.
const MOST_KEPT_INODES: u64 = 4096;

/// Tenths of what is packed as gzip or zstd that it most likely takes on the disk. Systems and programs take more: the image
/// of docs/performance.md 2.4 times its gzip, and 2.8 times its zstd. What is packed within (jars, pictures, models) takes
/// hardly more than its own size: nothing is refused for a guess.
const LIKELY: u64 = 22;

/// Pulls remembered that did not fit.
const REMEMBERED: usize = 64;

const HINT: &str = "make room, or see what `gitopsd gc --dry-run` would remove";

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Amount {
    bytes: u64,
    inodes: u64,
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", ByteSize(self.bytes).human())?;
        match self.inodes {
            // Without end: nobody's concern.
            u64::MAX => Ok(()),
            inodes => write!(f, " and {inodes} inodes"),
        }
    }
}

/// A file system's state.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// What others than root may still take. Inodes without end where the file system makes them as it needs them.
    free: Amount,
    /// What a pull leaves of it.
    kept: Amount,
}

impl Room {
    /// statvfs(3) of the file system that holds `path`.
    fn of(path: &Path) -> Result<Self, PullError> {
        let stat = rustix::fs::statvfs(path).map_err(|error| {
            PullError::io(format_args!("looking for room below {}", path.display()), &error.into())
        })?;
        let limited = stat.f_files > 0;
        Ok(Self {
            free: Amount {
                bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
                inodes: if limited { stat.f_favail } else { u64::MAX },
            },
            kept: Amount {
                bytes: (stat.f_blocks.saturating_mul(stat.f_frsize) / KEPT_PART).min(MOST_KEPT_BYTES),
                inodes: if limited { (stat.f_files / KEPT_PART).min(MOST_KEPT_INODES) } else { 0 },
            },
        })
    }

    /// What is missing, if `need` does not fit above what is kept: as a sentence's end.
    fn shortage(&self, need: Amount) -> Option<String> {
        let Self { free, kept } = self;
        if need.bytes.saturating_add(kept.bytes) > free.bytes {
            let [free, kept] = [free.bytes, kept.bytes].map(|bytes| ByteSize(bytes).human());
            return Some(format!("{free} are free, and {kept} are kept for others"));
        }
        if need.inodes.saturating_add(kept.inodes) > free.inodes {
            return Some(format!("{} inodes are free, and {} are kept for others", free.inodes, kept.inodes));
        }
        None
    }
}

/// What pulls that did not fit need at least, by the layers they were to fetch.
#[derive(Clone, Default)]
pub(super) struct Needs(Arc<Mutex<HashMap<Vec<Digest>, Amount>>>);

impl Needs {
    fn get(&self, layers: &[Digest]) -> Amount {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(layers).copied().unwrap_or_default()
    }

    fn remember(&self, layers: Vec<Digest>, need: Amount) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(layers, need);
    }
}

/// Looks after the room while one image is pulled.
#[derive(Clone)]
pub(super) struct Watch {
    root: PathBuf,
    name: String,
    begun: Room,
    /// Whether layers are kept as they come, beside what they unpack to.
    keep_blobs: bool,
}

/// What is to come, and what that takes.
struct Parts<'a> {
    missing: &'a [(Digest, Descriptor)],
    /// Bytes that it takes at the least, and most likely.
    least: u64,
    likely: u64,
    keep_blobs: bool,
}

impl<'a> Parts<'a> {
    fn of(missing: &'a [(Digest, Descriptor)], keep_blobs: bool) -> Self {
        let packed = packed(missing);
        let kept = if keep_blobs { packed } else { 0 };
        let (least, likely) = (packed.saturating_add(kept), likely(missing).saturating_add(kept));
        Self { missing, least, likely, keep_blobs }
    }
}

impl Watch {
    /// Refuses what cannot fit. `keep_blobs`: what comes is kept as it comes, too.
    pub fn begin(
        root: &Path,
        name: &str,
        missing: &[(Digest, Descriptor)],
        keep_blobs: bool,
        needs: &Needs,
    ) -> Result<Self, PullError> {
        Self::refuse(root, name, "its missing layers need", &Parts::of(missing, keep_blobs), needs)
    }

    /// The same for an archive that is read as a whole: `parts` is one of its size. What it is packed as is not known yet.
    pub fn begin_whole(
        root: &Path,
        name: &str,
        parts: &[(Digest, Descriptor)],
        needs: &Needs,
    ) -> Result<Self, PullError> {
        let least = packed(parts);
        let parts = Parts { missing: parts, least, likely: least, keep_blobs: false };
        Self::refuse(root, name, "it is read as a whole, which needs", &parts, needs)
    }

    fn refuse(
        root: &Path,
        name: &str,
        what_needs: &str,
        parts: &Parts<'_>,
        needs: &Needs,
    ) -> Result<Self, PullError> {
        let Parts { missing, least, likely, keep_blobs } = *parts;
        let begun = Room::of(root)?;
        let watch = Self { root: root.to_owned(), name: name.to_owned(), begun, keep_blobs };
        let known = needs.get(&ids(missing));
        let need = Amount {
            bytes: least.max(known.bytes),
            // A directory each, and what is in it.
            inodes: (2 * missing.len() as u64).max(known.inodes),
        };
        match begun.shortage(need).filter(|_| !missing.is_empty()) {
            None => Ok(watch),
            Some(shortage) => {
                // Once something is known, nothing is guessed; and a lack of inodes is none of bytes.
                let bytes_lack = begun.shortage(Amount { inodes: 0, ..need }).is_some();
                let most_likely = match known == Amount::default() && bytes_lack && likely > need.bytes {
                    true if keep_blobs => {
                        format!(" (packed and unpacked about {})", ByteSize(likely).human())
                    }
                    true => format!(" (unpacked about {})", ByteSize(likely).human()),
                    false => String::new(),
                };
                let what = format!(
                    "{name}: {what_needs} at least {need}{most_likely}, and on the file system of {} {shortage}: {HINT}",
                    root.display()
                );
                Err(PullError::retry(Reason::DiskSpace, what))
            }
        }
    }

    /// The image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a pull under way still leaves what is to be kept.
    pub fn look(&self) -> Result<(), PullError> {
        match Room::of(&self.root)?.shortage(Amount::default()) {
            None => Ok(()),
            Some(shortage) => {
                let what = format!("{} does not fit: {shortage}", self.name);
                Err(PullError::retry(Reason::DiskSpace, what))
            }
        }
    }

    /// Adds the numbers to an error for lack of room, and remembers them for the next try. `named`: those of the missing layers
    /// that got their names meanwhile; `places`: what else was written, still there; `rest`: bytes of layers that did not
    /// come yet.
    pub fn explain(
        &self,
        error: PullError,
        (missing, named): (&[(Digest, Descriptor)], &BTreeSet<Digest>),
        places: &[Arc<Temporary>],
        rest: u64,
        needs: &Needs,
    ) -> PullError {
        if error.reason != Reason::DiskSpace {
            return error;
        }
        let rest_kept = if self.keep_blobs { rest } else { 0 };
        let mut need = Amount { bytes: rest.saturating_add(rest_kept), inodes: 1 };
        let mut linked = HashSet::new();
        // What has its name is no longer there.
        for place in places {
            measure(place.path(), &mut linked, &mut need);
        }
        let mut left = ids(missing);
        left.retain(|layer| !named.contains(layer));
        needs.remember(left, need);
        // A collection may take those that have their names: then all of it comes again.
        for layer in named {
            measure(&layer_path(&self.root, layer), &mut linked, &mut need);
        }
        needs.remember(ids(missing), need);
        let kept = match named.len() {
            0 => "nothing of it was kept".to_owned(),
            count => format!("{} kept", plural(count, "layer of it is", "layers of it are")),
        };
        let (root, free) = (self.root.display(), self.begun.free);
        error.and(format_args!(
            "the image needs at least {need}, and {free} were free on the file system of {root} at its begin; {kept}: {HINT}"
        ))
    }
}

/// Bytes that layers that nobody has unpacked yet most likely take.
fn likely(missing: &[(Digest, Descriptor)]) -> u64 {
    missing.iter().fold(0u64, |sum, (_, layer)| {
        // As they are, for all that is known, where they are not packed.
        let packed = matches!(manifest::packing("", layer), Ok(Packing::Gzip | Packing::Zstd));
        let size = if packed { layer.size.saturating_mul(LIKELY) / 10 } else { layer.size };
        sum.saturating_add(size)
    })
}

/// Their sizes as they come. Sizes are whatever a manifest says.
fn packed(missing: &[(Digest, Descriptor)]) -> u64 {
    missing.iter().fold(0u64, |sum, (_, layer)| sum.saturating_add(layer.size))
}

fn ids(missing: &[(Digest, Descriptor)]) -> Vec<Digest> {
    missing.iter().map(|(diff_id, _)| diff_id.clone()).collect()
}

/// Adds what a tree takes. What cannot be read takes nothing: it is a least amount.
fn measure(path: &Path, linked: &mut HashSet<u64>, sum: &mut Amount) {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            measure(&entry.path(), linked, sum);
        }
    } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
        return;
    }
    // stat(2): blocks of 512 bytes, whatever the file system's own.
    sum.bytes = sum.bytes.saturating_add(meta.blocks().saturating_mul(512));
    sum.inodes = sum.inodes.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        free: Amount { bytes: 100 << 20, inodes: 1000 },
        kept: Amount { bytes: 10 << 20, inodes: 100 },
    };

    #[test]
    fn what_fits_above_what_is_kept() {
        let short = |bytes, inodes| ROOM.shortage(Amount { bytes, inodes });
        assert_eq!(short(90 << 20, 900), None);
        let bytes = "100.0 MiB are free, and 10.0 MiB are kept for others";
        assert_eq!(short((90 << 20) + 1, 0).as_deref(), Some(bytes));
        assert_eq!(short(u64::MAX, u64::MAX).as_deref(), Some(bytes));
        let inodes = "1000 inodes are free, and 100 are kept for others";
        assert_eq!(short(0, 901).as_deref(), Some(inodes));
        // Less than what is kept: nothing fits, not even nothing.
        let full = Room { free: Amount { bytes: 5 << 20, inodes: 5 }, ..ROOM };
        let both = "5.0 MiB are free, and 10.0 MiB are kept for others";
        assert_eq!(full.shortage(Amount::default()).as_deref(), Some(both));
    }

    #[test]
    fn packed_layers_most_likely_grow() {
        let layer = |kind: &str, size| {
            let media = format!("application/vnd.oci.image.layer.v1.tar{kind}");
            let digest = manifest::sha256(kind.as_bytes());
            (digest.clone(), Descriptor::of_layer(media, digest, size))
        };
        let layers = [layer("+gzip", 1000), layer("+zstd", 100), layer("", 10)];
        assert_eq!(likely(&layers), 2200 + 220 + 10);
        assert_eq!(packed(&layers), 1110);
        let takes = |keep_blobs| Parts::of(&layers, keep_blobs);
        assert_eq!((takes(false).least, takes(false).likely), (1110, 2430));
        assert_eq!((takes(true).least, takes(true).likely), (2220, 3540), "what comes is kept beside it");
        let huge = [layer("+gzip", u64::MAX), layer("+zstd", u64::MAX)];
        assert_eq!(Parts::of(&huge, true).least, u64::MAX);
        assert!(likely(&huge) > 1 << 60 && packed(&huge) == u64::MAX);
        assert_eq!(likely(&[layer("+of-something-else", 7)]), 7);
    }

    /// Those layers are there, and a collection may take them.
    #[test]
    fn layers_that_have_their_names_are_needed_too() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |text: &[u8], size| {
            let digest = manifest::sha256(text);
            (digest.clone(), Descriptor::of_layer(String::new(), digest, size))
        };
        let missing = [layer(b"named", 10), layer(b"on its way", 20)];
        let tree = layer_path(dir.path(), &missing[0].0).join("fs");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("file"), vec![1; 100_000]).unwrap();
        let watch =
            Watch { root: dir.path().to_owned(), name: "app".to_owned(), begun: ROOM, keep_blobs: false };
        let (needs, named) = (Needs::default(), BTreeSet::from([missing[0].0.clone()]));
        let full = PullError::retry(Reason::DiskSpace, "full");
        let error = watch.explain(full, (&missing, &named), &[], 20, &needs).to_string();
        assert!(error.contains("; 1 layer of it is kept: make room"), "{error}");
        assert_eq!(needs.get(&ids(&missing[1..])), Amount { bytes: 20, inodes: 1 }, "with that layer");
        let all = needs.get(&ids(&missing));
        assert!((100_020..200_000).contains(&all.bytes) && all.inodes == 4, "without it: {all}");
    }

    #[test]
    fn a_tree_is_measured_once_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("c")).unwrap();
        let mut sum = Amount::default();
        measure(dir.path(), &mut HashSet::new(), &mut sum);
        assert_eq!(sum.inodes, 3);
        assert!((100_000..200_000).contains(&sum.bytes), "{sum}");
    }
}
