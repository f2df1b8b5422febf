//! `gitopsd gc`: removes images that nothing needs. A running agent does it; without one, this process.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use super::table::{self, ago};
use super::{Failure, operate, run, write_json};
use crate::agent::clock;
use crate::agent::control::Command;
use crate::config::agent::{AgentConfig, ImagesConfig};
use crate::reconcile::uses::{Role, uses};
use crate::registry::{Collection, Pressure, Store};
use crate::state::StateDir;
use crate::types::{ByteSize, Digest, format_duration, plural};

/// Removes, or with `dry_run` only lists, the same. Exit 0.
pub fn gc(config: &Path, dry_run: bool, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = run::config(config)?;
    let collection = match operate::ask_with(&config, &Command::Gc { dry_run }, &mut |_| Ok(())) {
        Ok(reply) => {
            let body = reply.body.and_then(|body| serde_json::from_value::<Collection>(body).ok());
            body.ok_or_else(|| Failure::plain(reply.message))?
        }
        Err(Failure::NotRunning) => alone(&config, dry_run)?,
        Err(failure) => return Err(failure),
    };
    if json {
        let mut body = serde_json::to_value(&collection).map_err(std::io::Error::from)?;
        body["dry_run"] = dry_run.into();
        write_json(out, &body)?;
    } else {
        render(&collection, dry_run, &config.images, out)?;
    }
    Ok(0)
}

/// Collects without an agent; the lock on the state keeps one from beginning meanwhile.
fn alone(config: &AgentConfig, dry_run: bool) -> Result<Collection, Failure> {
    let state = StateDir::open(&config.state_dir)?;
    let journal = state.load_journal()?;
    if let Some((service, refusal)) = journal.frozen.iter().next() {
        return Err(Failure::plain(format!(
            "what {service} needs is not known, so nothing is removed: {}",
            refusal.message
        )));
    }
    let uses = uses(state.load_desired()?.as_ref(), &journal.records);
    let needed: BTreeSet<Digest> = uses.iter().map(|used| used.image.digest.clone()).collect();
    let used = uses.iter().filter(|used| used.role != Role::Wanted);
    let store = Store::open(&config.state_dir).map_err(|error| error.to_refusal())?;
    let now = clock::now();
    if !dry_run {
        store.note_uses(&used.map(|used| used.image.digest.clone()).collect(), now);
        // Containers run on without an agent, and which began when is not known here.
        store.sweep_aside(|_| true);
    }
    let doomed = store.collect(&config.images, &needed, Pressure::Configured, now, dry_run);
    Ok(doomed.map_err(|error| error.to_refusal())?.finish())
}

fn render(
    collection: &Collection,
    dry_run: bool,
    limits: &ImagesConfig,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let now = clock::now();
    let size = |bytes: u64| ByteSize(bytes).human();
    let mut rows = Vec::new();
    for gone in &collection.images {
        let names: Vec<String> = gone.references.iter().map(ToString::to_string).collect();
        rows.push(vec![
            if names.is_empty() { "-".to_owned() } else { names.join(" ") },
            gone.digest.short().to_owned(),
            size(gone.bytes),
            plural(gone.layers, "layer", "layers"),
            gone.used_at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", ago(at, now))),
        ]);
    }
    if !collection.unused.is_empty() {
        let count = plural(collection.unused.len(), "layer", "layers");
        rows.push(vec!["(of no image)".to_owned(), "-".to_owned(), size(collection.unused_bytes), count]);
    }
    if !rows.is_empty() {
        rows.insert(0, ["IMAGE", "DIGEST", "SIZE", "LAYERS", "USED"].map(str::to_owned).to_vec());
        table::write(out, &rows)?;
    }
    let verb = if dry_run { "would be freed" } else { "freed" };
    let why = if collection.short_of_space { " (less is free than images.min_free)" } else { "" };
    let images = plural(collection.images.len(), "image", "images");
    writeln!(out, "{images}: {} {verb}{why}", size(collection.freed))?;
    if rows.is_empty() {
        let (keep, count) = (format_duration(limits.keep), limits.keep_count);
        writeln!(
            out,
            "hint: what a service needs stays; all else for {keep} after its last use or pull, and the newest {count} of each \
             repository until room is short: [images] of the configuration"
        )?;
    }
    Ok(())
}
