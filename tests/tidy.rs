//! The rules of the house, as tests: what the architecture forbids, a person would overlook sooner or later.
//!
//! Every rule is a function from a path and a text to its violations, so that each has a test which shows it a sinner.
//! An exception is an entry of one of the lists below, with its reason; an entry that is no longer needed fails too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/matrix.rs"]
mod matrix;
#[path = "tidy/pages.rs"]
mod pages;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use code::{lines, words};
use gitopsd::report::message::Kind;
use gitopsd::types::Reason;

/// Where nothing is done: no I/O, no clock, no threads, no logging.
const PURE: [&str; 2] = ["src/reconcile/", "src/types/"];

/// Words that the pure part may not use, wherever they come from.
const IMPURE_WORDS: &[&str] = &[
    "async",
    "await",
    "tokio",
    "tracing",
    "println",
    "eprintln",
    "print",
    "eprint",
    "dbg",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "Instant",
    "SystemTime",
    "nix",
    "rustix",
    "libc",
    "git2",
    "reqwest",
    "rtnetlink",
    "libcontainer",
    "notify",
    "sd_notify",
    "unsafe",
    "extern",
    "static",
    "thread_local",
    "Mutex",
    "RwLock",
    "OnceLock",
    "LazyLock",
    "Cell",
    "RefCell",
];

/// Modules of the standard library that do something.
const IMPURE_STD: &[&str] = &["fs", "process", "env", "thread", "io", "os", "sync"];

/// Longest file, in lines.
const LONGEST: usize = 500;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Files that may hold `unsafe`, and why.
const UNSAFE: &[(&str, &str)] = &[
    ("src/agent/probes.rs", "tokio wants a promise about the descriptor"),
    ("src/engine/native/exec_terminal.rs", "an ioctl of terminals that no crate we have wraps"),
    ("src/engine/native/kernel.rs", "a system call that no crate wraps"),
    ("src/engine/native/keyring.rs", "a system call that no crate wraps"),
    ("src/engine/native/record.rs", "a number of the C library that no crate wraps"),
    ("src/engine/native/runtime/cli.rs", "the runtime's process, between fork and exec"),
    (
        "src/engine/native/shim/idmap.rs",
        "fork, in a process of one thread, and a system call that no crate wraps",
    ),
    ("src/engine/native/shim/enter.rs", "a descriptor that fork has carried over"),
    ("src/engine/native/shim/init.rs", "fork, in the container's own process of one thread, and its end"),
    ("src/engine/native/shim/mod.rs", "fork, in a process of one thread"),
    ("src/engine/native/shim/program.rs", "the container's own process, between fork and exec"),
    ("src/git/credentials.rs", "a list of libgit2 that git2 does not wrap"),
    ("src/git/library.rs", "settings of libgit2, which are global"),
    ("src/registry/sha256.rs", "instructions that not every CPU has"),
    ("src/registry/unpack/content.rs", "a system call that no crate wraps"),
];

/// Files that may ask what time it is, and why.
const CLOCKS: &[(&str, &str)] = &[
    ("src/agent/clock.rs", "the one clock; everybody else is told the time"),
    ("src/engine/native/clock.rs", "the clock of shims, which are processes of their own"),
    ("src/git/clock.rs", "the clock of looks at a remote, which commands make beside any loop"),
    ("src/registry/store/clock.rs", "the clock of pulls, which commands do beside any loop"),
];

/// Names of modules that say nothing about what they own.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "misc"];

/// The wall around the pure part.
fn impurities(path: &str, text: &str) -> Vec<String> {
    let Some(folder) = PURE.iter().find(|folder| path.starts_with(**folder)) else { return Vec::new() };
    let mut found = Vec::new();
    let mut group = false;
    for (number, line) in lines(text) {
        // `use std::{fs, env};`, over several lines or not.
        group |= line.contains("std::{");
        for (before, word) in words(&line) {
            let of_std = before.ends_with("std::") || (group && !before.ends_with("::"));
            let of_crate = before.ends_with("crate::") || before.ends_with("gitopsd::");
            let lifetime = before.ends_with('\'');
            let bad = (IMPURE_WORDS.contains(&word) && !lifetime)
                || (word == "now" && before.ends_with("::"))
                || (of_std && IMPURE_STD.contains(&word))
                || (of_crate && !["types", "reconcile"].contains(&word));
            if bad {
                found.push(format!("{path}:{number}: `{word}` has no place in {folder}"));
            }
        }
        let flat = path[folder.len()..].matches('/').count() == 0;
        if flat && (line.contains("super::super") || path.ends_with("/mod.rs") && is_way_out(&line)) {
            found.push(format!("{path}:{number}: `super` leads out of {folder}"));
        }
        group &= !line.contains(';');
    }
    found
}

/// `super::` in a `mod.rs` leads out of its folder, except in its own inline test module.
fn is_way_out(line: &str) -> bool {
    line.contains("super::") && line.trim() != "use super::*;"
}

fn too_long(path: &str, text: &str, allowed: &[(&str, &str)]) -> Vec<String> {
    let length = text.lines().count();
    let listed = allowed.iter().any(|(listed, _)| *listed == path);
    match (length > LONGEST, listed) {
        (true, false) => vec![format!("{path}: {length} lines; {LONGEST} is the limit: part it by concern")],
        (false, true) => vec![format!("{path}: {length} lines; take it off the list LONG")],
        _ => Vec::new(),
    }
}

fn unsafety(path: &str, text: &str, allowed: &[(&str, &str)]) -> Vec<String> {
    let listed = allowed.iter().any(|(listed, _)| *listed == path);
    let uses: Vec<_> = lines(text)
        .filter(|(_, line)| words(line).any(|(_, word)| word == "unsafe"))
        .map(|(number, _)| number)
        .collect();
    if listed && uses.is_empty() {
        return vec![format!("{path}: holds no `unsafe`; take it off the list UNSAFE")];
    }
    if listed {
        return Vec::new();
    }
    uses.iter()
        .map(|number| format!("{path}:{number}: `unsafe` outside the files on the list UNSAFE"))
        .collect()
}

fn clocks(path: &str, text: &str, allowed: &[(&str, &str)]) -> Vec<String> {
    if allowed.iter().any(|(listed, _)| *listed == path) {
        return Vec::new();
    }
    let asks = |line: &str| {
        ["Timestamp::now", "SystemTime::now", "Zoned::now", "Utc::now"].iter().any(|ask| line.contains(ask))
    };
    lines(text)
        .filter(|(_, line)| asks(line))
        .map(|(number, _)| format!("{path}:{number}: only src/agent/clock.rs asks what time it is"))
        .collect()
}

fn empty_names(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    let mut found: Vec<_> = parts
        .iter()
        .filter(|part| EMPTY_NAMES.contains(part))
        .map(|part| format!("{path}: `{part}` says nothing about what it owns"))
        .collect();
    for (number, line) in lines(text) {
        for (before, word) in words(&line) {
            if before.ends_with("mod ") && EMPTY_NAMES.contains(&word) {
                found.push(format!("{path}:{number}: `mod {word}` says nothing about what it owns"));
            }
        }
    }
    found
}

/// `docs/reasons.md`, from the one place that knows.
fn reasons() -> String {
    let mut text = String::from(
        "# Reasons\n\nEverything that gitopsd does not do has one of these codes: in `gitopsd status`, `why` and `history`, in the \
         journal and in receipts. They are stable: scripts and alerts may rely on them.\n\n\
         | code | meaning | what to do |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        writeln!(text, "| `{}` | {} | {} |", reason.code(), cell(reason.meaning()), cell(reason.todo()))
            .unwrap();
    }
    text.push_str(
        "\nThis file is generated from `src/types/reason.rs`: `UPDATE_GOLDEN=1 cargo test --test tidy`.\n",
    );
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Every Rust file below `folder`, with its path from the root of the repo.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    fn walk(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(root, &root.join(folder), &mut files);
    files.sort();
    files
}

fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

fn in_src(rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    let files = rust_files("src");
    assert!(files.len() > 20, "only {} files were found in src/", files.len());
    files.iter().flat_map(|(path, text)| rule(path, text)).collect()
}

#[test]
fn the_core_is_pure() {
    none(in_src(impurities));
    let seen = rust_files("src").iter().filter(|(path, _)| path.starts_with(PURE[0])).count();
    assert!(seen > 5, "only {seen} files were found in {}", PURE[0]);
}

#[test]
fn files_end() {
    none(in_src(|path, text| too_long(path, text, LONG)));
}

#[test]
fn unsafe_stays_where_it_is_listed() {
    none(in_src(|path, text| unsafety(path, text, UNSAFE)));
}

#[test]
fn one_clock() {
    none(in_src(|path, text| clocks(path, text, CLOCKS)));
}

#[test]
fn modules_say_what_they_own() {
    none(in_src(empty_names));
    none(rust_files("tests").iter().flat_map(|(path, text)| empty_names(path, text)).collect());
}

#[test]
fn lists_name_files_and_reasons() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = BTreeSet::new();
    for (list, entries) in [("LONG", LONG), ("UNSAFE", UNSAFE), ("CLOCKS", CLOCKS)] {
        for (path, reason) in entries {
            assert!(reason.len() > 10, "{list}: {path} needs a reason");
            assert!(seen.insert((list, path)), "{list}: {path} stands there twice");
            // The clock is allowed to come later than this test.
            let there = root.join(path).exists() || *path == "src/agent/clock.rs";
            assert!(there, "{list}: there is no {path}");
        }
    }
}

#[test]
fn the_page_of_reasons_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reasons.md");
    let wanted = reasons();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, wanted, "docs/reasons.md is old: UPDATE_GOLDEN=1 cargo test --test tidy");
}

#[test]
fn every_reason_has_its_row() {
    let page = reasons();
    for reason in Reason::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", reason.code())));
        let row = row.unwrap_or_else(|| panic!("{reason} has no row"));
        assert_eq!(row.replace("\\|", "").matches('|').count(), 4, "{row}");
        assert!(!reason.meaning().is_empty() && !reason.todo().is_empty(), "{reason}");
    }
    assert_eq!(page.lines().filter(|line| line.starts_with("| `")).count(), Reason::ALL.len());
}

/// `docs/messages.md`, from the one place that knows.
fn messages() -> String {
    let mut text = String::from(
        "# Messages\n\nWhat the agent says of its own, in the journal and in `gitopsd events`: a name, a MESSAGE_ID, a priority, and \
         when. `journalctl MESSAGE_ID=…` finds them. Fields beside MESSAGE: `GITOPSD_EVENT`, `GITOPSD_SERVICE`, \
         `GITOPSD_COMMIT`, `GITOPSD_GENERATION`, `GITOPSD_IMAGE`, `GITOPSD_PHASE`, `GITOPSD_REASON`; of the end \
         of a container `GITOPSD_EXIT_CODE`, `GITOPSD_EXIT_SIGNAL`, `GITOPSD_OOM_KILLED`.\n\n\
         | event | MESSAGE_ID | priority | when |\n|---|---|---|---|\n",
    );
    for kind in Kind::ALL {
        let priority = format!("{:?}", kind.priority()).to_lowercase();
        let row = format!("| `{}` | `{}` | {priority} | {} |\n", kind.name(), kind.message_id(), kind.when());
        text.push_str(&row);
    }
    text
}

#[test]
fn the_page_of_messages_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/messages.md");
    let wanted = messages();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, wanted, "docs/messages.md is old: UPDATE_GOLDEN=1 cargo test --test tidy");
}

/// Each rule is shown what it forbids, and what only looks like it.
mod each_rule_catches_its_sinner {
    use super::*;

    #[test]
    fn impure_code() {
        for sin in [
            "async fn f() {}",
            "use tokio::time;",
            "use std::fs;",
            "use std::{collections::BTreeMap, fs};",
            "use std::{\n    collections::BTreeMap,\n    env,\n};",
            "fn f() { std::process::exit(1) }",
            "use std::net::TcpStream;",
            "use std::net::{Ipv4Addr, UdpSocket};",
            "use std::time::Instant;",
            "use std::time::{Duration, SystemTime};",
            "let t = Timestamp::now();",
            "let f = Timestamp::now;",
            "tracing::info!(\"x\");",
            "println!(\"x\");",
            "use crate::engine::Engine;",
            "use super::super::engine::Engine;",
            "static COUNT: AtomicU32 = AtomicU32::new(0);",
            "let s = \"a\"; std::env::var(s); // \"",
            "let c = '\"'; std::thread::yield_now();",
        ] {
            assert!(!impurities("src/reconcile/x.rs", sin).is_empty(), "{sin}");
            assert!(impurities("src/agent/x.rs", sin).is_empty(), "{sin}");
        }
        assert!(!impurities("src/reconcile/mod.rs", "use super::engine::Engine;").is_empty());
        for fine in [
            "use std::net::Ipv4Addr;",
            "use std::time::Duration;",
            "use std::collections::{BTreeMap, BTreeSet};",
            "use crate::types::Reason;",
            "// no async, no tokio, no std::fs\nfn f(now: u32) -> &'static str {}",
            "/* println!() /* nested */ tokio */ fn f() {}",
            "let text = \"std::fs::read \\\" println!()\";",
            "let text = r#\"async \" tokio\"#;",
            "fn f<'async_>(x: &'async_ str) {}",
            "use super::record::Phase;",
        ] {
            let found = impurities("src/types/x.rs", fine);
            assert!(found.is_empty(), "{fine}: {found:?}");
        }
    }

    #[test]
    fn long_files() {
        let long = "x\n".repeat(LONGEST + 1);
        let fine = "x\n".repeat(LONGEST);
        let list = [("src/a.rs", "it is one table")];
        assert_eq!(too_long("src/b.rs", &long, &list).len(), 1);
        assert_eq!(too_long("src/a.rs", &fine, &list).len(), 1, "an entry that is not needed");
        assert!(too_long("src/a.rs", &long, &list).is_empty());
        assert!(too_long("src/b.rs", &fine, &list).is_empty());
    }

    #[test]
    fn unsafe_code() {
        let sin = "fn f() {\n    unsafe { g() }\n}";
        let list = [("src/a.rs", "a system call")];
        assert_eq!(
            unsafety("src/b.rs", sin, &list),
            ["src/b.rs:2: `unsafe` outside the files on the list UNSAFE"]
        );
        assert!(unsafety("src/a.rs", sin, &list).is_empty());
        assert_eq!(unsafety("src/a.rs", "fn f() {}", &list).len(), 1, "an entry that is not needed");
        assert!(unsafety("src/b.rs", "// unsafe\n#![deny(unsafe_op_in_unsafe_fn)]", &list).is_empty());
    }

    #[test]
    fn clocks_of_their_own() {
        let list = [("src/agent/clock.rs", "the one clock")];
        assert_eq!(clocks("src/git/x.rs", "let t = jiff::Timestamp::now();", &list).len(), 1);
        assert_eq!(clocks("src/git/x.rs", "let t = SystemTime::now();", &list).len(), 1);
        assert!(clocks("src/agent/clock.rs", "Timestamp::now()", &list).is_empty());
        assert!(clocks("src/git/x.rs", "// Timestamp::now()\nInstant::now();", &list).is_empty());
    }

    #[test]
    fn names_that_say_nothing() {
        assert_eq!(empty_names("src/git/utils.rs", "").len(), 1);
        assert_eq!(empty_names("src/utils/mod.rs", "").len(), 1);
        assert_eq!(empty_names("src/git/mod.rs", "pub(crate) mod utils;").len(), 1);
        assert!(empty_names("src/git/trust.rs", "mod futile;").is_empty());
    }
}
