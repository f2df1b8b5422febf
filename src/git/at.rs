//! The config files of any revision of a git repository on disk: for `gitopsd plan`, which believes its own user.

use std::collections::BTreeMap;
use std::path::Path;

use super::{GitError, library};
use crate::types::Reason;

/// The config files at a revision of the repository that holds `dir`, by their paths relative to `dir`.
///
/// # Errors
/// `git-unreachable`: there is no repository, or no such revision in it. `config-invalid`: a file that is no file.
pub fn files_at(dir: &Path, revision: &str) -> Result<BTreeMap<String, Vec<u8>>, GitError> {
    let failed = |what: String| move |error: git2::Error| GitError::with(Reason::GitUnreachable, what, error);
    let opening = || failed(format!("open the git repository at {}", dir.display()));
    library::init().map_err(opening())?;
    let repository = git2::Repository::discover(dir).map_err(opening())?;
    let looking = || failed(format!("look for revision {revision}"));
    let found = repository.revparse_single(revision).map_err(looking())?;
    let root = found.peel_to_tree().map_err(looking())?;
    let inside = repository.workdir().and_then(|top| {
        let (top, dir) = (top.canonicalize().ok()?, dir.canonicalize().ok()?);
        Some(dir.strip_prefix(top).ok()?.to_owned())
    });
    let base = match inside.filter(|path| !path.as_os_str().is_empty()) {
        None => root,
        Some(path) => root
            .get_path(&path)
            .and_then(|entry| repository.find_tree(entry.id()))
            .map_err(failed(format!("look for {} at {revision}", path.display())))?,
    };
    let mut files = BTreeMap::new();
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
            if !matches!(entry.filemode(), 0o100_644 | 0o100_755 | 0o100_664) {
                return Err(GitError::plain(
                    Reason::ConfigInvalid,
                    format!("{path} is not a plain file at {revision}"),
                ));
            }
            let blob = repository.find_blob(entry.id()).map_err(looking())?;
            files.insert(path, blob.content().to_vec());
        }
    }
    Ok(files)
}
