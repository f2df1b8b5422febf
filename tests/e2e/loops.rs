//! Many lives of containers leave nothing: what of an instance can be counted is counted before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

/// How long what is under way may take to end.
const LIMIT: Duration = Duration::from_secs(60);

/// Deploys first, so that everything is there that is made once.
const WARM: usize = 2;

/// How often the container of each round ends by itself.
const DEATHS: usize = 4;

/// Growth of the agent's resident memory that says nothing: allocators keep what they were given.
const SLACK: u64 = 2 << 20;

/// Connections to a registry are kept for a while, and closed when nobody has needed them: they may become fewer.
const KEPT: &str = "sockets of the agent: TCP";

#[test]
fn twenty_starts_and_stops_leave_nothing() {
    lives_leave_nothing(4);
}

#[test]
#[ignore = "two minutes: make test-all, or cargo nextest run --test e2e --run-ignored all two_hundred"]
fn two_hundred_starts_and_stops_leave_nothing() {
    lives_leave_nothing(40);
}

/// Each round is a deploy (a start, and a stop of the former one), and some deaths, each followed by a start.
fn lives_leave_nothing(rounds: usize) {
    let mut lab = Lab::new();
    // What is kept of history grows with it, and so does the work to add to it in git.
    lab.configure("[report]\npush = false");
    let image = lab.image("1", Kind::Good);
    let port = free_port();
    lab.start_agent();
    let round = |lab: &mut Lab, number: usize| {
        let file = web(&image, port, &format!("environment = {{ ROUND = \"{number}\" }}"))
            .replace("drain = \"3s\"", "drain = \"0s\"")
            .replace("bake = \"500ms\"", "bake = \"0s\"");
        lab.deploy("web", &file, &format!("round {number}"));
        if number == 0 {
            lab.wait_agent();
        }
        lab.sync();
        for _ in 0..DEATHS {
            lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
            wait_for("the restart", || (lab.service("web")["restarts"] == 1).then_some(()));
            wait_for("it to serve", || get(port, "/").ok());
            // Without a pause before the next start.
            lab.ok(&["resume", "web"]);
        }
    };
    (0..WARM).for_each(|number| round(&mut lab, number));
    let (mut before, resident) = settled(&lab);
    before.entry(KEPT.to_owned()).or_default();
    for number in WARM..WARM + rounds {
        round(&mut lab, number);
        if number % 10 == 0 {
            println!("round {number}: resident {}", resident_memory(&lab));
        }
    }
    let kept = before[KEPT];
    let count_again = || {
        let (mut after, resident) = count(&lab);
        let now = after.entry(KEPT.to_owned()).or_default();
        *now = kept.max(*now);
        (after, resident)
    };
    let (mut after, mut resident_after) = count_again();
    // What was under way at that moment ends.
    let begun = Instant::now();
    while after != before && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(50));
        (after, resident_after) = count_again();
    }
    assert_eq!(after, before, "after {rounds} rounds");
    assert!(
        resident_after <= resident + SLACK,
        "the agent has grown from {resident} to {resident_after} bytes in {rounds} rounds"
    );
    println!("{rounds} rounds: resident {resident} -> {resident_after}; {after:?}");
}

/// [`count`], once nothing has come or gone for a while: what was under way has ended.
fn settled(lab: &Lab) -> (BTreeMap<String, usize>, u64) {
    let (begun, mut last, mut same) = (Instant::now(), count(lab), 0);
    while same < 2 && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(200));
        let next = count(lab);
        same = if next.0 == last.0 { same + 1 } else { 0 };
        last = next;
    }
    last
}

/// What there is of the instance, by kind, and the resident memory of its agent.
fn count(lab: &Lab) -> (BTreeMap<String, usize>, u64) {
    let mut counts = BTreeMap::new();
    let mut add = |kind: &str, number: usize| *counts.entry(kind.to_owned()).or_insert(0) += number;
    for trace in lab.traces() {
        add(trace.split(' ').next().unwrap(), 1);
    }
    // Every process of the instance, in whatever namespace: their namespaces are its namespaces.
    let root = lab.path("").to_string_lossy().into_owned();
    let mut namespaces = std::collections::BTreeSet::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let cgroup = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if !cgroup.contains(&lab.instance) && !String::from_utf8_lossy(&line).contains(&root) {
            continue;
        }
        // One that has ended and that nobody has reaped yet has no command line.
        if cgroup.contains(&lab.instance) && !line.is_empty() {
            add("processes in its cgroups", 1);
        }
        for name in ["net", "mnt", "pid", "ipc", "uts", "cgroup"] {
            namespaces.extend(fs::read_link(process.path().join("ns").join(name)));
        }
    }
    add("namespaces", namespaces.len());
    let addresses = Command::new("ip").args(["-json", "address"]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&addresses.stdout).unwrap();
    let mut own = Vec::new();
    let mark = format!(":{}:", lab.instance);
    for link in links.as_array().unwrap() {
        let alias =
            fs::read_to_string(format!("/sys/class/net/{}/ifalias", link["ifname"].as_str().unwrap()));
        if link["ifalias"].as_str().is_some_and(|alias| alias.contains(&mark))
            || alias.is_ok_and(|alias| alias.contains(&mark))
        {
            own.push(link["ifname"].as_str().unwrap().to_owned());
            add("links", 1);
            add("addresses", link["addr_info"].as_array().unwrap().len());
        }
    }
    let routes = Command::new("ip").args(["route", "show", "table", "all"]).output().unwrap();
    let routes = String::from_utf8(routes.stdout).unwrap();
    for link in &own {
        add("routes", routes.lines().filter(|line| line.contains(&format!(" dev {link} "))).count());
    }
    let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
    for table in
        String::from_utf8(tables.stdout).unwrap().lines().filter(|line| line.ends_with(&lab.instance))
    {
        let list = Command::new("nft").arg("list").args(table.split(' ')).output().unwrap();
        let text = String::from_utf8(list.stdout).unwrap();
        add("lines of rules", text.lines().count());
        add("elements of rules", text.matches(" : ").count() + text.matches(',').count());
    }
    let agent = format!("/proc/{}", lab.agent_pid());
    for entry in fs::read_dir(format!("{agent}/fd")).unwrap().flatten() {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if link.to_string_lossy().starts_with("socket:") {
            add(&format!("sockets of the agent: {}", protocol(&entry.path())), 1);
        } else {
            add("descriptors of the agent", 1);
        }
    }
    add("files below run_dir", files(&lab.path("run")));
    for folder in ["state/containers", "state/services", "state/volumes"] {
        add(folder, files(&lab.path(folder)));
    }
    (counts, resident_memory(lab))
}

/// What an open socket speaks, as the kernel names it.
fn protocol(descriptor: &Path) -> String {
    let mut name = [0; 64];
    // One that was closed in this moment has none.
    let length = rustix::fs::getxattr(descriptor, "system.sockprotoname", &mut name[..]).unwrap_or_default();
    String::from_utf8_lossy(&name[..length]).trim_end_matches('\0').to_owned()
}

/// Of the agent, in bytes: its own. What it has mapped of files (packs of git, until they are put into one) is the
/// kernel's to take away.
fn resident_memory(lab: &Lab) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.agent_pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    resident << 10
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let below = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if below { files(&entry.path()) } else { 0 }
        })
        .sum()
}
