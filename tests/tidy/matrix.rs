//! `docs/fault-matrix.md` names tests that are there, and leaves no row without one but those it does not claim.

use std::collections::BTreeMap;
use std::path::Path;

/// The rows that the page has to have.
fn wanted() -> Vec<String> {
    let numbered =
        |letter: &str, count: usize| (1..=count).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
    [numbered("G", 20), vec!["N9".to_owned()], numbered("A", 9)].concat()
}

/// Row by row: its cells.
fn rows(text: &str) -> BTreeMap<String, Vec<String>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| row ");
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let all: Vec<Vec<String>> = text.lines().filter(is_row).map(cells).collect();
    let count = all.len();
    let rows: BTreeMap<_, _> = all.into_iter().map(|cells| (cells[0].clone(), cells)).collect();
    assert_eq!(rows.len(), count, "a row stands there twice");
    rows
}

/// What is wrong with the last cell of a row: `file::function` each, or that it is not claimed.
fn wrong(cells: &[String], read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let [row, _, _, shown] = cells else { return Some(format!("{cells:?} has not four cells")) };
    if shown.starts_with("not claimed") {
        return None;
    }
    let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
    if names.is_empty() {
        return Some(format!("{row}: neither a test nor `not claimed`"));
    }
    names.into_iter().find_map(|name| {
        let Some((file, function)) = name.split_once("::") else {
            return Some(format!("{row}: `{name}` is no file::function"));
        };
        let Some(text) = read(file) else { return Some(format!("{row}: there is no {file}")) };
        let at = text.find(&format!("fn {function}("));
        let before = at.and_then(|at| text.get(..at)).unwrap_or_default().trim_end();
        let attributes: Vec<&str> =
            before.lines().rev().map(str::trim).take_while(|line| line.starts_with('#')).collect();
        let has = |name: &str| attributes.iter().any(|line| line.starts_with(name));
        let is_test = has("#[test]") && !has("#[ignore");
        (!is_test).then(|| format!("{row}: {file} has no test {function} that is always run"))
    })
}

#[test]
fn every_row_has_its_test_or_is_not_claimed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/fault-matrix.md")).unwrap();
    let rows = rows(&page);
    let missing: Vec<String> = wanted().into_iter().filter(|row| !rows.contains_key(row)).collect();
    assert!(missing.is_empty(), "no row {missing:?}");
    let read = |file: &str| std::fs::read_to_string(root.join(file)).ok();
    super::none(rows.values().filter_map(|cells| wrong(cells, read)).collect());
}

#[test]
fn rows_without_a_test_are_found() {
    let read = |file: &str| {
        (file == "a.rs")
            .then(|| "#[test]\nfn one() {}\n\nfn two() {}\n\n#[test]\n#[ignore]\nfn three() {}\n".to_owned())
    };
    let of = |shown: &str| wrong(&["G1", "x", "y", shown].map(str::to_owned), read);
    assert_eq!(of("`a.rs::one`"), None);
    assert_eq!(of("not claimed yet"), None);
    for sin in [
        "",
        "`a.rs::two`",
        "`a.rs::three`",
        "`a.rs::on`",
        "`b.rs::one`",
        "`one`",
        "`a.rs::one`, `a.rs::four`",
    ] {
        assert!(of(sin).is_some(), "{sin}");
    }
}
