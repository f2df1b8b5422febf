//! The tree that grows: each entry is put at one name in a directory that is held open, and into the listing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, chmodat, chownat, fsetxattr, linkat, makedev, mkdirat,
    mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::content::Content;
use super::folders::{Folder, Folders, bounded, open_exactly};
use super::listing::{self, Kind, MAX_LISTING, Record};
use super::reader::{self, Entry, Reader, Stream};
use super::{Error, Implied, MAX_DEPTH, MAX_PATH, disk, refuse};

pub(super) struct Tree<'a> {
    folders: Folders,
    /// Listed last: some turn out to hide nothing.
    whiteouts: BTreeSet<PathBuf>,
    listing: &'a mut dyn Write,
    /// Bytes of the listing.
    listed: u64,
}

/// Where an entry goes: a name in a directory that is open.
struct Target {
    parent: Rc<Folder>,
    /// The real one.
    path: PathBuf,
}

impl Target {
    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn kind(&self) -> Result<Option<FileType>, Error> {
        match statat(&self.parent.fd, self.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(disk(&self.path, error)),
        }
    }
}

impl<'a> Tree<'a> {
    pub fn new(root: OwnedFd, listing: &'a mut dyn Write) -> Result<Self, Error> {
        listing::begin(listing).map_err(unlisted)?;
        let listed = listing::HEAD.len() as u64;
        Ok(Self { folders: Folders::new(root), whiteouts: BTreeSet::new(), listing, listed })
    }

    pub fn add<R: Stream>(&mut self, mut entry: Entry, reader: &mut Reader<R>) -> Result<(), Error> {
        let attributes = Attributes::of(&mut entry)?;
        let path = clean(&entry.path)?;
        let Some(name) = path.file_name() else {
            // The root itself: only its attributes.
            return match entry.kind {
                reader::Kind::Directory => {
                    let root = self.folders.folder(&path)?;
                    self.say(&root, attributes)
                }
                kind => refuse(format!("{kind:?} in place of the layer's root")),
            };
        };
        let above = path.parent().unwrap_or(Path::new(""));
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(above, hidden);
        }
        let parent = self.folders.folder(above)?;
        let target = Target { path: parent.path.join(name), parent };
        bounded(&target.path)?;
        let failed = |error| disk(&target.path, error);
        let fd = &target.parent.fd;
        match entry.kind {
            reader::Kind::Directory => self.add_folder(target, attributes),
            reader::Kind::File => self.add_file(&target, &attributes, entry.size, reader),
            reader::Kind::Link => self.add_link(&target, &clean(&entry.link)?),
            reader::Kind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.make(&target, || symlinkat(link, fd, name))?;
                set_nofollow(&target, &attributes)?;
                // A link has no mode of its own (symlink(7)).
                let record =
                    Record { mode: 0o777, xattrs: None, ..attributes.record(Kind::Symlink(entry.link)) };
                self.list(&target.path, &record)
            }
            // A container has a /dev of its own, which hides the image's: base images made by debootstrap hold some.
            reader::Kind::Device if target.parent.path == Path::new("dev") => Ok(()),
            reader::Kind::Device => refuse(format!("{}: a device", target.path.display())),
            reader::Kind::Fifo => {
                let mode = Mode::from_raw_mode(0o600);
                self.make(&target, || mknodat(fd, name, FileType::Fifo, mode, 0))?;
                set_nofollow(&target, &attributes)?;
                // Only this process writes here: the name still is what it just made. mknod(2) minds the umask.
                chmodat(fd, name, attributes.mode, AtFlags::empty()).map_err(failed)?;
                let record = Record { xattrs: None, ..attributes.record(Kind::Fifo) };
                self.list(&target.path, &record)
            }
        }
    }

    /// Sets the times of directories, last: what is put into them changes them. Gives those of which the layer says
    /// nothing.
    pub fn finish(mut self) -> Result<Implied, Error> {
        let mut implied = Implied::new();
        self.settle_whiteouts()?;
        for (path, known) in std::mem::take(&mut self.folders.known) {
            let Some(attributes) = known.attributes else {
                implied.insert(path, known.opaque);
                continue;
            };
            let folder = self.folders.folder(&path)?;
            attributes.set_times(&folder.fd, &path)?;
            self.list(&path, &attributes.record(Kind::Directory { opaque: known.opaque }))?;
        }
        self.listing.flush().map_err(unlisted)?;
        Ok(implied)
    }

    /// Below an opaque directory nothing is left to hide, and overlayfs would show the whiteout itself.
    fn settle_whiteouts(&mut self) -> Result<(), Error> {
        for path in std::mem::take(&mut self.whiteouts) {
            let known = &self.folders.known;
            if path.ancestors().skip(1).any(|above| known.get(above).is_some_and(|known| known.opaque)) {
                let parent = self.folders.folder(path.parent().unwrap_or(Path::new("")))?;
                let name = path.file_name().unwrap_or_default();
                unlinkat(&parent.fd, name, AtFlags::empty()).map_err(|error| disk(&path, error))?;
            } else {
                self.list(&path, &anonymous(Kind::Whiteout))?;
            }
        }
        Ok(())
    }

    fn list(&mut self, path: &Path, record: &Record) -> Result<(), Error> {
        let line = listing::line(path, record);
        // Links make it longer than the archive is: each of their names may be a short way to a long path.
        self.listed += line.len() as u64;
        if self.listed > MAX_LISTING {
            return refuse(format!("a list of its paths of more than {MAX_LISTING} bytes"));
        }
        self.listing.write_all(line.as_bytes()).map_err(unlisted)
    }

    /// Makes something at a name; a later entry of the same name replaces the earlier one.
    fn make<T>(&mut self, target: &Target, make: impl Fn() -> Result<T, Errno>) -> Result<T, Error> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(target)?;
                make()
            }
            made => made,
        }
        .map_err(|error| disk(&target.path, error))
    }

    fn clear(&mut self, target: &Target) -> Result<(), Error> {
        let shown = target.path.display();
        let (fd, name) = (&target.parent.fd, target.name());
        let stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| disk(&target.path, error))?;
        let flags = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => AtFlags::REMOVEDIR,
            // The listing names content by the first of its names.
            _ if stat.st_nlink > 1 => {
                return refuse(format!("{shown}: replaced after other names were linked to it"));
            }
            _ => AtFlags::empty(),
        };
        self.folders.forget(&target.path);
        self.whiteouts.remove(&target.path);
        let removed = match unlinkat(fd, name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.clear_whiteouts(&target.path)?;
                unlinkat(fd, name, flags)
            }
            removed => removed,
        };
        match removed {
            Err(Errno::NOTEMPTY | Errno::EXIST) => refuse(format!("{shown}: a file in place of a directory")),
            removed => removed.map_err(|error| disk(&target.path, error)),
        }
    }

    /// What takes a directory's place hides all that was below it: whiteouts that came before it say nothing more, nor
    /// do the directories that only they imply.
    fn clear_whiteouts(&mut self, place: &Path) -> Result<(), Error> {
        let below = |path: &&PathBuf| path.starts_with(place);
        let from = self.whiteouts.range(place.to_owned()..);
        let whiteouts: Vec<PathBuf> = from.take_while(below).cloned().collect();
        let from = self.folders.known.range(place.to_owned()..).take_while(|(path, _)| below(path));
        let implied = from.filter(|(_, known)| known.attributes.is_none()).map(|(path, _)| path.clone());
        // The deepest first.
        let implied: Vec<PathBuf> = implied.collect::<Vec<_>>().into_iter().rev().collect();
        for (path, flags) in whiteouts
            .iter()
            .map(|path| (path, AtFlags::empty()))
            .chain(implied.iter().map(|path| (path, AtFlags::REMOVEDIR)))
        {
            let parent = self.folders.folder(path.parent().unwrap_or(Path::new("")))?;
            match unlinkat(&parent.fd, path.file_name().unwrap_or_default(), flags) {
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(error) => return Err(disk(path, error)),
            }
            self.whiteouts.remove(path);
            self.folders.forget(path);
        }
        Ok(())
    }

    fn add_folder(&mut self, target: Target, attributes: Attributes) -> Result<(), Error> {
        let (fd, name) = (&target.parent.fd, target.name());
        let mode = attributes.first_mode();
        let there = match mkdirat(fd, name, mode) {
            Ok(()) => None,
            Err(Errno::EXIST) => target.kind()?,
            Err(error) => return Err(disk(&target.path, error)),
        };
        if there.is_some_and(|there| there != FileType::Directory) {
            self.make(&target, || mkdirat(fd, name, mode))?;
        }
        let opened = open_exactly(&target.parent, name).map_err(|error| disk(&target.path, error))?;
        let folder = Folder { fd: opened, path: target.path };
        if there == Some(FileType::CharacterDevice) {
            // What was hidden of lower layers stays hidden behind the new directory.
            self.make_opaque(&folder)?;
        }
        self.say(&folder, attributes)
    }

    fn say(&mut self, folder: &Folder, attributes: Attributes) -> Result<(), Error> {
        attributes.set(&folder.fd, &folder.path)?;
        self.folders.know(&folder.path)?.attributes = Some(attributes);
        Ok(())
    }

    fn add_file<R: Stream>(
        &mut self,
        target: &Target,
        attributes: &Attributes,
        size: u64,
        reader: &mut Reader<R>,
    ) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = attributes.first_mode();
        let file = File::from(self.make(target, || openat(&target.parent.fd, target.name(), flags, mode))?);
        let mut content = Content::of(&file);
        let digest = reader.content(|part| {
            let failed = |error| Error::Disk(format!("writing {}", target.path.display()), error);
            content.write(part).map_err(failed)
        })?;
        content.end();
        attributes.set(&file, &target.path)?;
        attributes.set_times(&file, &target.path)?;
        self.list(&target.path, &attributes.record(Kind::File(size, digest)))
    }

    fn add_link(&mut self, target: &Target, link: &Path) -> Result<(), Error> {
        let shown = target.path.display();
        let Some(name) = link.file_name() else {
            return refuse(format!("{shown}: a hard link to a directory"));
        };
        let parent = self.folders.folder(link.parent().unwrap_or(Path::new("")))?;
        let from = Target { path: parent.path.join(name), parent };
        match from.kind()? {
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
        if from.path == target.path {
            return Ok(());
        }
        let no_flags = AtFlags::empty();
        self.make(target, || linkat(&from.parent.fd, name, &target.parent.fd, target.name(), no_flags))?;
        self.list(&target.path, &anonymous(Kind::Link(from.path)))
    }

    /// OCI image-spec, layer.md, "Whiteouts"; overlayfs.rst, "whiteouts and opaque directories".
    fn whiteout(&mut self, above: &Path, hidden: &[u8]) -> Result<(), Error> {
        let opaque = hidden == b".wh..opq";
        if !opaque && (hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh."))
        {
            return refuse(format!("{}: an odd whiteout", above.display()));
        }
        // A file or a link of this layer hides all that was below its name, and a link's target is not what is meant:
        // tools that compare two trees go into no link (docker, umoci).
        let Some(parent) = self.folders.folder_itself(above)? else { return Ok(()) };
        if opaque {
            return self.make_opaque(&parent);
        }
        let name = OsStr::from_bytes(hidden);
        let target = Target { path: parent.path.join(name), parent: parent.clone() };
        match mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => {
                self.folders.remember(&target.path)?;
                self.whiteouts.insert(target.path);
                Ok(())
            }
            // The same layer has something of that name: a whiteout hides lower layers only.
            Err(Errno::EXIST) => match target.kind()? {
                Some(FileType::Directory) => {
                    let folder = self.folders.folder(&target.path)?;
                    self.make_opaque(&folder)
                }
                _ => Ok(()),
            },
            Err(error) => Err(disk(&target.path, error)),
        }
    }

    /// Said again it costs the same again, however often an archive says so (CVE-2026-95838).
    fn make_opaque(&mut self, folder: &Folder) -> Result<(), Error> {
        if folder.path.as_os_str().is_empty() {
            // overlayfs merges the roots of all layers, whatever they say.
            return refuse("it hides all layers below it, which overlayfs cannot do");
        }
        self.folders.know(&folder.path)?.opaque = true;
        fsetxattr(&folder.fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(|error| disk(&folder.path, error))
    }
}

/// A record of something that has no attributes of its own.
fn anonymous(kind: Kind) -> Record {
    Record { kind, mode: 0, uid: 0, gid: 0, mtime: (0, 0), xattrs: None }
}

fn unlisted(error: std::io::Error) -> Error {
    Error::Disk("writing the layer's listing".to_owned(), error)
}

fn set_nofollow(target: &Target, attributes: &Attributes) -> Result<(), Error> {
    let failed = |error| disk(&target.path, error);
    let (fd, name) = (&target.parent.fd, target.name());
    let (uid, gid) = (Some(attributes.uid), Some(attributes.gid));
    chownat(fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    utimensat(fd, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
}

/// A path within the tree: no `..`, no more than a kernel takes; a leading `/` or `./` means the root.
fn clean(path: &[u8]) -> Result<PathBuf, Error> {
    if path.len() > MAX_PATH {
        return refuse("a path of more than 4096 bytes");
    }
    let path = Path::new(OsStr::from_bytes(path));
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in path.components() {
        match part {
            Component::Normal(name) => {
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
