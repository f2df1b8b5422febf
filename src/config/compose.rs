//! Keys of Compose's `deploy` that are written otherwise here: each is refused by name, with what says it.

use super::section::Section;

/// A key, with the table of `deploy` that it stands in, and what to write instead.
pub const DEPLOY: &[(&str, &str)] = &[
    ("update_config.parallelism", "write `parallelism` in [deploy]"),
    (
        "update_config.delay",
        "write `min_healthy_time` in [deploy]: how long new containers have to be healthy before they take over",
    ),
    (
        "update_config.failure_action",
        "a new generation that is not well is given up; `reversible = false` in [deploy] is for one that cannot be",
    ),
    (
        "update_config.monitor",
        "write `bake` in [deploy]: how long the old generation is kept after the switch, ready to take traffic back",
    ),
    (
        "update_config.max_failure_ratio",
        "one container that is not well is enough to give a new generation up",
    ),
    (
        "update_config.order",
        "write `strategy` in [deploy]: start-first is \"blue-green\", stop-first is \"recreate\"",
    ),
    ("rollback_config", "all traffic goes back at once, to what is left of the old generation"),
    ("mode", "write `replicas` in [deploy], and on which hosts in `hosts` of the service"),
    ("placement", "write on which hosts in `hosts` of the service"),
    ("endpoint_mode", "one address leads to all containers of a service"),
    ("resources", "write `cpus`, `mem_limit`, `mem_reservation`, `pids_limit` and `devices` of the service"),
    ("restart_policy", "write `restart` of the service"),
    ("labels", "write `labels` of the service"),
];

/// What to write instead of a key of `[deploy]`.
fn said(key: &str) -> Option<String> {
    let (_, here) = DEPLOY.iter().find(|(known, _)| *known == key)?;
    Some(format!("`{key}` of Compose is not supported by this version: {here}"))
}

/// Refuses what is left of a `[deploy]` table.
pub(super) fn finish(deploy: &Section<'_, '_>) {
    update_config(deploy);
    deploy.finish(said);
}

/// Each of its keys at its own place.
fn update_config(deploy: &Section<'_, '_>) {
    const NAME: &str = "update_config";
    let Some(value) = deploy.get(NAME) else { return };
    match value.get_ref().as_table() {
        Some(table) if !table.is_empty() => {
            let inner = Section::new(deploy.findings, "[deploy.update_config]", table, value.span());
            inner.finish(|key| said(&format!("{NAME}.{key}")));
        }
        _ => {
            let message = format!(
                "`{NAME}` of Compose is not supported by this version: its keys are written in [deploy]"
            );
            deploy.findings.error(deploy.key_span(NAME), message, Some("parallelism = 1".to_owned()));
        }
    }
}
