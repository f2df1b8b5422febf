//! `gitopsd check`: lints a config repo anywhere. Needs no agent, no root, no network.

use std::io::Write;
use std::path::Path;

use super::{Failure, write_json};
use crate::config::Diagnostic;
use crate::config::repo;
use crate::types::plural;

/// Prints all that was found. Exit 0 without errors, 1 with.
pub fn run(dir: &Path, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let files =
        repo::read_dir(dir).map_err(|error| Failure::plain(format!("reading {}: {error}", dir.display())))?;
    let report = repo::check(&files, None);
    let errors = report.diagnostics.iter().filter(|found| found.is_error()).count();
    let warnings = report.diagnostics.len() - errors;
    if json {
        let body = serde_json::json!({
            "ok": errors == 0, "services": report.services, "diagnostics": report.diagnostics,
        });
        write_json(out, &body)?;
    } else {
        for found in &report.diagnostics {
            writeln!(out, "{}", shown(found, dir))?;
        }
        writeln!(
            out,
            "{}, {}, {}",
            plural(report.services, "service", "services"),
            plural(errors, "error", "errors"),
            plural(warnings, "warning", "warnings")
        )?;
    }
    Ok(u8::from(errors > 0))
}

/// With the path that the caller can open.
fn shown(found: &Diagnostic, dir: &Path) -> Diagnostic {
    let mut shown = found.clone();
    if dir != Path::new(".") {
        shown.file = dir.join(&found.file).display().to_string();
    }
    shown
}
