//! Process-wide settings of libgit2: nothing outside the agent's own configuration may change what it does.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// Longest wait for a TCP connection to a git server, in milliseconds.
const CONNECT_TIMEOUT_MS: i32 = 10_000;

/// Longest silence of a git server inside an operation, in milliseconds.
const SILENCE_TIMEOUT_MS: i32 = 30_000;

/// Sets libgit2 up, once a process. Every entry to this module goes through it.
///
/// The configuration of the system and of users is switched off, and so is the check that a repository belongs to
/// the caller: it protects people from hooks and filters of foreign repositories, and none is ever run here.
pub(super) fn init() -> Result<(), git2::Error> {
    static DONE: OnceLock<Result<(), git2::Error>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // Any value's making initializes libgit2; the settings below need that.
        drop(git2::Config::new()?);
        // SAFETY: these change plain globals of libgit2. `OnceLock` lets one thread through, and every other user of
        // libgit2 in this process comes through this function first.
        unsafe {
            use git2::ConfigLevel::{Global, ProgramData, System, XDG};
            for level in [Global, ProgramData, System, XDG] {
                git2::opts::set_search_path(level, "")?;
            }
            git2::opts::set_verify_owner_validation(false)?;
            git2::opts::set_server_connect_timeout_in_milliseconds(CONNECT_TIMEOUT_MS)?;
            git2::opts::set_server_timeout_in_milliseconds(SILENCE_TIMEOUT_MS)?;
        }
        Ok(())
    });
    match done {
        Ok(()) => Ok(()),
        Err(error) => Err(git2::Error::new(error.code(), error.class(), error.message())),
    }
}

/// Tells libgit2 where `~` is: it looks for `.ssh/known_hosts` there at the start of an ssh connection, and only then.
/// The caller sees to it that no other thread makes an ssh connection meanwhile.
pub(super) fn set_home(dir: &Path) -> Result<(), git2::Error> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    let option = libgit2_sys::GIT_OPT_SET_HOMEDIR as c_int;
    // SAFETY: the option takes one C string, which libgit2 copies; the variable behind it is read by connections
    // over ssh alone, and those wait for each other.
    let code = unsafe { libgit2_sys::git_libgit2_opts(option, path.as_ptr()) };
    if code < 0 { Err(git2::Error::last_error(code)) } else { Ok(()) }
}
