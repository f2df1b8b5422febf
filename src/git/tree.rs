//! Files of a believed commit, read out of its objects: there is no work tree, so that links lead nowhere.

use std::collections::BTreeMap;

use git2::{ErrorCode, ObjectType, Oid};

use super::{GitError, Repository, TrustedCommit, id_of};
use crate::config::repo::{MAX_FILE_BYTES, RepoFiles};
use crate::types::{CommitInfo, Reason, Timestamp};

/// Most entries in one directory, and most files in all.
const MAX_FILES: usize = 10_000;

/// Most bytes of all files together.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// How many commits back `last_change` looks.
const MAX_WALK: usize = 1_000;

/// Longest subject or author that is passed on, in characters.
const MAX_TEXT: usize = 200;

/// File modes of git: fast-import's manual lists them all.
const DIRECTORY: i32 = 0o040_000;
const SYMLINK: i32 = 0o120_000;
const SUBMODULE: i32 = 0o160_000;

/// The directories whose `*.toml` are read.
const DIRECTORIES: [&str; 2] = ["services", "hosts"];

/// The file at the top that is read.
const TOP: &str = "gitopsd.toml";

impl Repository {
    /// What a commit says about itself.
    pub fn info(&self, commit: &TrustedCommit) -> Result<CommitInfo, GitError> {
        let cache = self.cache.repository()?;
        let commit = self.reading(cache.find_commit(commit.oid()))?;
        info(&commit)
    }

    /// Whether the message of a commit has the trailer `Gitopsd-Window: now`: it is not held up by windows.
    ///
    /// Source: git-interpret-trailers(1).
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn waives_window(&self, commit: &TrustedCommit) -> Result<bool, GitError> {
        self.says_now(commit, "gitopsd-window")
    }

    /// The same of `Gitopsd-Waves: now`: its hosts do not wait for one another.
    ///
    /// # Errors
    /// `storage-io`: the cache is damaged.
    pub fn waives_waves(&self, commit: &TrustedCommit) -> Result<bool, GitError> {
        self.says_now(commit, "gitopsd-waves")
    }

    fn says_now(&self, commit: &TrustedCommit, name: &str) -> Result<bool, GitError> {
        let cache = self.cache.repository()?;
        let commit = self.reading(cache.find_commit(commit.oid()))?;
        Ok(says_now(commit.message_bytes(), name))
    }

    /// `gitopsd.toml`, `services/*.toml` and `hosts/*.toml` below `repo.path`, and the files that these name, by their
    /// paths relative to it. What is not among these is not looked at. One that cannot be used (a symlink, too
    /// large) is noted as refused, but for `gitopsd.toml`; a named one that is not there is left out.
    ///
    /// # Errors
    /// `config-empty`: the commit has no directory `repo.path`. `config-invalid`: a symlink or a submodule on the way, a name
    /// that is no file name, or more files than a config repo has; the message names the path.
    /// `storage-io`: the cache is damaged.
    pub fn files(&self, commit: &TrustedCommit) -> Result<RepoFiles, GitError> {
        let cache = self.cache.repository()?;
        let mut reader =
            Reader { repository: self, cache: &cache, commit, files: RepoFiles::new(), total: 0 };
        let found = self.reading(cache.find_commit(commit.oid()))?;
        let mut tree = self.reading(found.tree())?;
        let mut at = String::new();
        for part in split_path(&self.config.path)? {
            let entries = reader.entries(&tree, &at)?;
            at = join(&at, part);
            let Some(entry) = entries.get(part) else {
                let message = format!("commit {} has no directory `{at}` (repo.path)", commit.id().short());
                return Err(GitError::plain(Reason::ConfigEmpty, message));
            };
            tree = reader.directory(entry, &at)?;
        }
        let base = tree;
        let top = reader.entries(&base, &at)?;
        if let Some(entry) = top.get(TOP) {
            reader.file(entry, TOP, &join(&at, TOP))?;
        }
        for name in DIRECTORIES {
            let Some(entry) = top.get(name) else { continue };
            let path = join(&at, name);
            let directory = reader.directory(entry, &path)?;
            for (file, entry) in reader.entries(&directory, &path)? {
                if file.ends_with(".toml") {
                    reader.or_refuse(&entry, &join(name, &file), &join(&path, &file))?;
                }
            }
        }
        let named = reader.files.named();
        if named.len() > MAX_FILES {
            return reader.refuse(&at, "names more than 10000 files");
        }
        let mut listings = Listings::new(&base);
        for path in &named {
            if reader.files.contains_key(path) {
                continue;
            }
            match listings.find(self, &cache, path)? {
                Found::Entry(entry) => reader.or_refuse(&entry, path, path)?,
                Found::Twice => reader.files.refuse(path, "is there twice"),
                Found::Nothing => {}
            }
        }
        Ok(reader.files)
    }

    /// The commit that last changed a file of [`Repository::files`], along first parents: the bump as it came into
    /// the branch. `None` where it lies more than 1,000 commits back, or the file is not there.
    pub fn last_change(&self, commit: &TrustedCommit, file: &str) -> Result<Option<CommitInfo>, GitError> {
        let cache = self.cache.repository()?;
        let mut path = std::path::PathBuf::new();
        path.extend(split_path(&self.config.path)?);
        path.push(file);
        let content = |commit: &git2::Commit<'_>| match commit.tree()?.get_path(&path) {
            Ok(entry) => Ok(Some(entry.id())),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let mut commit = self.reading(cache.find_commit(commit.oid()))?;
        let now = self.reading(content(&commit))?;
        if now.is_none() {
            return Ok(None);
        }
        for _ in 0..MAX_WALK {
            let parent = match commit.parent(0) {
                Ok(parent) => parent,
                Err(error) if error.code() == ErrorCode::NotFound && commit.parent_count() == 0 => {
                    return info(&commit).map(Some);
                }
                Err(error) => return self.reading(Err(error)),
            };
            if self.reading(content(&parent))? != now {
                return info(&commit).map(Some);
            }
            commit = parent;
        }
        Ok(None)
    }
}

/// One entry of a tree: git's mode and what it leads to.
#[derive(Clone, Copy)]
struct Entry {
    mode: i32,
    id: Oid,
}

struct Reader<'a> {
    repository: &'a Repository,
    cache: &'a git2::Repository,
    commit: &'a TrustedCommit,
    files: RepoFiles,
    total: usize,
}

impl<'a> Reader<'a> {
    fn refuse<T>(&self, path: &str, why: &str) -> Result<T, GitError> {
        // Debug form: a hostile name must not steer a terminal.
        let message = format!("commit {}: {path:?} {why}", self.commit.id().short());
        Err(GitError::plain(Reason::ConfigInvalid, message))
    }

    /// The entries of a directory by name: each name a plain file name, and there once.
    fn entries(&self, tree: &git2::Tree<'_>, at: &str) -> Result<BTreeMap<String, Entry>, GitError> {
        if tree.len() > MAX_FILES {
            return self.refuse(at, "has more than 10000 entries");
        }
        let mut entries = BTreeMap::new();
        for entry in tree {
            let Some(name) = std::str::from_utf8(entry.name_bytes()).ok().filter(|name| is_file_name(name))
            else {
                let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
                return self.refuse(&join(at, &name), "is not a file name");
            };
            let value = Entry { mode: entry.filemode_raw(), id: entry.id() };
            if entries.insert(name.to_owned(), value).is_some() {
                return self.refuse(&join(at, name), "is there twice");
            }
        }
        Ok(entries)
    }

    fn refuse_links(&self, entry: &Entry, path: &str) -> Result<(), GitError> {
        match entry.mode & 0o170_000 {
            SYMLINK => self.refuse(path, "is a symbolic link: put the file itself there"),
            SUBMODULE => self.refuse(path, "is a submodule: put the files themselves there"),
            _ => Ok(()),
        }
    }

    fn directory(&self, entry: &Entry, path: &str) -> Result<git2::Tree<'a>, GitError> {
        self.refuse_links(entry, path)?;
        if entry.mode & 0o170_000 != DIRECTORY {
            return self.refuse(path, "is not a directory");
        }
        self.repository.reading(self.cache.find_tree(entry.id))
    }

    fn file(&mut self, entry: &Entry, key: &str, path: &str) -> Result<(), GitError> {
        self.refuse_links(entry, path)?;
        if entry.mode & 0o170_000 == DIRECTORY {
            return self.refuse(path, "is a directory");
        }
        match self.unfit(entry)? {
            Some(why) => self.refuse(path, why),
            None => self.take(entry, key, path),
        }
    }

    /// Why an entry that should be a file cannot be one.
    fn unfit(&self, entry: &Entry) -> Result<Option<&'static str>, GitError> {
        let odb = self.repository.reading(self.cache.odb())?;
        // The size first: a few packed bytes can stand for gigabytes.
        let (size, kind) = self.repository.reading(odb.read_header(entry.id))?;
        Ok(match kind {
            ObjectType::Blob if size as u64 <= MAX_FILE_BYTES => None,
            ObjectType::Blob => Some("is larger than 1 MiB"),
            _ => Some("is not a file"),
        })
    }

    /// A file of a service or a host, or one that another one names: what is wrong with it is its own affair.
    fn or_refuse(&mut self, entry: &Entry, key: &str, path: &str) -> Result<(), GitError> {
        let why = match entry.mode & 0o170_000 {
            SYMLINK => Some("is, or lies behind, a symbolic link: put the file itself there"),
            SUBMODULE => Some("is, or lies in, a submodule: put the file itself there"),
            DIRECTORY => Some("is not a plain file"),
            _ => self.unfit(entry)?,
        };
        match why {
            Some(why) => {
                self.files.refuse(key, why);
                Ok(())
            }
            None => self.take(entry, key, path),
        }
    }

    fn take(&mut self, entry: &Entry, key: &str, path: &str) -> Result<(), GitError> {
        let odb = self.repository.reading(self.cache.odb())?;
        let (size, _) = self.repository.reading(odb.read_header(entry.id))?;
        self.total = self.total.saturating_add(size);
        if self.files.len() >= MAX_FILES || self.total > MAX_TOTAL_BYTES {
            return self.refuse(path, "is one too many: a config repo has up to 10000 files and 64 MiB");
        }
        let object = self.repository.reading(odb.read(entry.id))?;
        self.files.insert(key.to_owned(), object.data().to_vec());
        Ok(())
    }
}

/// What a path leads to.
enum Found {
    /// A file, or what else has its name; of a link or submodule on the way, that.
    Entry(Entry),
    /// Two of one name, as only hostile trees have it.
    Twice,
    Nothing,
}

/// The entries of a directory by name; `None`: there twice.
type Listing = BTreeMap<Vec<u8>, Option<Entry>>;

/// The directories on the way to the path that was looked for last. Paths come sorted, so that each directory, however
/// large, is listed once.
struct Listings {
    below: Vec<(String, Listing)>,
}

impl Listings {
    fn new(top: &git2::Tree<'_>) -> Self {
        Self { below: vec![(String::new(), list(top))] }
    }

    fn find(
        &mut self,
        repository: &Repository,
        cache: &git2::Repository,
        path: &str,
    ) -> Result<Found, GitError> {
        self.below.retain(|(directory, _)| path.starts_with(directory.as_str()));
        loop {
            let Some((directory, listing)) = self.below.last() else { return Ok(Found::Nothing) };
            let rest = path.get(directory.len()..).unwrap_or_default();
            let (name, is_last) = rest.split_once('/').map_or((rest, true), |(name, _)| (name, false));
            let entry = match listing.get(name.as_bytes()) {
                None => return Ok(Found::Nothing),
                Some(None) => return Ok(Found::Twice),
                Some(Some(entry)) => *entry,
            };
            match entry.mode & 0o170_000 {
                _ if is_last => return Ok(Found::Entry(entry)),
                SYMLINK | SUBMODULE => return Ok(Found::Entry(entry)),
                DIRECTORY => {}
                _ => return Ok(Found::Nothing),
            }
            let inner = repository.reading(cache.find_tree(entry.id))?;
            self.below.push((format!("{directory}{name}/"), list(&inner)));
        }
    }
}

fn list(tree: &git2::Tree<'_>) -> Listing {
    let mut listing = Listing::new();
    // More than that no directory of a config repo has.
    for entry in tree.iter().take(MAX_FILES) {
        let found = Entry { mode: entry.filemode_raw(), id: entry.id() };
        let known = listing.contains_key(entry.name_bytes());
        listing.insert(entry.name_bytes().to_vec(), (!known).then_some(found));
    }
    listing
}

/// The parts of `repo.path`; none for the top.
pub(super) fn split_path(path: &str) -> Result<Vec<&str>, GitError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if path.starts_with('/') || parts.len() > 32 || !parts.iter().all(|part| is_file_name(part)) {
        let message = format!("repo.path `{path}` is not a folder of the repo");
        return Err(GitError::plain(Reason::ConfigInvalid, message));
    }
    Ok(parts)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !matches!(name, "." | "..")
        && !name.eq_ignore_ascii_case(".git")
        && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control())
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") }
}

pub(super) fn info(commit: &git2::Commit<'_>) -> Result<CommitInfo, GitError> {
    let author = commit.author();
    let message = String::from_utf8_lossy(commit.message_bytes());
    let author = format!(
        "{} <{}>",
        String::from_utf8_lossy(author.name_bytes()),
        String::from_utf8_lossy(author.email_bytes())
    );
    Ok(CommitInfo {
        id: id_of(commit.id())?,
        subject: clean(message.trim_start().lines().next().unwrap_or_default()),
        author: clean(&author),
        // A clock from another millennium is no reason to refuse a commit.
        committed_at: Timestamp::from_second(commit.time().seconds()).unwrap_or(Timestamp::UNIX_EPOCH),
    })
}

/// Whether a message has the trailer `name: now`.
pub(super) fn says_now(message: &[u8], name: &str) -> bool {
    trailer(&String::from_utf8_lossy(message), name).as_deref() == Some("now")
}

/// The last value of a trailer, whose name is given in lower case: a line `Name: value` of the last paragraph.
fn trailer(message: &str, name: &str) -> Option<String> {
    let message = message.trim_end();
    let (_, last) = message.rsplit_once("\n\n")?;
    let mut values = last.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
    });
    values.next_back()
}

/// Written by strangers, shown on terminals.
pub(super) fn clean(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}
