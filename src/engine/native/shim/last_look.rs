//! A last look before a container's program is executed, from inside and with nothing but its own rights: is what hides
//! the host's kernel there, and is the working directory in the container?
//!
//! The library puts all of that in place by path, step by step; runtimes that did so were led astray by links and races
//! several times (CVE-2024-21626, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881). This does not ask how a mount came
//! about, but what is there in the end. The seven looks and what they cost: twenty system calls, some 30 µs.

use std::ffi::CStr;

use nix::libc;
use rustix::fs::{FileType, Stat, StatVfsMountFlags, lstat, stat, statfs, statvfs};
use rustix::io::Errno;

use super::super::spec::{MASKED, READ_ONLY};

/// Source: proc(5); `PROC_ROOT_INO` of linux/proc_fs.h.
const PROC_ROOT: u64 = 1;

/// Source: Linux Documentation/admin-guide/devices.txt.
const NULL: (u32, u32) = (1, 3);

/// What there is to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Look {
    /// A container's first program, all of whose mounts are new.
    First {
        /// Whether the kernel's interfaces are hidden: a privileged one sees them.
        masked: bool,
    },
    /// A command in a container that was looked at; what the kernel shows may have changed since.
    Later,
}

impl Look {
    /// Says what is not as it should be.
    pub fn look(self) -> Result<(), String> {
        working_directory()?;
        let Self::First { masked } = self else { return Ok(()) };
        file_systems()?;
        devices()?;
        if masked {
            MASKED.iter().try_for_each(|path| hidden(path))?;
            READ_ONLY.iter().try_for_each(|path| only_read(path))?;
        }
        Ok(())
    }
}

/// In the container, and reached by its own name: a directory of the host that a descriptor led to has none.
fn working_directory() -> Result<(), String> {
    let wrong = "the working directory is not in the container";
    // The system call itself: it gives `(unreachable)` where the C library gives an error. getcwd(2).
    let path = rustix::process::getcwd(Vec::new()).map_err(|error| format!("{wrong}: {error}"))?;
    if !path.as_bytes().starts_with(b"/") {
        return Err(wrong.to_owned());
    }
    // A path that cannot be searched by this user is no sign of anything.
    let (Ok(named), Ok(here)) = (stat(path.as_c_str()), stat(c".")) else { return Ok(()) };
    if (named.st_dev, named.st_ino) == (here.st_dev, here.st_ino) { Ok(()) } else { Err(wrong.to_owned()) }
}

/// `/proc`, `/sys`, `/dev` and `/dev/pts` are the kernel's: nothing that an image prepared answers in their place.
fn file_systems() -> Result<(), String> {
    for (path, magic) in [
        (c"/proc", libc::PROC_SUPER_MAGIC),
        (c"/sys", libc::SYSFS_MAGIC),
        (c"/dev", libc::TMPFS_MAGIC),
        (c"/dev/pts", libc::DEVPTS_SUPER_MAGIC),
    ] {
        let found = statfs(path).map_err(|error| wrong(path, &error.to_string()))?;
        if i128::from(found.f_type) != i128::from(magic) {
            return Err(wrong(path, "it is not the kernel's own"));
        }
    }
    let root = lstat(c"/proc").map_err(|error| wrong(c"/proc", &error.to_string()))?;
    if root.st_ino == PROC_ROOT { Ok(()) } else { Err(wrong(c"/proc", "it is a part of the kernel's")) }
}

/// What is hidden is hidden by `/dev/null`; and `/dev/console` is a terminal or nothing.
fn devices() -> Result<(), String> {
    let null = lstat(c"/dev/null").map_err(|error| wrong(c"/dev/null", &error.to_string()))?;
    if !is_null(&null) {
        return Err(wrong(c"/dev/null", "it is another file"));
    }
    match lstat(c"/dev/console") {
        Ok(found) if !is_character_device(&found) => Err(wrong(c"/dev/console", "it is no terminal")),
        Err(error) if error != Errno::NOENT => Err(wrong(c"/dev/console", &error.to_string())),
        _ => Ok(()),
    }
}

/// Nothing of the kernel's shows at `path`: the null device, or an empty directory of its own.
fn hidden(path: &CStr) -> Result<(), String> {
    let found = match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.map_err(|error| wrong(path, &error.to_string()))?,
    };
    let fine = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            let there = statfs(path).map_err(|error| wrong(path, &error.to_string()))?;
            i128::from(there.f_type) == i128::from(libc::TMPFS_MAGIC)
        }
        _ => is_null(&found),
    };
    if fine { Ok(()) } else { Err(wrong(path, "it shows the host's kernel")) }
}

fn only_read(path: &CStr) -> Result<(), String> {
    match statvfs(path) {
        Err(Errno::NOENT) => Ok(()),
        Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => Ok(()),
        Ok(_) => Err(wrong(path, "it could be written to")),
        Err(error) => Err(wrong(path, &error.to_string())),
    }
}

fn is_character_device(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
}

fn is_null(found: &Stat) -> bool {
    let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    is_character_device(found) && number == NULL
}

fn wrong(path: &CStr, what: &str) -> String {
    format!("{} is not as it has to be: {what}; nothing was executed", path.to_string_lossy())
}
