//! The tree that grows: each entry is put at one name in a directory that is held open.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags, chmodat, chownat, fsetxattr,
    futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use super::attributes::{self, Attributes};
use super::{Error, Implied, MAX_REMEMBERED, disk, refuse};

const MAX_PATH: usize = 4096;
const MAX_DEPTH: usize = 256;

/// Directories that are kept open: files of one directory mostly follow each other.
const OPEN_FOLDERS: usize = 64;

/// Tries of openat2(2), which gives EAGAIN when anything on the host is renamed meanwhile.
const TRIES: u32 = 1000;

pub(super) struct Tree {
    root: OwnedFd,
    /// By the path that led there, links and all.
    folders: HashMap<PathBuf, Rc<OwnedFd>>,
    /// Directories get their times last: what is put into them changes them.
    times: BTreeMap<PathBuf, Timestamps>,
    implied: Implied,
    /// Bytes of the paths in the two above.
    remembered: usize,
}

/// Where an entry goes: a name in a directory that is open.
struct Target<'a> {
    parent: Rc<OwnedFd>,
    name: &'a OsStr,
    path: &'a Path,
}

impl Tree {
    pub fn new(root: OwnedFd) -> Self {
        let implied = Implied::from([PathBuf::new()]);
        Self { root, folders: HashMap::new(), times: BTreeMap::new(), implied, remembered: 0 }
    }

    pub fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return refuse("a global header, which readers take differently");
        }
        let attributes = attributes::read(entry)?;
        let path = clean(&entry.path().map_err(Error::Broken)?)?;
        let regular = matches!(kind, EntryType::Regular | EntryType::Continuous);
        if entry.size() > 0 && !regular {
            let what = format!("{}: {kind:?} with content, which readers take differently", path.display());
            return refuse(what);
        }
        if regular && entry.path_bytes().ends_with(b"/") {
            return refuse(format!("{}/: a file, or a directory: readers differ", path.display()));
        }
        let Some(name) = path.file_name() else {
            // The root itself: only its attributes.
            return match kind {
                EntryType::Directory => self.set_folder(Path::new(""), &attributes),
                _ => refuse(format!("{kind:?} in place of the layer's root")),
            };
        };
        let parent_path = path.parent().unwrap_or(Path::new(""));
        let parent = self.folder(parent_path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            io::copy(entry, &mut io::sink()).map_err(Error::Broken)?;
            return self.whiteout(parent, parent_path, hidden);
        }
        let target = Target { parent, name, path: &path };
        match kind {
            EntryType::Directory => self.add_folder(&target, &attributes),
            EntryType::Regular | EntryType::Continuous => {
                self.clear(&target)?;
                let size = entry.size();
                add_file(&target, entry, size, &attributes)
            }
            EntryType::Symlink => {
                let link = entry.link_name().map_err(Error::Broken)?;
                let Some(link) = link else {
                    return refuse(format!("{}: a symbolic link to nothing", path.display()));
                };
                self.clear(&target)?;
                symlinkat(&*link, &target.parent, name).map_err(|error| disk(&path, error))?;
                set_nofollow(&target, &attributes)
            }
            EntryType::Link => {
                let link = entry.link_name().map_err(Error::Broken)?;
                let Some(link) = link else {
                    return refuse(format!("{}: a hard link to nothing", path.display()));
                };
                self.add_link(&target, &clean(&link)?)
            }
            EntryType::Fifo => {
                self.clear(&target)?;
                let mode = Mode::from_raw_mode(0o600);
                mknodat(&target.parent, name, FileType::Fifo, mode, 0).map_err(|error| disk(&path, error))?;
                set_nofollow(&target, &attributes)?;
                // Only this process writes here: the name still is what it just made. mknod(2) minds the umask.
                chmodat(&target.parent, name, attributes.mode, AtFlags::empty())
                    .map_err(|error| disk(&path, error))
            }
            EntryType::Char | EntryType::Block => refuse(format!("{}: a device", path.display())),
            EntryType::GNUSparse => refuse(format!("{}: a sparse file", path.display())),
            other => refuse(format!("{}: an entry of kind {other:?}", path.display())),
        }
    }

    /// Sets the times of directories, and gives those of which the layer says nothing.
    pub fn finish(mut self) -> Result<Implied, Error> {
        for (path, times) in std::mem::take(&mut self.times) {
            // One that was named through a link may have made room for something else.
            let Ok(folder) = self.open_exactly(&path) else { continue };
            futimens(&folder, &times).map_err(|error| disk(&path, error))?;
        }
        Ok(self.implied)
    }

    /// A directory of the tree, made with its parents where it is missing. Links on the way are followed within the
    /// tree, as a container would follow them.
    fn folder(&mut self, path: &Path) -> Result<Rc<OwnedFd>, Error> {
        if let Some(known) = self.folders.get(path) {
            return Ok(known.clone());
        }
        let opened = match self.open_folder(path) {
            Err(Errno::NOENT) => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(disk(path, Errno::NOENT));
                };
                let parent = self.folder(parent)?;
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        self.remember(path)?;
                        self.implied.insert(path.to_owned());
                        // mkdir(2) minds the umask.
                        chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                            .map_err(|error| disk(path, error))?;
                    }
                    // A link to nothing: the second try says so.
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(disk(path, error)),
                }
                self.open_folder(path)
            }
            result => result,
        };
        let opened = Rc::new(opened.map_err(|error| disk(path, error))?);
        if self.folders.len() >= OPEN_FOLDERS {
            self.folders.clear();
        }
        self.folders.insert(path.to_owned(), opened.clone());
        Ok(opened)
    }

    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2_again(|| openat2(&self.root, path, flags, Mode::empty(), how))
    }

    /// The directory of that very name: where its own name is a link, that is an error.
    fn open_exactly(&mut self, path: &Path) -> Result<OwnedFd, Error> {
        let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = path.file_name().unwrap_or(".".as_ref());
        openat(&parent, name, flags, Mode::empty()).map_err(|error| disk(path, error))
    }

    fn add_folder(&mut self, target: &Target<'_>, attributes: &Attributes) -> Result<(), Error> {
        let there = kind_of(target)?;
        if there != Some(FileType::Directory) {
            self.clear(target)?;
            mkdirat(&target.parent, target.name, Mode::from_raw_mode(0o700))
                .map_err(|error| disk(target.path, error))?;
            if there == Some(FileType::CharacterDevice) {
                // What was hidden of lower layers stays hidden behind the new directory.
                self.make_opaque(target.path)?;
            }
        }
        self.set_folder(target.path, attributes)
    }

    fn set_folder(&mut self, path: &Path, attributes: &Attributes) -> Result<(), Error> {
        let folder = self.open_exactly(path)?;
        attributes.set(&folder, path)?;
        self.implied.remove(path);
        if !self.times.contains_key(path) {
            self.remember(path)?;
        }
        self.times.insert(path.to_owned(), attributes.times());
        Ok(())
    }

    fn add_link(&mut self, target: &Target<'_>, link: &Path) -> Result<(), Error> {
        let shown = target.path.display();
        let Some(name) = link.file_name() else {
            return refuse(format!("{shown}: a hard link to a directory"));
        };
        let from = self.folder(link.parent().unwrap_or(Path::new("")))?;
        let from = Target { parent: from, name, path: link };
        match kind_of(&from)? {
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Some(_) => {
                return refuse(format!("{shown}: a hard link to {}, which is no file", link.display()));
            }
            None => {
                let what =
                    format!("{shown}: a hard link to {}, which this layer does not have", link.display());
                return refuse(what);
            }
        }
        if link == target.path {
            return Ok(());
        }
        self.clear(target)?;
        linkat(&from.parent, name, &target.parent, target.name, AtFlags::empty())
            .map_err(|error| disk(target.path, error))
    }

    /// OCI image-spec, layer.md, "Whiteouts"; overlayfs.rst, "whiteouts and opaque directories".
    fn whiteout(&mut self, parent: Rc<OwnedFd>, parent_path: &Path, hidden: &[u8]) -> Result<(), Error> {
        if hidden == b".wh..opq" {
            return self.make_opaque(parent_path);
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
            return refuse(format!("{}: an odd whiteout", parent_path.display()));
        }
        let name = OsStr::from_bytes(hidden);
        let path = parent_path.join(name);
        match mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => Ok(()),
            // The same layer has something of that name: a whiteout hides lower layers only.
            Err(Errno::EXIST) => match kind_of(&Target { parent, name, path: &path })? {
                Some(FileType::Directory) => self.make_opaque(&path),
                _ => Ok(()),
            },
            Err(error) => Err(disk(&path, error)),
        }
    }

    /// Said again it costs the same again, however often an archive says so (CVE-2026-95838).
    fn make_opaque(&mut self, path: &Path) -> Result<(), Error> {
        if path.as_os_str().is_empty() {
            // overlayfs merges the roots of all layers, whatever they say.
            return refuse("it hides all layers below it, which overlayfs cannot do");
        }
        let folder = self.folder(path)?;
        fsetxattr(&folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(|error| disk(path, error))
    }

    /// Makes room: a later entry of the same name replaces the earlier one.
    fn clear(&mut self, target: &Target<'_>) -> Result<(), Error> {
        let flags = match kind_of(target)? {
            None => return Ok(()),
            Some(FileType::Directory) => {
                self.times.remove(target.path);
                self.implied.remove(target.path);
                AtFlags::REMOVEDIR
            }
            Some(_) => AtFlags::empty(),
        };
        // Paths may have led through what goes away.
        self.folders.clear();
        match unlinkat(&target.parent, target.name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                refuse(format!("{}: a file in place of a directory", target.path.display()))
            }
            result => result.map_err(|error| disk(target.path, error)),
        }
    }

    fn remember(&mut self, path: &Path) -> Result<(), Error> {
        self.remembered += path.as_os_str().len();
        if self.remembered > MAX_REMEMBERED {
            return refuse(format!("directories whose paths have more than {MAX_REMEMBERED} bytes"));
        }
        Ok(())
    }
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

fn kind_of(target: &Target<'_>) -> Result<Option<FileType>, Error> {
    match statat(&target.parent, target.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(disk(target.path, error)),
    }
}

fn add_file(
    target: &Target<'_>,
    content: &mut dyn Read,
    size: u64,
    attributes: &Attributes,
) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(&target.parent, target.name, flags, Mode::from_raw_mode(0o600));
    let mut file = File::from(opened.map_err(|error| disk(target.path, error))?);
    let mut buffer = [0u8; 64 << 10];
    let mut written = 0u64;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Broken(error)),
        };
        io::Write::write_all(&mut file, &buffer[..count])
            .map_err(|error| Error::Disk(format!("writing {}", target.path.display()), error))?;
        written += count as u64;
    }
    if written != size {
        return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    attributes.set(&file, target.path)?;
    attributes.set_times(&file, target.path)
}

fn set_nofollow(target: &Target<'_>, attributes: &Attributes) -> Result<(), Error> {
    let failed = |error| disk(target.path, error);
    let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
    chownat(&target.parent, target.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    utimensat(&target.parent, target.name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
}

/// A path within the tree: no `..`, no more than a kernel takes; a leading `/` or `./` means the root.
fn clean(path: &Path) -> Result<PathBuf, Error> {
    if path.as_os_str().len() > MAX_PATH {
        return refuse("a path of more than 4096 bytes");
    }
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                if name.as_bytes().contains(&0) {
                    return refuse("a path with a NUL in it");
                }
                depth += 1;
                clean.push(name);
            }
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return refuse(format!("{}: a path that leads out of the layer", path.display()));
            }
        }
    }
    if depth > MAX_DEPTH {
        return refuse(format!("a path of more than {MAX_DEPTH} parts"));
    }
    Ok(clean)
}
