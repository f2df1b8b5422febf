//! Remotes that are directories on this host, bare or not.
//!
//! Objects are copied directly: libgit2's own local transport reads every ref of the repository, refuses ones with a
//! work tree, and writes as whoever runs it. Here writing happens with the eyes of the repository's owner, so that
//! no file of root's locks them out and no link of theirs leads root astray.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use git2::{ErrorCode, ObjectType, Oid, RepositoryOpenFlags};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use super::GitError;
use super::cache::{Cache, TRUSTED};
use super::credentials::named;
use crate::types::{Reason, SafeUrl};

/// Longest that a ref is locked by somebody who is alive.
const LOCKED: Duration = Duration::from_secs(10);

/// An open repository of somebody else's.
pub(super) struct Repo {
    repository: git2::Repository,
    url: SafeUrl,
}

/// An object on its way.
pub(super) struct Object {
    kind: ObjectType,
    data: Vec<u8>,
}

impl Repo {
    /// Opens the repository at `path` or at its `.git`; never looks further up.
    pub(super) fn open(path: &Path, url: &SafeUrl) -> Result<Self, GitError> {
        let none: [&std::ffi::OsStr; 0] = [];
        let repository = git2::Repository::open_ext(path, RepositoryOpenFlags::NO_SEARCH, none)
            .map_err(|e| GitError::with(Reason::GitUnreachable, format!("open {}", named(url)), e))?;
        if repository.is_shallow() {
            // Its history ends somewhere: whether a commit descends from another cannot be told.
            let message = format!("{} is a shallow clone: `git fetch --unshallow` in it", named(url));
            return Err(GitError::plain(Reason::Unsupported, message));
        }
        Ok(Self { repository, url: url.clone() })
    }

    /// The agent's own cache, as something to copy from; `url` is what its content is called in messages.
    pub(super) fn of_cache(repository: git2::Repository, url: &SafeUrl) -> Self {
        Self { repository, url: url.clone() }
    }

    pub(super) fn repository(&self) -> &git2::Repository {
        &self.repository
    }

    /// The commit that a ref stands for; `None`: there is no such ref.
    pub(super) fn tip(&self, name: &str) -> Result<Option<Oid>, GitError> {
        match self.repository.find_reference(name).and_then(|r| r.peel_to_commit()) {
            Ok(commit) => Ok(Some(commit.id())),
            Err(error)
                if error.code() == ErrorCode::NotFound && self.repository.find_reference(name).is_err() =>
            {
                Ok(None)
            }
            Err(error) => Err(self.error(&format!("read {name} of"), error)),
        }
    }

    /// Brings what `remote_ref` stands for into `into` and points `local_ref` there, unless it is `known` already.
    pub(super) fn download(
        &self,
        into: &git2::Repository,
        remote_ref: &str,
        local_ref: &str,
        known: Option<Oid>,
    ) -> Result<Option<Oid>, GitError> {
        let Some(tip) = self.tip(remote_ref)? else { return Ok(None) };
        if known == Some(tip) {
            return Ok(known);
        }
        let disk =
            |e: git2::Error| GitError::disk(format!("fetch from {} into the cache", named(&self.url)), e);
        if let Some(pack) = self.pack(tip, known).map_err(|e| self.error("read", e))? {
            let odb = into.odb().map_err(disk)?;
            let mut writer = odb.packwriter().map_err(disk)?;
            writer
                .write_all(&pack)
                .map_err(|e| GitError::disk(format!("fetch from {} into the cache", named(&self.url)), e))?;
            writer.commit().map_err(disk)?;
        }
        into.reference(local_ref, tip, true, "").map_err(disk)?;
        Ok(Some(tip))
    }

    /// A pack of all that `tip` leads to and `known` does not; `None` when that is nothing.
    fn pack(&self, tip: Oid, known: Option<Oid>) -> Result<Option<git2::Buf>, git2::Error> {
        let mut walk = self.repository.revwalk()?;
        walk.push(tip)?;
        if let Some(known) = known.filter(|known| self.repository.find_commit(*known).is_ok()) {
            walk.hide(known)?;
        }
        let mut builder = self.repository.packbuilder()?;
        builder.insert_walk(&mut walk)?;
        if builder.object_count() == 0 {
            return Ok(None);
        }
        let mut pack = git2::Buf::new();
        builder.write_buf(&mut pack)?;
        Ok(Some(pack))
    }

    /// What the repository lacks of the notes commit `tip` of `from`, each object after those it leads to.
    pub(super) fn lacks(&self, from: &git2::Repository, tip: Oid) -> Result<Vec<Object>, git2::Error> {
        let (here, there) = (from.odb()?, self.repository.odb()?);
        let mut commits = Vec::new();
        let mut next = vec![tip];
        let mut seen = HashSet::new();
        while let Some(id) = next.pop() {
            if seen.insert(id) && !there.exists(id) {
                let commit = from.find_commit(id)?;
                next.extend(commit.parent_ids());
                commits.push(commit);
            }
        }
        let mut objects = Vec::new();
        for commit in commits.iter().rev() {
            lacking_tree(from, &there, commit.tree_id(), &mut seen, &mut objects)?;
            objects.push(Object { kind: ObjectType::Commit, data: here.read(commit.id())?.data().to_vec() });
        }
        Ok(objects)
    }

    /// Writes objects, then moves a ref from `old` to `new`; `false`: it was not at `old` any more.
    pub(super) fn push(
        self,
        objects: Vec<Object>,
        name: &str,
        old: Option<Oid>,
        new: Oid,
    ) -> Result<bool, GitError> {
        let (repository, url) = (self.repository, self.url);
        let failed = |e: git2::Error| {
            GitError::with(Reason::NotesRefused, format!("write {name} to {}", named(&url)), e)
        };
        let dir = repository.path().to_owned();
        let lock = dir.join(format!("{name}.lock"));
        as_owner(&dir, move || {
            let write = || {
                let odb = repository.odb()?;
                for object in &objects {
                    odb.write(object.kind, &object.data)?;
                }
                match old {
                    Some(old) => repository.reference_matching(name, new, true, old, "receipts"),
                    None => repository.reference(name, new, false, "receipts"),
                }
            };
            let result = match write() {
                Err(e) if e.code() == ErrorCode::Locked && is_left_behind(&lock) => {
                    // It may be gone by now: then the second try tells.
                    let _ = fs::remove_file(&lock);
                    write()
                }
                result => result,
            };
            match result {
                Ok(_) => Ok(true),
                Err(e) if matches!(e.code(), ErrorCode::Modified | ErrorCode::Exists | ErrorCode::Locked) => {
                    Ok(false)
                }
                Err(e) => Err(e),
            }
        })
        .map_err(|e| GitError::disk(format!("write {name} to {}", named(&url)), e))?
        .map_err(failed)
    }

    fn error(&self, verb: &str, cause: git2::Error) -> GitError {
        GitError::with(Reason::GitUnreachable, format!("{verb} {}", named(&self.url)), cause)
    }
}

/// Whether a lock of this host's own ref is one of a process that was killed: it is held for milliseconds otherwise.
fn is_left_behind(lock: &Path) -> bool {
    let age = fs::symlink_metadata(lock).and_then(|found| found.modified()).map(|at| at.elapsed());
    matches!(age, Ok(Ok(age)) if age > LOCKED)
}

fn lacking_tree(
    from: &git2::Repository,
    there: &git2::Odb<'_>,
    id: Oid,
    seen: &mut HashSet<Oid>,
    objects: &mut Vec<Object>,
) -> Result<(), git2::Error> {
    if !seen.insert(id) || there.exists(id) {
        return Ok(());
    }
    let here = from.odb()?;
    for entry in &from.find_tree(id)? {
        match entry.kind() {
            // Notes trees are at most 20 levels deep: two hex digits of a name each.
            Some(ObjectType::Tree) => lacking_tree(from, there, entry.id(), seen, objects)?,
            Some(ObjectType::Blob) if seen.insert(entry.id()) && !there.exists(entry.id()) => {
                objects.push(Object { kind: ObjectType::Blob, data: here.read(entry.id())?.data().to_vec() });
            }
            _ => {}
        }
    }
    objects.push(Object { kind: ObjectType::Tree, data: here.read(id)?.data().to_vec() });
    Ok(())
}

/// Calls on a thread whose files are made as the directory's owner would make them: user, group and permissions.
///
/// All of these are the thread's own (setfsuid(2), unshare(2) with CLONE_FS), and it ends here.
fn as_owner<T: Send>(dir: &Path, call: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    let metadata = fs::metadata(dir)?;
    let open_to = fs::metadata(dir.join("objects"))?.mode() & 0o777;
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    let thread = move || {
        unshare(CloneFlags::CLONE_FS)?;
        umask(Mode::from_bits_truncate(0o777 & !open_to));
        if geteuid().is_root() && !uid.is_root() {
            rustix::thread::set_thread_groups(&[rustix::fs::Gid::from_raw(gid.as_raw())])?;
            setfsgid(gid);
            setfsuid(uid);
            // The calls report nothing: a second one tells what the first one did.
            if setfsgid(gid) != gid || setfsuid(uid) != uid {
                return Err(std::io::Error::other(format!("cannot write as user {uid}")));
            }
        }
        Ok(call())
    };
    std::thread::scope(|scope| scope.spawn(thread).join())
        .unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")))
}

/// Takes what only the cache knows into the one that will take its place: notes that are not pushed yet, and the
/// commit admitted last. As far as it can be read: nothing here is needed for deploying.
pub(super) fn keep(cache: &Cache, fresh: &git2::Repository, url: &SafeUrl) {
    let Ok(repository) = cache.repository() else { return };
    let mut names = vec![TRUSTED.to_owned()];
    if let Ok(notes) = repository.references_glob("refs/notes/gitopsd/*") {
        names.extend(notes.flatten().filter_map(|note| note.name().ok().map(str::to_owned)));
    }
    let shallow = repository.is_shallow();
    let old = Repo::of_cache(repository, url);
    for name in names {
        // Where history ends somewhere, only a fetch brings it: what it has brought is pointed at.
        if let (true, Some(tip)) = (shallow && name == TRUSTED, old.tip(TRUSTED).ok().flatten()) {
            if fresh.find_commit(tip).is_ok()
                && let Err(error) = fresh.reference(TRUSTED, tip, true, "")
            {
                tracing::warn!("{name}: {}", error.message());
            }
            continue;
        }
        if let Err(error) = old.download(fresh, &name, &name, None) {
            tracing::warn!("{name} was in the damaged copy of the config repo alone: {error}");
        }
    }
}
