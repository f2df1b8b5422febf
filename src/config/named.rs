//! Which files of the repo its `*.toml` name: whoever reads a repo gets these too, and nothing else.

use std::collections::BTreeSet;

use super::repo::{Texts, read_host, read_top};
use super::repo_files::RepoFiles;
use super::section::{Findings, Section, parse};
use super::service;

/// Their paths. Files that are broken name what could be read of them.
pub(super) fn named(files: &RepoFiles) -> BTreeSet<String> {
    let texts = Texts::of(files);
    let top = read_top(&texts);
    let mut paths: BTreeSet<String> = top.defaults.files().map(str::to_owned).collect();
    paths.extend(top.configs.values().filter_map(|content| content.file()).map(str::to_owned));
    let known = texts.below("services").map(|(_, stem, _)| stem).collect();
    for (file, _, text) in texts.below("services") {
        let findings = Findings::new(file, text);
        let table = parse(&findings);
        let layer = service::read(&Section::new(&findings, "", table.get_ref(), 0..0));
        paths.extend(layer.files().map(str::to_owned));
    }
    for (file, stem, text) in texts.below("hosts") {
        let host = read_host(file, stem, text, &known);
        paths.extend(host.overrides.values().flat_map(|layer| layer.files()).map(str::to_owned));
    }
    paths
}
