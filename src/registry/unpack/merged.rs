//! The directories that an image's layers only imply, as the whole image says them: by the uppermost layer that has such
//! a directory and not merely implies it, as overlayfs would show it.
//!
//! What that is follows from the layers' archives alone. What shows is another matter: a layer's tree is shared, and its
//! implied directories look as they do in the image that it was unpacked for (`parents`). An image where that differs
//! gets these directories on top of its layers, all of them, so that they never have to change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::mkdirat;
use rustix::io::Errno;

use super::attributes::Attributes;
use super::parents::{Found, beneath, in_layer};
use super::{Error, Implied, disk};

/// The implied directories of an image that show, with all that are above them.
pub(in crate::registry) struct Merged {
    folders: BTreeMap<PathBuf, Attributes>,
    /// The first that looks otherwise than it ought to.
    pub otherwise: Option<PathBuf>,
}

impl Merged {
    /// Of an image's layers, uppermost first: their trees, and what they only imply.
    pub fn of(layers: &[(PathBuf, Implied)]) -> Result<Self, Error> {
        let mut trees = Vec::with_capacity(layers.len());
        for (tree, implied) in layers {
            trees.push((open(tree)?, implied));
        }
        let implied: BTreeSet<&Path> =
            layers.iter().flat_map(|(_, implied)| implied.keys()).map(PathBuf::as_path).collect();
        let all: BTreeSet<&Path> = implied.iter().flat_map(|path| path.ancestors()).collect();
        let mut merged = Self { folders: BTreeMap::new(), otherwise: None };
        for path in all {
            let Some((is, ought)) = look_up(&trees, path).map_err(|error| disk(path, error))? else {
                continue;
            };
            if is != ought {
                merged.otherwise.get_or_insert_with(|| path.to_owned());
            }
            merged.folders.insert(path.to_owned(), ought);
        }
        Ok(merged)
    }

    /// Whether a path is one of them.
    pub fn has(&self, path: &Path) -> bool {
        self.folders.contains_key(path)
    }

    /// Makes them in `root`, an empty directory of ours.
    pub fn make(&self, root: &Path) -> Result<(), Error> {
        let root = open(root)?;
        for (path, attributes) in &self.folders {
            let failed = |error| disk(path, error);
            // Parents come before what is in them.
            if let Some((parent, name)) = path.parent().zip(path.file_name()) {
                let parent = beneath(&root, parent).map_err(failed)?;
                mkdirat(&parent, name, attributes.first_mode()).map_err(failed)?;
            }
            attributes.set(&beneath(&root, path).map_err(failed)?, path)?;
        }
        for (path, attributes) in &self.folders {
            attributes.set_times(&beneath(&root, path).map_err(|error| disk(path, error))?, path)?;
        }
        Ok(())
    }

    /// The first of them that is not in `root` as it ought to be, and what is wrong with it.
    pub fn amiss(&self, root: &Path) -> Result<Option<(&Path, String)>, Error> {
        let root = open(root)?;
        for (path, ought) in &self.folders {
            let unlike = match beneath(&root, path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Some("is missing".to_owned()),
                folder => folder
                    .and_then(|folder| Attributes::of_folder(&folder))
                    .map_err(|error| disk(path, error))?
                    .unlike(ought),
            };
            if let Some(unlike) = unlike {
                return Ok(Some((path, unlike)));
            }
        }
        Ok(None)
    }
}

/// What a directory is, and what it ought to be. `None`: none of that name shows.
fn look_up(layers: &[(OwnedFd, &Implied)], path: &Path) -> Result<Option<(Attributes, Attributes)>, Errno> {
    let mut is = None;
    for (tree, implied) in layers {
        match in_layer(tree, path)? {
            Found::Nothing => {}
            Found::Here { attributes, .. } if !implied.contains_key(path) => {
                return Ok(Some((is.unwrap_or_else(|| attributes.clone()), attributes)));
            }
            Found::Here { attributes, alone } => {
                is.get_or_insert(attributes);
                if alone {
                    break;
                }
            }
            Found::Hidden | Found::Other => break,
        }
    }
    Ok(is.map(|is| (is, Attributes::of_nobody())))
}

fn open(tree: &Path) -> Result<OwnedFd, Error> {
    let opened = File::open(tree).map(OwnedFd::from);
    opened.map_err(|error| Error::Disk(format!("opening {}", tree.display()), error))
}
