//! `env_file` and `configs`: what a service takes out of files of the config repo.
//!
//! Paths are relative to the file that names them and stay in the repo. A layer keeps them as paths; their content is
//! looked at when all layers are one spec ([`Sources`]), so that what is wrong with it costs the services that use it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};
use toml::de::DeValue;

use super::diagnostic::Diagnostic;
use super::env_file;
use super::port::absolute;
use super::repo_files::{RepoFiles, resolve};
use super::section::{Findings, Place, Section, Value};
use crate::types::{ConfigFile, Digest, check_target};

/// Most bytes of all config files of one service.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Most config files, and most env files, of one service.
pub(super) const MAX_ENTRIES: usize = 100;

/// Largest env file, in bytes: as much as a service can have of variables.
const MAX_ENV_FILE: usize = 256 << 10;

/// As Compose has it.
pub(super) const DEFAULT_MODE: u32 = 0o444;

/// One entry of `env_file`.
#[derive(Debug, Clone)]
pub(super) struct EnvFile {
    path: String,
    required: bool,
    place: Place,
}

/// Where the content of a config comes from.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A file of the repo, by its path relative to the repo's top.
    File(String),
    /// As it is written.
    Inline(String),
    /// Defined under this name in the repo's `[configs]`.
    Defined(String),
}

impl Content {
    /// The file that is named.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::File(path) => Some(path),
            Self::Inline(_) | Self::Defined(_) => None,
        }
    }
}

/// One entry of `configs`.
#[derive(Debug, Clone)]
pub(super) struct Config {
    content: Content,
    target: PathBuf,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
    place: Place,
}

/// The files that one layer names.
pub(super) fn files_of<'a>(
    env_files: &'a Option<Vec<EnvFile>>,
    configs: &'a Option<Vec<Config>>,
) -> impl Iterator<Item = &'a str> {
    let env = env_files.iter().flatten().map(|file| file.path.as_str());
    env.chain(configs.iter().flatten().filter_map(|config| config.content.file()))
}

fn path(section: &Section<'_, '_>, key: &str, text: &str, at: Value<'_, '_>) -> Option<String> {
    let findings = section.findings;
    resolve(findings.source.file, text)
        .map_err(|error| findings.error(at.span(), format!("`{key}`: {error}"), None))
        .ok()
}

/// A string, or an array of strings and tables with `path` and `required`.
pub(super) fn env_files(section: &Section<'_, '_>) -> Option<Vec<EnvFile>> {
    const KEY: &str = "env_file";
    let value = section.get("env_file")?;
    let findings = section.findings;
    let items: Vec<Value<'_, '_>> = match value.get_ref() {
        DeValue::Array(array) => array.iter().collect(),
        _ => vec![value],
    };
    let mut files = Vec::new();
    for item in items {
        let found = match item.get_ref() {
            DeValue::String(text) => path(section, KEY, text, item).map(|path| (path, true)),
            DeValue::Table(table) if value.get_ref().is_array() => {
                let entry = Section::new(findings, "[env_file]", table, item.span());
                let file = entry.string("path");
                let required = entry.boolean("required").unwrap_or(true);
                entry.unsupported("format", "a value in single quotes is taken as it is");
                entry.finish(|_| None);
                if file.is_none() && !entry.has("path") {
                    findings.error(item.span(), "`env_file`: `path` is missing", None);
                }
                file.and_then(|text| path(section, KEY, &text, item)).map(|path| (path, required))
            }
            _ => {
                findings.error(item.span(), "`env_file` takes strings, or tables with `path`", None);
                None
            }
        };
        files.extend(found.map(|(path, required)| EnvFile { path, required, place: findings.place(item) }));
    }
    if files.len() > MAX_ENTRIES {
        let message = format!("`env_file`: {} files; a service has up to {MAX_ENTRIES}", files.len());
        findings.error(value.span(), message, None);
        files.clear();
    }
    Some(files)
}

/// An array of names defined in the repo's `[configs]`, and of tables.
pub(super) fn configs(section: &Section<'_, '_>) -> Option<Vec<Config>> {
    let findings = section.findings;
    let by_name = |name: &str, item: Value<'_, '_>| {
        defined(findings, name, item).map(|content| Config {
            content,
            target: PathBuf::from("/").join(name),
            uid: None,
            gid: None,
            mode: DEFAULT_MODE,
            place: findings.place(item),
        })
    };
    placed(section, ("configs", "files"), by_name, long, |config| &config.target)
}

/// Reads `key`, an array of names and tables, each of which is a file in the container: no two at one place, and not too many of
/// what is called `many`.
pub(super) fn placed<T>(
    section: &Section<'_, '_>,
    (key, many): (&'static str, &str),
    by_name: impl Fn(&str, Value<'_, '_>) -> Option<T>,
    by_table: impl Fn(&Section<'_, '_>, Value<'_, '_>) -> Option<T>,
    target: impl Fn(&T) -> &Path,
) -> Option<Vec<T>> {
    let value = section.get(key)?;
    let findings = section.findings;
    let Some(array) = value.get_ref().as_array() else {
        findings.error(value.span(), format!("`{key}` takes an array of names and tables"), None);
        return None;
    };
    let heading = format!("[{key}]");
    let mut entries: Vec<T> = Vec::new();
    for item in array.iter() {
        let found = match item.get_ref() {
            DeValue::String(name) => by_name(name, item),
            DeValue::Table(table) => by_table(&Section::new(findings, &heading, table, item.span()), item),
            _ => {
                findings.error(item.span(), format!("`{key}` takes names and tables"), None);
                None
            }
        };
        let Some(entry) = found else { continue };
        if let Err(error) = check_target(target(&entry)) {
            findings.error(item.span(), format!("`{key}`: `target`: {error}"), None);
        } else if entries.iter().any(|other| target(other) == target(&entry)) {
            let message = format!("`{key}`: {} is there twice", target(&entry).display());
            findings.error(item.span(), message, None);
        }
        entries.push(entry);
    }
    if entries.len() > MAX_ENTRIES {
        let message = format!("`{key}`: {} {many}; a service has up to {MAX_ENTRIES}", entries.len());
        findings.error(value.span(), message, None);
        entries.clear();
    }
    Some(entries)
}

fn defined(findings: &Findings<'_>, name: &str, at: Value<'_, '_>) -> Option<Content> {
    if !is_name(name) {
        let hint = "a file is named as { file = \"app.conf\", target = \"/etc/app.conf\" }";
        let message = format!("`configs`: `{name}` is not the name of a config");
        findings.error(at.span(), message, Some(hint.to_owned()));
        return None;
    }
    Some(Content::Defined(name.to_owned()))
}

/// A name as Compose has it.
pub(super) fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    plain && name.len() <= 255 && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn long(entry: &Section<'_, '_>, item: Value<'_, '_>) -> Option<Config> {
    let findings = entry.findings;
    let source = entry.string("source");
    let content = match content(entry, item, &["source", "file", "content"])? {
        Some(content) => Some(content),
        None => source.as_deref().and_then(|name| defined(findings, name, item)),
    };
    let target = entry.string("target");
    let named = match (&target, &source) {
        (Some(text), _) => absolute(text).or_else(|| {
            // As Compose has it: a name without a `/` lies below the root.
            absolute(&format!("/{text}")).filter(|_| !text.starts_with('/'))
        }),
        (None, Some(name)) if !entry.has("target") => absolute(&format!("/{name}")),
        (None, _) => None,
    };
    if named.is_none() {
        let message = "`configs`: `target` is missing, or is not an absolute path without `..`";
        findings.error(item.span(), message, Some("target = \"/etc/app.conf\"".to_owned()));
    }
    let (uid, gid) = (number(entry, "uid"), number(entry, "gid"));
    let mode = mode(entry, "mode").unwrap_or(DEFAULT_MODE);
    entry.finish(|_| None);
    Some(Config { content: content?, target: named?, uid, gid, mode, place: findings.place(item) })
}

/// `file` or `content`, of which there is exactly one among `keys`; `Ok(None)`: it is another one of these.
fn content(entry: &Section<'_, '_>, item: Value<'_, '_>, keys: &[&str]) -> Option<Option<Content>> {
    let findings = entry.findings;
    let (file, inline) = (entry.string("file"), entry.string("content"));
    let given: Vec<&&str> = keys.iter().filter(|key| entry.has(key)).collect();
    if given.len() != 1 {
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        findings.error(item.span(), format!("a config has one of {}", keys.join(", ")), None);
        return None;
    }
    let file = file.and_then(|text| path(entry, "file", &text, item)).map(Content::File);
    Some(file.or(inline.map(Content::Inline)))
}

/// A number of the kernel's, not a name: which user the image has under a name is not known here.
pub(super) fn number(entry: &Section<'_, '_>, key: &'static str) -> Option<u32> {
    let value = entry.get(key)?;
    let number = match value.get_ref() {
        DeValue::String(text) => text.parse::<u32>().ok(),
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    // The highest one means "none": chown(2).
    let number = number.filter(|number| *number != u32::MAX);
    if number.is_none() {
        entry.findings.error(value.span(), format!("`{key}` takes the number of a user or group"), None);
    }
    number
}

/// Permission bits, written in octal: `0o440` or `"0440"`. A decimal number is nearly always meant otherwise.
pub(super) fn mode(entry: &Section<'_, '_>, key: &'static str) -> Option<u32> {
    let value = entry.get(key)?;
    let mode = match value.get_ref() {
        DeValue::String(text) => {
            let digits = text.strip_prefix("0o").unwrap_or(text);
            u32::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with(['+', '-']))
        }
        DeValue::Integer(number) if number.radix() == 8 => u32::from_str_radix(number.as_str(), 8).ok(),
        _ => None,
    };
    let mode = mode.filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        let hint = Some(format!("{key} = 0o440"));
        entry.findings.error(value.span(), format!("`{key}` takes permissions in octal, up to 0o777"), hint);
    }
    mode
}

/// The repo's `[configs]`: contents that services take by name.
pub(super) fn definitions(section: &Section<'_, '_>) -> BTreeMap<String, Content> {
    let mut found = BTreeMap::new();
    let Some(table) = section.table("configs") else { return found };
    for (name, span, value) in table.entries() {
        if !is_name(name) {
            table.findings.error(span.clone(), format!("`{name}` is not a name of a config"), None);
        }
        let Some(inner) = value.get_ref().as_table() else {
            table.findings.error(value.span(), format!("`{name}` takes a table"), None);
            continue;
        };
        let entry = Section::new(section.findings, &format!("[configs.{name}]"), inner, span);
        entry.unsupported("environment", "nothing is taken from the host; use `file` or `content`");
        entry.unsupported("external", "use `file` or `content`");
        entry.unsupported("name", "a config has the name that it is defined under");
        entry.unsupported("labels", "use `file` or `content` alone");
        entry.unsupported("template_driver", "files are taken as they are");
        let refused = ["environment", "external"].iter().any(|key| entry.has(key));
        if !refused && let Some(Some(content)) = content(&entry, value, &["file", "content"]) {
            found.insert(name.to_owned(), content);
        }
        entry.finish(|_| None);
    }
    found
}

/// What paths and names of configs stand for, and what was found out on the way. Many services may name one file: it is
/// looked at once.
pub(super) struct Sources<'a> {
    files: &'a RepoFiles,
    /// The repo's `[configs]`.
    definitions: &'a BTreeMap<String, Content>,
    /// What is wrong in the files that are named, since it was last taken.
    pub found: RefCell<Vec<Diagnostic>>,
    /// The contents that specs name by digest.
    pub contents: RefCell<BTreeMap<Digest, Vec<u8>>>,
    /// Digests of the repo's files.
    digests: RefCell<BTreeMap<String, Digest>>,
    /// Variables of env files; `None`: one that has errors, which were told.
    variables: RefCell<BTreeMap<String, Option<Variables>>>,
}

type Variables = Rc<BTreeMap<String, String>>;

impl<'a> Sources<'a> {
    /// Nothing was looked at yet.
    pub fn new(files: &'a RepoFiles, definitions: &'a BTreeMap<String, Content>) -> Self {
        Self {
            files,
            definitions,
            found: RefCell::default(),
            contents: RefCell::default(),
            digests: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// The bytes of a file that `key` names; without it a finding.
    pub fn bytes(&self, findings: &Findings<'_>, key: &str, path: &str, place: &Place) -> Option<&'a [u8]> {
        if let Some(bytes) = self.files.get(path) {
            return Some(bytes);
        }
        let why = self.files.refusal(path);
        let message = why.map_or_else(|| format!("there is no {path}"), |why| format!("{path} {why}"));
        findings.error_of(place, &format!("`{key}`: {message}"), None);
        None
    }

    /// The variables of env files, later ones over earlier ones.
    pub fn environment(&self, findings: &Findings<'_>, files: &[EnvFile]) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for file in files {
            let absent = !self.files.contains_key(&file.path) && self.files.refusal(&file.path).is_none();
            if absent && !file.required {
                continue;
            }
            if let Some(found) = self.variables(findings, file) {
                variables.extend(found.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
        }
        variables
    }

    fn variables(&self, findings: &Findings<'_>, file: &EnvFile) -> Option<Variables> {
        let wrong =
            |what: &str| findings.error_of(&file.place, &format!("`env_file`: {} {what}", file.path), None);
        if let Some(known) = self.variables.borrow().get(&file.path) {
            if known.is_none() {
                wrong("has errors");
            }
            return known.clone();
        }
        let bytes = self.bytes(findings, "env_file", &file.path, &file.place)?;
        if bytes.len() > MAX_ENV_FILE {
            wrong("is larger than 256 KiB");
            return None;
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            wrong("is not UTF-8");
            return None;
        };
        let inside = Findings::new(&file.path, text);
        let variables = env_file::parse(&inside);
        let found = (!inside.has_errors()).then(|| Rc::new(variables));
        self.found.borrow_mut().extend(inside.into_sorted());
        self.variables.borrow_mut().insert(file.path.clone(), found.clone());
        found
    }

    /// The digest of a content that stands in the file `path`, or nowhere.
    fn digest(&self, path: Option<&str>, bytes: &[u8]) -> Digest {
        let known = path.and_then(|path| self.digests.borrow().get(path).cloned());
        known.unwrap_or_else(|| {
            let digest = Digest::from_sha256(&Sha256::digest(bytes).into());
            if let Some(path) = path {
                self.digests.borrow_mut().insert(path.to_owned(), digest.clone());
            }
            digest
        })
    }

    /// The config files of a service, in order.
    pub fn configs(&self, findings: &Findings<'_>, configs: Vec<Config>) -> Vec<ConfigFile> {
        let mut total = 0u64;
        let mut found = Vec::new();
        for config in configs {
            let content = match &config.content {
                Content::Defined(name) => match self.definitions.get(name) {
                    Some(content) => content,
                    None => {
                        self.undefined(findings, name, &config.place);
                        continue;
                    }
                },
                content => content,
            };
            let bytes = match content {
                Content::Inline(text) => Some(text.as_bytes()),
                Content::File(path) => self.bytes(findings, "configs", path, &config.place),
                // Definitions name no definitions.
                Content::Defined(_) => None,
            };
            let Some(bytes) = bytes else { continue };
            let size = bytes.len() as u64;
            total = total.saturating_add(size);
            if total > MAX_CONFIG_BYTES {
                let message = format!(
                    "`configs`: with this file they are {total} bytes; all of a service together have up to 4 MiB"
                );
                findings.error_of(&config.place, &message, None);
                break;
            }
            let digest = self.digest(content.file(), bytes);
            self.contents.borrow_mut().entry(digest.clone()).or_insert_with(|| bytes.to_vec());
            let Config { target, uid, gid, mode, .. } = config;
            found.push(ConfigFile { target, content: digest, size, uid, gid, mode });
        }
        found
    }

    fn undefined(&self, findings: &Findings<'_>, name: &str, place: &Place) {
        let known: Vec<&str> = self.definitions.keys().map(String::as_str).collect();
        let hint = super::diagnostic::did_you_mean(name, &known);
        let message = format!("`configs`: the repo's gitopsd.toml defines no [configs.{name}]");
        findings.error_of(place, &message, hint);
    }
}

/// Whether two mounts of a service go to one place.
pub(super) fn doubled<'a>(targets: impl Iterator<Item = &'a Path>) -> Option<&'a Path> {
    let mut seen = std::collections::BTreeSet::new();
    targets.into_iter().find(|target| !seen.insert(*target))
}
