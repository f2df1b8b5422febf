//! Every row of the table, unpacked directly.

use std::collections::BTreeSet;
use std::fs;

use super::canary::Canary;
use super::table::{self, Seen, Verdict};
use super::unpack;
use crate::types::Reason;

#[test]
fn each_layer_is_refused_or_harmless() {
    let mut wrong = Vec::new();
    for row in table::all().into_iter().flat_map(|(_, rows)| rows) {
        let base = tempfile::tempdir().unwrap();
        let canary = Canary::new(base.path());
        let layer = base.path().join("layer");
        fs::create_dir(&layer).unwrap();
        let archive = (row.archive)(&canary.outside(1));
        let result = unpack(&archive, &layer).map_err(|error| error.into_pull_error("layer"));
        canary.assert_untouched(row.name);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2, "{}: something beside the layer", row.name);
        match (&row.verdict, result) {
            (Verdict::Refused(part), Err(error)) => {
                let text = error.to_string();
                if error.reason != Reason::ImageInvalid || error.may_pass() || !text.contains(part) {
                    wrong.push(format!("{}: {text} ({})", row.name, error.reason));
                }
                if text.len() > 600 || text.chars().any(char::is_control) {
                    wrong.push(format!("{}: its message is no line: {text:.700?}", row.name));
                }
            }
            (Verdict::Harmless(words, check), Ok(_)) => {
                if std::panic::catch_unwind(|| check(&Seen(layer))).is_err() {
                    wrong
                        .push(format!("{} ({}): it is not so that {words}, see above", row.name, row.source));
                }
            }
            (Verdict::Refused(_), Ok(_)) => wrong.push(format!("{}: it was unpacked", row.name)),
            (Verdict::Harmless(..), Err(error)) => {
                wrong.push(format!("{}: {error} ({})", row.name, error.reason))
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rows_have_names_of_their_own() {
    let rows: Vec<_> = table::all()
        .into_iter()
        .flat_map(|(heading, rows)| rows.into_iter().map(move |row| (heading, row.name)))
        .collect();
    let names: BTreeSet<_> = rows.iter().collect();
    assert_eq!(names.len(), rows.len());
}
