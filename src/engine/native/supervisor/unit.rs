//! A shim as a unit of systemd: what the unit is, and having it started.
//!
//! Source: systemd.service(5), systemd.exec(5), systemd.resource-control(5), and "The New Control Group Interfaces" for
//! units that come by a call. Every property is known to systemd 243 and later.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::super::launch::{Launch, Tried};
use super::super::limits::Device;
use super::super::shim;
use super::Order;
use super::bus::{Bus, CallError};
use super::names::{Tree, service_of};
use super::wire::{Value, Writer};

/// Memory that the shim itself may take beside its container: some 2 MiB, and the cache of the log that it writes.
const SHIM_MEMORY: u64 = 64 << 20;
/// Processes beside the container's: the shim, and helpers that run commands in the container.
const SHIM_TASKS: u64 = 64;
/// Longer than the agent waits for a shim's report: the agent is the one who gives up.
const START: Duration = Duration::from_secs(180);
/// What a shim takes after its container has had its grace period.
const ENDING: Duration = Duration::from_secs(30);
/// The name is taken.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// The most that systemd can allow (fs.nr_open); it takes less where the kernel does.
const FILES: u64 = 1 << 20;

/// A container's unit, as its shim and a later agent have to know it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in super::super) struct Unit {
    /// Its name, as `systemctl` takes it.
    pub name: String,
    /// Its control group below each hierarchy's mount.
    pub group: std::path::PathBuf,
}

/// Why no unit was started.
#[derive(Debug, thiserror::Error)]
#[error("unit {unit}")]
pub(in super::super) struct UnitError {
    unit: String,
    #[source]
    cause: CallError,
}

/// All that a unit is made of.
pub(super) struct Plan<'a> {
    /// How units are called.
    pub tree: &'a Tree,
    /// How this one is.
    pub name: &'a str,
    /// What it runs.
    pub order: &'a Order<'a>,
    /// All that it may use beside the standard ones; `None` = any.
    pub devices: Option<&'a [Device]>,
}

/// Has systemd start the shim; gives back the pipe on which it reports. `lock` and `log` become the shim's standard
/// input and error.
///
/// # Errors
/// `AlreadyExists`: another name has to be tried. With any other error nothing more is known.
pub(super) fn start(bus: &mut Bus, plan: &Plan<'_>, lock: &File, log: &File) -> io::Result<OwnedFd> {
    let (report, writer) = io::pipe()?;
    let descriptors = [lock.as_fd(), writer.as_fd(), log.as_fd()];
    let properties = properties(plan, agent_unit().as_deref());
    let mut body = Writer::default();
    body.text(plan.name);
    body.text("fail");
    body.array(8, &properties, |w, (name, value)| w.property(name, value));
    // No further units.
    body.array(8, [(); 0], |_, ()| {});
    let asked = bus.ask_systemd("StartTransientUnit", "ssa(sv)a(sa(sv))", body, &descriptors);
    asked.map(|()| report.into()).map_err(|cause| {
        let kind = match &cause {
            CallError::Refused { name, .. } if name == UNIT_EXISTS => io::ErrorKind::AlreadyExists,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, UnitError { unit: plan.name.to_owned(), cause })
    })
}

/// The unit that this process belongs to, which is to be stopped before its containers are.
fn agent_unit() -> Option<String> {
    service_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The unit's own limits, around those of its container: no limit is the largest number.
fn limits(of: &Tried) -> [(&'static str, u64); 3] {
    [
        ("TasksMax", of.pids.map_or(u64::MAX, |pids| u64::from(pids) + SHIM_TASKS)),
        ("MemoryMax", of.memory.map_or(u64::MAX, |limit| limit.saturating_add(SHIM_MEMORY))),
        // Microseconds of processor a second.
        ("CPUQuotaPerSecUSec", of.milli_cpus.map_or(u64::MAX, |milli| u64::from(milli) * 1000)),
    ]
}

/// The limits of a unit that have to be set for a change. Where an earlier one was cut short, the unit may have those of
/// before or those: then all of them are given room first, and none is left narrower than it is to be.
fn changes(before: &Launch, after: &Launch, turn: Turn) -> Vec<(&'static str, u64)> {
    let former: Vec<_> = before
        .tried
        .iter()
        .chain([&Tried::from(before)])
        .filter(|it| **it != Tried::from(after))
        .map(limits)
        .collect();
    let wanted = limits(&Tried::from(after)).into_iter().enumerate();
    let changed = wanted.filter_map(|(place, (name, to))| {
        let now = || former.iter().filter_map(|limits| limits.get(place)).map(|(_, limit)| *limit);
        let widest = now().fold(to, u64::max);
        match turn {
            Turn::Wider => now().any(|limit| limit < widest).then_some((name, widest)),
            Turn::Narrower => (widest > to).then_some((name, to)),
        }
    });
    changed.collect()
}

/// Which way limits of a unit are changed: around a container's own, wider ones come before those, and narrower ones after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Turn {
    /// Those that become wider.
    Wider,
    /// Those that become narrower.
    Narrower,
}

/// Changes the limits of the unit of a running container. They hold until the unit is gone, over a reload and a
/// re-execution of systemd.
pub(super) fn limit(
    bus: &mut Bus,
    unit: &Unit,
    before: &Launch,
    after: &Launch,
    turn: Turn,
) -> io::Result<()> {
    let changed = changes(before, after, turn);
    let changed: Vec<_> = changed.into_iter().map(|(name, limit)| (name, Value::Number(limit))).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let mut body = Writer::default();
    body.text(&unit.name);
    // At runtime only: the unit is transient.
    body.boolean(true);
    body.array(8, &changed, |w, (name, value)| w.property(name, value));
    let failed = |cause| io::Error::other(UnitError { unit: unit.name.clone(), cause });
    bus.ask_systemd("SetUnitProperties", "sba(sv)", body, &[]).map_err(failed)
}

fn properties(plan: &Plan<'_>, agent: Option<&str>) -> Vec<(&'static str, Value)> {
    let Order { program, run, mode, launch, .. } = plan.order;
    let text = |text: &str| Value::Text(text.to_owned());
    let microseconds = |time: Duration| Value::Number(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    let command =
        [&program.to_string_lossy(), shim::COMMAND, &run.dir.to_string_lossy(), mode, shim::AS_UNIT];
    let mut properties = vec![
        (
            "Description",
            Value::Text(format!("{} of {}: {}", launch.id, launch.layout.instance, launch.image)),
        ),
        ("ExecStart", Value::Command(command.map(str::to_owned).into())),
        ("Slice", Value::Text(plan.tree.slice())),
        ("Type", text("notify")),
        ("NotifyAccess", text("main")),
        ("StandardInputFileDescriptor", Value::Descriptor(0)),
        ("StandardOutputFileDescriptor", Value::Descriptor(1)),
        ("StandardErrorFileDescriptor", Value::Descriptor(2)),
        // Only the shim is told to stop; it gives the container its signal and its time. One that dies leaves its
        // container running, and is replaced by the agent.
        ("KillMode", text("process")),
        ("Restart", text("no")),
        ("TimeoutStartUSec", microseconds(START)),
        ("TimeoutStopUSec", microseconds(launch.grace.saturating_add(ENDING))),
        // One process of a container that is killed for memory is the container's affair, not the end of its unit.
        ("OOMPolicy", text("continue")),
        ("CollectMode", text("inactive-or-failed")),
        ("Delegate", Value::Bool(true)),
        ("LimitNOFILE", Value::Number(FILES)),
        ("SyslogIdentifier", text(launch.id.service.as_str())),
        ("LogExtraFields", Value::Blobs(log_fields(launch))),
    ];
    let limits = limits(&Tried::from(*launch))
        .into_iter()
        .filter(|(name, limit)| *limit != u64::MAX || *name == "TasksMax");
    properties.extend(limits.map(|(name, limit)| (name, Value::Number(limit))));
    if let Some(devices) = plan.devices {
        properties.push(("DevicePolicy", text("closed")));
        properties.push(("DeviceAllow", Value::Pairs(devices.iter().map(device).collect())));
    }
    // Going down: first the agent, which would start again what ends. Nothing waits for a network: see gitopsd.service.
    let after = ["local-fs.target", "network-pre.target", "nftables.service"].map(str::to_owned);
    properties.push(("After", Value::Texts(after.into())));
    properties.extend(agent.map(|unit| ("Before", Value::Texts(vec![unit.to_owned()]))));
    properties
}

/// What each line carries that the unit writes, beside what the shim sends with the container's own lines.
fn log_fields(launch: &Launch) -> Vec<Vec<u8>> {
    let generation = launch.id.generation.to_string();
    let index = launch.id.index;
    let replica = if index.is_first() { String::new() } else { index.to_string() };
    let fields = [
        ("SERVICE", launch.id.service.as_str()),
        ("GENERATION", &generation),
        ("REPLICA", &replica),
        ("IMAGE", &launch.image),
        ("DIGEST", &launch.digest),
        ("COMMIT", &launch.commit),
    ];
    let known = fields.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(name, value)| format!("GITOPSD_{name}={value}").into_bytes()).collect()
}

/// By number: the name of a device file may lead to another device tomorrow. Making the file is the runtime's part, so
/// that it takes `m` whatever the container may do.
fn device(device: &Device) -> (String, String) {
    let kind = if device.kind == 'b' { "block" } else { "char" };
    let mut access = device.access.clone();
    if !access.contains('m') {
        access.push('m');
    }
    (format!("/dev/{kind}/{}:{}", device.major, device.minor), access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_goes_by_its_number_and_can_be_made() {
        let null = super::super::super::limits::device("/dev/null".as_ref(), "/dev/x".as_ref(), "r").unwrap();
        assert_eq!(device(&null), ("/dev/char/1:3".into(), "rm".into()));
        let all = Device { access: "rwm".into(), kind: 'b', ..null };
        assert_eq!(device(&all), ("/dev/block/1:3".into(), "rwm".into()));
    }

    /// A container's limits of memory in MiB: what it was given last, what was tried since, what it is to have.
    fn turns(before: u64, tried: &[u64], to: u64) -> [Vec<u64>; 2] {
        let old = r#"{"format":1,"id":"shop.7","layout":{"state_dir":"/s","run_dir":"/r","instance":"gitopsd"},
            "address":"10.98.0.2","netns":"/n","layers":["/l"],"args":["serve"],"env":[],"user":"","cwd":"/",
            "stop_signal":15,"volumes":[],"memory":null,"milli_cpus":null,"pids":null,"image":"i","commit":"c"}"#;
        let launch: Launch = serde_json::from_str(old).unwrap();
        let with = |size: u64| Launch { memory: Some(size << 20), ..launch.clone() };
        let tried = tried.iter().chain([&to]).map(|size| Tried::from(&with(*size))).collect();
        let before = Launch { tried, ..with(before) };
        [Turn::Wider, Turn::Narrower].map(|turn| {
            let changed = changes(&before, &with(to), turn);
            changed.into_iter().map(|(_, limit)| limit.saturating_sub(SHIM_MEMORY) >> 20).collect()
        })
    }

    #[test]
    fn a_change_that_was_cut_short_leaves_no_limit_narrower() {
        let none: &[u64] = &[];
        let is = |before, tried: &[u64], to, wider: &[u64], narrower: &[u64]| {
            assert_eq!(turns(before, tried, to), [wider, narrower], "{before} {tried:?} {to}");
        };
        is(512, none, 512, none, none);
        is(512, none, 1024, &[1024], none);
        is(512, none, 256, none, &[256]);
        // It may have been given what was tried, and may not.
        is(512, &[256], 512, &[512], none);
        is(512, &[1024], 512, none, &[512]);
        is(512, &[256], 384, &[512], &[384]);
        is(512, &[1024], 256, &[1024], &[256]);
        is(512, &[256, 1024], 2048, &[2048], none);
    }
}
