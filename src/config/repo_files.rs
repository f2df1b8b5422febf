//! The files of a config repo that count: its own `*.toml`, and those that these name. Read from a folder here, and from
//! commits by `git`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::{Deref, DerefMut};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::named::named;
use crate::types::Invalid;

/// The repo's own file.
pub(super) const TOP: &str = "gitopsd.toml";

/// Largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Deepest path of a file that is named.
const MAX_DEPTH: usize = 32;

/// Paths relative to the folder that holds `gitopsd.toml`, and their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepoFiles {
    files: BTreeMap<String, Vec<u8>>,
    refused: BTreeMap<String, String>,
}

impl RepoFiles {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// The paths that the `*.toml` among these files name.
    pub fn named(&self) -> BTreeSet<String> {
        named(self)
    }

    /// Notes that a file is there and cannot be used: it costs its service, or those that name it.
    pub fn refuse(&mut self, path: &str, why: impl Into<String>) {
        self.refused.insert(path.to_owned(), why.into());
    }

    /// Why a file cannot be used.
    pub fn refusal(&self, path: &str) -> Option<&str> {
        self.refused.get(path).map(String::as_str)
    }

    /// The files that cannot be used, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        self.refused.iter().map(|(path, why)| (path.as_str(), why.as_str()))
    }

    /// The paths alone.
    pub fn into_keys(self) -> impl Iterator<Item = String> {
        self.files.into_keys()
    }
}

impl Deref for RepoFiles {
    type Target = BTreeMap<String, Vec<u8>>;
    fn deref(&self) -> &Self::Target {
        &self.files
    }
}

impl DerefMut for RepoFiles {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.files
    }
}

impl<const N: usize> From<[(String, Vec<u8>); N]> for RepoFiles {
    fn from(files: [(String, Vec<u8>); N]) -> Self {
        files.into_iter().collect()
    }
}

impl FromIterator<(String, Vec<u8>)> for RepoFiles {
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(files: I) -> Self {
        Self { files: files.into_iter().collect(), refused: BTreeMap::new() }
    }
}

/// The path of a file that `by` names, relative to the folder that holds `gitopsd.toml`. `text` is relative to the
/// folder of `by`.
pub(super) fn resolve(by: &str, text: &str) -> Result<String, Invalid> {
    let bad = |why: &str| Err(Invalid::new(format!("`{text}` {why}")));
    if text.is_empty() || text.starts_with('/') {
        return bad("is not a path relative to the file that names it");
    }
    let mut parts: Vec<&str> = by.split('/').collect();
    parts.pop();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return bad("leads out of the config repo");
                }
            }
            part if part.len() > 255
                || part.eq_ignore_ascii_case(".git")
                || part.contains(|c: char| c == '\\' || c.is_control()) =>
            {
                return bad("is not a path of a file");
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() || text.ends_with('/') || parts.len() > MAX_DEPTH {
        return bad("is not a path of a file");
    }
    Ok(parts.join("/"))
}

/// Reads the config files of a folder, and those that they name. Links are not followed.
pub fn read_dir(dir: &Path) -> io::Result<RepoFiles> {
    if !dir.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such folder"));
    }
    let root = File::open(dir)?;
    let mut files = RepoFiles::new();
    let take = |files: &mut RepoFiles, path: String| -> io::Result<()> {
        match read_below(&root, &path)? {
            Found::Bytes(bytes) => drop(files.insert(path, bytes)),
            Found::Nothing => {}
            Found::Refused(why) => files.refuse(&path, why),
        }
        Ok(())
    };
    take(&mut files, TOP.to_owned())?;
    if let Some(why) = files.refusal(TOP) {
        return Err(io::Error::other(format!("{TOP} {why}")));
    }
    for folder in ["services", "hosts"] {
        let entries = match std::fs::read_dir(dir.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".toml") {
                take(&mut files, format!("{folder}/{name}"))?;
            }
        }
    }
    for path in files.named() {
        if files.contains_key(&path) || files.refusal(&path).is_some() {
            continue;
        }
        take(&mut files, path)?;
    }
    Ok(files)
}

enum Found {
    Bytes(Vec<u8>),
    Nothing,
    Refused(&'static str),
}

/// Source: openat2(2).
fn read_below(root: &File, path: &str) -> io::Result<Found> {
    // O_NONBLOCK: a named pipe is not waited for.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = match openat2(root, path, how) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Found::Nothing),
        Err(Errno::ENXIO) => return Ok(Found::Refused("is not a plain file")),
        Err(Errno::ELOOP) => {
            return Ok(Found::Refused("is, or lies behind, a symbolic link: put the file itself there"));
        }
        Err(error) => return Err(io::Error::other(format!("{path}: {}", error.desc()))),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Found::Refused("is not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Ok(Found::Refused("is larger than 1 MiB"));
    }
    Ok(Found::Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_file_that_names_them_and_stay_inside() {
        for (by, text, expected) in [
            ("services/shop.toml", "shop.env", "services/shop.env"),
            ("services/shop.toml", "./shop//nginx.conf", "services/shop/nginx.conf"),
            ("services/shop.toml", "../env/shop.env", "env/shop.env"),
            ("gitopsd.toml", "a/../b", "b"),
        ] {
            assert_eq!(resolve(by, text).unwrap(), expected, "{by} {text}");
        }
        for bad in
            ["", "/etc/passwd", "../../x", "x/../../../x", "..", "a/", ".git/config", "a/.GIT/x", "a\nb"]
        {
            assert!(resolve("services/shop.toml", bad).is_err(), "{bad}");
        }
        assert!(resolve("gitopsd.toml", "../x").is_err());
    }

    #[test]
    fn a_folder_is_read_without_following_links_or_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("services/inner")).unwrap();
        std::fs::write(at("gitopsd.toml"), "format = 1\n").unwrap();
        std::fs::write(at("outside"), "host").unwrap();
        std::fs::write(at("services/inner/here"), "yes").unwrap();
        std::fs::write(at("services/big"), vec![b'x'; (1 << 20) + 1]).unwrap();
        std::os::unix::fs::symlink("../outside", at("services/link")).unwrap();
        std::os::unix::fs::symlink("inner", at("services/aside")).unwrap();
        nix::unistd::mkfifo(&at("services/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let names = ["inner/here", "link", "aside/here", "inner", "big", "pipe", "none", "inner/here/x"];
        let list: Vec<String> = names.iter().map(|name| format!("{{ path = \"{name}\" }}")).collect();
        std::fs::write(at("services/a.toml"), format!("env_file = [{}]\n", list.join(", "))).unwrap();
        let files = read_dir(dir.path()).unwrap();
        let found: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(found, ["gitopsd.toml", "services/a.toml", "services/inner/here"]);
        for (name, why) in [
            ("link", "symbolic link"),
            ("aside/here", "symbolic link"),
            ("inner", "not a plain file"),
            ("big", "1 MiB"),
            ("pipe", "not a plain file"),
        ] {
            assert!(files.refusal(&format!("services/{name}")).unwrap().contains(why), "{name}");
        }
        assert_eq!(files.refusal("services/none"), None);
    }
}
