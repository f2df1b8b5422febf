//! The config files of any revision of a git repository on disk: for `gitopsd plan`, which believes its own user.

use std::path::{Path, PathBuf};

use super::{GitError, library};
use crate::config::repo::{MAX_FILE_BYTES, RepoFiles};
use crate::types::Reason;

/// The config files, and those that they name, at a revision of the repository that holds `dir`, by their paths relative to `dir`.
///
/// # Errors
/// `git-unreachable`: there is no repository, or no such revision in it. `config-invalid`: a file that is no file.
pub fn files_at(dir: &Path, revision: &str) -> Result<RepoFiles, GitError> {
    let failed = |what: String| move |error: git2::Error| GitError::with(Reason::GitUnreachable, what, error);
    let opening = || failed(format!("open the git repository at {}", dir.display()));
    library::init().map_err(opening())?;
    let repository = git2::Repository::discover(dir).map_err(opening())?;
    let looking = || failed(format!("look for revision {revision}"));
    let found = repository.revparse_single(revision).map_err(looking())?;
    let root = found.peel_to_tree().map_err(looking())?;
    let path = folder(&repository, dir);
    let base = match path.as_os_str().is_empty() {
        true => root,
        false => root
            .get_path(&path)
            .and_then(|entry| repository.find_tree(entry.id()))
            .map_err(failed(format!("look for {} at {revision}", path.display())))?,
    };
    let mut files = RepoFiles::new();
    for folder in ["", "services", "hosts"] {
        let tree = match folder {
            "" => repository.find_tree(base.id()),
            _ => match base.get_name(folder) {
                Some(entry) => repository.find_tree(entry.id()),
                None => continue,
            },
        };
        for entry in &tree.map_err(looking())? {
            let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
            if (folder.is_empty() && name != "gitopsd.toml") || !name.ends_with(".toml") {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            // Plain files, executable or not (git-fast-import(1)): a link would lead out of the tree.
            if !is_plain(&entry) {
                return Err(GitError::plain(
                    Reason::ConfigInvalid,
                    format!("{path} is not a plain file at {revision}"),
                ));
            }
            let blob = repository.find_blob(entry.id()).map_err(looking())?;
            files.insert(path, blob.content().to_vec());
        }
    }
    for path in files.named() {
        if files.contains_key(&path) {
            continue;
        }
        let entry = match base.get_path(Path::new(&path)) {
            Ok(entry) => entry,
            Err(error) if error.code() == git2::ErrorCode::NotFound => continue,
            Err(error) => return Err(looking()(error)),
        };
        if !is_plain(&entry) {
            files.refuse(&path, "is not a plain file");
            continue;
        }
        let blob = repository.find_blob(entry.id()).map_err(looking())?;
        if blob.size() as u64 > MAX_FILE_BYTES {
            files.refuse(&path, "is larger than 1 MiB");
        } else {
            files.insert(path, blob.content().to_vec());
        }
    }
    Ok(files)
}

/// The folder of a repository that `dir` is, from its top.
pub(super) fn folder(repository: &git2::Repository, dir: &Path) -> PathBuf {
    let inside = repository.workdir().and_then(|top| {
        let (top, dir) = (top.canonicalize().ok()?, dir.canonicalize().ok()?);
        Some(dir.strip_prefix(top).ok()?.to_owned())
    });
    inside.unwrap_or_default()
}

/// Executable or not: git-fast-import(1).
fn is_plain(entry: &git2::TreeEntry<'_>) -> bool {
    matches!(entry.filemode(), 0o100_644 | 0o100_755 | 0o100_664)
}
