//! Sees a commit in a local remote at once, by watching the few files that name its branches.
//!
//! It only says "look": that an event is missed costs one poll interval, never a deploy.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::GitError;
use super::remote::Remote;
use crate::types::{Reason, SafeUrl};

/// How long events are gathered before they are told of: one `git push` makes several.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// How soon arming is tried again after it failed (as for want of inotify watches).
const RETRY: Duration = Duration::from_secs(5);

/// The directories that may be the git directory of a local remote: itself if it is bare, or its `.git`. `None` for
/// remotes elsewhere.
pub fn watch_paths(url: &SafeUrl) -> Option<Vec<PathBuf>> {
    match Remote::parse(url) {
        Ok(Remote::Local(path)) => Some(vec![path.join(".git"), path]),
        _ => None,
    }
}

/// Calls back when branches of a local remote change, until dropped. The repository may be absent, deleted, and made
/// again meanwhile.
#[derive(Debug)]
pub struct RefWatch {
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    Seen(notify::Result<Event>),
    Stop,
}

/// What an event means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meaning {
    /// Some other file.
    Nothing,
    /// A branch may have moved.
    Changed,
    /// Directories came or went: watches are to be set anew.
    Moved,
}

impl RefWatch {
    /// Watches the git directories of [`watch_paths`]; `on_change` runs on the watch's own thread, at most once in
    /// 20 ms. It should only send a wake.
    ///
    /// # Errors
    /// `internal`: the kernel gives no inotify watch or no thread.
    pub fn new(dirs: Vec<PathBuf>, on_change: impl FnMut() + Send + 'static) -> Result<Self, GitError> {
        let (messages, inbox) = channel();
        let armed = arm(&dirs, &messages)
            .map_err(|e| GitError::with(Reason::Internal, "watch the branches of the config repo", e))?;
        let outbox = messages.clone();
        let thread = std::thread::Builder::new()
            .name("ref-watch".to_owned())
            .spawn(move || run(&dirs, &inbox, &outbox, armed, on_change))
            .map_err(|e| GitError::with(Reason::Internal, "start the watch of the config repo", e))?;
        Ok(Self { messages, thread: Some(thread) })
    }
}

impl Drop for RefWatch {
    fn drop(&mut self) {
        // A thread that is gone already needs no message, and its panic is its own news.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    dirs: &[PathBuf],
    inbox: &Receiver<Message>,
    outbox: &Sender<Message>,
    armed: RecommendedWatcher,
    mut on_change: impl FnMut(),
) {
    let mut armed = Some(armed);
    loop {
        let first = match &armed {
            Some(_) => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            None => inbox.recv_timeout(RETRY),
        };
        let mut meaning = match first {
            Ok(Message::Seen(event)) => meaning(dirs, &event),
            Err(RecvTimeoutError::Timeout) => Meaning::Moved,
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        };
        if meaning == Meaning::Nothing {
            continue;
        }
        let until = Instant::now() + DEBOUNCE;
        loop {
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Message::Seen(event)) => meaning = meaning.max(self::meaning(dirs, &event)),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        if meaning == Meaning::Moved {
            // Set anew before telling, so that whatever comes after the look is seen.
            armed = arm(dirs, outbox)
                .inspect_err(|error| tracing::warn!("cannot watch the config repo, polling only: {error}"))
                .ok();
        }
        on_change();
    }
}

/// Watches all that there is now. Repeats when there is more afterwards: it came before its parent was watched.
fn arm(dirs: &[PathBuf], messages: &Sender<Message>) -> notify::Result<RecommendedWatcher> {
    let messages = messages.clone();
    let mut watcher = notify::recommended_watcher(move |event| {
        // The receiver is gone when the watch ends.
        let _ = messages.send(Message::Seen(event));
    })?;
    let mut done: Vec<(PathBuf, RecursiveMode)> = Vec::new();
    loop {
        let wanted = places(dirs);
        let new: Vec<_> = wanted.into_iter().filter(|place| !done.contains(place)).collect();
        if new.is_empty() {
            return Ok(watcher);
        }
        for (path, mode) in new {
            match watcher.watch(&path, mode) {
                // Gone between the look and the watch: its parent is watched, and tells when it comes back.
                Err(error) if is_gone(&error) => {}
                other => other?,
            }
            done.push((path, mode));
        }
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The directories to watch now. The parent of each is watched first, so that none can come unseen.
fn places(dirs: &[PathBuf]) -> Vec<(PathBuf, RecursiveMode)> {
    let mut places = Vec::new();
    for dir in dirs {
        if let Some(parent) = dir.ancestors().skip(1).find(|parent| parent.is_dir()) {
            places.push((parent.to_owned(), RecursiveMode::NonRecursive));
        }
        // Also while it is empty: a repository comes into being file by file, and none of them may come unseen.
        let refs = dir.join("refs");
        places.push((dir.clone(), RecursiveMode::NonRecursive));
        places.push((refs.clone(), RecursiveMode::NonRecursive));
        places.push((refs.join("heads"), RecursiveMode::Recursive));
    }
    places.retain(|(path, _)| path.is_dir());
    let mut seen = Vec::new();
    places.retain(|(path, _)| {
        let new = !seen.contains(path);
        seen.push(path.clone());
        new
    });
    places
}

fn meaning(dirs: &[PathBuf], event: &notify::Result<Event>) -> Meaning {
    let event = match event {
        // A full queue: anything may have happened.
        Ok(event) if event.need_rescan() => return Meaning::Moved,
        Err(_) => return Meaning::Moved,
        Ok(event) => event,
    };
    // Reading is not changing; the agent's own look would wake it for ever.
    if event.kind.is_access() {
        return Meaning::Nothing;
    }
    event
        .paths
        .iter()
        .flat_map(|path| dirs.iter().map(|dir| of_path(dir, path)))
        .max()
        .unwrap_or(Meaning::Nothing)
}

fn of_path(dir: &Path, path: &Path) -> Meaning {
    let heads = dir.join("refs/heads");
    // The way to the branches, from the root on.
    if heads.starts_with(path) {
        return Meaning::Moved;
    }
    // Where hosts put receipts that a server takes nowhere else: what they say moves nothing.
    if path.starts_with(heads.join("gitopsd/receipts")) {
        return Meaning::Nothing;
    }
    let is_lock = path.extension().is_some_and(|extension| extension == "lock");
    let names_branches =
        path.starts_with(&heads) || path == dir.join("HEAD") || path == dir.join("packed-refs");
    if names_branches && !is_lock { Meaning::Changed } else { Meaning::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_branches_count() {
        let dir = Path::new("/srv/config.git");
        for (path, expected) in [
            ("/srv/config.git/refs/heads/main", Meaning::Changed),
            ("/srv/config.git/refs/heads/team/x", Meaning::Changed),
            ("/srv/config.git/HEAD", Meaning::Changed),
            ("/srv/config.git/packed-refs", Meaning::Changed),
            ("/srv/config.git/refs/heads/main.lock", Meaning::Nothing),
            ("/srv/config.git/refs/heads/gitopsd/receipts/web-1", Meaning::Nothing),
            ("/srv/config.git/refs/notes/gitopsd/web-1", Meaning::Nothing),
            ("/srv/config.git/objects", Meaning::Nothing),
            ("/srv/other.git", Meaning::Nothing),
            ("/srv/config.git/refs/heads", Meaning::Moved),
            ("/srv/config.git/refs", Meaning::Moved),
            ("/srv/config.git", Meaning::Moved),
            ("/srv", Meaning::Moved),
        ] {
            assert_eq!(of_path(dir, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn only_local_remotes_have_paths() {
        assert!(watch_paths(&"https://h/x".parse().unwrap()).is_none());
        let paths = watch_paths(&"file:///srv/x".parse().unwrap()).unwrap();
        assert_eq!(paths, [PathBuf::from("/srv/x/.git"), PathBuf::from("/srv/x")]);
    }
}
