//! `gitopsd images`: what is here, what it takes, who needs it. Reads beside an agent, or without one.

use std::io::Write;
use std::path::Path;

use super::table::{self, ago};
use super::{Failure, run, write_json};
use crate::agent::clock;
use crate::reconcile::uses::{Use, uses};
use crate::registry::{ImageUsage, Store, Usage};
use crate::state::desired::read_desired;
use crate::state::journal::read_journal;
use crate::types::{ByteSize, Timestamp, plural};

/// Lists images. Exit 0.
pub fn images(config: &Path, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = run::config(config)?;
    let journal = read_journal(&config.state_dir.join("services"))?;
    let uses = uses(read_desired(&config.state_dir)?.as_ref(), &journal.records);
    let usage = Store::beside(&config.state_dir).usage().map_err(|error| error.to_refusal())?;
    if json {
        write_json(out, &as_json(&usage, &uses))?;
    } else {
        render(&usage, &uses, clock::now(), out)?;
    }
    Ok(0)
}

fn users<'a>(image: &'a ImageUsage, uses: &'a [Use]) -> impl Iterator<Item = &'a Use> {
    uses.iter().filter(|used| used.image.digest == image.digest)
}

fn as_json(usage: &Usage, uses: &[Use]) -> serde_json::Value {
    let images = usage.images.iter().map(|image| {
        let users = users(image, uses).map(
            |used| serde_json::json!({ "service": used.service, "role": used.role, "held": used.held }),
        );
        serde_json::json!({
            "digest": image.digest, "references": image.references, "layers": image.layers,
            "missing": image.missing, "size": image.size, "unique": image.unique, "shared": image.shared, "pulled_at": image.pulled_at,
            "used_at": image.used_at, "users": users.collect::<Vec<_>>(),
        })
    });
    serde_json::json!({
        "images": images.collect::<Vec<_>>(), "unique": usage.unique, "shared": usage.shared,
        "unused": usage.unused, "other": usage.other, "total": usage.total,
    })
}

fn render(usage: &Usage, uses: &[Use], now: Timestamp, out: &mut dyn Write) -> std::io::Result<()> {
    let head = ["IMAGE", "DIGEST", "SIZE", "UNIQUE", "SHARED", "LAYERS", "PULLED", "USED", "BY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for image in &usage.images {
        let mut names: Vec<String> = image.references.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            names.push("-".to_owned());
        }
        let users: Vec<String> = users(image, uses)
            .map(|used| {
                let held = if used.held { ", held" } else { "" };
                format!("{} ({}{held})", used.service, used.role.word())
            })
            .collect();
        let when =
            |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", ago(at, now)));
        let used = if users.is_empty() { when(image.used_at) } else { "now".to_owned() };
        let size = |bytes: u64| ByteSize(bytes).human();
        rows.push(vec![
            names.join(" "),
            image.digest.short().to_owned(),
            size(image.size),
            size(image.unique),
            size(image.shared),
            match image.layers.len() {
                all if image.missing.is_empty() => all.to_string(),
                all => format!("{} of {all}", all - image.missing.len()),
            },
            when(image.pulled_at),
            used,
            if users.is_empty() { "-".to_owned() } else { users.join(", ") },
        ]);
    }
    table::write(out, &rows)?;
    let size = |bytes: u64| ByteSize(bytes).human();
    writeln!(
        out,
        "{}, {}: {} unique, {} shared, {} in layers of no image, {} of records and directories",
        plural(usage.images.len(), "image", "images"),
        size(usage.total),
        size(usage.unique),
        size(usage.shared),
        size(usage.unused),
        size(usage.other)
    )?;
    if usage.images.iter().any(|image| !image.missing.is_empty()) {
        writeln!(
            out,
            "hint: layers that are not here were damaged: `gitopsd fsck --repair` gets them again"
        )?;
    }
    Ok(())
}
