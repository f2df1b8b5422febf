//! `gitopsd fsck`: looks at the store by itself, beside an agent or without one. What it repairs, the agent repairs,
//! where one is running.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use super::progress::{self, Line};
use super::{Failure, operate, pull, run, write_json};
use crate::agent::control::Command;
use crate::agent::images::Mended;
use crate::config::agent::AgentConfig;
use crate::reconcile::uses::{Use, uses};
use crate::registry::{
    Checked, Depth, ImageReport, Known, LayerReport, LayerState, Remedy, RepairProgress, Repaired, Report,
    Store,
};
use crate::state::StateDir;
use crate::state::desired::read_desired;
use crate::state::journal::read_journal;
use crate::types::{ByteSize, Digest, ServiceName, plural};

/// Checks; with `repair`, has what is damaged again. Exit 0 sound (again), 1 otherwise.
pub fn fsck(config: &Path, full: bool, repair: bool, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = run::config(config)?;
    let depth = if full { Depth::Full } else { Depth::Quick };
    // Whoever runs containers has better things to do. Its share of the disk follows (ioprio_set(2), "IOPRIO_CLASS_NONE").
    if full && let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!("cannot lower the priority: {error}");
    }
    let begun = Instant::now();
    let mut line = Line::new(json);
    let report = Store::beside(&config.state_dir).check(depth, &mut |checked| {
        show(&checked, begun, &mut line);
    });
    line.clear();
    let report = report.map_err(|error| Failure::from(error.to_refusal()))?;
    let users = users(&config, &report)?;
    let mended = if repair && !report.is_sound() {
        Some(mend(&config, &report, &users.images, &mut line)?)
    } else {
        None
    };
    line.clear();
    let ok = report.is_sound()
        || mended.as_ref().is_some_and(|mended| mended.repaired.iter().all(Repaired::is_well));
    if json {
        let body = as_json(&report, &users, mended.as_ref(), full, ok, begun);
        write_json(out, &body)?;
    } else {
        write(&report, &users, mended.as_ref(), full, begun, out)?;
    }
    Ok(u8::from(!ok))
}

fn show(checked: &Checked, begun: Instant, line: &mut Line) {
    if line.is_terminal() && line.is_due() {
        let bar = progress::bar(checked.bytes, checked.total, begun.elapsed());
        line.show(&format!("{bar}, {} of {} layers", checked.layers_done, checked.layers));
    }
}

/// Who needs what is damaged.
struct Users {
    images: Vec<Known>,
    /// Services by the layer that their containers may run on.
    running: BTreeMap<Digest, Vec<ServiceName>>,
}

/// What the state says without the lock: files appear whole.
fn users(config: &AgentConfig, report: &Report) -> Result<Users, Failure> {
    let journal = read_journal(&config.state_dir.join("services"))?;
    let desired = read_desired(&config.state_dir)?;
    let uses = uses(desired.as_ref(), &journal.records);
    let mut running: BTreeMap<Digest, Vec<ServiceName>> = BTreeMap::new();
    for Use { image, service, role, .. } in &uses {
        let layers = report.images.iter().find(|known| known.image == image.digest && role.runs());
        for layer in layers.into_iter().flat_map(|image| &image.layers) {
            let services = running.entry(layer.clone()).or_default();
            if !services.contains(service) {
                services.push(service.clone());
            }
        }
    }
    Ok(Users { images: uses.into_iter().map(Known::from).collect(), running })
}

/// Has it repaired by the agent, or does it.
fn mend(config: &AgentConfig, report: &Report, known: &[Known], line: &mut Line) -> Result<Mended, Failure> {
    let layers: Vec<Digest> = report.damaged_layers().map(|layer| layer.layer.clone()).collect();
    let images: Vec<Digest> = report.damaged_images().map(|image| image.image.clone()).collect();
    let command = Command::Repair { layers: layers.clone(), images: images.clone() };
    let begun = Instant::now();
    let asked = operate::ask_with(config, &command, &mut |value| {
        if let Ok(progress) = serde_json::from_value::<RepairProgress>(value) {
            show_repair(&progress, begun, line);
        }
        Ok(())
    });
    match asked {
        Ok(reply) => {
            let results = reply.body.and_then(|body| serde_json::from_value(body).ok());
            results.ok_or_else(|| Failure::plain(reply.message))
        }
        Err(Failure::NotRunning) => {
            // Held until the repair is over.
            let _state = StateDir::open(&config.state_dir)?;
            let (runtime, registry) = pull::registry(config)?;
            let (sender, receiver) = mpsc::channel();
            let known = known.to_vec();
            let repairing = runtime.spawn(async move {
                let tell = |progress| drop(sender.send(progress));
                registry.repair(layers, images, &known, &tell).await
            });
            for progress in receiver {
                show_repair(&progress, begun, line);
            }
            let repaired = runtime.block_on(repairing);
            let repaired = repaired.map_err(|error| Failure::plain(format!("repairing: {error}")))?;
            Ok(Mended { repaired, ..Mended::default() })
        }
        Err(failure) => Err(failure),
    }
}

fn show_repair(progress: &RepairProgress, begun: Instant, line: &mut Line) {
    if line.is_terminal() && line.is_due() {
        let bar = progress::bar(progress.bytes, progress.total, begun.elapsed());
        line.show(&format!("layer {} {bar}", progress.layer.short()));
    }
}

fn as_json(
    report: &Report,
    users: &Users,
    mended: Option<&Mended>,
    full: bool,
    ok: bool,
    begun: Instant,
) -> serde_json::Value {
    let names = |layer: &Digest| users.running.get(layer).cloned().unwrap_or_default();
    let layers = report.layers.iter().map(|layer| {
        let LayerReport { layer: digest, state, findings, count, paths, bytes } = layer;
        serde_json::json!({
            "layer": digest, "state": state, "findings": findings, "count": count, "paths": paths,
            "bytes": bytes, "services": names(digest),
        })
    });
    serde_json::json!({
        "ok": ok, "full": full, "seconds": begun.elapsed().as_secs_f64(),
        "layers": layers.collect::<Vec<_>>(), "images": report.images, "strays": report.strays,
        "repaired": mended.map(|mended| &mended.repaired),
    })
}

fn write(
    report: &Report,
    users: &Users,
    mended: Option<&Mended>,
    full: bool,
    begun: Instant,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for layer in report.damaged_layers() {
        write_layer(layer, users, out)?;
    }
    for ImageReport { image, references, trouble, .. } in report.damaged_images() {
        let names: Vec<String> = references.iter().map(ToString::to_string).collect();
        let trouble = trouble.as_deref().unwrap_or_default();
        writeln!(out, "image {} ({}): {trouble}", image.short(), names.join(", "))?;
    }
    for stray in &report.strays {
        writeln!(out, "store/{stray} is none of gitopsd's, and is left alone")?;
    }
    if let Some(mended) = mended {
        for repaired in &mended.repaired {
            write_repaired(repaired, users, &mended.pids, out)?;
        }
    }
    let sum = |part: fn(&LayerReport) -> u64| report.layers.iter().map(part).sum::<u64>();
    let paths = sum(|layer| layer.paths);
    let read =
        if full { format!(", {} read", ByteSize(sum(|layer| layer.bytes)).human()) } else { String::new() };
    let damaged = report.damaged_layers().count() + report.damaged_images().count();
    let verdict = match damaged {
        0 => "all sound".to_owned(),
        damaged => format!("{damaged} damaged"),
    };
    writeln!(
        out,
        "{}, {}, {paths} paths{read} in {:.1}s: {verdict}",
        plural(report.layers.len(), "layer", "layers"),
        plural(report.images.len(), "image", "images"),
        begun.elapsed().as_secs_f64()
    )?;
    if damaged > 0 && mended.is_none() {
        let how = if full { "fsck --full --repair" } else { "fsck --repair" };
        writeln!(out, "hint: `gitopsd {how}` gets it again, layer by layer")?;
    }
    Ok(())
}

fn write_layer(layer: &LayerReport, users: &Users, out: &mut dyn Write) -> std::io::Result<()> {
    let state = match layer.state {
        LayerState::Unlisted => "was unpacked by an older version, which kept nothing to compare it with",
        _ => "is damaged",
    };
    let services: Vec<&str> =
        users.running.get(&layer.layer).into_iter().flatten().map(ServiceName::as_str).collect();
    let on_it =
        if services.is_empty() { String::new() } else { format!("; on it run: {}", services.join(", ")) };
    writeln!(out, "layer {} {state}{on_it}", layer.layer.short())?;
    if layer.state == LayerState::Unlisted {
        return Ok(());
    }
    for finding in &layer.findings {
        writeln!(out, "  {} {}", finding.path, finding.what)?;
    }
    if layer.count > layer.findings.len() {
        writeln!(out, "  and {} more", layer.count - layer.findings.len())?;
    }
    Ok(())
}

fn write_repaired(
    repaired: &Repaired,
    users: &Users,
    pids: &BTreeMap<ServiceName, Vec<i32>>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let bytes = ByteSize(repaired.pulled_bytes).human();
    let (digest, remedy) = (repaired.digest.short(), repaired.remedy.word());
    match &repaired.message {
        None => writeln!(out, "{digest}: {remedy} ({bytes} in {:.1}s)", repaired.seconds)?,
        Some(message) => {
            let reason = repaired.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            writeln!(out, "{digest}: {remedy}: {message}{reason}")?;
        }
    }
    if !matches!(repaired.remedy, Remedy::Rebuilt | Remedy::Quarantined) {
        return Ok(());
    }
    for service in users.running.get(&repaired.digest).into_iter().flatten() {
        if repaired.remedy == Remedy::Quarantined {
            writeln!(
                out,
                "  {service}: its container goes on with the former files, and cannot start again until the layer is here: leave it alone"
            )?;
            continue;
        }
        writeln!(out, "  {service}: its container goes on with the former files until it starts again")?;
        let pids: Vec<String> = pids.get(service).into_iter().flatten().map(ToString::to_string).collect();
        if !pids.is_empty() {
            // The first process of a container takes no other signal that it did not ask for (pid_namespaces(7)).
            writeln!(out, "  hint: `kill -KILL {}` ends it, and the agent starts it again", pids.join(" "))?;
        }
    }
    Ok(())
}
