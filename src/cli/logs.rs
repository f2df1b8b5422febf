//! `gitopsd logs`: what a service wrote.

use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::lines::Printer;
use super::{Failure, hint, history, run, status};
use crate::agent::clock;
use crate::engine::native::{LogEntry, LogQuery, ServiceLog, log_file, log_tail};
use crate::report::status::ServiceStatus;
use crate::types::{Generation, InstanceId, ReplicaIndex, ServiceName, Timestamp};

/// Lines shown where nothing is said.
const LINES: usize = 100;

/// From one look whether a service that is followed is still there to the next.
const PRESENCE: Duration = Duration::from_secs(1);

/// After the time that `--until` names, how long a line of that time may take to be written.
const LATE: Duration = Duration::from_secs(1);

/// How many lines.
#[derive(Debug, Clone, Copy)]
pub enum Lines {
    /// The last ones.
    Last(usize),
    /// All that are kept.
    All,
}

impl std::str::FromStr for Lines {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Last).map_err(|_| "it takes a number, or `all`".to_owned()),
        }
    }
}

/// What is wanted.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Which service
    pub service: ServiceName,
    /// Go on as it writes, over deploys and restarts, until the service is removed
    #[arg(short, long)]
    pub follow: bool,
    /// The last N lines; `all` for all that are kept, which is the default with --since or --until [default: 100]
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<Lines>,
    /// Nothing older: 10m (ago), 2026-01-01T12:00:00Z, '2026-01-01 12:00' (UTC), @1767225600
    #[arg(long, value_name = super::moment::NAME, value_parser = super::moment::parse)]
    pub since: Option<Timestamp>,
    /// Nothing newer
    #[arg(long, value_name = super::moment::NAME, value_parser = super::moment::parse)]
    pub until: Option<Timestamp>,
    /// Only of this generation; default: of all that are kept, by time
    #[arg(long, value_name = "N")]
    pub generation: Option<u64>,
    /// Only of this one of its containers, where it has several; default: of all
    #[arg(long, value_name = "N")]
    pub index: Option<ReplicaIndex>,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
}

impl Wanted {
    fn query(&self) -> LogQuery {
        let open = self.since.is_none() && self.until.is_none();
        let lines = match self.lines {
            Some(Lines::Last(count)) => Some(count),
            Some(Lines::All) => None,
            None => open.then_some(LINES),
        };
        LogQuery {
            generation: self.generation.map(Generation),
            index: self.index,
            lines,
            since: self.since,
            until: self.until,
            follow: self.follow,
        }
    }
}

/// The last lines of one container.
pub(super) fn tail(state_dir: &Path, id: &InstanceId, lines: usize) -> Vec<String> {
    log_tail(&log_file(state_dir, id), lines)
}

/// The status of the service, from the agent.
pub(super) fn find(config: &Path, service: &ServiceName) -> Result<ServiceStatus, Failure> {
    let status = status::fetch(config)?;
    status::find(&status, service).cloned()
}

/// Shows what a service wrote. Its files are enough: it needs no agent.
pub fn logs(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let service = &wanted.service;
    let state_dir = run::config(config)?.state_dir;
    let query = wanted.query();
    // Held open together, they may be more than a shell allows at once.
    raise_file_limit();
    let mut log = open(&state_dir, service, query)?;
    if log.generations()?.is_empty() {
        explain(config, &state_dir, wanted)?;
    }
    let terminal = std::io::stdout().is_terminal();
    let mut printer = Printer::new(service.clone(), json, wanted.timestamps, terminal);
    if wanted.follow {
        follow(config, wanted, &mut log, &mut printer, out)?;
    } else {
        while show(&mut log, &mut printer, out)? {}
    }
    printer.finish(out)?;
    Ok(0)
}

fn open(state_dir: &Path, service: &ServiceName, query: LogQuery) -> Result<ServiceLog, Failure> {
    ServiceLog::open(state_dir, service, query).map_err(|error| unreadable(service, &error))
}

fn unreadable(service: &ServiceName, error: &std::io::Error) -> Failure {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    Failure::Failed {
        message: format!("the log of {service} cannot be read: {error}"),
        hint: denied.then(|| "run it with sudo".to_owned()),
    }
}

/// Shows what is there; `true` = there may be more at once.
fn show(log: &mut ServiceLog, printer: &mut Printer, out: &mut dyn Write) -> Result<bool, Failure> {
    let more = log.read(&mut |entry: LogEntry| printer.print(&entry, out))?;
    out.flush()?;
    Ok(more)
}

/// Why nothing is there: an error, unless the service runs and has just said nothing yet.
fn explain(config: &Path, state_dir: &Path, wanted: &Wanted) -> Result<(), Failure> {
    let service = &wanted.service;
    // Who follows waits for what is asked for.
    let narrowed = wanted.generation.is_some() || wanted.index.is_some();
    if narrowed && !wanted.follow {
        let any = open(state_dir, service, LogQuery { lines: Some(0), ..LogQuery::default() })?;
        let known: Vec<String> = any.generations()?.iter().map(ToString::to_string).collect();
        match (wanted.generation, wanted.index) {
            _ if known.is_empty() => {}
            (Some(generation), _) => {
                return Err(Failure::Failed {
                    message: format!("nothing is kept of generation {generation} of {service}"),
                    hint: Some(format!("there are: {}", known.join(", "))),
                });
            }
            (None, Some(index)) => {
                return Err(Failure::plain(format!("nothing is kept of replica {index} of {service}")));
            }
            (None, None) => {}
        }
    }
    match find(config, service) {
        Ok(found) if found.generation.is_some() || wanted.follow => Ok(()),
        Ok(_) | Err(Failure::NotRunning | Failure::Unreachable { .. }) => Err(Failure::Failed {
            message: format!("{service} has not run on this host"),
            hint: near(state_dir, service),
        }),
        Err(failure) => Err(failure),
    }
}

/// The services of which something is kept, where one has a name much like this.
fn near(state_dir: &Path, service: &ServiceName) -> Option<String> {
    let entries = std::fs::read_dir(state_dir.join("logs")).into_iter().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    hint::near(service, &names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Goes on until the service is gone, or the time that was asked for is over.
fn follow(
    config: &Path,
    wanted: &Wanted,
    log: &mut ServiceLog,
    printer: &mut Printer,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (mut looked, mut absent) = (Instant::now(), 0);
    loop {
        let over = wanted.until.is_some_and(|until| clock::now() > until + LATE);
        let more = show(log, printer, out)?;
        if over {
            return Ok(());
        }
        if absent > 1 && !more {
            printer.note(out, &format!("{} was removed from this host", wanted.service))?;
            return Ok(());
        }
        if looked.elapsed() >= PRESENCE || absent == 1 {
            let gone = matches!(status::fetch(config), Ok(status) if status::find(&status, &wanted.service).is_err());
            // Twice: what a container writes at its end comes a moment after.
            absent = if gone { absent + 1 } else { 0 };
            looked = Instant::now();
        }
        if !more {
            std::thread::sleep(history::FOLLOW);
        }
    }
}

fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it may not be raised, most logs are read all the same.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_where_a_time_is_named() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            wanted: Wanted,
        }
        let lines = |args: &[&str]| {
            let line = <Line as clap::Parser>::try_parse_from([&["logs", "web"], args].concat()).unwrap();
            line.wanted.query().lines
        };
        assert_eq!(lines(&[]), Some(LINES));
        assert_eq!(lines(&["-n", "7"]), Some(7));
        assert_eq!(lines(&["-n", "all"]), None);
        assert_eq!(lines(&["--since", "10m"]), None);
        assert_eq!(lines(&["--until", "2026-01-01", "-n", "0"]), Some(0));
        assert!(<Line as clap::Parser>::try_parse_from(["logs", "web", "-n", "-1"]).is_err());
    }
}
