//! `gitopsd plan --fleet`: what a change does on hosts that wrote receipts, in golden files.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fleet::{Story, fleet_of_four, gitopsd, write};
use crate::git_server::Lab;

/// A clone on a branch with changes of every kind.
fn proposal() -> Lab {
    let (lab, ..) = fleet_of_four();
    let ops = |file: &str, text: &str| fs::write(lab.path("ops").join(file), text).unwrap();
    lab.git("ops", &["checkout", "-q", "-b", "proposal"]);
    ops("services/shop.toml", "image = \"r.io/shop:2\"\nmem_limit = \"64m\"\n");
    ops("services/db.toml", "image = \"r.io/db:1\"\nhosts = [\"role=db\"]\nenvironment = { A = \"|\" }\n");
    ops("services/new.toml", "image = \"r.io/new:1\"\nhosts = [\"web-[34]\"]\n");
    lab
}

#[track_caller]
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/plan-fleet").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{}: UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn what_a_change_does_where() {
    let lab = proposal();
    let (code, text, errors) = gitopsd(&lab, &["plan", "--fleet"]);
    assert_eq!(code, 2, "{errors}");
    golden("change.txt", &text);
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet", "--markdown", "."]);
    assert_eq!(code, 2);
    golden("change.md", &text);
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet", "--json"]);
    assert_eq!(code, 2);
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&plan["pending"], &plan["errors"]), (&true.into(), &0.into()));
    let host = &plan["hosts"][0];
    assert_eq!((&host["host"], &host["silent"]), (&"web-1".into(), &false.into()));
    let shop = &host["changes"][1];
    assert_eq!((&shop["service"], &shop["action"]), (&"shop".into(), &"amend".into()), "{host}");
    assert_eq!(shop["keys"][0]["key"], "mem_limit");
    // The branch itself, untouched by what lies about in the folder: what failed before is told.
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet", "--rev", "origin/main"]);
    assert_eq!(code, 2);
    golden("head.txt", &text);
}

#[test]
fn waves_removals_and_errors() {
    let lab = proposal();
    let ops = |file: &str, text: &str| fs::write(lab.path("ops").join(file), text).unwrap();
    let waves = "format = 1\n[[wave]]\nhosts = [\"web-1\"]\n[[wave]]\nhosts = [\"web-2\", \"web-4\"]\n";
    ops("gitopsd.toml", waves);
    fs::remove_file(lab.path("ops/services/shop.toml")).unwrap();
    fs::remove_file(lab.path("ops/services/db.toml")).unwrap();
    ops("services/bad.toml", "image = \"r.io/bad:1\"\nports = [\"80:80:80:80:80\"]\n");
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet", "--markdown"]);
    assert_eq!(code, 1);
    golden("waves.md", &text);
}

#[test]
fn nothing_to_do_is_said_and_a_clone_without_notes_too() {
    let lab = Lab::new().with_repo();
    let first = crate::id(&lab.commit("services/shop.toml", "image = \"r.io/shop:1\"\n", "shop 1"));
    lab.git("", &["clone", "-q", "config.git", "ops"]);
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet"]);
    assert_eq!((code, text.lines().next()), (0, Some("0 of 0 hosts would change")));
    assert!(text.contains("no host has written a receipt into this clone: git fetch"), "{text}");
    write(&lab, "web-1", &first, &Story("shop", None, Some("1"), "deployed", "2026-01-01T10:00:00Z"));
    lab.git("ops", &["fetch", "-q", "origin", "refs/notes/gitopsd/*:refs/notes/gitopsd/*"]);
    let (code, text, _) = gitopsd(&lab, &["plan", "--fleet"]);
    assert_eq!((code, text.trim()), (0, "0 of 1 host would change"));
    let (code, _, errors) = gitopsd(&lab, &["plan", "--markdown"]);
    assert_eq!(code, 64, "{errors}");
}
