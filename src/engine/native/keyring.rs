//! The kernel's keyrings: keys of the agent's session (of disks, of network file systems, of a login) are not for what
//! runs in a container. No namespace parts them, so each container gets a session keyring of its own.
//!
//! Source: session-keyring(7), keyctl(2).

use nix::libc;

/// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
const JOIN: libc::c_long = 1;

/// Leaves the session keyring that this process was started with for a new, empty one. A kernel without keyrings, or a
/// machine that forbids the call, has nothing to leave.
pub(super) fn leave() {
    // SAFETY: keyctl(2) reads no memory of ours where the name is null: the new keyring has none.
    let _ = unsafe { libc::syscall(libc::SYS_keyctl, JOIN, std::ptr::null::<libc::c_char>()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `KEYCTL_GET_KEYRING_ID` of `KEY_SPEC_SESSION_KEYRING`, none made.
    fn session() -> libc::c_long {
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_keyctl, 0 as libc::c_long, -3 as libc::c_long, 0 as libc::c_long) }
    }

    #[test]
    fn a_session_keyring_is_left_behind() {
        // In a thread of its own: keyrings belong to threads, as all credentials do.
        let (before, after) = std::thread::spawn(|| {
            let before = session();
            leave();
            (before, session())
        })
        .join()
        .unwrap();
        assert!(after > 0, "no keyring: {after}");
        assert_ne!(before, after);
    }
}
