//! `replicas` and `parallelism` of `[deploy]`: how many containers of a service run at once, how many of them are replaced at a
//! time, and which services cannot have several.

use super::diagnostic::Diagnostic;
use super::section::{Findings, Section, parse};
use crate::types::{Declared, MAX_REPLICAS, Strategy};

/// What one file says of it.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplicasLayer {
    count: Option<u32>,
    parallelism: Option<u32>,
}

impl ReplicasLayer {
    /// This layer, with `over` on top of it.
    pub fn under(&self, over: &Self) -> Self {
        Self { count: over.count.or(self.count), parallelism: over.parallelism.or(self.parallelism) }
    }

    /// How many there are.
    pub fn count(&self) -> Option<u32> {
        self.count
    }

    /// How many of `count` are replaced at a time; `None`: all, which is also what a number as large as `count` says. So a
    /// default of the repo changes nothing of services that have one.
    pub fn parallelism(&self, count: u32) -> Option<u32> {
        self.parallelism.filter(|number| *number < count)
    }
}

/// Reads the keys of a `[deploy]` table.
pub(super) fn read(section: &Section<'_, '_>) -> ReplicasLayer {
    let most = i64::from(MAX_REPLICAS);
    let count = |key| section.integer(key, 1..=most).and_then(|number| u32::try_from(number).ok());
    ReplicasLayer { count: count("replicas"), parallelism: count("parallelism") }
}

/// What a service's own file says without effect, where it has one container on every host: a default of the repo is meant for
/// others.
pub(super) fn without_effect(file: &str, text: &str) -> Vec<Diagnostic> {
    let findings = Findings::new(file, text);
    let table = parse(&findings);
    let section = Section::new(&findings, "", table.get_ref(), 0..0);
    if let Some(deploy) = section.table("deploy").filter(|deploy| deploy.has("parallelism")) {
        let message = "`parallelism` has no effect: the service has one container";
        let hint = Some("`replicas` says how many it has".to_owned());
        findings.warn(deploy.key_span("parallelism"), message, hint);
    }
    drop(section);
    findings.into_sorted()
}

/// Several at once need an address each, and nothing that only one may have.
pub(super) fn check(findings: &Findings<'_>, spec: &Declared) {
    // What is wrong within a layer has been told with its place.
    if spec.deploy.replicas == 1 || findings.has_errors() {
        return;
    }
    let why = if let Some(volume) = spec.volumes.iter().find(|volume| !volume.read_only) {
        format!(
            "it writes to {}, and several at once would destroy each other's files",
            volume.target.display()
        )
    } else if spec.schedule.is_some() {
        "it runs at times, one run after the other".to_owned()
    } else if spec.network_mode().is_shared() {
        "its network is not its own".to_owned()
    } else if spec.restart.may_end() {
        format!("`restart = \"{}\"` lets it end", spec.restart)
    } else if spec.strategy() == Strategy::Recreate {
        "its `strategy` is \"recreate\"".to_owned()
    } else if !spec.deploy.reversible {
        "`reversible = false` keeps a version that is not well, which is one container".to_owned()
    } else {
        return;
    };
    let message = format!("`replicas` is more than this service can have: {why}");
    findings.error(0..0, message, Some("replicas = 1".to_owned()));
}
