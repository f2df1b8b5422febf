//! The directories of a growing tree: each is reached from the root one name at a time, by openat2(2), and known by
//! the path that it really has.
//!
//! Links on the way are followed by hand and within the tree, as a container would follow them, so that one directory
//! has one path however an archive spells it. Only this process writes here.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, chmodat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::{Error, MAX_DEPTH, MAX_PATH, MAX_REMEMBERED, disk, refuse, remembered};

/// Directories that are kept open: files of one directory mostly follow each other.
const OPEN: usize = 64;

/// Most links on one way, as the kernel has it (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Tries of openat2(2), which gives EAGAIN when anything on the host is renamed meanwhile.
const TRIES: u32 = 1000;

/// A directory that is open.
pub(super) struct Folder {
    pub fd: OwnedFd,
    /// From the tree's root; no part of it is a link.
    pub path: PathBuf,
}

/// What the archive says of a directory.
#[derive(Default)]
pub(super) struct Known {
    /// `None`: only that something is in it.
    pub attributes: Option<Attributes>,
    /// It hides what lower layers have in it.
    pub opaque: bool,
}

pub(super) struct Folders {
    root: Rc<Folder>,
    /// By the path that led there, links and all.
    open: HashMap<PathBuf, Rc<Folder>>,
    /// By their real paths.
    pub known: BTreeMap<PathBuf, Known>,
    /// What the paths cost that are held until the end.
    remembered: usize,
}

impl Folders {
    pub fn new(root: OwnedFd) -> Self {
        let root = Rc::new(Folder { fd: root, path: PathBuf::new() });
        let known = BTreeMap::from([(PathBuf::new(), Known::default())]);
        Self { root, open: HashMap::new(), known, remembered: 0 }
    }

    /// A directory of the tree, made with its parents where it is missing.
    pub fn folder(&mut self, path: &Path) -> Result<Rc<Folder>, Error> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(known) = self.open.get(path) {
            return Ok(known.clone());
        }
        let folder = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = self.folder(parent)?;
                self.step(parent, name, path, &mut MAX_LINKS.clone())?
            }
            _ => return Err(disk(path, Errno::NOENT)),
        };
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        self.open.insert(path.to_owned(), folder.clone());
        Ok(folder)
    }

    /// A directory of the tree by no way but its own, made with its parents where it is missing. `None`: a link or
    /// something else that is no directory stands on the way.
    pub fn folder_itself(&mut self, path: &Path) -> Result<Option<Rc<Folder>>, Error> {
        if let Some(known) = self.open.get(path) {
            return Ok((known.path == path).then(|| known.clone()));
        }
        let Some((parent, name)) = path.parent().zip(path.file_name()) else {
            return Ok(Some(self.root.clone()));
        };
        let Some(parent) = self.folder_itself(parent)? else { return Ok(None) };
        match open_exactly(&parent, name) {
            Err(Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Ok(_) | Err(Errno::NOENT) => self.folder(path).map(Some),
            Err(error) => Err(disk(path, error)),
        }
    }

    /// One name further. `shown` is the whole way, for messages.
    fn step(
        &mut self,
        from: Rc<Folder>,
        name: &OsStr,
        shown: &Path,
        links: &mut u32,
    ) -> Result<Rc<Folder>, Error> {
        let path = from.path.join(name);
        let opened = match open_exactly(&from, name) {
            Err(Errno::NOENT) => {
                self.make(&from, name, &path)?;
                open_exactly(&from, name)
            }
            // A link, or a file.
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let target =
                    readlinkat(&from.fd, name, Vec::new()).map_err(|_| disk(shown, Errno::NOTDIR))?;
                *links = links.checked_sub(1).ok_or_else(|| disk(shown, Errno::LOOP))?;
                let target = PathBuf::from(OsStr::from_bytes(target.to_bytes()));
                return self.follow(from, &target, shown, links);
            }
            opened => opened,
        };
        Ok(Rc::new(Folder { fd: opened.map_err(|error| disk(shown, error))?, path }))
    }

    /// Where a link leads to; nothing is above the root.
    fn follow(
        &mut self,
        from: Rc<Folder>,
        target: &Path,
        shown: &Path,
        links: &mut u32,
    ) -> Result<Rc<Folder>, Error> {
        let mut at = from;
        for part in target.components() {
            at = match part {
                Component::RootDir => self.root.clone(),
                Component::ParentDir => {
                    // Real paths have no links: the parent of a path is the directory above.
                    let above = at.path.parent().unwrap_or(Path::new("")).to_owned();
                    self.folder(&above)?
                }
                Component::Normal(name) => self.step(at, name, shown, links)?,
                Component::CurDir | Component::Prefix(_) => at,
            };
        }
        Ok(at)
    }

    /// Makes a directory that the archive only implies.
    fn make(&mut self, parent: &Folder, name: &OsStr, path: &Path) -> Result<(), Error> {
        bounded(path)?;
        let mode = Mode::from_raw_mode(0o755);
        mkdirat(&parent.fd, name, mode).map_err(|error| disk(path, error))?;
        // mkdir(2) minds the umask.
        chmodat(&parent.fd, name, mode, AtFlags::empty()).map_err(|error| disk(path, error))?;
        self.know(path).map(|_| ())
    }

    /// What the archive says of a directory, to be added to.
    pub fn know(&mut self, path: &Path) -> Result<&mut Known, Error> {
        if !self.known.contains_key(path) {
            self.remember(path)?;
        }
        Ok(self.known.entry(path.to_owned()).or_default())
    }

    /// Counts a path that is held until the end.
    pub fn remember(&mut self, path: &Path) -> Result<(), Error> {
        self.remembered += remembered(path);
        if self.remembered > MAX_REMEMBERED {
            return refuse(format!("directories whose paths take more than {MAX_REMEMBERED} bytes"));
        }
        Ok(())
    }

    /// Something went away: paths may have led through it.
    pub fn forget(&mut self, path: &Path) {
        self.open.clear();
        self.known.remove(path);
    }
}

/// Links lead further than an archive's own paths can: a tree without bounds is one that nothing can remove.
pub(super) fn bounded(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() > MAX_PATH {
        return refuse("a path of more than 4096 bytes");
    }
    if path.components().count() > MAX_DEPTH {
        return refuse(format!("a path of more than {MAX_DEPTH} parts"));
    }
    Ok(())
}

/// The directory of that very name: a link is an error.
pub(super) fn open_exactly(parent: &Folder, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2_again(|| openat2(&parent.fd, name, flags, Mode::empty(), how))
}

/// Repeats a look-up that other renames on the host came between (openat2(2), EAGAIN).
pub(super) fn openat2_again(mut open: impl FnMut() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    for _ in 1..TRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    open()
}
