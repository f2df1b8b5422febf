//! Layers that are put aside: damaged, but some container may still run on them, and a tree that is mounted must not
//! lose its files. They go with the boot, or with the last container that is older than they are. So do the own
//! directories of images.
//!
//! The name says all there is to know: `<diff-id or manifest>.<unix seconds>.<number>.<boot id>`.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::record::from_state;
use super::{PullError, Store, clock, layer_path};
use crate::registry::layer::Unpacked;
use crate::state::{atomic, boot};
use crate::types::{Digest, Reason, Timestamp};

/// A container may be about to start while a layer is put aside: one that says it began so much later may still have
/// mounted the old one.
const STARTING: i64 = 10;

/// A layer that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Which layer, or the manifest of the image whose directories they are.
    pub layer: Digest,
    /// What begins after this runs on something else.
    pub since: Timestamp,
    path: PathBuf,
    /// Whether it was put aside in this boot: no container is older than its boot.
    this_boot: bool,
}

impl Store {
    fn aside(&self, layer: &Digest) -> Result<PathBuf, PullError> {
        let folder = self.root.join("quarantine");
        atomic::make_dir(&folder).map_err(|error| from_state(&error))?;
        let since = clock::now().as_second().saturating_add(STARTING);
        let boot = boot::boot_id();
        let mut names =
            (0u32..).map(|number| folder.join(format!("{}.{since}.{number}.{boot}", layer.hex())));
        let free = names.find(|path| !path.exists());
        free.ok_or_else(|| PullError::retry(Reason::Internal, format!("{} is full", folder.display())))
    }

    /// Puts a rebuilt layer in the place of a damaged one, in one step. Containers that run on the damaged one keep it.
    pub(in crate::registry) fn replace(
        &self,
        barrier: &File,
        diff_id: &Digest,
        layer: &Unpacked,
    ) -> Result<(), PullError> {
        let failed =
            |error: std::io::Error| PullError::io(format_args!("putting layer {diff_id} in place"), &error);
        rustix::fs::syncfs(barrier).map_err(|error| failed(error.into()))?;
        self.exchange(diff_id, layer.place.path(), &layer_path(&self.root, diff_id))
    }

    /// Puts what is at `from` in the place of a damaged layer, or of an image's own directories.
    pub(super) fn exchange(&self, digest: &Digest, from: &Path, place: &Path) -> Result<(), PullError> {
        let failed = |error: std::io::Error| {
            PullError::io(format_args!("putting {} in place", place.display()), &error)
        };
        let aside = self.aside(digest)?;
        // Out of tmp first: after a crash tmp is wiped, and the exchange may have put the damaged one there.
        std::fs::rename(from, &aside).map_err(failed)?;
        crate::failpoint::hit("repair::before_exchange");
        match renameat_with(CWD, &aside, CWD, place, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // It had been put aside before.
            Err(Errno::NOENT) => std::fs::rename(&aside, place).map_err(failed)?,
            Err(error) => {
                // Nobody else knows of it.
                let _ = std::fs::remove_dir_all(&aside);
                return Err(failed(error.into()));
            }
        }
        crate::failpoint::hit("repair::after_exchange");
        self.sync_names().map_err(failed)
    }

    /// Takes a damaged layer out of use: no new container gets it, and it is pulled again when one needs it.
    pub fn quarantine(&self, diff_id: &Digest) -> Result<(), PullError> {
        let failed =
            |error: std::io::Error| PullError::io(format_args!("putting layer {diff_id} aside"), &error);
        let aside = self.aside(diff_id)?;
        match std::fs::rename(layer_path(&self.root, diff_id), aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => self.sync_names().map_err(failed),
        }
    }

    /// All that is put aside. What has no name of ours is not touched.
    pub fn put_aside(&self) -> Vec<Aside> {
        let folder = self.root.join("quarantine");
        let boot = boot::boot_id();
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| parse(&entry.path(), &boot)).collect()
    }

    /// Removes what was put aside, but for what `needed` says. What an earlier boot put aside nobody needs.
    pub fn sweep_aside(&self, needed: impl Fn(&Aside) -> bool) {
        for aside in self.put_aside() {
            if (!aside.this_boot || !needed(&aside))
                && let Err(error) = std::fs::remove_dir_all(&aside.path)
            {
                tracing::warn!("cannot remove {}: {error}", aside.path.display());
            }
        }
    }

    /// Makes the names of layers durable.
    pub(super) fn sync_names(&self) -> std::io::Result<()> {
        for folder in ["layers", "quarantine"] {
            match File::open(self.root.join(folder)) {
                Ok(folder) => folder.sync_all()?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn parse(path: &Path, boot: &str) -> Option<Aside> {
    let name = path.file_name()?.to_str()?;
    let (hex, rest) = name.split_once('.')?;
    let (seconds, rest) = rest.split_once('.')?;
    let (_, its_boot) = rest.split_once('.')?;
    Some(Aside {
        layer: format!("sha256:{hex}").parse().ok()?,
        since: Timestamp::from_second(seconds.parse().ok()?).ok()?,
        path: path.to_owned(),
        this_boot: its_boot == boot,
    })
}
