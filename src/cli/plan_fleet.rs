//! `gitopsd plan --fleet`: what a change would do on every host, from a clone with notes; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

use super::fleet::FETCH;
use super::{Failure, plan::as_json, table, write_json};
use crate::config::Diagnostic;
use crate::config::repo::{self, RepoFiles};
use crate::git::{self, LocalClone, Written};
use crate::reconcile::preview::Change;
use crate::report::proposal::{self, Known, OnHost};
use crate::report::waves;
use crate::types::{CommitId, HostName, Wave, place, plural};

/// How it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For a terminal.
    Text,
    /// For programs.
    Json,
    /// For a comment on a pull request.
    Markdown,
}

impl Form {
    /// The one that is asked for.
    pub fn of(json: bool, markdown: bool) -> Self {
        match (json, markdown) {
            (true, _) => Self::Json,
            (false, true) => Self::Markdown,
            (false, false) => Self::Text,
        }
    }
}

/// One host.
struct Row {
    host: HostName,
    /// From 1.
    wave: Option<usize>,
    silent: bool,
    on: OnHost,
}

impl Row {
    fn changes(&self) -> impl Iterator<Item = String> {
        self.on.changes.iter().filter(|(_, change)| !matches!(change, Change::Keep { .. })).map(
            |(name, change)| {
                let before = self.on.failed.get(name).filter(|_| change.is_change());
                let before = before.map(|why| format!("; it failed there before, as it is: {why}"));
                format!("{name}: {}{}", one_space(&change.to_string()), before.unwrap_or_default())
            },
        )
    }

    fn is_pending(&self) -> bool {
        self.on.changes.values().any(Change::is_change)
    }
}

/// Shows the changes. Exit 0 nothing, 2 changes, 1 where something of it would be refused.
pub fn plan(dir: Option<&Path>, rev: Option<&str>, form: Form, out: &mut dyn Write) -> Result<u8, Failure> {
    let dir = dir.unwrap_or(Path::new("."));
    let failed = |error: git::GitError| Failure::from(error.to_refusal());
    let clone = LocalClone::open(dir).map_err(failed)?;
    let files = match rev {
        Some(rev) => git::files_at(dir, rev).map_err(failed)?,
        None => repo::read_dir(dir)
            .map_err(|error| Failure::plain(format!("reading {}: {error}", dir.display())))?,
    };
    if !files.contains_key("gitopsd.toml") {
        return Err(Failure::Failed {
            message: format!("{} has no gitopsd.toml", dir.display()),
            hint: Some("name the folder that holds it".to_owned()),
        });
    }
    let written: BTreeMap<HostName, Written> = clone.written().map_err(failed)?.into_iter().collect();
    let waves = repo::waves(&files);
    let mut commits: BTreeMap<CommitId, Option<Rc<RepoFiles>>> = BTreeMap::new();
    let mut files_at = |commit: &CommitId| {
        let files = commits.entry(commit.clone());
        files.or_insert_with(|| git::files_at(dir, commit.as_str()).ok().map(Rc::new)).clone()
    };
    let names: BTreeSet<HostName> = written.keys().cloned().chain(repo::hosts(&files)).collect();
    let rows: Vec<Row> =
        names.into_iter().map(|host| row(host, &files, &waves, &written, &mut files_at)).collect();
    let report = repo::check(&files, None);
    let errors: Vec<&Diagnostic> = report.diagnostics.iter().filter(|found| found.is_error()).collect();
    let pending = rows.iter().any(Row::is_pending);
    let refused =
        rows.iter().any(|row| row.on.changes.values().any(|change| matches!(change, Change::Refuse(_))));
    match form {
        Form::Json => {
            let hosts: Vec<_> = rows.iter().map(json).collect();
            write_json(
                out,
                &serde_json::json!({ "hosts": hosts, "pending": pending, "errors": errors.len() }),
            )?;
        }
        Form::Text => text(&rows, &errors, out)?,
        Form::Markdown => markdown(&rows, &errors, out)?,
    }
    if written.is_empty() && form == Form::Text {
        writeln!(out, "\nno host has written a receipt into this clone: {FETCH}")?;
    }
    Ok(match (errors.is_empty() && !refused, pending) {
        (false, _) => 1,
        (true, true) => 2,
        (true, false) => 0,
    })
}

fn row(
    host: HostName,
    files: &RepoFiles,
    waves: &[Wave],
    written: &BTreeMap<HostName, Written>,
    files_at: &mut dyn FnMut(&CommitId) -> Option<Rc<RepoFiles>>,
) -> Row {
    let own = written.get(&host);
    let receipts = own.map_or(&[][..], |own| &own.receipts);
    let said = own.and_then(|own| waves::last(&own.arrivals));
    let labels = said.map_or(&[][..], |said| &said.labels);
    let on = proposal::on_host(Known { host: &host, labels, receipts }, files, files_at);
    let mut all = labels.to_vec();
    all.extend(repo::labels(files, &host));
    let number = place(waves, &host, &all);
    let wave = (number < waves.len()).then_some(number + 1);
    Row { host, wave, silent: receipts.is_empty(), on }
}

fn json(row: &Row) -> serde_json::Value {
    let changes = row.on.changes.iter().map(|(name, change)| {
        let mut value = as_json(name.as_str(), change);
        value["failed_before"] = row.on.failed.get(name).map(String::as_str).into();
        value
    });
    serde_json::json!({
        "host": row.host, "wave": row.wave, "silent": row.silent, "pending": row.is_pending(),
        "changes": changes.collect::<Vec<_>>(),
    })
}

fn text(rows: &[Row], errors: &[&Diagnostic], out: &mut dyn Write) -> Result<(), Failure> {
    for error in errors {
        writeln!(out, "{error}")?;
    }
    let mut lines = Vec::new();
    for row in rows {
        lines.extend(row.changes().map(|change| vec![row.host.to_string(), change]));
    }
    table::write(out, &lines)?;
    writeln!(out, "{}", counted(rows))?;
    Ok(())
}

fn counted(rows: &[Row]) -> String {
    let count = rows.iter().filter(|row| row.is_pending()).count();
    let silent = rows.iter().filter(|row| row.silent).count();
    let silent = match silent {
        0 => String::new(),
        silent => format!(" ({} never written a receipt)", plural(silent, "host has", "hosts have")),
    };
    format!("{count} of {} would change{silent}", plural(rows.len(), "host", "hosts"))
}

/// Hosts on which the same happens stand in one row.
fn markdown(rows: &[Row], errors: &[&Diagnostic], out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "### gitopsd: {}\n", counted(rows))?;
    for error in errors {
        writeln!(out, "- :x: {}:{} {}", cell(&error.file.to_string()), error.line, cell(&error.message))?;
    }
    if !errors.is_empty() {
        writeln!(out)?;
    }
    let mut groups: BTreeMap<(usize, String), Vec<&HostName>> = BTreeMap::new();
    for row in rows {
        for change in row.changes() {
            let wave = row.wave.unwrap_or(usize::MAX);
            groups.entry((wave, change)).or_default().push(&row.host);
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    let waves = rows.iter().any(|row| row.wave.is_some());
    let (head, line) = if waves { ("| wave ", "|---") } else { ("", "") };
    writeln!(out, "{head}| hosts | service | change |\n{line}|---|---|---|")?;
    for ((wave, change), hosts) in groups {
        let wave = match (waves, wave) {
            (false, _) => String::new(),
            (true, usize::MAX) => "| last ".to_owned(),
            (true, wave) => format!("| {wave} "),
        };
        let (service, what) = change.split_once(": ").unwrap_or(("", &change));
        writeln!(out, "{wave}| {} | {} | {} |", listed(&hosts), cell(service), cell(what))?;
    }
    Ok(())
}

/// As many as a row has room for.
fn listed(hosts: &[&HostName]) -> String {
    const MOST: usize = 8;
    let names: Vec<&str> = hosts.iter().take(MOST).map(|host| host.as_str()).collect();
    match hosts.len().saturating_sub(MOST) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Text of strangers in a table of Markdown: neither its end, nor a link, nor a mention of somebody.
fn cell(text: &str) -> String {
    // Forges look for mentions, numbers of issues and addresses in the text that is left after escapes: a space of no
    // width, which a word has to follow, is what they stop at.
    const NOTHING: char = '\u{200b}';
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control() && *c != NOTHING) {
        match c {
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '#' => out.extend(['\\', '#', NOTHING]),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '@' | '!' => out.extend([c, NOTHING]),
            ':' => out.push(':'),
            '/' if out.ends_with(":/") => out.extend([NOTHING, '/']),
            '.' if out.to_ascii_lowercase().ends_with("www") => out.extend([NOTHING, '.']),
            c => out.push(c),
        }
    }
    out
}

/// The columns of `gitopsd plan` are none here.
fn one_space(text: &str) -> String {
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn strangers_cannot_write_markdown() {
        assert_eq!(
            super::cell("a|b [x](y) @all <img> `c`\n"),
            "a\\|b \\[x\\](y) @\u{200b}all &lt;img> \\`c\\`"
        );
        assert_eq!(super::cell("#12 https://x www.x"), "\\#\u{200b}12 https:/\u{200b}/x www\u{200b}.x");
    }
}
