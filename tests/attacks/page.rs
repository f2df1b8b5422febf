//! `docs/attacks.md`, from the rows.

use std::collections::BTreeSet;
use std::path::Path;

use super::shared::table::{self, Verdict};
use super::{archives, documents, engine, known, names, saved, servers};

/// A section: its heading, and rows of case, source and verdict.
pub type Section = (&'static str, Vec<[String; 3]>);

fn refused(reason: impl std::fmt::Display) -> String {
    format!("refused: `{reason}`")
}

pub fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for (heading, rows) in table::all() {
        let rows = rows.iter().map(|row| {
            let verdict = match row.verdict {
                Verdict::Refused(_) => refused("image-invalid"),
                Verdict::Harmless(words, _) => format!("harmless: {words}"),
            };
            [row.name.to_owned(), row.source.to_owned(), verdict]
        });
        sections.push((heading, rows.collect()));
    }
    let packed =
        archives::packed().into_iter().map(|row| [row.name.into(), row.source.into(), refused(row.reason)]);
    sections.push(("Packed layers", packed.collect()));
    let documents_rows =
        documents::rows().into_iter().map(|row| [row.name.into(), row.source.into(), refused(row.reason)]);
    let ignored = documents::IGNORED.iter().map(|(name, source, words)| {
        [(*name).to_owned(), (*source).to_owned(), format!("harmless: {words}")]
    });
    sections.push(("Manifests, indexes and configurations", documents_rows.chain(ignored).collect()));
    let saved =
        saved::rows().into_iter().map(|row| [row.name.into(), row.source.into(), refused(row.reason)]);
    sections.push(("Image archives", saved.collect()));
    let servers = servers::rows().into_iter().map(|row| {
        let verdict = match row.reason {
            Some(reason) => format!("{}: {}", refused(reason), row.says),
            None => format!("harmless: {}", row.says),
        };
        [row.name.into(), row.source.into(), verdict]
    });
    sections.push(("Registries and token services", servers.collect()));
    let names =
        names::rows().into_iter().map(|row| [row.name.into(), row.source.into(), refused("config-invalid")]);
    sections.push(("References in the config repo", names.collect()));
    let engine = engine::rows()
        .into_iter()
        .map(|row| [row.name.into(), row.source.into(), format!("harmless: {}", row.says)]);
    sections.push(("Trees that containers are started from", engine.collect()));
    sections
}

fn page() -> String {
    let sections = sections();
    let count: usize = sections.iter().map(|(_, rows)| rows.len()).sum();
    let mut text = format!(
        "# Attacks\n\nWhat images and registries were made to do to others, or could do, and what comes of it here: {count} \
         cases. Each is a row of a test (`cargo test --test attacks`; layers also `cargo test --lib attacks`), which \
         builds the bytes, pulls them from a server and looks. For every layer it also looks at a directory beside the \
         layer: no content, mode, owner, time, link or attribute of it may have changed. What is started from a tree is \
         tested with containers (`cargo test --test engine images`). A source is an advisory, a \
         rule, or the readers that differ on the case. The codes are those of [reasons](reasons.md).\n",
    );
    for (heading, rows) in sections {
        text.push_str(&format!("\n## {heading}\n\n| case | source | verdict |\n|---|---|---|\n"));
        for row in rows {
            text.push_str(&format!("| {} |\n", row.map(|cell| cell.replace('|', "\\|")).join(" | ")));
        }
    }
    text.push_str(
        "\n## Attacks that have no counterpart here\n\n| case | source | because |\n|---|---|---|\n",
    );
    for (name, source, because) in known::ELSEWHERE {
        text.push_str(&format!("| {name} | {source} | {because} |\n"));
    }
    text.push_str(
        "\nThis file is generated from the rows: `UPDATE_GOLDEN=1 cargo test --test attacks page`.\n",
    );
    text
}

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/attacks.md");
    let wanted = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    // The two of them would fill screens.
    assert!(there == wanted, "docs/attacks.md is old: UPDATE_GOLDEN=1 cargo test --test attacks page");
}

#[test]
fn cases_have_names_of_their_own() {
    for (heading, rows) in sections() {
        let names: BTreeSet<_> = rows.iter().map(|row| &row[0]).collect();
        assert_eq!(names.len(), rows.len(), "{heading}");
        for row in &rows {
            assert!(row.iter().all(|cell| !cell.is_empty() && !cell.contains('\n')), "{row:?}");
        }
    }
}
