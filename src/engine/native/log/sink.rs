//! Where a shim puts what its container writes: the log file, and the journal beside it.

use std::path::Path;

use super::budget::Budget;
use super::entry::Stream;
use super::file::LogFile;
use super::journal::{Journal, SOCKET};
use super::lines::Splitter;
use crate::types::{LogLimits, ReplicaIndex};

/// What the journal is told of whose the lines are.
#[derive(Debug)]
pub(in super::super) struct Labels<'a> {
    /// The service.
    pub service: &'a str,
    /// Its generation.
    pub generation: u64,
    /// Which of that one's containers.
    pub index: ReplicaIndex,
    /// The image's reference.
    pub image: &'a str,
    /// The image's digest; empty = not known.
    pub digest: &'a str,
    /// The commit.
    pub commit: &'a str,
}

/// Takes the two outputs of one container. Uses no more memory than a few chunks, however much and whatever is written.
#[derive(Debug)]
pub(in super::super) struct Sink {
    log: LogFile,
    journal: Journal,
    splitters: [Splitter; 2],
    budget: Budget,
}

impl Sink {
    /// To the file at `path`, and to the journal where there is one.
    pub fn new(path: &Path, limits: LogLimits, labels: &Labels<'_>) -> Self {
        let generation = labels.generation.to_string();
        let replica = if labels.index.is_first() { String::new() } else { labels.index.to_string() };
        let fields = [
            ("SYSLOG_IDENTIFIER", labels.service),
            ("GITOPSD_SERVICE", labels.service),
            ("GITOPSD_GENERATION", &generation),
            ("GITOPSD_REPLICA", &replica),
            ("GITOPSD_IMAGE", labels.image),
            ("GITOPSD_DIGEST", labels.digest),
            ("GITOPSD_COMMIT", labels.commit),
        ];
        Self {
            log: LogFile::new(path, limits),
            journal: Journal::new(Path::new(SOCKET), &fields),
            splitters: [Splitter::default(), Splitter::default()],
            budget: Budget::new(),
        }
    }

    /// How long to leave the container's output alone; `None` = not at all.
    pub fn rest(&mut self) -> Option<std::time::Duration> {
        self.budget.rest()
    }

    /// Takes the next bytes of an output.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let at = super::super::clock::now().to_string();
        let (log, journal) = (&mut self.log, &mut self.journal);
        splitter(&mut self.splitters, stream).feed(bytes, |piece| {
            log.push(&at, stream, &piece);
            journal.send(stream, &piece);
        });
        self.log.flush();
    }

    /// Takes what came after the last line break, at the end.
    pub fn finish(&mut self) {
        let at = super::super::clock::now().to_string();
        let (log, journal) = (&mut self.log, &mut self.journal);
        for stream in [Stream::Stdout, Stream::Stderr] {
            splitter(&mut self.splitters, stream).finish(|piece| {
                log.push(&at, stream, &piece);
                journal.send(stream, &piece);
            });
        }
        self.log.flush();
        self.journal.finish();
    }
}

fn splitter(splitters: &mut [Splitter; 2], stream: Stream) -> &mut Splitter {
    let [out, err] = splitters;
    if stream == Stream::Stdout { out } else { err }
}
