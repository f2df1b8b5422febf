//! `replicas` of `[deploy]`: how many containers of a service run at once, and which services cannot have several.

use super::section::{Findings, Section};
use crate::types::{Declared, MAX_REPLICAS, Strategy};

/// Reads the key of a `[deploy]` table.
pub(super) fn read(section: &Section<'_, '_>) -> Option<u32> {
    section.integer("replicas", 1..=MAX_REPLICAS.into()).and_then(|number| u32::try_from(number).ok())
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
    } else if spec.deploy.canary.is_some() {
        "it has a `canary`, which is one container".to_owned()
    } else {
        return;
    };
    let message = format!("`replicas` is more than this service can have: {why}");
    findings.error(0..0, message, Some("replicas = 1".to_owned()));
}
