//! The secrets of the host that services ask for: which content each has now. A file is read again only where it may have
//! changed, and what is read is kept before anybody names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Agent;
use crate::reconcile::secrets::{HostSecrets, asked};
use crate::reconcile::world::Observed;
use crate::state::secrets::{Key, put};
use crate::types::{ByteSize, Digest, Reason, Refusal, SecretContent, Timestamp};

/// Largest secret, in bytes: as a file of the config repo.
const MAX_SECRET: u64 = 1 << 20;

/// Seconds within which a file may be written again without a trace in its times: file systems keep these coarsely.
const COARSE: i64 = 2;

/// What tells one content of a file from another one without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// Whether a content that comes after now would have another stamp.
    fn is_telling(&self, now: Timestamp) -> bool {
        now.as_second().saturating_sub(self.changed.0) > COARSE
    }
}

/// What was read last, by the secret's name, with the file's stamp where that was telling then.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// What they were named with. With another one, all of them are other contents.
    key: Option<Key>,
    read: BTreeMap<String, (Option<Stamp>, SecretContent)>,
}

impl Secrets {
    /// The contents that the host has now, which are not to be collected.
    pub fn contents(&self) -> impl Iterator<Item = Digest> {
        self.read.values().map(|(_, content)| content.keyed.clone())
    }

    fn look(
        &mut self,
        name: &str,
        path: &Path,
        state_dir: &Path,
        now: Timestamp,
    ) -> Result<SecretContent, Refusal> {
        let refuse = |what: String| refusal(name, path, &what);
        let file = std::fs::metadata(path).map_err(|error| refuse(unread(&error)))?;
        fitness(&file).map_err(refuse)?;
        if let Some((Some(stamp), content)) = self.read.get(name)
            && *stamp == Stamp::of(&file)
            && crate::state::secrets::path(state_dir, content).exists()
        {
            return Ok(content.clone());
        }
        let (bytes, stamp) = read(path).map_err(refuse)?;
        let content = put(state_dir, &bytes).map_err(|error| error.to_refusal())?;
        let stamp = Some(stamp).filter(|stamp| stamp.is_telling(now));
        self.read.insert(name.to_owned(), (stamp, content.clone()));
        Ok(content)
    }
}

impl Agent {
    /// Which contents the host has of the secrets that services ask for.
    pub(super) fn look_for_secrets(&mut self, seen: &mut Observed, now: Timestamp) {
        let names = asked(self.desired.as_ref());
        self.secrets.read.retain(|name, _| names.contains(name.as_str()));
        if !names.is_empty() {
            // Lost, or made anew: what is kept is what its name says by no other key.
            let key = Key::load(self.state.root()).ok().flatten();
            if self.secrets.key != key {
                self.secrets.read.clear();
                self.secrets.key = key;
            }
        }
        for (name, path) in granted(&names, &self.config.secrets) {
            let content = self.secrets.look(name, path, self.state.root(), now);
            seen.secrets.insert(name.to_owned(), content);
        }
    }
}

/// What an agent would see of these secrets; for commands beside it, which keep nothing.
pub fn preview(
    names: &BTreeSet<&str>,
    files: &BTreeMap<String, PathBuf>,
    state_dir: &Path,
) -> Result<HostSecrets, Refusal> {
    let granted: Vec<_> = granted(names, files).collect();
    if granted.is_empty() {
        return Ok(HostSecrets::new());
    }
    let key = match Key::load(state_dir).map_err(|error| error.to_refusal())? {
        Some(key) => key,
        // Whatever the agent will make has not named anything yet.
        None => Key::random().map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?,
    };
    let content = |(name, path): (&str, &Path)| {
        let read = read(path).map(|(bytes, _)| key.content(&bytes));
        (name.to_owned(), read.map_err(|what| refusal(name, path, &what)))
    };
    Ok(granted.into_iter().map(content).collect())
}

fn granted<'a>(
    names: &BTreeSet<&'a str>,
    files: &'a BTreeMap<String, PathBuf>,
) -> impl Iterator<Item = (&'a str, &'a Path)> {
    names.iter().filter_map(|name| Some((*name, files.get(*name)?.as_path())))
}

fn refusal(name: &str, path: &Path, what: &str) -> Refusal {
    Refusal::new(Reason::Secret, format!("secret `{name}`: {} {what}", path.display()))
}

fn unread(error: &std::io::Error) -> String {
    format!("cannot be read: {error}")
}

/// Reads a secret, and what it is to be known again by.
fn read(path: &Path) -> Result<(Vec<u8>, Stamp), String> {
    // A pipe has nobody at its other end, and is none of those that are read.
    let open = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = open.map_err(|error| unread(&error))?;
    let look = || file.metadata().map_err(|error| unread(&error));
    let before = look()?;
    fitness(&before)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_SECRET.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unread(&error))?;
    let after = look()?;
    fitness(&after)?;
    if Stamp::of(&before) != Stamp::of(&after) || bytes.len() as u64 != after.size() {
        return Err("is being written; a secret is best replaced by another file of its name".to_owned());
    }
    Ok((bytes, Stamp::of(&after)))
}

/// Whether a file may be taken: by ssh's rule for keys, nobody but root has any right to it.
fn fitness(file: &Metadata) -> Result<(), String> {
    let mode = file.mode() & 0o7777;
    if !file.is_file() {
        return Err("is not a plain file".to_owned());
    }
    if file.uid() != 0 {
        return Err(format!("belongs to user {}, and has to be root's (`chown root`)", file.uid()));
    }
    if mode & 0o077 != 0 {
        return Err(format!("has mode {mode:04o}, and only root may have rights to it (`chmod 600`)"));
    }
    if file.size() > MAX_SECRET {
        let (size, limit) = (ByteSize(file.size()).human(), ByteSize(MAX_SECRET).human());
        return Err(format!("has {size}; a secret has up to {limit}"));
    }
    if file.size() == 0 {
        return Err("is empty".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Host {
        dir: tempfile::TempDir,
        secrets: Secrets,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, secrets: Secrets::default() }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("password")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).unwrap();
            self.mode(0o600);
        }

        fn mode(&self, mode: u32) {
            fs::set_permissions(self.path(), fs::Permissions::from_mode(mode)).unwrap();
        }

        /// As an agent sees it so many seconds after the file's last change.
        fn look(&mut self, later: i64) -> Result<SecretContent, Refusal> {
            let changed = fs::metadata(self.path()).map_or(0, |file| file.ctime());
            let now = Timestamp::from_second(changed + later).unwrap();
            let (path, state) = (self.path(), self.dir.path().join("state"));
            self.secrets.look("password", &path, &state, now)
        }

        fn refused(&mut self) -> String {
            let refusal = self.look(60).unwrap_err();
            assert_eq!(refusal.reason, Reason::Secret);
            assert!(refusal.message.contains("secret `password`: "), "{refusal}");
            assert!(refusal.message.contains(self.path().to_str().unwrap()), "{refusal}");
            assert!(!refusal.message.contains("hunter2"), "{refusal}");
            refusal.message
        }
    }

    #[test]
    fn only_a_plain_file_of_roots_that_nobody_else_may_touch_is_a_secret() {
        let mut host = Host::new();
        assert!(host.refused().contains("cannot be read: No such file"));
        host.write("hunter2");
        assert!(host.look(60).is_ok());
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644] {
            host.mode(mode);
            assert!(host.refused().contains(&format!("mode {mode:04o}")), "{mode:o}");
        }
        for mode in [0o400, 0o600, 0o700] {
            host.mode(mode);
            assert!(host.look(60).is_ok(), "{mode:o}");
        }
        std::os::unix::fs::chown(host.path(), Some(1000), None).unwrap();
        assert!(host.refused().contains("belongs to user 1000"));
        std::os::unix::fs::chown(host.path(), Some(0), None).unwrap();
        host.write("");
        assert!(host.refused().contains("is empty"));
        host.write(&"x".repeat(1 << 20));
        assert!(host.look(60).is_ok());
        host.write(&"x".repeat((1 << 20) + 1));
        assert!(host.refused().contains("a secret has up to"));
        fs::remove_file(host.path()).unwrap();
        fs::create_dir(host.path()).unwrap();
        assert!(host.refused().contains("not a plain file"));
        fs::remove_dir(host.path()).unwrap();
        nix::unistd::mkfifo(&host.path(), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(host.refused().contains("not a plain file"));
        assert!(read(&host.path()).unwrap_err().contains("not a plain file"), "nor is it waited for");
    }

    #[test]
    fn a_link_leads_to_the_file_that_counts() {
        let mut host = Host::new();
        let other = host.dir.path().join("generation-2");
        fs::write(&other, "hunter2").unwrap();
        std::os::unix::fs::symlink(&other, host.path()).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(host.look(60).is_ok());
        fs::set_permissions(&other, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(host.refused().contains("mode 0444"));
    }

    #[test]
    fn another_content_is_seen_and_the_same_one_is_not_read_again() {
        let mut host = Host::new();
        let state = host.dir.path().join("state");
        host.write("hunter2");
        let first = host.look(1).unwrap();
        // With a key of its own, as the former one is gone.
        fs::remove_dir_all(&state).unwrap();
        let second = host.look(60).unwrap();
        assert_ne!(
            second, first,
            "right after a change the times of a file tell nothing, and it is read again"
        );
        // What was read is kept, which shows that it was.
        let kept = crate::state::secrets::path(&state, &second);
        fs::write(&kept, "marked").unwrap();
        assert_eq!(host.look(60).unwrap(), second);
        assert_eq!(fs::read(&kept).unwrap(), b"marked", "it was read once more");
        fs::remove_file(&kept).unwrap();
        assert_eq!(host.look(60).unwrap(), second);
        assert_eq!(fs::read(&kept).unwrap(), b"hunter2", "what is lost is kept anew");
        host.write("hunter3");
        let other = host.look(60).unwrap();
        assert_ne!(other, second);
        host.write("hunter2");
        let back = host.look(60).unwrap();
        assert_ne!(back, other);
        host.write("hunter3");
        assert_eq!(host.look(60).unwrap(), other, "what was there before is called as before");
        assert_eq!(host.secrets.contents().collect::<Vec<_>>(), [other.keyed]);
    }

    #[test]
    fn a_command_sees_what_the_agent_sees_and_keeps_nothing() {
        let mut host = Host::new();
        host.write("hunter2");
        let (names, state) = (BTreeSet::from(["password", "other"]), host.dir.path().join("state"));
        let files = BTreeMap::from([("password".to_owned(), host.path())]);
        let seen = || preview(&names, &files, &state).unwrap();
        assert_ne!(seen()["password"], seen()["password"], "nothing was named yet");
        assert!(!state.exists());
        let agents = host.look(60);
        assert_eq!(
            seen(),
            BTreeMap::from([("password".to_owned(), agents)]),
            "what is not granted is not there"
        );
        fs::remove_file(host.path()).unwrap();
        assert_eq!(seen()["password"], host.look(60));
    }
}
