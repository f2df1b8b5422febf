//! The log of a service: what its generations wrote, by time, from a place on and as it grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::backward::{Backward, Place};
use super::chain::open_all;
use super::entry::LogEntry;
use super::forward::Forward;
use crate::engine::native::layout;
use crate::types::{Generation, InstanceId, ReplicaIndex, ServiceName, Timestamp};

/// So many parts of a line without an end count as a line: 1 MiB.
const PARTS: usize = 64;

/// Entries given at once: a container may write as fast as they are read.
const AT_ONCE: usize = 10_000;

/// What of a service's log is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// Of this generation; `None` = of all that are kept.
    pub generation: Option<Generation>,
    /// Only of this one of its containers.
    pub index: Option<ReplicaIndex>,
    /// The last so many lines; `None` = all.
    pub lines: Option<usize>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Nothing newer.
    pub until: Option<Timestamp>,
    /// Whether what is written later is wanted too.
    pub follow: bool,
}

/// Reads the log of a service, from its files.
#[derive(Debug)]
pub struct ServiceLog {
    state_dir: PathBuf,
    service: ServiceName,
    query: LogQuery,
    /// By what wrote them: a container, or a `deploy.post`.
    readers: BTreeMap<InstanceId, Forward>,
}

impl ServiceLog {
    /// Finds where to begin. A service that has written nothing yet has an empty log.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(state_dir: &Path, service: &ServiceName, query: LogQuery) -> io::Result<Self> {
        let mut this = Self {
            state_dir: state_dir.to_owned(),
            service: service.clone(),
            query,
            readers: BTreeMap::new(),
        };
        let mut files = BTreeMap::new();
        for id in this.writers()? {
            let path = layout::log_file(state_dir, &id);
            let opened = open_all(&path)?;
            files.insert(id, (path, opened));
        }
        let places = places(files.values().map(|(_, files)| files.as_slice()), &query)?;
        for ((id, (path, files)), (place, end)) in files.into_iter().zip(places) {
            let reader = Forward::new(path, &id, files, place);
            let reader = if query.follow { reader } else { reader.ending_at(end) };
            this.readers.insert(id, reader);
        }
        Ok(this)
    }

    /// The generations that wrote something which is kept, of those that are wanted.
    pub fn generations(&self) -> io::Result<Vec<Generation>> {
        let mut all: Vec<Generation> = self.writers()?.into_iter().map(|id| id.generation).collect();
        all.dedup();
        Ok(all)
    }

    fn writers(&self) -> io::Result<Vec<InstanceId>> {
        let wanted = self.query.generation;
        let all = writers(&self.state_dir, &self.service)?;
        let index = self.query.index;
        let of_index = |id: &InstanceId| index.is_none_or(|index| index == id.index);
        let of_generation = |id: &InstanceId| wanted.is_none_or(|wanted| wanted == id.generation);
        Ok(all.into_iter().filter(|id| of_generation(id) && of_index(id)).collect())
    }

    /// Gives entries that are there and were not given yet, by time, in the order of each generation; `true` = there may
    /// be more.
    ///
    /// # Errors
    /// A file that cannot be read, or what `give` says.
    pub fn read(&mut self, give: &mut dyn FnMut(LogEntry) -> io::Result<()>) -> io::Result<bool> {
        let writers = if self.query.follow { self.writers()? } else { Vec::new() };
        for id in writers {
            if !self.readers.contains_key(&id) {
                let path = layout::log_file(&self.state_dir, &id);
                let files = open_all(&path)?;
                let reader = Forward::new(path, &id, files, Place { file: 0, offset: 0 });
                self.readers.insert(id, reader);
            }
        }
        for _ in 0..AT_ONCE {
            let mut first: Option<(Timestamp, &mut Forward)> = None;
            for reader in self.readers.values_mut() {
                let at = reader.peek()?.map(|entry| entry.at);
                first = match (first, at) {
                    (Some((least, _)), Some(at)) if at < least => Some((at, reader)),
                    (None, Some(at)) => Some((at, reader)),
                    (first, _) => first,
                };
            }
            let Some((at, reader)) = first else { return Ok(false) };
            let entry = reader.take();
            let late = self.query.until.is_some_and(|until| at > until);
            let early = self.query.since.is_some_and(|since| at < since);
            if let Some(entry) = entry.filter(|_| !late && !early) {
                give(entry)?;
            }
        }
        Ok(true)
    }
}

/// The containers of a service, and its one-shots, that wrote something which is kept, oldest generation first.
fn writers(state_dir: &Path, service: &ServiceName) -> io::Result<BTreeSet<InstanceId>> {
    let some = layout::log_file(state_dir, &InstanceId::new(service, Generation(0)));
    let mut found = BTreeSet::new();
    // Twice: a directory that is read while files in it are renamed may not show them.
    for _ in 0..2 {
        let entries = match fs::read_dir(some.parent().unwrap_or(state_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // Older parts count too: while the files are turned over there is no newest one for a moment.
        let id = |name: String| format!("{service}.{}", name.split_once(".log")?.0).parse().ok();
        found.extend(names.filter_map(id));
    }
    Ok(found)
}

/// Where to begin in each log, so that all together hold what is wanted; and the end of its newest file at that moment.
fn places<'a>(logs: impl Iterator<Item = &'a [fs::File]>, query: &LogQuery) -> io::Result<Vec<(Place, u64)>> {
    let mut walks = Vec::new();
    for files in logs {
        let mut walk = Backward::new(files)?;
        let end = walk.place();
        let next = walk.previous()?;
        walks.push((walk, next, end, end.offset));
    }
    if query.lines.is_none() && query.since.is_none() {
        let start = Place { file: 0, offset: 0 };
        return Ok(walks.into_iter().map(|(_, _, _, end)| (start, end)).collect());
    }
    let (mut lines, mut parts) = (0, 0);
    // The newest entry of all, as long as there is one that counts.
    while let Some((walk, next, place, _)) = walks
        .iter_mut()
        .filter(|(_, next, ..)| next.is_some())
        .max_by_key(|(_, next, ..)| next.map(|(head, _)| head.at))
    {
        let Some((head, at)) = *next else { break };
        if query.since.is_some_and(|since| head.at < since) {
            *next = None;
            continue;
        }
        if query.until.is_none_or(|until| head.at <= until) {
            let new_line = head.ends || parts == PARTS;
            if new_line {
                if query.lines.is_some_and(|wanted| lines >= wanted) {
                    break;
                }
                lines += 1;
                parts = 0;
            }
            parts += 1;
        }
        *place = at;
        *next = walk.previous()?;
    }
    Ok(walks.into_iter().map(|(_, _, place, end)| (place, end)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Logs(tempfile::TempDir);

    impl Logs {
        fn new() -> Self {
            let logs = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(logs.0.path().join("logs/web")).unwrap();
            logs
        }

        fn write(&self, name: &str, entries: &[(u32, &str, &str)]) {
            use std::io::Write as _;
            let path = self.0.path().join("logs/web").join(name);
            let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            for (second, tag, text) in entries {
                writeln!(file, "2026-01-01T00:00:{second:02}Z stdout {tag} {text}").unwrap();
            }
        }

        fn open(&self, query: LogQuery) -> ServiceLog {
            ServiceLog::open(self.0.path(), &"web".parse().unwrap(), query).unwrap()
        }

        fn read(&self, query: LogQuery) -> String {
            texts(&mut self.open(query))
        }
    }

    fn texts(log: &mut ServiceLog) -> String {
        let mut found = Vec::new();
        let mut give = |entry: LogEntry| {
            found.push(String::from_utf8(entry.text).unwrap());
            Ok(())
        };
        while log.read(&mut give).unwrap() {}
        found.join(" ")
    }

    fn at(second: u32) -> Option<Timestamp> {
        Some(format!("2026-01-01T00:00:{second:02}Z").parse().unwrap())
    }

    #[test]
    fn replicas_of_a_generation_are_read_together() {
        let logs = Logs::new();
        logs.write("1.log", &[(1, "F", "a1"), (4, "F", "a4")]);
        logs.write("1-2.log", &[(2, "F", "b2"), (3, "F", "b3")]);
        logs.write("1-02.log", &[(2, "F", "not ours")]);
        assert_eq!(logs.read(LogQuery::default()), "a1 b2 b3 a4");
    }

    #[test]
    fn generations_are_merged_by_time() {
        let logs = Logs::new();
        logs.write("1.log.1", &[(1, "F", "a1"), (2, "F", "a2")]);
        logs.write("1.log", &[(4, "F", "a4"), (6, "F", "a6")]);
        logs.write("2.log", &[(3, "F", "b3"), (5, "F", "b5"), (7, "F", "b7")]);
        let all = LogQuery::default();
        assert_eq!(logs.read(all), "a1 a2 b3 a4 b5 a6 b7");
        assert_eq!(logs.read(LogQuery { lines: Some(3), ..all }), "b5 a6 b7");
        assert_eq!(logs.read(LogQuery { lines: Some(0), ..all }), "");
        assert_eq!(logs.read(LogQuery { lines: Some(99), ..all }), "a1 a2 b3 a4 b5 a6 b7");
        assert_eq!(logs.read(LogQuery { since: at(4), ..all }), "a4 b5 a6 b7");
        assert_eq!(logs.read(LogQuery { since: at(2), until: at(5), ..all }), "a2 b3 a4 b5");
        assert_eq!(logs.read(LogQuery { lines: Some(2), until: at(5), ..all }), "a4 b5");
        assert_eq!(logs.read(LogQuery { lines: Some(2), since: at(5), ..all }), "a6 b7");
        let one = LogQuery { generation: Some(Generation(1)), ..all };
        assert_eq!(logs.read(LogQuery { lines: Some(3), ..one }), "a2 a4 a6");
        assert_eq!(logs.read(LogQuery { generation: Some(Generation(9)), ..all }), "");
    }

    #[test]
    fn what_comes_later_is_given_once_and_in_order() {
        let logs = Logs::new();
        logs.write("1.log", &[(1, "F", "a1"), (2, "F", "a2")]);
        let mut log = logs.open(LogQuery { lines: Some(1), follow: true, ..LogQuery::default() });
        assert_eq!(texts(&mut log), "a2");
        assert_eq!(texts(&mut log), "");
        logs.write("2.log", &[(4, "F", "b4")]);
        logs.write("1.log", &[(3, "F", "a3"), (5, "F", "a5")]);
        assert_eq!(texts(&mut log), "a3 b4 a5");
        let mut none = logs.open(LogQuery { lines: Some(0), follow: true, ..LogQuery::default() });
        let mut once = logs.open(LogQuery { lines: Some(2), ..LogQuery::default() });
        logs.write("2.log", &[(6, "F", "b6")]);
        logs.write("3.log", &[(7, "F", "c7")]);
        assert_eq!(texts(&mut none), "b6 c7");
        assert_eq!(texts(&mut once), "b4 a5", "not what came after it was opened");
    }

    #[test]
    fn parts_belong_to_their_line_up_to_a_bound() {
        let logs = Logs::new();
        logs.write("1.log", &[(1, "F", "a"), (2, "P", "p"), (2, "P", "q"), (3, "F", "r"), (4, "F", "b")]);
        let last = |lines| LogQuery { lines: Some(lines), ..LogQuery::default() };
        assert_eq!(logs.read(last(1)), "b");
        assert_eq!(logs.read(last(2)), "p q r b");
        logs.write("1.log", &vec![(5, "P", "x"); 1000]);
        assert_eq!(logs.read(last(2)).len(), 2 * (3 * PARTS) - 1, "not all of an endless line");
    }

    #[test]
    fn a_look_in_the_middle_of_a_turn_finds_what_is_there() {
        use super::super::entry::Stream;
        use super::super::file::LogFile;
        use super::super::lines::Piece;
        use crate::types::{ByteSize, LogLimits};
        use std::sync::atomic::{AtomicBool, Ordering};

        for files in [1, 2, 3] {
            let logs = Logs::new();
            let limits = LogLimits { max_size: Some(ByteSize(64 << 10)), max_file: Some(files) };
            let mut file = LogFile::new(&logs.0.path().join("logs/web/1.log"), limits);
            let mut write = move || {
                let piece = Piece { text: &[b'x'; 1000], ends: true };
                for _ in 0..20 {
                    file.push("2026-01-01T00:00:00Z", Stream::Stdout, &piece);
                }
                file.flush();
            };
            write();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Bounded, for a reader that fails.
                    for _ in 0..20_000 {
                        write();
                        std::thread::sleep(std::time::Duration::from_micros(100));
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
                for _ in 0..200 {
                    let mut log = logs.open(LogQuery { lines: Some(3), ..LogQuery::default() });
                    assert_eq!(log.generations().unwrap(), [Generation(1)]);
                    let count = texts(&mut log).split(' ').filter(|text| text.len() == 1000).count();
                    // With one file, what was there has gone when it turns.
                    assert!(count == 3 || (files == 1 && count == 0), "{files} files: {count}");
                }
                done.store(true, Ordering::Relaxed);
            });
        }
    }
}
