//! The agent's own copy of the config repo: bare, written by nobody else, and disposable.
//!
//! Whatever is wrong with it, it is made anew from the remote *beside* the old one and swapped in when complete, so
//! that what can still be read stays readable while the remote is away.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::GitError;

/// What the remote's branch was at the last fetch.
pub(super) const FETCHED: &str = "refs/gitopsd/fetched";

/// What was admitted last.
pub(super) const TRUSTED: &str = "refs/gitopsd/trusted";

/// Files in `objects/pack` (two a pack) before all is put into one pack.
const MAX_PACK_FILES: usize = 200;

/// Loose objects in one of their 256 directories before all is put into one pack; `git gc --auto` has 27.
const MAX_LOOSE_IN_ONE: usize = 27;

/// What the copy is called, in the agent's folder for it.
pub(super) const NAME: &str = "repo.git";

/// Where the copy is.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Takes the cache below `parent` over: removes what a killed process left, and makes an empty repository where
    /// there is none that can be opened. Second value: whether it is sound, or wants to be made anew.
    pub(super) fn open(parent: &Path) -> Result<(Self, bool), GitError> {
        let cache = Self { dir: parent.join(NAME) };
        fs::create_dir_all(parent).map_err(|e| cache.error("create", e))?;
        remove(&cache.beside("new")).map_err(|e| cache.error("clean up beside", e))?;
        if !cache.dir.exists() && cache.beside("old").exists() {
            // Killed between the two renames of `swap_in`.
            fs::rename(cache.beside("old"), &cache.dir).map_err(|e| cache.error("restore", e))?;
        }
        remove(&cache.beside("old")).map_err(|e| cache.error("clean up beside", e))?;
        for dir in [&cache.dir, &cache.heard_dir()] {
            // One agent an instance (it holds a lock), so that any lock file here is a dead process's.
            remove_stale(dir, 0).map_err(|e| cache.error("remove stale locks of", e))?;
        }
        let sound = match cache.repository() {
            Ok(repository) => is_sound(&repository),
            Err(_) => {
                remove(&cache.dir).map_err(|e| cache.error("remove", e))?;
                init(&cache.dir)?;
                true
            }
        };
        Ok((cache, sound))
    }

    /// A handle. Opening costs microseconds, so each operation takes its own and none can hold a stale one.
    pub(super) fn repository(&self) -> Result<git2::Repository, GitError> {
        git2::Repository::open_bare(&self.dir).map_err(|e| self.error("open", e))
    }

    /// An empty repository beside the present one.
    pub(super) fn make_beside(&self) -> Result<git2::Repository, GitError> {
        let dir = self.beside("new");
        remove(&dir).map_err(|e| self.error("clean up beside", e))?;
        init(&dir)
    }

    /// Puts the repository that `make_beside` made in the place of the present one.
    pub(super) fn swap_in(&self) -> Result<(), GitError> {
        let (new, old) = (self.beside("new"), self.beside("old"));
        // In one step where the file system can do it, so that readers find a repository at any moment.
        let (at, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        if rustix::fs::renameat_with(at, &new, at, &self.dir, flags).is_ok() {
            return remove(&new).map_err(|e| self.error("clean up beside", e));
        }
        remove(&old).map_err(|e| self.error("clean up beside", e))?;
        match fs::rename(&self.dir, &old) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.error("move aside", error)),
            _ => {}
        }
        fs::rename(&new, &self.dir).map_err(|e| self.error("replace", e))?;
        remove(&old).map_err(|e| self.error("clean up beside", e))
    }

    /// The copy of what other hosts wrote: by itself, because what stands in one repository with the branch is told to the
    /// server as what is here, and its newest commits would take the place of the branch's. It is made anew where it
    /// cannot be opened, or is in many pieces: all that is in it can be heard again.
    pub(super) fn heard(&self) -> Result<git2::Repository, GitError> {
        let dir = self.heard_dir();
        let packs = fs::read_dir(dir.join("objects/pack")).map_or(0, Iterator::count);
        match git2::Repository::open_bare(&dir) {
            Ok(repository) if packs <= MAX_PACK_FILES => Ok(repository),
            _ => {
                self.forget_heard()?;
                init(&dir)
            }
        }
    }

    /// Has all of it heard again.
    pub(super) fn forget_heard(&self) -> Result<(), GitError> {
        remove(&self.heard_dir()).map_err(|e| self.error("remove what was heard beside", e))
    }

    fn heard_dir(&self) -> PathBuf {
        self.dir.with_file_name("heard.git")
    }

    /// Whether it is in so many pieces that reading gets slow: each fetch leaves a pack, each receipt some objects.
    pub(super) fn is_scattered(&self) -> bool {
        let count = |dir: &str| fs::read_dir(self.dir.join("objects").join(dir)).map_or(0, Iterator::count);
        // Loose objects are spread evenly over 256 directories: one tells how full all are, as `git gc` has it.
        count("pack") > MAX_PACK_FILES || count("17") > MAX_LOOSE_IN_ONE
    }

    /// A home directory for libgit2's ssh, holding these lines as its known_hosts.
    pub(super) fn ssh_home(&self, known_hosts: &str) -> Result<PathBuf, GitError> {
        let home = self.dir.with_file_name("ssh");
        let path = home.join(".ssh/known_hosts");
        // A look at a repo that has not moved writes nothing.
        if fs::read(&path).is_ok_and(|there| there == known_hosts.as_bytes()) {
            return Ok(home);
        }
        let write = || {
            fs::create_dir_all(home.join(".ssh"))?;
            fs::write(&path, known_hosts)
        };
        write().map_err(|e| GitError::disk(format!("write known host keys below {}", home.display()), e))?;
        Ok(home)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.dir.with_extension(format!("git.{suffix}"))
    }

    /// What stands beside the copy and outlives it.
    pub(super) fn parent(&self) -> &Path {
        self.dir.parent().unwrap_or(Path::new("/"))
    }

    /// An error about the cache as a whole.
    pub(super) fn error(
        &self,
        verb: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> GitError {
        GitError::disk(format!("{verb} the copy of the config repo at {}", self.dir.display()), cause)
    }
}

fn init(dir: &Path) -> Result<git2::Repository, GitError> {
    let mut options = git2::RepositoryInitOptions::new();
    options
        .bare(true)
        .mkpath(true)
        .external_template(false)
        .mode(git2::RepositoryInitMode::from_bits_retain(0o700));
    let make = || {
        let repository = git2::Repository::init_opts(dir, &options)?;
        // libgit2 follows redirects to other hosts, credentials and all, unless this says no; its calls for listing
        // and pushing have no other way to tell it. Redirects within a host still work.
        repository.config()?.set_str("http.followRedirects", "false")?;
        Ok(repository)
    };
    make().map_err(|e: git2::Error| {
        GitError::disk(format!("create the copy of the config repo at {}", dir.display()), e)
    })
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes lock files and half-written packs and objects.
fn remove_stale(dir: &Path, depth: u32) -> std::io::Result<()> {
    if depth > 16 || !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            remove_stale(&entry.path(), depth + 1)?;
        } else if name.ends_with(".lock")
            || name.starts_with("pack_git2_")
            || name.starts_with("tmp_object_git2_")
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Cheap signs of damage: a ref that cannot be read or leads to nothing, a pack that is not the one its index is of.
/// What this misses shows as an error when it is read, and is healed then.
fn is_sound(repository: &git2::Repository) -> bool {
    let refs_fine = (|| {
        for reference in repository.references()? {
            let commit = reference?.peel_to_commit()?;
            commit.tree()?;
        }
        // `references` skips over files it cannot parse.
        for name in [FETCHED, TRUSTED] {
            match repository.find_reference(name) {
                Err(e) if e.code() != git2::ErrorCode::NotFound => return Err(e),
                _ => {}
            }
        }
        // The setting that `init` makes must not get lost with a config file cut short.
        repository.config()?.get_bool("http.followRedirects")
    })()
    .is_ok_and(|follows| !follows);
    refs_fine && packs_are_whole(&repository.path().join("objects/pack")).unwrap_or(false)
}

/// Compares the checksum at the end of each pack with the one its index holds of it.
///
/// Source: gitformat-pack(5): a pack ends in its checksum; an index ends in the pack's checksum and its own.
fn packs_are_whole(dir: &Path) -> std::io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let index = entry?.path();
        if index.extension().is_none_or(|e| e != "idx") {
            continue;
        }
        let (Some(of_index), Some(of_pack)) =
            (tail::<40>(&index)?, tail::<20>(&index.with_extension("pack"))?)
        else {
            return Ok(false);
        };
        if !of_index.starts_with(&of_pack) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn tail<const N: usize>(path: &Path) -> std::io::Result<Option<[u8; N]>> {
    let mut file = fs::File::open(path)?;
    let Some(from) = file.metadata()?.len().checked_sub(N as u64) else { return Ok(None) };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}
