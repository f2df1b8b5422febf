//! What the kernel says of a process that unpacks, while half of a layer is still to come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::shared::forge::{head, tar};

/// Of root's powers those that unpacking takes (capabilities(7)): chown, dac_override, fowner, fsetid, mknod, setfcap and
/// sys_admin.
const RIGHTS: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31 | 1 << 21;

/// Most bytes that the order allows.
const MOST: u64 = 5 << 30;

struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    base: tempfile::TempDir,
}

impl Worker {
    /// Started as the agent starts it, on a layer of one file, of which half is there.
    fn half_way() -> Self {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let order = json!({
            "tree": tree,
            "listing": base.path().join("listing"),
            "packing": "Plain",
            "product": "Tree",
            "most": MOST,
            "parent": std::process::id(),
            "nice": 7,
        });
        let mut process = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .args(["internal-unpack", &order.to_string()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = process.stdin.take().unwrap();
        input.write_all(&tar().file("first", b"x").head(head(b'0', "half").size(2 << 20)).0).unwrap();
        input.write_all(&vec![b'x'; 1 << 20]).unwrap();
        // It writes only once it is confined.
        let begun = Instant::now();
        while !tree.join("half").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, input: Some(input), base }
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.process.id().to_string()).join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.proc(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The rest of the layer; what it says at its end.
    fn end(mut self) -> Value {
        let mut input = self.input.take().unwrap();
        input.write_all(&vec![b'x'; 1 << 20]).unwrap();
        drop(input);
        let mut answer = String::new();
        std::io::Read::read_to_string(self.process.stdout.as_mut().unwrap(), &mut answer).unwrap();
        assert!(self.process.wait().unwrap().success());
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines of a status file (proc_pid_status(5)).
fn status(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn a_process_that_unpacks_has_nothing_but_its_layer() {
    // What this test was started with, somebody else has left open.
    let links = |of: PathBuf| fs::read_dir(of).unwrap().flatten().map(|entry| entry.path());
    let inherited: Vec<_> = links("/proc/self/fd".into()).flat_map(fs::read_link).collect();
    let worker = Worker::half_way();
    let mut wrong = Vec::new();
    let mut check = |what: String, is_right: bool| wrong.extend((!is_right).then_some(what));
    // Each of its threads.
    let threads: Vec<_> = fs::read_dir(worker.proc("task")).unwrap().flatten().collect();
    assert!(threads.len() >= 2, "one inflates, one writes");
    for thread in threads {
        let found = status(&fs::read_to_string(thread.path().join("status")).unwrap());
        for (name, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            check(format!("{name} {}", found[name]), found[name] == value);
        }
        for (set, rights) in [("CapEff", RIGHTS), ("CapPrm", RIGHTS), ("CapInh", 0), ("CapAmb", 0)] {
            let is = u64::from_str_radix(&found[set], 16).unwrap();
            check(format!("{set} {is:x}"), is == rights);
        }
    }
    let limits = worker.text("limits");
    for (name, most) in [
        ("Max core file size", 0),
        ("Max open files", 256),
        ("Max file size", MOST),
        ("Max address space", 512 << 20),
        ("Max cpu time", 1800),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let found: Vec<_> = line[name.len()..].split_whitespace().take(2).map(str::parse).collect();
        check(line.to_owned(), found == [Ok(most), Ok(most)]);
    }
    // It ends before any app does, and the agent not at all.
    let score = worker.text("oom_score_adj");
    check(format!("oom_score_adj {score}"), score == "500\n");
    let stat = worker.text("stat");
    let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(16);
    check(format!("nice {nice:?}"), nice == Some("7"));

    // A mount namespace of its own, in which the tree is all there is.
    let own = |of: &Path| fs::read_link(of.join("ns/mnt")).unwrap();
    check("the host's mount namespace".to_owned(), own(&worker.proc("")) != own(Path::new("/proc/self")));
    let mounts = worker.text("mountinfo");
    let fields: Vec<_> = mounts.split_whitespace().collect();
    let flags: BTreeSet<_> = fields[5].split(',').collect();
    let is_closed = ["nodev", "nosuid", "noexec"].iter().all(|flag| flags.contains(flag));
    check(format!("mounts:\n{mounts}"), mounts.lines().count() == 1 && fields[4] == "/" && is_closed);
    let tree = worker.base.path().join("tree");
    let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).unwrap();
    for link in ["root", "cwd"] {
        check(format!("its {link} is not the tree"), inode(&worker.proc(link)) == inode(&tree));
    }
    // What it has open: where it reads and answers, the listing, the tree and what is in it.
    let own = [tree.clone(), tree.join("first"), tree.join("half"), worker.base.path().join("listing")];
    for path in links(worker.proc("fd")) {
        let link = fs::read_link(&path).unwrap();
        let known = link.to_string_lossy().starts_with("pipe:")
            || own.iter().any(|known| inode(known) == inode(&path))
            || inherited.contains(&link);
        check(format!("{} is open", link.display()), known);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let answer = worker.end();
    assert!(answer["Done"]["diff_id"].is_string(), "{answer}");
}

#[test]
fn a_process_that_unpacks_for_nobody_reads_nothing() {
    let base = tempfile::tempdir().unwrap();
    let order = json!({
        "tree": base.path(), "listing": base.path().join("listing"), "packing": "Plain", "product": "Tree",
        "most": MOST, "parent": 1, "nice": 0,
    });
    let command = ["internal-unpack", &order.to_string()].map(str::to_owned);
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd")).args(command).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["Unconfined"], "the agent has ended", "{answer}");
}
