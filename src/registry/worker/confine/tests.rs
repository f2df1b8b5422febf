//! What each guard holds back, tried in a process of its own: with all of them, and with all but the one that holds it,
//! where the way leads further, and the test sees it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::RulesetStatus;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::*;

/// Tell the child its way, the guards that it does without, and its directory.
const WAY: &str = "CONFINE_TEST_WAY";
const WITHOUT: &str = "CONFINE_TEST_WITHOUT";
const BASE: &str = "CONFINE_TEST_BASE";

/// What the host has, and no worker may have.
const SECRET: &str = "of the host";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Guard {
    Limits,
    Root,
    Rights,
    Landlock,
    Filter,
}

/// What a process may have had in its hands before it was confined.
struct Before {
    /// A directory of the host with a secret.
    folder: PathBuf,
    opened: OwnedFd,
    parent: Pid,
}

/// A way to more than unpacking takes.
struct Way {
    name: &'static str,
    guard: Guard,
    /// It is tried without this one, either way.
    aside: Option<Guard>,
    attempt: fn(&Before) -> Result<String, Errno>,
    /// What comes of it.
    shut: &'static str,
    /// The same without the guard.
    open: &'static str,
}

const KILLED: &str = "killed by SIGSYS";

fn ways() -> Vec<Way> {
    let way = |name, guard, attempt, shut, open| Way { name, guard, aside: None, attempt, shut, open };
    vec![
        way("a socket", Guard::Filter, |_| made(socket_of(AddressFamily::Inet)), KILLED, "done"),
        way("a socket of this host", Guard::Filter, |_| made(socket_of(AddressFamily::Unix)), KILLED, "done"),
        // Nothing here is executable, by the mount and by Landlock.
        way(
            "a program of the layer",
            Guard::Filter,
            |_| nix::unistd::execv(c"/program", &[c"program"]).map(|_| String::new()),
            KILLED,
            "EACCES",
        ),
        way("another namespace", Guard::Filter, |_| made(unshare(CloneFlags::CLONE_NEWNS)), KILLED, "done"),
        // Landlock allows nobody to change mounts.
        way(
            "a mount without its flags",
            Guard::Filter,
            |_| {
                let (none, flags): (Option<&str>, _) = (None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND);
                made(mount(none, "/", none, flags, none))
            },
            KILLED,
            "EPERM",
        ),
        way(
            "a signal to the agent",
            Guard::Filter,
            |before| made(nix::sys::signal::kill(before.parent, None)),
            KILLED,
            "done",
        ),
        way(
            "a file of the host",
            Guard::Root,
            |before| read(&before.folder.join("secret")),
            "ENOENT",
            SECRET,
        ),
        way(
            "a descriptor of the host that was left open",
            Guard::Landlock,
            |before| {
                let file = openat(&before.opened, "secret", OFlag::O_RDONLY, Mode::empty())?;
                text(File::from(file))
            },
            "EACCES",
            SECRET,
        ),
        // One that the filter would hold back, too.
        Way {
            aside: Some(Guard::Filter),
            ..way("another root", Guard::Rights, |_| made(nix::unistd::chroot("/")), "EPERM", "done")
        },
        way(
            "more memory than unpacking takes",
            Guard::Limits,
            |_| made(Vec::<u8>::new().try_reserve_exact(MOST_MEMORY as usize + 1).map_err(|_| Errno::ENOMEM)),
            "ENOMEM",
            "done",
        ),
        way(
            "more files than unpacking takes",
            Guard::Limits,
            |before| {
                let opened = File::from(before.opened.try_clone().map_err(errno)?);
                let all: Result<Vec<_>, _> = (0..MOST_FILES).map(|_| opened.try_clone()).collect();
                made(all.map_err(errno))
            },
            "EMFILE",
            "done",
        ),
    ]
}

fn socket_of(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Stream, SockFlag::empty(), None)
}

fn made<T>(result: Result<T, Errno>) -> Result<String, Errno> {
    result.map(|_| "done".to_owned())
}

fn read(path: &Path) -> Result<String, Errno> {
    text(File::open(path).map_err(errno)?)
}

fn text(mut file: File) -> Result<String, Errno> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(errno)?;
    Ok(text)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[test]
fn each_way_is_shut_and_by_its_guard() {
    let mut wrong = Vec::new();
    for way in ways() {
        if way.guard == Guard::Landlock && !has_landlock() {
            continue;
        }
        let aside = Vec::from_iter(way.aside);
        let (shut, open) = (tried(&way, &aside), tried(&way, &[&aside[..], &[way.guard]].concat()));
        if (shut.as_str(), open.as_str()) != (way.shut, way.open) {
            wrong.push(format!("{}: {shut}, and {open} without {:?}", way.name, way.guard));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What a child says of a way, or how it ended.
fn tried(way: &Way, without: &[Guard]) -> String {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(base.path().join("tree")).unwrap();
    std::fs::create_dir_all(base.path().join("host")).unwrap();
    std::fs::write(base.path().join("host/secret"), SECRET).unwrap();
    std::fs::copy("/bin/true", base.path().join("tree/program")).unwrap();
    let output = Command::new("/proc/self/exe")
        .args(["--exact", "registry::worker::confine::tests::child", "--ignored", "--nocapture"])
        .env(WAY, way.name)
        .env(WITHOUT, format!("{without:?}"))
        .env(BASE, base.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    match (said.lines().find_map(|line| line.strip_prefix("said: ")), output.status.signal()) {
        (Some(said), None) => said.to_owned(),
        (None, Some(signal)) if signal == Signal::SIGSYS as i32 => KILLED.to_owned(),
        _ => panic!("{}: {output:?}", way.name),
    }
}

#[test]
#[ignore = "a child of the test above"]
fn child() {
    let (Ok(name), Ok(without)) = (std::env::var(WAY), std::env::var(WITHOUT)) else { return };
    let base = PathBuf::from(std::env::var_os(BASE).unwrap());
    let way = ways().into_iter().find(|way| way.name == name).unwrap();
    let before = Before {
        folder: base.join("host"),
        opened: File::open(base.join("host")).unwrap().into(),
        parent: nix::unistd::getppid(),
    };
    confined(&base.join("tree"), &without);
    let said = (way.attempt)(&before).unwrap_or_else(|error| format!("{error:?}"));
    println!("\nsaid: {said}");
    // What the others of this process do at their end, it may not do any more.
    std::process::exit(0);
}

/// As a worker is, or without some of the guards.
fn confined(tree: &Path, without: &str) {
    let has = |guard: Guard| !without.contains(&format!("{guard:?}"));
    let steps: [(Guard, &dyn Fn() -> io::Result<()>); 4] = [
        (Guard::Limits, &|| limit(1 << 30)),
        (Guard::Root, &|| new_root(tree)),
        (Guard::Rights, &give_up_rights),
        (Guard::Landlock, &landlock),
    ];
    if steps.iter().all(|(guard, _)| has(*guard)) {
        enter(tree, 1 << 30, 0).unwrap();
    } else {
        steps.iter().filter(|(guard, _)| has(*guard)).for_each(|(_, step)| step().unwrap());
    }
    if has(Guard::Filter) {
        seal().unwrap();
    }
}

/// Whether this kernel has it. In a thread of its own, which it holds from then on.
fn has_landlock() -> bool {
    let status = std::thread::spawn(|| {
        let rules = Ruleset::default().handle_access(AccessFs::ReadFile)?.create()?;
        rules.restrict_self()
    });
    status.join().unwrap().is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}
