//! What the built-in runtime needs of the kernel, and nothing else of this program does.
//!
//! Source: mount_setattr(2), by which libcontainer gives each mount of a container its options, without another way.

use nix::libc;

/// Why the built-in runtime can start nothing here; `None`: nothing speaks against it.
pub(super) fn misfit() -> Option<String> {
    let release = nix::sys::utsname::uname();
    let release = release.map(|names| names.release().to_string_lossy().into_owned());
    missing(has_mount_setattr(), &release.unwrap_or_default())
}

/// Whether the kernel knows the call. By its number alone: kernels of distributions have calls that their version has not.
fn has_mount_setattr() -> bool {
    // SAFETY: nothing is read or changed, as the size 0 is refused before anything else.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, 0, 0) };
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// crun and runc use it where options are to hold for mounts below a mount, too, as those of volumes are.
fn missing(known: bool, release: &str) -> Option<String> {
    let what = || {
        format!(
            "the built-in runtime needs Linux 5.12 or newer for its mounts (mount_setattr(2)), and this is {release}; what has no \
             volumes runs under another one (`engine.runtime`)"
        )
    };
    (!known).then(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_named_with_what_it_lacks() {
        assert_eq!(misfit(), None, "the tests of the engine would all fail");
        assert_eq!(missing(true, "5.10.0-32-amd64"), None);
        let why = missing(false, "5.10.0-32-amd64").unwrap();
        assert!(
            why.contains("needs Linux 5.12 or newer") && why.contains("this is 5.10.0-32-amd64;"),
            "{why}"
        );
    }
}
