//! `gitopsd pull`: images ahead of a deploy. A running agent does it; without one, this process.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc;

use super::progress::PullBar;
use super::{Failure, operate, run, write_json_line};
use crate::agent::control::Command;
use crate::agent::images;
use crate::config::agent::AgentConfig;
use crate::registry::{PullProgress, PullResult, Registry, Store, Wanted};
use crate::state::StateDir;
use crate::types::{ByteSize, ImageRef, Reason};

/// Pulls, and says what came of each. Exit 0 all is here, 1 otherwise.
pub fn pull(
    config: &Path,
    images: &[ImageRef],
    all: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    if images.is_empty() && !all {
        return Err(Failure::Usage(
            "pull takes images, or --all for those that the repo wants here".to_owned(),
        ));
    }
    let config = run::config(config)?;
    let mut bar = PullBar::new(json);
    let command = Command::Pull { images: images.to_vec(), all };
    let asked = operate::ask_with(&config, &command, &mut |value| match serde_json::from_value(value) {
        Ok(progress) => show(&progress, &mut bar, json, out),
        // A word of another version: only the bar lacks it.
        Err(_) => Ok(()),
    });
    let results = match asked {
        Ok(reply) => {
            let results = reply.body.and_then(|body| serde_json::from_value::<Vec<PullResult>>(body).ok());
            results.ok_or_else(|| Failure::plain(reply.message))?
        }
        Err(Failure::NotRunning) => {
            alone(&config, images, all, &mut |progress| show(progress, &mut bar, json, out))?
        }
        Err(failure) => return Err(failure),
    };
    bar.finish();
    let ok = results.iter().all(|result| result.ok);
    if json {
        write_json_line(out, &serde_json::json!({ "ok": ok, "images": results }))?;
    } else {
        for result in &results {
            writeln!(out, "{}", line(result))?;
            if let Some(hint) = hint(result) {
                writeln!(out, "  hint: {hint}")?;
            }
        }
        if results.is_empty() {
            writeln!(out, "no image: the repo wants no service here, or no commit of it was admitted yet")?;
        }
    }
    Ok(u8::from(!ok))
}

pub(super) fn show(
    progress: &PullProgress,
    bar: &mut PullBar,
    json: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, &serde_json::json!({ "progress": progress }))?;
        writeln!(out)?;
        return out.flush();
    }
    bar.show(progress);
    Ok(())
}

fn line(result: &PullResult) -> String {
    let reference = &result.reference;
    match (&result.digest, result.ok) {
        (Some(digest), true) => {
            let bytes = ByteSize(result.pulled_bytes).human();
            let (here, all) = (result.layers_here, result.layers);
            format!(
                "{reference}: {} ({bytes} in {:.1}s, {here} of {all} layers were here)",
                digest.short(),
                result.seconds
            )
        }
        _ => {
            let message = result.message.as_deref().unwrap_or("it could not be pulled");
            // Archives are named by what they are called.
            let message = message.strip_prefix(&format!("{reference}: ")).unwrap_or(message);
            let reason = result.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{reference}: failed: {message}{reason}")
        }
    }
}

/// What a person can do about a failure, where its message does not say so itself.
fn hint(result: &PullResult) -> Option<String> {
    let archive = result.reference.contains("://");
    let text = match result.reason? {
        Reason::ImageNotFound if archive => "put it there, or correct its address",
        Reason::ImageNotFound => "push it, or correct name and tag",
        Reason::ImageInvalid if archive => {
            "write or copy it again; `gitopsd pack`, `docker save` and `skopeo copy` make such archives"
        }
        Reason::RegistryUnreachable if result.reference.starts_with("docker.io/") => {
            "a name without a host is docker.io's; one of another registry begins with HOST[:PORT]/"
        }
        Reason::RegistryUnreachable => "is the address right, and the network up? It can be asked for again",
        // These say what to do.
        Reason::Auth | Reason::Tls | Reason::DiskSpace | Reason::Policy | Reason::ConfigInvalid => {
            return None;
        }
        reason => reason.todo(),
    };
    Some(text.to_owned())
}

/// Pulls without an agent; the lock on the state keeps one from beginning meanwhile.
fn alone(
    config: &AgentConfig,
    images: &[ImageRef],
    all: bool,
    tell: &mut dyn FnMut(&PullProgress) -> std::io::Result<()>,
) -> Result<Vec<PullResult>, Failure> {
    let state = StateDir::open(&config.state_dir)?;
    let mut list: Vec<Wanted> = images.iter().cloned().map(Wanted::Named).collect();
    if all {
        list.extend(images::wanted(state.load_desired()?.as_ref()));
    }
    let (runtime, registry) = registry(config)?;
    let (sender, receiver) = mpsc::channel();
    let pulling = runtime.spawn(async move {
        // Whoever shows it may have failed.
        let tell = |progress| drop(sender.send(progress));
        registry.pull_all(list, &tell).await
    });
    for progress in receiver {
        tell(&progress)?;
    }
    runtime.block_on(pulling).map_err(|error| Failure::plain(format!("pulling: {error}")))
}

/// What pulls, for commands that work without an agent. The state has to be held.
pub(super) fn registry(config: &AgentConfig) -> Result<(tokio::runtime::Runtime, Registry), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store = Store::open(&config.state_dir).map_err(|error| error.to_refusal())?;
    let registry = Registry::new(store.into(), config.registries.clone());
    let registry = registry.map_err(|error| error.to_refusal())?.with_s3(config.s3.clone());
    Ok((runtime, registry.with_keep_blobs(config.keep_blobs)))
}
