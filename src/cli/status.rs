//! `gitopsd status` and `gitopsd why`.

use std::io::Write;
use std::path::Path;

use super::table::{self, ago, ahead};
use super::{Failure, hint, history, operate, write_json};
use crate::agent::clock;
use crate::agent::control::Command;
use crate::report::status::{
    AgentState, DrainStatus, ReplicaStatus, RolloutStatus, ScheduleStatus, ServiceState, ServiceStatus,
    Status,
};
use crate::state::receipts::Receipt;
use crate::types::{ByteSize, ServiceName, Timestamp, plural};

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";

/// The status, from the agent.
pub(super) fn fetch(config: &Path) -> Result<Status, Failure> {
    let reply = operate::ask(config, &Command::Status)?;
    let body = reply.body.ok_or_else(|| Failure::plain("the agent has not finished its first look yet"))?;
    serde_json::from_value(body).map_err(|error| {
        Failure::plain(format!("the agent is of another version than this command: {error}"))
    })
}

/// One service of it.
pub(super) fn find<'a>(status: &'a Status, service: &ServiceName) -> Result<&'a ServiceStatus, Failure> {
    status.services.iter().find(|known| known.name == *service).ok_or_else(|| {
        let names: Vec<&str> = status.services.iter().map(|known| known.name.as_str()).collect();
        Failure::Failed {
            message: format!("there is no service {service} on this host"),
            hint: hint::near(service, &names),
        }
    })
}

/// Shows the host, or one service.
pub fn status(
    config: &Path,
    service: Option<&ServiceName>,
    json: bool,
    color: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let mut status = fetch(config)?;
    if let Some(service) = service {
        status.services = vec![find(&status, service)?.clone()];
    }
    if json {
        write_json(out, &status)?;
    } else {
        render(&status, color, clock::now(), out)?;
    }
    Ok(0)
}

fn paint(text: &str, code: &str, color: bool) -> String {
    if color { format!("{code}{text}\x1b[0m") } else { text.to_owned() }
}

/// For people.
fn render(status: &Status, color: bool, now: Timestamp, out: &mut dyn Write) -> std::io::Result<()> {
    let code = match status.agent.state {
        AgentState::InSync => GREEN,
        AgentState::Progressing | AgentState::Starting => YELLOW,
        AgentState::Degraded | AgentState::Stale => RED,
    };
    let agent = &status.agent;
    writeln!(
        out,
        "{}: {} (gitopsd {}, pid {})",
        status.host,
        paint(agent.state.word(), code, color),
        agent.version,
        agent.pid
    )?;
    match &status.revision {
        Some(revision) => writeln!(
            out,
            "commit {} {} ({}, {} ago)",
            revision.commit.short(),
            revision.subject,
            revision.author,
            ago(revision.committed_at, now)
        )?,
        None => writeln!(out, "no commit yet from {} branch {}", status.repo.url, status.repo.branch)?,
    }
    if let (Some(reason), Some(message)) = (agent.reason, &agent.message) {
        writeln!(out, "{}: cannot be written: {message} ({reason})", paint("state", RED, color))?;
        writeln!(out, "  hint: {} What runs is kept running meanwhile.", reason.todo())?;
    }
    if let (Some(reason), Some(message)) = (status.repo.reason, &status.repo.message) {
        writeln!(out, "{}: {message} ({reason})", paint("repo", RED, color))?;
        writeln!(out, "  hint: {}", reason.todo())?;
    }
    if status.outbox > 0 {
        writeln!(out, "{} to be pushed", plural(status.outbox, "receipt waits", "receipts wait"))?;
    }
    if status.services.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut rows =
        vec![["SERVICE", "STATE", "HEALTH", "GEN", "SINCE", "COMMIT", "IMAGE"].map(str::to_owned).to_vec()];
    rows.extend(status.services.iter().map(|service| row(service, now)));
    table::write(out, &rows)?;
    for service in &status.services {
        details(service, color, now, out)?;
    }
    Ok(())
}

fn row(service: &ServiceStatus, now: Timestamp) -> Vec<String> {
    let dash = || "-".to_owned();
    let generation = service.generation.map(|generation| format!("{generation} {}", generation.color()));
    vec![
        service.name.to_string(),
        service.state.word().to_owned(),
        health(service).unwrap_or_else(dash),
        generation.unwrap_or_else(dash),
        service.since.map_or_else(dash, |since| ago(since, now)),
        service.commit.as_ref().map_or_else(dash, |commit| commit.short().to_owned()),
        service.image.as_ref().map_or_else(dash, ToString::to_string),
    ]
}

/// Of several containers with how many of them serve.
fn health(service: &ServiceStatus) -> Option<String> {
    let health = service.health.as_ref()?;
    let serve = service.replicas.iter().filter(|replica| replica.serves).count();
    let staying = service.replicas.iter().filter(|replica| replica.leaving_since.is_none()).count();
    Some(if service.replicas.is_empty() { health.clone() } else { format!("{health} {serve}/{staying}") })
}

/// One of several containers, in a line.
fn replica(replica: &ReplicaStatus, now: Timestamp) -> String {
    let traffic = if replica.serves { "serves" } else { "has no new connections" };
    let restarts = match replica.restarts {
        0 => String::new(),
        times => {
            let times = usize::try_from(times).unwrap_or(usize::MAX);
            format!(", was started again {}", plural(times, "time", "times"))
        }
    };
    let leaving = replica.leaving_since.map_or_else(String::new, |since| {
        let left = replica
            .connections
            .map_or_else(String::new, |left| format!(" with {}", plural(left, "connection", "connections")));
        format!(", drains{left}, for {}", ago(since, now))
    });
    format!("{} at {} is {}, {traffic}{restarts}{leaving}", replica.container, replica.ip, replica.health)
}

/// How far a new generation is.
fn under_way(rollout: &RolloutStatus) -> String {
    let part = rollout.share.map(|share| format!(" with {share} of new connections")).unwrap_or_default();
    format!("{} {} as generation {}{part}", rollout.phase, rollout.image, rollout.to)
}

fn stopped(service: &ServiceStatus) -> bool {
    service.health.as_deref() == Some("stopped")
}

/// What does not fit a row: what is under way, and what is wrong.
fn details(service: &ServiceStatus, color: bool, now: Timestamp, out: &mut dyn Write) -> std::io::Result<()> {
    let name = &service.name;
    if let Some(rollout) = &service.rollout {
        let since = ago(rollout.started_at, now);
        let come = rollout.progress.as_ref().map_or_else(String::new, |pull| {
            format!(", {} of {}", ByteSize(pull.bytes).human(), ByteSize(pull.total).human())
        });
        let limit = rollout.times_out_at.map(|at| format!(", gives up in {}", ahead(at, now)));
        let all = rollout.switches_at.map(|at| format!(", gets all of them in {}", ahead(at, now)));
        writeln!(
            out,
            "{name}: {}{}, for {since}{come}{}",
            under_way(rollout),
            all.unwrap_or_default(),
            limit.unwrap_or_default()
        )?;
    }
    if let Some(doing) = &service.doing {
        writeln!(out, "{name}: {doing}")?;
    }
    for one in &service.replicas {
        writeln!(out, "{name}: {}", replica(one, now))?;
    }
    if let Some(drain) = &service.drain {
        writeln!(out, "{name}: {}", draining(drain, now))?;
    }
    if let Some(schedule) = &service.schedule {
        writeln!(out, "{name}: {}", times(schedule, now))?;
    }
    if let Some(at) = service.restarted_at.filter(|_| service.restarts > 0) {
        let ago = ago(at, now);
        let end = service.last_exit.as_ref().map_or_else(|| "ended".to_owned(), ToString::to_string);
        let text = match service.restarts {
            1 => format!("its container {end}, and was started again {ago} ago"),
            times => {
                format!("its container {end}, and was started again {times} times, the last time {ago} ago")
            }
        };
        writeln!(out, "{}: {text}", paint(name.as_str(), YELLOW, color))?;
    }
    if let Some(exit) = service.last_exit.as_ref().filter(|_| service.restarts == 0 && stopped(service)) {
        writeln!(out, "{name}: its container {exit}, {} ago", ago(exit.at, now))?;
    }
    if service.oom_kills > 0 {
        let times = plural(usize::try_from(service.oom_kills).unwrap_or(usize::MAX), "process", "processes");
        let text = format!("the kernel killed {times} in it for want of memory");
        writeln!(out, "{}: {text}", paint(name.as_str(), YELLOW, color))?;
    }
    if let (Some(reason), Some(message)) = (service.reason, &service.message) {
        let code = if service.state == ServiceState::Held { YELLOW } else { RED };
        writeln!(out, "{}: {message} ({reason})", paint(name.as_str(), code, color))?;
        writeln!(out, "  hint: {}", hint::of(reason, message, name))?;
    }
    if let Some(at) = service.retry_at {
        let verb = if service.state == ServiceState::Held { "ends" } else { "tried again" };
        writeln!(out, "  {verb} in {}", ahead(at, now))?;
    }
    Ok(())
}

fn draining(drain: &DrainStatus, now: Timestamp) -> String {
    let connections = drain.connections.map_or_else(
        || "connections not counted yet".to_owned(),
        |connections| plural(connections, "connection", "connections"),
    );
    let end = match drain.until > now {
        true => format!("for {} at the most", ahead(drain.until, now)),
        false => "its drain is over".to_owned(),
    };
    format!("generation {} drains: {connections}, {end}", drain.generation)
}

/// When a scheduled service ran, runs, and will run.
fn times(schedule: &ScheduleStatus, now: Timestamp) -> String {
    let mut text = match (schedule.running_since, schedule.last_run, &schedule.last_exit) {
        (Some(since), ..) => format!("runs for {}", ago(since, now)),
        (None, Some(last), Some(exit)) => format!("ran {} ago and {exit}", ago(last, now)),
        _ => "has not run yet".to_owned(),
    };
    match schedule.next_run {
        Some(at) if at > now => {
            text.push_str(&format!("; next run in {} ({})", ahead(at, now), schedule.calendar))
        }
        Some(_) => text.push_str(&format!("; its next run is due ({})", schedule.calendar)),
        None => text.push_str(&format!("; no next run ({})", schedule.calendar)),
    }
    text
}

/// Shows all there is to say about one service on one screen.
pub fn why(config: &Path, service: &ServiceName, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let status = fetch(config)?;
    let found = find(&status, service)?;
    let receipts = history::receipts(config, Some(service))?;
    let log = history::last_lines(config, &receipts, found)?;
    if json {
        let body = serde_json::json!({
            "service": found, "revision": status.revision, "repo": status.repo,
            "last_receipt": receipts.last(), "log": log,
        });
        write_json(out, &body)?;
        return Ok(0);
    }
    explain(&status, found, receipts.last(), &log, out)?;
    Ok(0)
}

fn explain(
    status: &Status,
    service: &ServiceStatus,
    receipt: Option<&Receipt>,
    log: &[String],
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let now = clock::now();
    let row = |key: &str, value: String| vec![key.to_owned(), value];
    let mut rows = vec![row("service", format!("{} is {}", service.name, service.state.word()))];
    if let (Some(image), Some(generation)) = (&service.image, service.generation) {
        let health = service.health.as_deref().unwrap_or("-");
        rows.push(row(
            "serves",
            format!("{image}, generation {generation} ({}), {health}", generation.color()),
        ));
    }
    if let (Some(commit), Some(author)) = (&service.commit, &service.author) {
        rows.push(row("from", format!("commit {} by {author}", commit.short())));
    }
    if let Some(revision) = &status.revision {
        rows.push(row("head", format!("commit {} {}", revision.commit.short(), revision.subject)));
    }
    if let Some(rollout) = &service.rollout {
        rows.push(row("under way", under_way(rollout)));
    }
    if let Some(doing) = &service.doing {
        rows.push(row("doing", doing.clone()));
    }
    rows.extend(service.replicas.iter().map(|one| row("replica", replica(one, now))));
    if let Some(drain) = &service.drain {
        rows.push(row("drain", draining(drain, now)));
    }
    if let Some(schedule) = &service.schedule {
        rows.push(row("schedule", times(schedule, now)));
    }
    if let Some(at) = service.restarted_at.filter(|_| service.restarts > 0) {
        rows.push(row("restarts", format!("{}, the last one {} ago", service.restarts, ago(at, now))));
    }
    if let Some(exit) = &service.last_exit {
        rows.push(row("last end", format!("it {exit}, {} ago", ago(exit.at, now))));
    }
    if service.oom_kills > 0 {
        let times = plural(usize::try_from(service.oom_kills).unwrap_or(usize::MAX), "process", "processes");
        rows.push(row("memory", format!("the kernel killed {times} in it for want of it")));
    }
    match (service.reason, &service.message) {
        (Some(reason), Some(message)) => {
            rows.push(row("refused", format!("{message} ({reason})")));
            rows.push(row("hint", hint::of(reason, message, &service.name)));
        }
        _ => rows.push(row("refused", "nothing".to_owned())),
    }
    if let Some(at) = service.retry_at {
        rows.push(row("next try", format!("in {}", ahead(at, now))));
    }
    if let Some(receipt) = receipt {
        let transition = &receipt.transition;
        let when = ago(transition.finished_at, now);
        rows.push(row("last", format!("{} {when} ago: {}", transition.result.word(), transition.message)));
    }
    table::write(out, &rows)?;
    if !log.is_empty() {
        writeln!(out, "its last lines:")?;
        for line in log {
            writeln!(out, "  {line}")?;
        }
    }
    Ok(())
}
