//! Scripts in `scenarios/*.txt`, and the golden `.out` beside each: what the core said and the host did, as time went on.
//!
//! One command a line, `#` begins a comment:
//!
//! ```text
//! commit WORDS…        a new commit. Each word changes what the repo declares, the rest stays:
//!                        web=img:1      service `web` runs img:1; settings follow after commas, as
//!                                       web=img:1,bake=5s,drain=2s,signal=early,timeout=30s,volume=data,after=db,joins=db,pre,check=none,ports=none,env=X,grace=3s,port=81,restart=no,
//!                                       bind=/srv (written to),green (side by side all the same),mem=64m,label=X
//!                                       healthy=db,completed=db,optional=db (as after=db, with a condition), post,
//!                                       canary=10%:60s, replicas=3, parallelism=1, irreversible, window=09:00-17:00, schedule=*:0/5, limit=30s, forgets
//!                        web=broken     its file cannot be read
//!                        -web           its file is gone
//!                        empty          all files are gone
//!                        now            its message says that windows do not count
//!                        meant:web      `removed` names it
//!                        (nothing)      an unrelated change
//! image TAG WORDS…     how an image behaves: missing, exists, corrupt, intact, nostart, pre-fails, pre-works, job=3s, retag,
//!                        pull=3s, healthy=1s, healthy=never, sick=20s, exits=2s, ends=2s (with code 0), lingers=8s, uses=100m, stubborn (its limits cannot be changed), well
//! memory 300m|unknown  what the host has left
//! registry up|down     traffic works|fails     ports free|taken|listened     agent down|up
//! run 10s              goes on for so long
//! run until settled    goes on until nothing is under way, at most an hour
//! run until PHASE web  goes on until the candidate is in that phase, at most an hour
//! kill agent           SIGKILL, and at once a new one       reboot     power cut
//! crash after N        the agent is killed N points of a step later
//! reboot after N       the same for the power
//! hold web [2h]        resume web        rollback web       what an operator says
//! kill web [2]         somebody kills its (second) container         lose-route web     lose-images     debris web.9
//! freeze web           its record cannot be read            thaw web
//! clock +1h            the clock jumps, also -1h
//! max-removals N       the host's policy
//! expect web IMAGE     it runs that, has traffic, and nothing is under way
//! expect serving web IMAGE   the same, whatever is under way
//! expect web none      it is not on this host
//! expect lanes web 3   so many containers get its new connections
//! expect containers web 3   so many of it run
//! expect receipts N    so many are written
//! expect in-sync       every service is settled             expect held web REASON
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use gitopsd::reconcile::later;
use gitopsd::reconcile::step::Next;
use gitopsd::types::{
    ByteSize, Canary, Condition, ContainerState, Declared, Dependency, DrainSignal, HealthCheck, InstanceId,
    NetworkMode, PortMapping, Probe, Protocol, Schedule, ServiceName, Strategy, VolumeMount, VolumeSource,
    parse_duration,
};

use super::model::{Crash, Host};

const HOUR: Duration = Duration::from_secs(3600);

/// `img:1` as an image reference.
fn reference(tag: &str) -> String {
    format!("registry.local/{tag}")
}

/// What `IMAGE,SETTING…` declares.
pub fn declared(text: &str) -> Declared {
    let mut words = text.split(',');
    let image = reference(words.next().unwrap());
    let mut spec = Declared::new(image.parse().unwrap());
    spec.ports.push(PortMapping {
        host_ip: [0, 0, 0, 0].into(),
        host_port: 80,
        container_port: 8080,
        protocol: Protocol::Tcp,
    });
    spec.healthcheck = Some(HealthCheck::new(Probe::http("/healthz", 8080)));
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let time = || parse_duration(value).unwrap();
        match key {
            "bake" => spec.deploy.bake = time(),
            "drain" => spec.deploy.drain = time(),
            "signal" => {
                let early = value == "early";
                spec.deploy.drain_signal = if early { DrainSignal::Early } else { DrainSignal::Late };
            }
            "timeout" => spec.deploy.timeout = time(),
            "grace" => spec.stop_grace_period = time(),
            "volume" => {
                let source = VolumeSource::Named(value.to_owned());
                spec.volumes.push(VolumeMount::new(source, "/data", false));
            }
            "bind" => {
                let source = VolumeSource::Bind(value.into());
                spec.volumes.push(VolumeMount::new(source, "/shared", false));
            }
            "green" => spec.deploy.strategy = Some(Strategy::BlueGreen),
            "mem" => spec.mem_limit = Some(value.parse().unwrap()),
            "label" => {
                spec.options.labels = Some([("l".to_owned(), value.to_owned())].into_iter().collect());
            }
            "after" => spec.depends_on.push(Dependency::started(value.parse().unwrap())),
            "healthy" | "completed" | "optional" => {
                let condition = match key {
                    "healthy" => Condition::ServiceHealthy,
                    "completed" => Condition::ServiceCompletedSuccessfully,
                    _ => Condition::ServiceStarted,
                };
                let (service, required) = (value.parse().unwrap(), key != "optional");
                spec.depends_on.push(Dependency { service, condition, required });
            }
            "schedule" => {
                let (calendar, persistent) = (value.parse().unwrap(), true);
                spec.schedule = Some(Schedule { calendar, persistent, timeout: None });
                spec.ports.clear();
                spec.healthcheck = None;
            }
            "limit" => spec.schedule.as_mut().unwrap().timeout = Some(time()),
            "forgets" => spec.schedule.as_mut().unwrap().persistent = false,
            "window" => spec.deploy.window.push(value.parse().unwrap()),
            "canary" => {
                let (share, time) = value.split_once(':').unwrap();
                let time = parse_duration(time).unwrap();
                spec.deploy.canary = Some(Canary { time, ..Canary::new(share.parse().unwrap()) });
            }
            "replicas" => spec.deploy.replicas = value.parse().unwrap(),
            "parallelism" => spec.deploy.parallelism = Some(value.parse().unwrap()),
            "joins" => {
                spec.options.network_mode = Some(NetworkMode::Service(value.parse().unwrap()));
                spec.ports.clear();
            }
            "steady" => spec.deploy.min_healthy_time = time(),
            "passes" => {
                spec.healthcheck.as_mut().unwrap().success_threshold = value.parse().unwrap();
            }
            "pre" => spec.deploy.pre = vec!["migrate".to_owned()],
            "post" => spec.deploy.post = vec!["warm-up".to_owned()],
            "irreversible" => spec.deploy.reversible = false,
            "env" => {
                spec.environment.insert("X".to_owned(), value.to_owned());
            }
            "restart" => spec.restart = value.parse().unwrap(),
            "check" if value == "none" => spec.healthcheck = None,
            "ports" if value == "none" => spec.ports.clear(),
            "port" => spec.ports[0].host_port = value.parse().unwrap(),
            _ => panic!("no such setting: {word}"),
        }
    }
    spec
}

/// The same for a service whose port is its own, unless one is named: no two may publish one.
pub fn declared_for(service: &str, text: &str) -> Declared {
    let mut spec = declared(text);
    if service != "web" && !text.contains(",port=") {
        let own = 1000 + service.bytes().map(u16::from).sum::<u16>();
        spec.ports.iter_mut().for_each(|port| port.host_port = own);
    }
    spec
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn commit(host: &mut Host, words: &[&str]) {
    host.repo.now = false;
    for word in words {
        if *word == "empty" {
            host.repo.declared.clear();
        } else if *word == "now" {
            host.repo.now = true;
        } else if let Some(meant) = word.strip_prefix("meant:") {
            host.repo.declared.remove(&name(meant));
            host.repo.removed.insert(name(meant));
        } else if let Some(gone) = word.strip_prefix('-') {
            host.repo.declared.remove(&name(gone));
        } else {
            let (service, text) = word.split_once('=').unwrap();
            let what = match text {
                "broken" => Err(format!("services/{service}.toml:3:1: expected a value")),
                text => Ok(declared_for(service, text)),
            };
            host.repo.declared.insert(name(service), what);
        }
    }
    host.commit();
}

/// Changes how an image behaves.
pub fn image(host: &mut Host, tag: &str, words: &[&str]) {
    let behaviour = host.behaviour(&reference(tag));
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let time = || parse_duration(value).unwrap();
        match key {
            "missing" => behaviour.exists = false,
            "exists" => behaviour.exists = true,
            "corrupt" => behaviour.intact = false,
            "intact" => behaviour.intact = true,
            "nostart" => behaviour.starts = false,
            "pre-fails" => behaviour.pre_succeeds = false,
            "pre-works" => behaviour.pre_succeeds = true,
            "job" => behaviour.job = time(),
            "retag" => behaviour.version += 1,
            "pull" => behaviour.pull = time(),
            "healthy" if value == "never" => behaviour.healthy_after = None,
            "healthy" => behaviour.healthy_after = Some(time()),
            "sick" => behaviour.sick_after = Some(time()),
            "exits" => (behaviour.exits_after, behaviour.exits_well) = (Some(time()), false),
            "ends" => (behaviour.exits_after, behaviour.exits_well) = (Some(time()), true),
            "stubborn" => behaviour.takes_limits = false,
            "uses" => behaviour.uses = Some(value.parse::<ByteSize>().unwrap().0),
            "lingers" => behaviour.lingers = time(),
            "refuses" => behaviour.refuses_after = Some(time()),
            "oom" => behaviour.oom_after = Some(time()),
            "checks-itself" => behaviour.checks_itself = true,
            "well" => {
                (behaviour.sick_after, behaviour.exits_after) = (None, None);
                (behaviour.refuses_after, behaviour.oom_after) = (None, None);
            }
            _ => panic!("no such behaviour: {word}"),
        }
    }
}

fn expect(host: &Host, words: &[&str]) -> Result<(), String> {
    let plan = host.plan();
    let holds = match words {
        ["in-sync"] => plan.in_sync(),
        ["receipts", n] => host.receipts.len().to_string() == *n,
        ["lanes", service, count] => {
            let lanes = host.routes.get(&name(service)).map_or(0, |route| route.lanes().count());
            lanes.to_string() == *count
        }
        ["containers", service, count] => {
            let own = |id: &InstanceId| id.service == name(service) && id.job.is_none();
            let up = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
            let running = host.containers.iter().filter(|(id, it)| own(id) && up(&it.state));
            running.count().to_string() == *count
        }
        ["held", service, reason] => match &plan.services[&name(service)].next {
            Next::Held { refusal, .. } => refusal.reason.code() == *reason,
            _ => false,
        },
        [service, "none"] => {
            let service = name(service);
            host.incumbent(&service).is_none()
                && !host.routes.contains_key(&service)
                && !host.containers.keys().any(|id| id.service == service)
        }
        ["serving", service, tag] | [service, tag] => {
            let service = name(service);
            let record = host.records.get(&service).ok_or("it has no record")?;
            let incumbent = record.incumbent.as_ref().ok_or("it has no incumbent")?;
            let id = InstanceId::new(&service, incumbent.generation);
            let runs = matches!(
                host.containers.get(&id).map(|container| &container.state),
                Some(ContainerState::Running { .. })
            );
            let routed = host.routes.get(&service).is_some_and(|route| route.generation == id.generation);
            let idle = record.rollout.is_none() && record.retiring.is_none();
            let right = incumbent.spec.image.reference.to_string() == reference(tag);
            runs && routed && (idle || words[0] == "serving") && right
        }
        _ => return Err("no such expectation".to_owned()),
    };
    if holds { Ok(()) } else { Err(format!("not so; the plan is\n{plan}")) }
}

fn obey(host: &mut Host, line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["commit", rest @ ..] => commit(host, rest),
        ["image", tag, rest @ ..] => image(host, tag, rest),
        ["registry", word] => host.registry_up = *word == "up",
        ["memory", word] => host.memory = word.parse::<ByteSize>().ok().map(|size| size.0),
        ["traffic", word] => host.traffic_works = *word == "works",
        ["ports", word] => {
            (host.ports_taken, host.ports_listened) = (*word == "taken", *word == "listened");
        }
        ["agent", "down"] => {
            host.crash(Crash::Kill);
            host.agent_up = false;
        }
        ["agent", "up"] => host.agent_starts(),
        ["run", "until", "settled"] => {
            if !host.run_to_rest(HOUR) {
                return Err("it did not settle within an hour".to_owned());
            }
        }
        ["run", "until", phase, service] => {
            let service = name(service);
            let there = |host: &Host| {
                let rollout = host.records.get(&service).and_then(|record| record.rollout.as_ref());
                rollout.is_some_and(|rollout| rollout.phase.word() == *phase)
            };
            let mut left = 360_000;
            while !there(host) {
                if left == 0 {
                    return Err("it did not come to that within an hour".to_owned());
                }
                left -= 1;
                host.run(Duration::from_millis(10));
            }
        }
        ["run", time] => host.run(parse_duration(time).map_err(|error| error.to_string())?),
        ["kill", "agent"] => host.crash(Crash::Kill),
        ["reboot"] => host.crash(Crash::Reboot),
        ["crash", "after", points] => host.crash_in = Some((points.parse().unwrap(), Crash::Kill)),
        ["reboot", "after", points] => host.crash_in = Some((points.parse().unwrap(), Crash::Reboot)),
        ["hold", service] => host.hold(&name(service), None),
        ["hold", service, time] => host.hold(&name(service), Some(parse_duration(time).unwrap())),
        ["resume", service] => host.resume(&name(service)),
        ["rollback", service] => {
            if let Err(refusal) = host.rollback(&name(service)) {
                host.say(&name(service), &format!("rollback is refused: {refusal}"));
            }
        }
        ["kill", service] => host.kill_container(&name(service)),
        ["kill", service, index] => host.kill_replica(&name(service), index.parse().unwrap()),
        ["lose-route", service] => host.lose_route(&name(service)),
        ["lose-images"] => host.lose_images(),
        ["debris", id] => {
            let id: InstanceId = id.parse().unwrap();
            host.debris(&id.service, id.generation.0);
        }
        ["freeze", service] => {
            host.frozen.insert(name(service));
        }
        ["thaw", service] => {
            host.frozen.remove(&name(service));
        }
        ["clock", step] => {
            let by = parse_duration(&step[1..]).map_err(|error| error.to_string())?;
            let back = step.starts_with('-');
            host.set_clock(if back { host.now.checked_sub(by).unwrap() } else { later(host.now, by) });
        }
        ["max-removals", n] => host.policy.max_removals = Some(n.parse().unwrap()),
        ["expect", rest @ ..] => return expect(host, rest),
        _ => return Err("no such command".to_owned()),
    }
    Ok(())
}

/// Plays a script; its story, or why it went wrong.
fn play(script: &str) -> Result<String, String> {
    let mut host = Host::new();
    let mut story = String::new();
    for (number, line) in script.lines().enumerate() {
        let command = line.split('#').next().unwrap_or_default().trim();
        if command.is_empty() {
            continue;
        }
        let seen = host.log.len();
        let answer = obey(&mut host, command);
        writeln!(story, "> {command}").unwrap();
        for line in &host.log[seen..] {
            writeln!(story, "{line}").unwrap();
        }
        answer.map_err(|why| format!("line {}: {command}: {why}\n{story}", number + 1))?;
    }
    for name in host.records.keys() {
        host.audit_receipts_of(name);
    }
    Ok(story)
}

#[test]
fn the_scenarios_go_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan/scenarios");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 15, "only {} scenarios were found", scripts.len());
    let mut wrong = Vec::new();
    for path in scripts {
        let script = std::fs::read_to_string(&path).unwrap();
        let shown = path.file_name().unwrap().to_string_lossy().into_owned();
        let story = std::panic::catch_unwind(|| play(&script))
            .unwrap_or_else(|cause| Err(cause.downcast_ref::<String>().cloned().unwrap_or_default()));
        let story = match story {
            Ok(story) => story,
            Err(why) => {
                wrong.push(format!("{shown}: {why}"));
                continue;
            }
        };
        let golden = path.with_extension("out");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &story).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != story {
            wrong.push(format!("{shown}: the story is another one than in {}:\n{story}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_wrong_expectation_fails() {
    assert!(play("commit web=img:1\nrun until settled\nexpect web img:1").is_ok());
    assert!(play("commit web=img:1\nrun until settled\nexpect web img:2").is_err());
    assert!(play("commit web=img:1\nexpect in-sync").is_err());
    assert!(play("nonsense").is_err());
}
