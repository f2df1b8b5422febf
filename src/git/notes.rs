//! Receipts as git notes: how they are written, and where in a notes tree.
//!
//! A note holds two lines a receipt: one for people, then the receipt as JSON, whose `id` makes writing it twice the
//! same as writing it once. Lines are only ever added.

use std::collections::BTreeMap;

use git2::{ObjectType, Oid, Repository, Tree};
use serde_json::Value;

use super::GitError;
use super::signature::SigningKey;
use crate::reconcile::arrival::Arrival;
use crate::reconcile::tagged::Tagged;
use crate::state::receipts::TRUST_RESET;
use crate::types::{CommitId, HostName, Reason, Timestamp, plural};

/// Longest note that is added to, in bytes.
const MAX_NOTE_BYTES: usize = 16 << 20;

/// Modes of a tree's entries.
const DIRECTORY: i32 = 0o040_000;
const FILE: i32 = 0o100_644;

/// The ref that holds a host's receipts. One host writes to it, so that there is nothing to merge.
pub(super) fn ref_of(host: &HostName) -> String {
    format!("refs/notes/gitopsd/{host}")
}

/// Text to add to the note of one commit, and the id of the receipt in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    id: String,
    text: String,
}

/// What to add, by commit, in order.
pub(super) type Entries = BTreeMap<Oid, Vec<Entry>>;

/// Checks receipts and gives each the line for people.
pub(super) fn entries(receipts: &[(CommitId, String, String)]) -> Result<Entries, GitError> {
    let mut entries = Entries::new();
    for (commit, id, json) in receipts {
        let bad = |why: &str| GitError::plain(Reason::Internal, format!("receipt {id:?} {why}"));
        let json = json.trim();
        let receipt: Value = serde_json::from_str(json).map_err(|_| bad("is not JSON"))?;
        if json.contains(['\n', '\r']) {
            return Err(bad("is not one line"));
        }
        if receipt.get("id").and_then(Value::as_str) != Some(id) {
            return Err(bad("does not hold its own id"));
        }
        let text = match summary(&receipt) {
            Some(line) => format!("{line}\n{json}\n"),
            None => format!("{json}\n"),
        };
        entries.entry(super::oid_of(commit)?).or_default().push(Entry { id: id.clone(), text });
    }
    Ok(entries)
}

/// `shop 1.4.2: deployed on web-1 in 3.1 s`, or with what went wrong at the end.
fn summary(receipt: &Value) -> Option<String> {
    let text = |name: &str| receipt.get(name).and_then(Value::as_str);
    match text("kind") {
        Some("arrival") => return arrival(receipt),
        Some("tags") => return tags(receipt),
        Some(TRUST_RESET) => {
            let (host, by, why) = (text("host")?, text("by")?, text("message")?);
            return tame(format!(
                "trust: {by} has {host} believe this commit, whatever it descends from: {why}"
            ));
        }
        _ => {}
    }
    let (service, result, host) = (text("service")?, text("result")?, text("host")?);
    let image = receipt.pointer("/to/image").and_then(Value::as_str).unwrap_or_default();
    let image = image.split('@').next().unwrap_or_default();
    let tag = match image.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => format!(" {tag}"),
        _ => String::new(),
    };
    let mut line = format!("{service}{tag}: {result} on {host}");
    let time = |name: &str| text(name)?.parse::<Timestamp>().ok();
    if let (Some(from), Some(to)) = (time("started_at"), time("finished_at")) {
        let seconds = to.duration_since(from).as_secs_f64();
        line.push_str(&format!(" in {seconds:.1} s"));
    }
    if let Some(reason) = text("reason") {
        line.push_str(&format!(" ({reason})"));
        if let Some(message) = text("message") {
            line.push_str(&format!(": {message}"));
        }
    }
    tame(line)
}

/// `web-1: healthy at this commit`, or with what is not.
fn arrival(word: &Value) -> Option<String> {
    let word: Arrival = serde_json::from_value(word.clone()).ok()?;
    tame(match word.trouble() {
        None => format!("{}: healthy at this commit", word.host),
        Some(trouble) => format!("{}: failed at this commit: {trouble}", word.host),
    })
}

/// `web-1 found 2 tags for this commit`.
fn tags(word: &Value) -> Option<String> {
    let word: Tagged = serde_json::from_value(word.clone()).ok()?;
    let count = plural(word.tags.len(), "tag", "tags");
    tame(format!("{}: found what {count} stood for", word.host))
}

/// A message holds what a container, a server or a person wrote. It may neither end the line nor pass for a receipt.
fn tame(line: String) -> Option<String> {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    (!line.starts_with('{')).then_some(line)
}

/// Adds to the notes of `base` what they do not hold yet, in a commit signed by `key` where there is one; gives `base`
/// itself when that is nothing.
pub(super) fn append(
    cache: &Repository,
    base: Option<Oid>,
    entries: &Entries,
    host: &HostName,
    key: Option<&SigningKey>,
) -> Result<Option<Oid>, git2::Error> {
    let parent = base.map(|id| cache.find_commit(id)).transpose()?;
    let mut tree = parent.as_ref().map(git2::Commit::tree).transpose()?;
    let mut added = 0_usize;
    for (commit, entries) in entries {
        let name = commit.to_string();
        let old = match &tree {
            Some(tree) => find(cache, tree, &name)?,
            None => None,
        };
        let mut text = match old {
            Some(id) => read(cache, id)?,
            None => Vec::new(),
        };
        let mut present = ids(&text);
        let before = text.len();
        for entry in entries {
            if !present.contains(&entry.id) {
                if !text.is_empty() && !text.ends_with(b"\n") {
                    text.push(b'\n');
                }
                text.extend_from_slice(entry.text.as_bytes());
                present.push(entry.id.clone());
                added += 1;
            }
        }
        if text.len() > before {
            let blob = cache.blob(&text)?;
            let id = put(cache, tree.as_ref(), &name, true, blob)?;
            tree = Some(cache.find_tree(id)?);
        }
    }
    let (Some(tree), true) = (tree, added > 0) else { return Ok(base) };
    let author = super::depth::author(cache, host)?;
    let message = format!("{added} receipt{} of {host}\n", if added == 1 { "" } else { "s" });
    let parents: Vec<_> = parent.iter().collect();
    let Some(key) = key else {
        return cache.commit(None, &author, &author, &message, &tree, &parents).map(Some);
    };
    let content = cache.commit_create_buffer(&author, &author, &message, &tree, &parents)?;
    let signature = key.sign(&content).map_err(|error| git2::Error::from_str(&error))?;
    let content = content.as_str().map_err(|_| git2::Error::from_str("a receipt's commit is not text"))?;
    cache.commit_signed(content, &signature, None).map(Some)
}

/// All receipts of a notes commit, to be added to another one.
pub(super) fn all(cache: &Repository, tip: Oid) -> Result<Entries, git2::Error> {
    let mut entries = Entries::new();
    collect(cache, &cache.find_commit(tip)?.tree()?, "", &mut entries)?;
    Ok(entries)
}

/// The receipts of a notes commit, as JSON, in no order.
pub(super) fn receipts(repository: &Repository, tip: Oid) -> Result<Vec<String>, git2::Error> {
    let entries = all(repository, tip)?.into_values().flatten();
    Ok(entries.filter_map(|entry| entry.text.lines().last().map(str::to_owned)).collect())
}

/// The lines of JSON in the note on one commit, oldest first.
pub(super) fn lines_on(repository: &Repository, tip: Oid, commit: Oid) -> Result<Vec<String>, git2::Error> {
    let tree = repository.find_commit(tip)?.tree()?;
    let Some(id) = find(repository, &tree, &commit.to_string())? else { return Ok(Vec::new()) };
    let text = read(repository, id)?;
    let lines = text.split(|b| *b == b'\n').filter(|line| line.starts_with(b"{"));
    Ok(lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}

fn collect(cache: &Repository, tree: &Tree<'_>, prefix: &str, into: &mut Entries) -> Result<(), git2::Error> {
    for entry in tree {
        let Ok(part) = std::str::from_utf8(entry.name_bytes()) else { continue };
        let name = format!("{prefix}{part}");
        match entry.kind() {
            Some(ObjectType::Tree) if part.len() == 2 && name.len() < 40 => {
                collect(cache, &cache.find_tree(entry.id())?, &name, into)?;
            }
            Some(ObjectType::Blob) if name.len() == 40 => {
                if let Ok(commit) = name.parse() {
                    into.insert(commit, split(&read(cache, entry.id())?));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A note's text cut after each receipt; what stands before it belongs to it.
fn split(note: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut text = String::new();
    for line in String::from_utf8_lossy(note).lines() {
        text.push_str(line);
        text.push('\n');
        if let Some(id) = id_in(line.as_bytes()) {
            entries.push(Entry { id, text: std::mem::take(&mut text) });
        }
    }
    entries
}

fn ids(note: &[u8]) -> Vec<String> {
    note.split(|b| *b == b'\n').filter_map(id_in).collect()
}

fn id_in(line: &[u8]) -> Option<String> {
    let receipt: Value = line.starts_with(b"{").then(|| serde_json::from_slice(line).ok())??;
    receipt.get("id").and_then(Value::as_str).map(str::to_owned)
}

fn read(cache: &Repository, id: Oid) -> Result<Vec<u8>, git2::Error> {
    let odb = cache.odb()?;
    if odb.read_header(id)?.0 > MAX_NOTE_BYTES {
        return Err(git2::Error::from_str("a note is larger than 16 MiB"));
    }
    Ok(odb.read(id)?.data().to_vec())
}

/// Looks a note up by the hex name of its commit. Trees fan out two digits a level, as deep as whoever wrote last
/// thought right.
///
/// Source: git's Documentation/git-notes.txt, "DISCUSSION".
fn find(cache: &Repository, tree: &Tree<'_>, name: &str) -> Result<Option<Oid>, git2::Error> {
    if let Some(entry) = tree.get_name(name) {
        return Ok((entry.kind() == Some(ObjectType::Blob)).then(|| entry.id()));
    }
    let Some((two, rest)) = name.split_at_checked(2) else { return Ok(None) };
    match tree.get_name(two) {
        Some(entry) if entry.kind() == Some(ObjectType::Tree) && !rest.is_empty() => {
            find(cache, &cache.find_tree(entry.id())?, rest)
        }
        _ => Ok(None),
    }
}

/// The tree with this note in it: where it is, or else one level down, so that no directory grows long.
fn put(
    cache: &Repository,
    tree: Option<&Tree<'_>>,
    name: &str,
    top: bool,
    blob: Oid,
) -> Result<Oid, git2::Error> {
    let mut builder = cache.treebuilder(tree)?;
    let (two, rest) = name.split_at_checked(2).unwrap_or((name, ""));
    let below = match tree.and_then(|tree| tree.get_name(two)) {
        Some(entry) if entry.kind() == Some(ObjectType::Tree) => Some(cache.find_tree(entry.id())?),
        _ => None,
    };
    let is_here = tree.is_some_and(|tree| tree.get_name(name).is_some());
    if is_here || rest.is_empty() || !(top || below.is_some()) {
        builder.insert(name, blob, FILE)?;
    } else {
        let id = put(cache, below.as_ref(), rest, false, blob)?;
        builder.insert(two, id, DIRECTORY)?;
    }
    builder.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(id: &str, more: &str) -> (CommitId, String, String) {
        let json = format!(r#"{{"id":"{id}","service":"shop","host":"web-1","result":"deployed"{more}}}"#);
        ("a".repeat(40).parse().unwrap(), id.to_owned(), json)
    }

    #[test]
    fn the_line_for_people_says_what_happened() {
        let times = r#","started_at":"2026-01-01T00:00:00Z","finished_at":"2026-01-01T00:00:03.1Z""#;
        let line = |more: &str| summary(&serde_json::from_str(&receipt("1", more).2).unwrap()).unwrap();
        assert_eq!(
            line(&format!(r#","to":{{"image":"r.io:5000/shop:1.4.2@sha256:00"}}{times}"#)),
            "shop 1.4.2: deployed on web-1 in 3.1 s"
        );
        assert_eq!(line(r#","to":{"image":"r.io:5000/shop"}"#), "shop: deployed on web-1");
        assert_eq!(
            line(r#","reason":"unhealthy","message":"503\n{\"id\":\"2\"}""#),
            r#"shop: deployed on web-1 (unhealthy): 503 {"id":"2"}"#
        );
    }

    #[test]
    fn receipts_that_could_not_be_found_again_are_refused() {
        assert!(entries(&[receipt("1", "")]).is_ok());
        for (id, json) in [("1", "{"), ("1", r#"{"id":"2"}"#), ("1", "[]"), ("1", "{\"id\":\n\"1\"}")] {
            let commit = "a".repeat(40).parse().unwrap();
            assert!(entries(&[(commit, id.to_owned(), json.to_owned())]).is_err(), "{json}");
        }
    }

    #[test]
    fn notes_are_cut_after_each_receipt() {
        let note = b"shop: deployed\n{\"id\":\"1\"}\nfree text\n{ not json\n{\"id\":\"2\"}\n";
        let entries = split(note);
        assert_eq!(entries[0], Entry { id: "1".into(), text: "shop: deployed\n{\"id\":\"1\"}\n".into() });
        assert_eq!(entries[1].text, "free text\n{ not json\n{\"id\":\"2\"}\n");
        assert_eq!(ids(note), ["1", "2"]);
    }
}
