//! The keys of a service that set its container apart from the default one, in Compose's short syntax.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use toml::de::DeValue;

use super::blkio;
use super::memory;
use super::network;
use super::port::absolute;
use super::section::{Section, Value};
use crate::types::{
    ByteSize, CAPABILITIES, DeviceMapping, Invalid, LogLimits, NetworkMode, Options, Protocol, Tmpfs,
};

/// Reads them. The order of reading is that of `docs/config.md`.
pub(super) fn read(section: &Section<'_, '_>) -> Options {
    let cap = |text: &str| capability(text);
    let flag = |key| section.boolean(key);
    let (unconfined, without_apparmor) = security(section);
    let mut options = Options {
        group_add: each(section, "group_add", plain),
        hostname: one(section, "hostname", host_name),
        domainname: one(section, "domainname", host_name),
        extra_hosts: extra_hosts(section),
        dns: each(section, "dns", address),
        dns_search: each(section, "dns_search", plain),
        dns_opt: each(section, "dns_opt", plain),
        cap_add: each(section, "cap_add", cap),
        cap_drop: each(section, "cap_drop", cap),
        unconfined,
        without_apparmor,
        privileged: flag("privileged"),
        devices: each(section, "devices", device),
        sysctls: map(section, "sysctls", sysctl),
        ulimits: ulimits(section),
        shm_size: size(section, "shm_size"),
        tmpfs: each(section, "tmpfs", tmpfs),
        read_only: flag("read_only"),
        init: flag("init"),
        stop_signal: one(section, "stop_signal", plain),
        memswap_limit: memory::swap(section),
        mem_reservation: size(section, "mem_reservation"),
        cpuset: one(section, "cpuset", cpuset),
        // Source: cgroup-v1/cpu: 2 is the least, 262144 the most.
        cpu_shares: section.integer("cpu_shares", 2..=262_144).and_then(|n| u64::try_from(n).ok()),
        oom_score_adj: section.integer("oom_score_adj", -1000..=1000).and_then(|n| i32::try_from(n).ok()),
        blkio: section.table("blkio_config").map(|table| blkio::read(&table)),
        labels: map(section, "labels", |_, _| Ok(())),
        logging: section.table("logging").map(|table| logging(&table)),
        host_pid: mode(section, "pid", &[("host", true)]),
        host_ipc: mode(section, "ipc", &[("host", true), ("private", false)]),
        network_mode: network::mode(section),
        networks: network::networks(section),
        user_namespace: mode(section, "userns_mode", &[("auto", true), ("host", false)]),
        expose: expose(section),
    };
    if let Some(message) = foreign_to_its_users(&options) {
        section.findings.error(section.key_span("userns_mode"), message, None);
        options.user_namespace = None;
    }
    options
}

/// What does not go with a user namespace: that has power over the namespaces that are made with it, and over no others.
pub(super) fn foreign_to_its_users(options: &Options) -> Option<String> {
    let shared = [
        ("pid", options.host_pid == Some(true)),
        ("ipc", options.host_ipc == Some(true)),
        ("network_mode", options.network_mode.as_ref().is_some_and(NetworkMode::is_shared)),
        ("privileged", options.privileged == Some(true)),
    ];
    let (key, _) = shared.iter().find(|(_, asked)| *asked && options.user_namespace == Some(true))?;
    Some(format!("`userns_mode`: \"auto\" does not go with the `{key}` of this service"))
}

/// Keys that say what is so in any case; any other value is refused by name.
pub(super) fn fixed(section: &Section<'_, '_>) {
    mode(section, "cgroup", &[("private", true)]);
}

fn bad<T>(text: &str, why: &str) -> Result<T, Invalid> {
    Err(Invalid::new(format!("`{text}` {why}")))
}

fn fail(section: &Section<'_, '_>, key: &str, value: Value<'_, '_>, error: &dyn std::fmt::Display) {
    section.findings.error(value.span(), format!("`{key}`: {error}"), None);
}

/// A string, or several; numbers stand for their text.
fn each<T>(
    section: &Section<'_, '_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Option<Vec<T>> {
    let value = section.get(key)?;
    let items: Vec<Value<'_, '_>> = match value.get_ref().as_array() {
        Some(array) => array.iter().collect(),
        None => vec![value],
    };
    let mut found = Vec::new();
    for item in items {
        match text_of(item) {
            Some(text) => match parse(&text) {
                Ok(parsed) => found.push(parsed),
                Err(error) => fail(section, key, item, &error),
            },
            None => fail(section, key, item, &"takes strings"),
        }
    }
    Some(found)
}

/// A string; a number stands for its text.
pub(super) fn one<T>(
    section: &Section<'_, '_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Option<T> {
    let value = section.get(key)?;
    match text_of(value).map(|text| parse(&text)) {
        Some(Ok(parsed)) => Some(parsed),
        Some(Err(error)) => {
            fail(section, key, value, &error);
            None
        }
        None => {
            fail(section, key, value, &"takes a string");
            None
        }
    }
}

fn text_of(value: Value<'_, '_>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A table, or an array of `name=value`.
fn map(
    section: &Section<'_, '_>,
    key: &'static str,
    check: impl Fn(&str, &str) -> Result<(), Invalid>,
) -> Option<BTreeMap<String, String>> {
    let value = section.get(key)?;
    let mut found = BTreeMap::new();
    let mut take = |name: &str, text: String, at: Value<'_, '_>| match check(name, &text) {
        _ if name.is_empty() => fail(section, key, at, &"a name is missing"),
        Ok(()) => {
            found.insert(name.to_owned(), text);
        }
        Err(error) => fail(section, key, at, &error),
    };
    match value.get_ref() {
        DeValue::Table(table) => {
            for (name, value) in table.iter() {
                match text_of(value) {
                    Some(text) => take(name.get_ref(), text, value),
                    None => fail(section, key, value, &format!("`{}` takes a text", name.get_ref())),
                }
            }
        }
        DeValue::Array(array) => {
            for item in array.iter() {
                let Some(text) = text_of(item) else {
                    fail(section, key, item, &"takes texts, as name=value");
                    continue;
                };
                let (name, value) = text.split_once('=').unwrap_or((&text, ""));
                take(name, value.to_owned(), item);
            }
        }
        _ => fail(section, key, value, &"takes a table or an array of name=value"),
    }
    Some(found)
}

fn mode(section: &Section<'_, '_>, key: &'static str, known: &[(&str, bool)]) -> Option<bool> {
    let value = section.get(key)?;
    let text = text_of(value).unwrap_or_default();
    let found = known.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning);
    if found.is_none() {
        let names: Vec<String> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let message =
            format!("`{key}`: `{text}` is not supported by this version, only {}", names.join(", "));
        section.findings.error(value.span(), message, None);
    }
    found
}

fn plain(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return bad(text, "is empty, or has blanks in it");
    }
    Ok(text.to_owned())
}

/// Source: hostname(7); the kernel takes 64 bytes.
pub(super) fn host_name(text: &str) -> Result<String, Invalid> {
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() > 63 || !text.split('.').all(label) {
        return bad(text, "is not a host name");
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<IpAddr, Invalid> {
    text.trim_start_matches('[').trim_end_matches(']').parse().or_else(|_| bad(text, "is not an IP address"))
}

/// A table, or an array of `name:address` or `name=address`.
fn extra_hosts(section: &Section<'_, '_>) -> Option<Vec<(String, IpAddr)>> {
    if section.get("extra_hosts")?.get_ref().as_table().is_some() {
        let check = |name: &str, text: &str| host_name(name).and(address(text)).map(|_| ());
        let found = map(section, "extra_hosts", check)?;
        return Some(
            found.into_iter().filter_map(|(name, text)| Some((name, address(&text).ok()?))).collect(),
        );
    }
    each(section, "extra_hosts", |text| {
        let Some((name, ip)) = text.split_once(['=', ':']) else {
            return bad(text, "is not name:address");
        };
        if ip == "host-gateway" {
            return bad(text, "asks for host-gateway, which is not supported by this version");
        }
        Ok((host_name(name)?, address(ip)?))
    })
}

fn capability(text: &str) -> Result<String, Invalid> {
    let upper = text.to_ascii_uppercase();
    if upper == "ALL" {
        return Ok(upper);
    }
    let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if CAPABILITIES.contains(&name.as_str()) { Ok(name) } else { bad(text, "is not a capability") }
}

/// What `security_opt` takes away: the filter of system calls, and the profile of AppArmor. The second is said only where it
/// is asked for, as older versions did not know it.
fn security(section: &Section<'_, '_>) -> (Option<bool>, Option<bool>) {
    let all = each(section, "security_opt", |text| match text.replacen(':', "=", 1).as_str() {
        "seccomp=unconfined" => Ok(Some(false)),
        "apparmor=unconfined" => Ok(Some(true)),
        // So in any case.
        "no-new-privileges" | "no-new-privileges=true" | "seccomp=builtin" => Ok(None),
        _ => bad(
            text,
            "is not supported by this version; only seccomp=unconfined, apparmor=unconfined and no-new-privileges",
        ),
    });
    let Some(all) = all else { return (None, None) };
    (Some(all.contains(&Some(false))), all.contains(&Some(true)).then_some(true))
}

fn device(text: &str) -> Result<DeviceMapping, Invalid> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, access) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, target] if target.starts_with('/') => (*source, *target, "rwm"),
        [source, access] => (*source, *source, *access),
        [source, target, access] => (*source, *target, *access),
        _ => return bad(text, "is not source[:target][:rwm]"),
    };
    let below_dev =
        |text: &str| absolute(text).filter(|path| path.starts_with("/dev") && path.components().count() > 2);
    let (Some(source), Some(target)) = (below_dev(source), below_dev(target)) else {
        return bad(text, "does not name devices below /dev");
    };
    if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
        return bad(text, "does not end with some of r, w and m");
    }
    Ok(DeviceMapping { source, target, access: access.to_owned() })
}

/// Source: runtime-spec config-linux.md, "Sysctl", and what the kernel keeps by namespace: ipc_namespaces(7).
fn sysctl(name: &str, value: &str) -> Result<(), Invalid> {
    let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall"];
    let shm = ["kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"];
    let own = name.starts_with("net.")
        || name.starts_with("fs.mqueue.")
        || ipc.contains(&name)
        || shm.contains(&name);
    if !own || name.contains(['/', '\0']) || name.contains("..") {
        return bad(
            name,
            "is no kernel parameter of a container's own: net.*, fs.mqueue.*, kernel.msg*, kernel.sem, kernel.shm*",
        );
    }
    if value.is_empty() || value.contains(['\0', '\n']) {
        return bad(name, "has no value");
    }
    Ok(())
}

/// Source: getrlimit(2).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A table of numbers, or of tables with `soft` and `hard`.
fn ulimits(section: &Section<'_, '_>) -> Option<BTreeMap<String, (i64, i64)>> {
    let table = section.table("ulimits")?;
    let mut found = BTreeMap::new();
    for (name, span, value) in table.entries() {
        if !ULIMITS.contains(&name) {
            let known = super::diagnostic::did_you_mean(name, &ULIMITS);
            section.findings.error(span, format!("`ulimits`: there is no limit `{name}`"), known);
            continue;
        }
        let number = |value: Value<'_, '_>| {
            let number = value.get_ref().as_integer()?;
            i64::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| *number >= -1)
        };
        let pair = match value.get_ref() {
            DeValue::Table(pair) => {
                let part = |key: &str| pair.get(key).and_then(number);
                let known = pair.keys().all(|key| ["soft", "hard"].contains(&key.get_ref().as_ref()));
                part("soft").zip(part("hard")).filter(|_| known)
            }
            _ => number(value).map(|both| (both, both)),
        };
        match pair {
            Some((soft, hard)) if hard == -1 || (soft != -1 && soft <= hard) => {
                found.insert(name.to_owned(), (soft, hard));
            }
            _ => {
                let message =
                    format!("`ulimits`: `{name}` takes a number, or soft and hard; soft is at most hard");
                section.findings.error(value.span(), message, None);
            }
        }
    }
    Some(found)
}

fn size(section: &Section<'_, '_>, key: &'static str) -> Option<ByteSize> {
    one(section, key, |text| text.parse::<ByteSize>())
}

/// Source: cpuset(7), "List format".
fn cpuset(text: &str) -> Result<String, Invalid> {
    let part = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        matches!((low.parse::<u16>(), high.parse::<u16>()), (Ok(low), Ok(high)) if low <= high)
    };
    if text.split(',').all(part) { Ok(text.to_owned()) } else { bad(text, "is not a list as 0-2,4") }
}

fn tmpfs(text: &str) -> Result<Tmpfs, Invalid> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let Some(target) = absolute(target).filter(|path| path.components().count() > 1) else {
        return bad(text, "does not begin with an absolute path below / without `..`");
    };
    // Those of the kernel's places that it may not hide; below /dev a service may want one of its own.
    if ["/proc", "/sys"].iter().any(|kernel| target.starts_with(kernel)) || target == Path::new("/dev") {
        return bad(text, "lies in a place that belongs to the kernel");
    }
    let known = |option: &&str| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let digits = |radix: u32| !value.is_empty() && value.chars().all(|c| c.is_digit(radix));
        match name {
            "size" => value.parse::<ByteSize>().is_ok(),
            "mode" => digits(8),
            "uid" | "gid" | "nr_inodes" => digits(10),
            "rw" | "ro" | "exec" | "noexec" | "suid" | "nosuid" | "nodev" => value.is_empty(),
            _ => false,
        }
    };
    let options: Vec<&str> = options.split(',').filter(|option| !option.is_empty()).collect();
    if let Some(other) = options.iter().find(|option| !known(option)) {
        return bad(other, "is not an option of a tmpfs here");
    }
    Ok(Tmpfs { target, options: options.into_iter().map(str::to_owned).collect() })
}

fn logging(section: &Section<'_, '_>) -> LogLimits {
    if let Some(driver) = section.string("driver")
        && !["json-file", "local", "journald"].contains(&driver.as_str())
    {
        let message = format!(
            "`driver`: `{driver}` is not supported by this version: output goes to journald and files"
        );
        section.findings.error(section.key_span("driver"), message, None);
    }
    let mut limits = LogLimits::default();
    if let Some(options) = section.table("options") {
        limits.max_size = size(&options, "max-size");
        limits.max_file = one(&options, "max-file", |text| match text.parse::<u32>() {
            Ok(number @ 1..=100) => Ok(number),
            _ => bad(text, "is not a number from 1 to 100"),
        });
        if let Some(size) = limits.max_size.filter(|size| size.0 < 64 << 10) {
            let message = format!("`max-size`: {} bytes are less than 64k", size.0);
            options.findings.error(options.key_span("max-size"), message, None);
        }
        options.finish(|_| None);
    }
    section.finish(|_| None);
    limits
}

fn expose(section: &Section<'_, '_>) -> Option<Vec<(u16, Protocol)>> {
    let ranges = each(section, "expose", |text| {
        let (range, protocol) = match text.rsplit_once('/') {
            Some((range, "tcp")) => (range, Protocol::Tcp),
            Some((range, "udp")) => (range, Protocol::Udp),
            None => (text, Protocol::Tcp),
            _ => return bad(text, "is neither tcp nor udp"),
        };
        Ok(super::port::range(range)?.map(move |port| (port, protocol)).collect::<Vec<_>>())
    })?;
    Some(ranges.into_iter().flatten().collect())
}
