//! The same container under Docker and here, seen from inside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use gitopsd::engine::Engine as _;

use crate::containers::{EmptyNamespaces, Rig, disk};
use crate::docker::Docker;
use crate::facts::{Difference, Facts, PROBE, kind};
use crate::meant::{MEANT, Meant, on_v2};
use crate::scenarios::{Places, SCENARIOS, Scenario};

fn explained(meant: &Meant, key: &str, difference: &Difference) -> bool {
    let fits = |pattern: &str, text: &str| {
        pattern.split(" | ").any(|pattern| glob::Pattern::new(pattern).unwrap().matches(text))
    };
    meant.on.here()
        && (meant.key == "*" || meant.key.split(' ').any(|named| named == key))
        && fits(meant.fact, &difference.fact)
        && fits(meant.docker, &difference.first)
        && fits(meant.here, &difference.second)
}

#[test]
fn a_container_here_is_as_under_docker_from_inside() {
    let rig = Rig::new();
    fs::create_dir(rig.path("volume")).unwrap();
    let docker = Docker::start(&rig.path("docker"), &rig.path("layer"));
    let places = Places { dir: rig.dir.path().to_owned(), disk: disk() };
    let mut problems = Vec::new();
    let mut used = vec![false; MEANT.len()];
    let mut usual: Option<Facts> = None;
    let mut told = BTreeSet::new();
    let possible: Vec<_> = SCENARIOS.iter().filter(|scenario| !skipped(scenario.key)).collect();
    // Docker takes a second for each, most of which it waits; where all is slow, it does not wait.
    let at_once = if crate::containers::slow() > 1 { 2 } else { 4 };
    let next = AtomicUsize::new(0);
    let seen: Mutex<BTreeMap<usize, std::thread::Result<(Facts, Facts)>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = possible.get(number) else { return };
                    // One that fails leaves the others to be seen.
                    let both = catch_unwind(AssertUnwindSafe(|| {
                        (under_docker(&docker, scenario, &places), here(&rig, scenario, &places, number + 1))
                    }));
                    seen.lock().unwrap().insert(number, both);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    for (scenario, both) in possible.iter().zip(seen.into_values()) {
        let key = scenario.key;
        let Ok((there, here)) = both else {
            problems.push(format!("{key}: it does not run, as was told above"));
            continue;
        };
        assert!(there.len() > 150 && here.len() > 150, "{key}: {} facts and {}", there.len(), here.len());
        for difference in there.differences(&here) {
            let mut known = false;
            for (meant, used) in MEANT.iter().zip(&mut used) {
                let explained = explained(meant, key, &difference);
                *used |= explained;
                known |= explained;
            }
            // What differs in the first one differs in most.
            if !known && told.insert(format!("{difference:?}")) {
                let Difference { fact, first, second } = difference;
                problems.push(format!("{key}: {fact}\n    docker: {first}\n    here:   {second}"));
            }
        }
        match &usual {
            None => usual = Some(there),
            Some(usual) => {
                let changed = usual.differences(&there);
                let mut kinds: Vec<&str> = changed.iter().map(|difference| kind(&difference.fact)).collect();
                kinds.dedup();
                let v1_only =
                    |kind: &str| on_v2() && kind == "cgroup" && ["devices", "privileged"].contains(&key);
                let shows: Vec<&str> = scenario.shows.iter().copied().filter(|kind| !v1_only(kind)).collect();
                if kinds != shows {
                    problems.push(format!("{key}: under Docker it changes {kinds:?}: {changed:#?}"));
                }
            }
        }
    }
    // Which weight the kernel has depends on its schedulers.
    let may_be_absent =
        |meant: &Meant| skipped(meant.key) || !meant.on.here() || meant.fact.contains("weight");
    for (meant, _) in MEANT.iter().zip(&used).filter(|(meant, used)| !**used && !may_be_absent(meant)) {
        problems.push(format!("a difference that is meant is not there: {}: {}", meant.key, meant.fact));
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// A machine that may be a container itself has not every right to give away, and Docker's runtime does not ask which.
fn skipped(key: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ours = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let known = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse::<u32>().unwrap();
    key == "privileged" && u64::from_str_radix(ours, 16).unwrap() != (2 << known) - 1
}

fn under_docker(docker: &Docker, scenario: &Scenario, places: &Places) -> Facts {
    let mut options = vec!["--hostname=shop".to_owned()];
    options.extend(scenario.docker.iter().map(|option| {
        let option = option.replace("{dir}", &places.dir.to_string_lossy());
        option.replace("{disk}", &places.disk.to_string_lossy())
    }));
    Facts::read(&docker.run(&options, &["sh", "-c", PROBE]))
}

fn here(rig: &Rig, scenario: &Scenario, places: &Places, generation: usize) -> Facts {
    let mut request = rig.script(&format!("shop.{generation}"), PROBE);
    (scenario.here)(&mut request, places);
    loopback(rig, &request.id);
    let (_, log) = rig.run(&request);
    rig.engine.remove(&request.id).unwrap();
    Facts::read(&log.join("\n"))
}

/// As every network that containers get in earnest.
fn loopback(rig: &Rig, id: &gitopsd::types::InstanceId) {
    use gitopsd::engine::native::Network as _;
    let namespaces = Arc::new(EmptyNamespaces::new(&rig.path("net")));
    let path = namespaces.attach(id, std::net::Ipv4Addr::LOCALHOST).unwrap();
    let up = |path: &Path| {
        std::process::Command::new("nsenter")
            .arg(format!("--net={}", path.display()))
            .args(["ip", "link", "set", "lo", "up"])
            .status()
    };
    assert!(up(&path).unwrap().success(), "the loopback interface of {}", path.display());
}

#[test]
fn a_command_sees_what_the_container_sees() {
    let rig = Rig::new();
    let waiting = "echo up; exec sleep 1000";
    let mut request = rig.script("shop.1", waiting);
    request.spec.user = Some("app".into());
    request.spec.working_dir = Some("/tmp".into());
    request.spec.options.group_add = Some(vec!["44".into()]);
    rig.start(&request);
    let script = format!("exec > /tmp/facts; {PROBE}");
    let command = ["sh".to_owned(), "-c".to_owned(), script];
    rig.engine.exec(&request.id, &command, std::time::Duration::from_secs(60)).unwrap();
    let command = ["cat", "/tmp/facts"].map(str::to_owned);
    // The output of a command is cut; the file is read where the writable layer has it.
    assert!(rig.engine.exec(&request.id, &command, std::time::Duration::from_secs(60)).is_ok());
    let text = fs::read_to_string(rig.path("state/containers/shop.1/upper/tmp/facts")).unwrap();
    let command = Facts::read(&text);
    rig.engine.remove(&request.id).unwrap();
    request.id = "shop.2".parse().unwrap();
    request.spec.command = Some(vec!["sh".into(), "-c".into(), PROBE.into()]);
    let (_, log) = rig.run(&request);
    let first = Facts::read(&log.join("\n"));
    // It is another process, and another parent's.
    let own = ["process pid", "process first", "process parent"];
    let differences: Vec<_> = first
        .differences(&command)
        .into_iter()
        .filter(|difference| !own.contains(&difference.fact.as_str()))
        .collect();
    assert_eq!(differences, []);
}
