//! `gitopsd history` and `gitopsd events`: what happened here.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use super::table::{self, ago};
use super::{Failure, hint, logs, run, write_json};
use crate::agent::clock;
use crate::report::events;
use crate::report::status::ServiceStatus;
use crate::state::StateError;
use crate::state::journal::read_journal;
use crate::state::receipts::{Receipt, read_receipts};
use crate::types::{Generation, InstanceId, ServiceName};

/// From one look at a file that is followed to the next.
pub(super) const FOLLOW: Duration = Duration::from_millis(200);

/// Lines of a container's log that `why` shows.
const LAST_LINES: usize = 20;

/// This host's receipts, oldest first.
pub(super) fn receipts(config: &Path, service: Option<&ServiceName>) -> Result<Vec<Receipt>, Failure> {
    let mut receipts = read_receipts(&run::config(config)?.state_dir)?;
    if let Some(service) = service {
        receipts.retain(|receipt| receipt.transition.service == *service);
    }
    Ok(receipts)
}

/// The last lines of the generation that went wrong last, or of the one that serves; of several containers those of the one
/// that it was given up for.
pub(super) fn last_lines(
    config: &Path,
    receipts: &[Receipt],
    service: &ServiceStatus,
) -> Result<Vec<String>, Failure> {
    let failed =
        receipts.last().filter(|receipt| service.reason.is_some() && receipt.transition.reason.is_some());
    let side = failed.and_then(|receipt| receipt.transition.to.as_ref()).map(|side| side.generation);
    let Some(generation) = side.or(service.generation) else { return Ok(Vec::new()) };
    let index = failed.and_then(|receipt| receipt.transition.replica).unwrap_or_default();
    let id = InstanceId::replica(&service.name, generation, index);
    let lines = logs::tail(&run::config(config)?.state_dir, &id, LAST_LINES);
    // The log of a generation that is away may be away as well; its receipt is kept.
    let kept = failed.map(|receipt| receipt.transition.log.clone()).unwrap_or_default();
    Ok(if lines.is_empty() { kept } else { lines })
}

/// Shows the receipts.
pub fn history(
    config: &Path,
    service: Option<&ServiceName>,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let receipts = receipts(config, service)?;
    if let Some(service) = service.filter(|_| receipts.is_empty()) {
        known(config, service)?;
    }
    if json {
        write_json(out, &receipts)?;
        return Ok(0);
    }
    let now = clock::now();
    let mut rows =
        vec![["WHEN", "SERVICE", "RESULT", "FROM", "TO", "COMMIT", "WHAT"].map(str::to_owned).to_vec()];
    for Receipt { transition, .. } in &receipts {
        let number = |side: Option<Generation>| {
            side.map_or_else(|| "-".to_owned(), |generation| generation.to_string())
        };
        let reason = transition.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        rows.push(vec![
            format!("{} ago", ago(transition.finished_at, now)),
            transition.service.to_string(),
            transition.result.word().to_owned(),
            number(transition.from.as_ref().map(|side| side.generation)),
            number(transition.to.as_ref().map(|side| side.generation)),
            transition.commit.short().to_owned(),
            format!("{}{reason}", transition.message),
        ]);
    }
    table::write(out, &rows)?;
    Ok(0)
}

/// An error where nothing of that name was ever here.
fn known(config: &Path, service: &ServiceName) -> Result<(), Failure> {
    let state_dir = run::config(config)?.state_dir;
    let journal = read_journal(&state_dir.join("services"))?;
    let mut names: BTreeSet<ServiceName> =
        journal.records.into_keys().chain(journal.frozen.into_keys()).collect();
    names.extend(read_receipts(&state_dir)?.into_iter().map(|receipt| receipt.transition.service));
    if names.contains(service) {
        return Ok(());
    }
    let names: Vec<&str> = names.iter().map(ServiceName::as_str).collect();
    Err(Failure::Failed {
        message: format!("there was no service {service} on this host"),
        hint: hint::near(service, &names),
    })
}

/// Shows transitions as JSON lines.
pub fn events(config: &Path, follow: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let path = events::path(&run::config(config)?.state_dir);
    let former = path.with_extension("1.jsonl");
    if let Some(file) = open(&former)? {
        copy(&mut BufReader::new(file), out, whole)?;
    }
    let mut position = match open(&path)? {
        Some(file) => copy(&mut BufReader::new(file), out, whole)?,
        None => 0,
    };
    if !follow {
        return Ok(0);
    }
    loop {
        out.flush()?;
        std::thread::sleep(FOLLOW);
        let Some(mut file) = open(&path)? else { continue };
        // Turned over: what is new begins at the front.
        if file.metadata()?.len() < position {
            position = 0;
        }
        file.seek(SeekFrom::Start(position))?;
        position += copy(&mut BufReader::new(file), out, whole)?;
    }
}

fn open(path: &Path) -> Result<Option<File>, Failure> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::io("reading", path, source).into()),
    }
}

fn whole(line: &[u8], to: &mut dyn Write) -> std::io::Result<()> {
    to.write_all(line)
}

/// Has each whole line written by `show`; gives the bytes that were read.
pub(super) fn copy(
    from: &mut impl BufRead,
    to: &mut dyn Write,
    show: impl Fn(&[u8], &mut dyn Write) -> std::io::Result<()>,
) -> Result<u64, Failure> {
    let mut copied = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = from.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(copied);
        }
        show(&line, to)?;
        copied += count as u64;
    }
}
