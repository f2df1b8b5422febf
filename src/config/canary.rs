//! `canary`, `canary_time` and `canary_by` of `[deploy]`.

use std::time::Duration;

use super::section::{Findings, Section};
use crate::types::{Canary, Declared, Share, ShareBy, Strategy};

/// What one file says of it.
#[derive(Debug, Clone, Default)]
pub(super) struct CanaryLayer {
    /// `Some(None)`: none, whatever stands below.
    share: Option<Option<Share>>,
    time: Option<Duration>,
    by: Option<ShareBy>,
}

impl CanaryLayer {
    /// This layer, with `over` on top of it.
    pub fn under(&self, over: &Self) -> Self {
        Self { share: over.share.or(self.share), time: over.time.or(self.time), by: over.by.or(self.by) }
    }

    /// What all layers together say. Without a share the rest means nothing.
    pub fn settled(&self) -> Option<Canary> {
        let default = Canary::new(self.share.flatten()?);
        Some(Canary { time: self.time.unwrap_or(default.time), by: self.by.unwrap_or(default.by), ..default })
    }
}

/// Reads the keys of a `[deploy]` table.
pub(super) fn read(section: &Section<'_, '_>) -> CanaryLayer {
    let none = section.get("canary").is_some_and(|value| value.get_ref().as_str() == Some("0%"));
    let share = if none { Some(None) } else { section.parsed("canary").map(Some) };
    let time = section.duration("canary_time").filter(|time| {
        let fine = *time >= Duration::from_secs(1);
        if !fine {
            let span = section.key_span("canary_time");
            section.findings.error(span, "`canary_time` is at least 1s", None);
        }
        fine
    });
    let by = section.get("canary_by").and_then(|value| match value.get_ref().as_str() {
        Some("connection") => Some(ShareBy::Connection),
        Some("client") => Some(ShareBy::Client),
        _ => {
            let message = "`canary_by` is \"connection\" or \"client\"";
            section.findings.error(value.span(), message, None);
            None
        }
    });
    CanaryLayer { share, time, by }
}

/// A share needs both generations at once, each with an address of its own.
pub(super) fn check(findings: &Findings<'_>, spec: &Declared) {
    // What is wrong within a layer has been told with its place.
    if spec.deploy.canary.is_none() || findings.has_errors() {
        return;
    }
    let why = if spec.schedule.is_some() {
        "it runs at times"
    } else if spec.network_mode().is_shared() {
        "its network is not its own"
    } else if spec.strategy() == Strategy::BlueGreen {
        return;
    } else if spec.deploy.strategy.is_some() {
        "its `strategy` is \"recreate\""
    } else {
        "it is recreated, as it writes to a volume"
    };
    let message = format!("`canary` needs both generations at once, which this service cannot have: {why}");
    findings.error(0..0, message, Some("canary = \"0%\"".to_owned()));
}
