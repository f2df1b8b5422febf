//! Executing our own program again from a read-only mount.
//!
//! A program in a container can have the runtime execute itself (`#!/proc/self/exe`), keep the file open, and write to
//! it once the runtime has ended: the host's own binary would be replaced (CVE-2019-5736). On a read-only mount that
//! write fails with EROFS. The mount lives in a mount namespace of its own, so nobody else sees it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Makes a mount namespace, covers our program in it with a read-only view of itself, and executes that with `args`.
/// Returns only if that fails. The process must have no other thread.
pub(super) fn execute_again(args: &[&OsStr]) -> io::Error {
    let attempt = || -> io::Result<()> {
        let program = std::env::current_exe()?;
        super::keyring::leave();
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        // Nothing mounted here reaches the host; what the host unmounts is unmounted here too and keeps no disk busy.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(Some(&program), &program, none, MsFlags::MS_BIND, none)?;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        // For tests alone: without it they see that the program could be written to.
        if !(cfg!(feature = "failpoints") && program.with_extension("unsealed").exists()) {
            mount(none, &program, none, read_only, none)?;
        }
        let path = CString::new(program.as_os_str().as_bytes())?;
        let mut arguments = vec![path.clone()];
        for argument in args {
            arguments.push(CString::new(argument.as_bytes())?);
        }
        nix::unistd::execv(&path, &arguments)?;
        Ok(())
    };
    attempt().err().unwrap_or_else(|| io::Error::other("execve(2) came back"))
}
