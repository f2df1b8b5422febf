//! What of the host is seen in the container: named volumes, directories and files of the host, and the generated
//! files of `/etc`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::super::launch::Launch;
use super::super::spec::BindMount;
use super::super::{etc_files, in_root, storage_reason};
use super::progress::Progress;
use super::{fill, subpath};
use crate::engine::EngineError;
use crate::types::{Reason, VolumeMount, VolumeSource};

/// Prepares every mount of the container. `root` is its root directory.
pub(super) fn prepare(
    launch: &Launch,
    root: BorrowedFd<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<BindMount>, EngineError> {
    clear_dangling_links(root);
    let state = launch.layout.state(&launch.id);
    let run = launch.layout.run(&launch.id);
    let mut mounts: Vec<_> = etc_files::NAMES
        .iter()
        .map(|name| BindMount {
            source: state.join(name),
            target: Path::new("/etc").join(name),
            read_only: launch.options.read_only == Some(true),
        })
        .collect();
    for (number, volume) in launch.volumes.iter().enumerate() {
        let source = match &volume.source {
            VolumeSource::Named(name) => {
                let dir = launch.layout.volume(&launch.id.service, name);
                let fill = (!volume.nocopy).then_some(Fill {
                    root,
                    target: &volume.target,
                    progress: &mut *progress,
                });
                match &volume.subpath {
                    None => make_named(&dir, fill).map(|()| dir),
                    Some(path) => make_named(&dir, None)
                        .and_then(|()| subpath::open(&dir, path, fill))
                        .and_then(|source| stage(&source, &run.staged(number)))
                        .map(|()| run.staged(number)),
                }
            }
            VolumeSource::Bind(path) => {
                let staged = run.staged(number);
                let source = if volume.create_host_path { make_on_host(path) } else { open_source(path) };
                source.and_then(|source| stage(&source, &staged)).map(|()| staged)
            }
        };
        let source = source.map_err(|error| {
            let reason = storage_reason(&error, Reason::StartFailed);
            EngineError::new(reason, format!("{}: {}", launch.id, describe(volume)), error)
        })?;
        mounts.push(BindMount { source, target: volume.target.clone(), read_only: volume.read_only });
    }
    Ok(mounts)
}

fn describe(volume: &VolumeMount) -> String {
    match (&volume.source, &volume.subpath) {
        (VolumeSource::Named(name), None) => format!("named volume `{name}` cannot be made"),
        (VolumeSource::Named(name), Some(path)) => {
            format!("path `{}` of named volume `{name}` cannot be used", path.display())
        }
        (VolumeSource::Bind(path), _) => format!("bind source {} cannot be used", path.display()),
    }
}

/// What a new volume begins with.
pub(super) struct Fill<'a, 'r> {
    /// The root of the image.
    pub root: BorrowedFd<'a>,
    /// The place in it.
    pub target: &'a Path,
    /// Where word of it goes.
    pub progress: &'a mut Progress<'r>,
}

/// Makes the directory of a named volume. A new one begins as the directory of the image that it covers, with owner, mode and content, so that an image which prepared that directory finds it so; else it is
/// empty. It gets its name when it is complete.
fn make_named(dir: &Path, fill: Option<Fill<'_, '_>>) -> io::Result<()> {
    if dir.symlink_metadata().is_ok() {
        return Ok(());
    }
    let (unfinished, parent) = make_unfinished(dir, fill)?;
    fs::rename(&unfinished, dir)?;
    File::open(parent)?.sync_all()
}

/// A directory that is about to be a volume, or one in it, beside the volume `dir`, where no container can reach it.
pub(super) fn make_unfinished<'a>(
    dir: &'a Path,
    fill: Option<Fill<'_, '_>>,
) -> io::Result<(PathBuf, &'a Path)> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(io::Error::other("it has no name"));
    };
    // Root's alone on the host: what is in a volume is its service's business.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    // No volume's name begins with a dot.
    let unfinished = parent.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(&unfinished)?,
    }
    if let Some(Fill { root, target, progress }) = fill
        && let Ok(covered) = in_root::open(root, target, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    {
        fill::fill(&covered, &unfinished, progress)?;
    }
    Ok((unfinished, parent))
}

/// Opens a path of the host without following any symbolic link: with one, a container that may write to an allowed
/// directory could point another service's mount outside of it.
fn open_source(path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how).map_err(|error| match error {
        Errno::ENOENT => io::Error::new(io::ErrorKind::NotFound, "it does not exist on this host"),
        Errno::ELOOP => io::Error::other("it passes through a symbolic link; name the real path"),
        other => other.into(),
    })
}

/// Opens a directory of the host, and makes it where it is not there: root's, mode 0755. No link is followed on the way.
fn make_on_host(path: &Path) -> io::Result<OwnedFd> {
    let mut so_far = PathBuf::from("/");
    let mut current = open_source(&so_far)?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        current = match open_source(&so_far) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&current, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => open_source(&so_far)?,
                    Err(error) => return Err(error.into()),
                }
            }
            other => other?,
        };
    }
    Ok(current)
}

/// Binds what was opened to a place of our own, so that the runtime, which takes paths, sees that very file.
fn stage(source: &OwnedFd, staged: &Path) -> io::Result<()> {
    let name = format!("/proc/self/fd/{}", source.as_raw_fd());
    if let Some(parent) = staged.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(&name)?.is_dir() {
        fs::create_dir_all(staged)?;
    } else {
        File::create(staged)?;
    }
    let none: Option<&str> = None;
    mount(Some(name.as_str()), staged, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    // What the host mounts below it later would come in without `ro` and `nodev`.
    mount(none, staged, none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    Ok(())
}

/// Takes links that lead nowhere out of the way of the generated files: images of whole systems have
/// `/etc/resolv.conf` point to a file that only their own services would make.
fn clear_dangling_links(root: BorrowedFd<'_>) {
    let Ok(etc) = in_root::open(root, Path::new("/etc"), OFlag::O_PATH | OFlag::O_DIRECTORY) else { return };
    for name in etc_files::NAMES {
        let link = fstatat(&etc, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK);
        if link && in_root::open(root, &Path::new("/etc").join(name), OFlag::O_PATH).is_err() {
            // Failing that, the mount fails and says so.
            let _ = unlinkat(&etc, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}
