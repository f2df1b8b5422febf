//! `secrets` of a service, and `[secrets]` of the host's own configuration: the repo says which secret goes where, the host
//! which file that is. What a secret holds stands in neither.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::configs::{DEFAULT_MODE, is_name, mode, number, placed};
use super::load::credential;
use super::port::absolute;
use super::section::{Findings, Section, Value};
use crate::types::SecretFile;

/// Where a secret appears whose target is a name: as Compose has it.
const FOLDER: &str = "/run/secrets";

/// Keys that would say what a secret holds.
const HOLDS: [&str; 4] = ["file", "content", "environment", "external"];

/// An array of names of the host, and of tables.
pub(super) fn secrets(section: &Section<'_, '_>) -> Option<Vec<SecretFile>> {
    let by_name = |name: &str, item: Value<'_, '_>| {
        named(section.findings, name, item).map(|source| SecretFile {
            target: PathBuf::from(FOLDER).join(&source),
            source,
            content: None,
            uid: None,
            gid: None,
            mode: DEFAULT_MODE,
        })
    };
    placed(section, ("secrets", "of them"), by_name, long, |secret| &secret.target)
}

/// What does not look like a name may be the secret itself: it is not repeated.
fn named(findings: &Findings<'_>, name: &str, at: Value<'_, '_>) -> Option<String> {
    if !is_name(name) {
        let hint = "secrets = [\"db-password\"], which [secrets] of the host's own configuration names";
        let message = "`secrets`: this is not the name of a secret";
        findings.error_unseen(at.span(), message, Some(hint.to_owned()));
        return None;
    }
    Some(name.to_owned())
}

fn long(entry: &Section<'_, '_>, item: Value<'_, '_>) -> Option<SecretFile> {
    let findings = entry.findings;
    if let Some(key) = HOLDS.into_iter().find(|key| entry.has(key)) {
        let message = format!(
            "`{key}`: what a secret holds is for the host to say, by [secrets] of its own configuration"
        );
        findings.error_unseen(entry.key_span(key), message, Some("source = \"db-password\"".to_owned()));
        return None;
    }
    let source = entry.string("source");
    if source.is_none() && !entry.has("source") {
        findings.error(
            item.span(),
            "`secrets`: `source` is missing",
            Some("source = \"db-password\"".to_owned()),
        );
    }
    let source = source.and_then(|name| named(findings, &name, item));
    let target = entry.string("target");
    let place = match (&target, &source) {
        // A name is a file of the folder.
        (Some(text), _) if !text.starts_with('/') && !text.is_empty() => {
            absolute(&format!("{FOLDER}/{text}"))
        }
        (Some(text), _) => absolute(text),
        (None, Some(name)) => absolute(&format!("{FOLDER}/{name}")),
        (None, None) => None,
    };
    if target.is_some() && place.is_none() {
        let message = "`secrets`: `target` takes a name, or an absolute path without `..`";
        findings.error(item.span(), message, Some("target = \"/etc/app/password\"".to_owned()));
    }
    let (uid, gid) = (number(entry, "uid"), number(entry, "gid"));
    let mode = mode(entry, "mode").unwrap_or(DEFAULT_MODE);
    entry.finish(|_| None);
    // As Compose has it: nobody writes to it, whatever is said.
    Some(SecretFile { source: source?, target: place?, content: None, uid, gid, mode: mode & 0o555 })
}

/// `[secrets]` of the host's own configuration: a file by each name. What is wrong is told without the line, as what stands
/// there may be the secret itself.
pub(super) fn files(section: &Section<'_, '_>) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    for (name, span, value) in section.entries() {
        let path =
            value.get_ref().as_str().and_then(|text| credential(text).unwrap_or_else(|| absolute(text)));
        match path {
            _ if !is_name(name) => {
                section.findings.error_unseen(span, "[secrets]: this is not the name of a secret", None);
            }
            Some(path) => {
                files.insert(name.to_owned(), path);
            }
            None => {
                let message =
                    format!("[secrets]: `{name}` takes the absolute path of a file, or \"credential:NAME\"");
                let hint = format!("{name} = \"/etc/gitopsd/secrets/{name}\"");
                section.findings.error_unseen(value.span(), message, Some(hint));
            }
        }
    }
    files
}
