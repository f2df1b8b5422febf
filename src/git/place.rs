//! Where this host's receipts are at a remote: its notes, or a branch where the server refuses those.
//!
//! Which of them is decided by the server's own refusal, and remembered beside the copy of the config repo: once a branch,
//! always the branch of that remote, so that nothing is split.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{GitError, notes};
use crate::types::{HostName, SafeUrl};

/// Where receipts are on branches, without the host. It is a folder of its own: whoever protects branches by patterns can
/// name it.
pub(super) const BRANCHES: &str = "refs/heads/gitopsd/receipts/";

/// The file that remembers, beside the copy of the config repo.
const FILE: &str = "receipts-on-branch";

/// Where receipts were pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this host's notes.
    Notes,
    /// On its branch, as before.
    Branch,
    /// On its branch, from now on.
    NewBranch {
        /// Its name.
        branch: String,
        /// What the server said to the notes.
        why: String,
    },
}

/// The name of this host's ref at a remote.
pub(super) fn ref_at(on_branch: bool, host: &HostName) -> String {
    if on_branch { format!("{BRANCHES}{host}") } else { notes::ref_of(host) }
}

/// The host whose receipts a ref of a clone holds.
pub(super) fn host_of(name: &str) -> Option<HostName> {
    let of_remote =
        || name.strip_prefix("refs/remotes/")?.split_once('/')?.1.strip_prefix("gitopsd/receipts/");
    let host =
        name.strip_prefix("refs/notes/gitopsd/").or_else(|| name.strip_prefix(BRANCHES)).or_else(of_remote);
    host?.parse().ok()
}

/// Whether receipts for `url` go to a branch.
pub(super) fn is_branch(dir: &Path, url: &SafeUrl) -> Result<bool, GitError> {
    let path = dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim() == url.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(GitError::disk(format!("read {}", path.display()), error)),
    }
}

/// Remembers that they do. The address is kept as it is shown, without what may be secret in it.
pub(super) fn remember(dir: &Path, url: &SafeUrl) -> Result<(), GitError> {
    crate::state::atomic::write_plain(&dir.join(FILE), format!("{url}\n").as_bytes())
        .map_err(|error| GitError::disk("remember where receipts go", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_wherever_their_receipts_are() {
        for (name, host) in [
            ("refs/notes/gitopsd/web-1", Some("web-1")),
            ("refs/heads/gitopsd/receipts/web-1", Some("web-1")),
            ("refs/remotes/origin/gitopsd/receipts/web-1", Some("web-1")),
            ("refs/heads/main", None),
            ("refs/heads/gitopsd/receipts", None),
            ("refs/remotes/origin/main", None),
            ("refs/notes/commits", None),
        ] {
            assert_eq!(host_of(name).map(|host| host.to_string()).as_deref(), host, "{name}");
        }
        let host = "web-1".parse().unwrap();
        for on_branch in [false, true] {
            assert_eq!(host_of(&ref_at(on_branch, &host)), Some("web-1".parse().unwrap()));
        }
    }
}
