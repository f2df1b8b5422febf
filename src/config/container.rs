//! The keys that fit a container out, see `types::Container`: read and checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use toml::de::DeValue;

use super::port;
use super::section::{Findings, Section, Value};
use crate::types::{ByteSize, Container, Declared, Tmpfs, Ulimit, signal_number};

/// What capabilities(7) lists.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// What setrlimit(2) lists.
const ULIMITS: &str =
    "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack";

/// Kernel parameters that each IPC namespace has for itself (ipc_namespaces(7)).
const IPC_SYSCTLS: &str = "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni \
    kernel.shm_rmid_forced";

/// Reads them all.
pub(super) fn read(section: &Section<'_, '_>) -> Container {
    Container {
        hostname: one(section, "hostname", host_name),
        extra_hosts: extra_hosts(section),
        dns: each(section, "dns", |text| {
            text.parse::<IpAddr>().map_err(|_| "it is not an address".to_owned())
        }),
        dns_search: each(section, "dns_search", word),
        dns_opt: each(section, "dns_opt", word),
        group_add: each(section, "group_add", word),
        cap_add: capabilities(section, "cap_add"),
        cap_drop: each(section, "cap_drop", capability),
        read_only: section.boolean("read_only"),
        tmpfs: each(section, "tmpfs", tmpfs),
        shm_size: size(section, "shm_size"),
        stop_signal: one(section, "stop_signal", |text| match signal_number(text) {
            Some(_) => Ok(text.to_owned()),
            None => Err("it is no signal: write \"SIGINT\"".to_owned()),
        }),
        sysctls: sysctls(section),
        ulimits: ulimits(section),
        memswap_limit: size(section, "memswap_limit"),
        mem_reservation: size(section, "mem_reservation"),
        cpuset: one(section, "cpuset", cpu_list),
        cpu_shares: section.integer("cpu_shares", 2..=262_144).and_then(|number| u64::try_from(number).ok()),
        oom_score_adj: section
            .integer("oom_score_adj", 0..=1000)
            .and_then(|number| i32::try_from(number).ok()),
    }
}

/// What only all layers together can be right or wrong about.
pub(super) fn check(findings: &Findings<'_>, spec: &Declared) -> bool {
    let refuse = |message: &str| {
        findings.error(0..0, message, None);
        false
    };
    let container = &spec.container;
    if let Some(swap) = container.memswap_limit {
        match spec.mem_limit {
            None => return refuse("`memswap_limit` needs a `mem_limit`: it is both together"),
            Some(memory) if swap.0 < memory.0 => {
                return refuse("`memswap_limit` is memory and swap together: at least `mem_limit`");
            }
            Some(_) => {}
        }
    }
    if let (Some(memory), Some(kept)) = (spec.mem_limit, container.mem_reservation)
        && kept.0 > memory.0
    {
        return refuse("`mem_reservation` is more than `mem_limit`");
    }
    let mut targets: Vec<_> = spec.volumes.iter().map(|volume| &volume.target).collect();
    targets.extend(container.tmpfs.iter().flatten().map(|tmpfs| &tmpfs.target));
    let count = targets.len();
    targets.sort_unstable();
    targets.dedup();
    if targets.len() < count {
        return refuse("`volumes` and `tmpfs` name one target twice");
    }
    true
}

fn one<T>(
    section: &Section<'_, '_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let text = section.string(key)?;
    let refuse =
        |why| section.findings.error(section.key_span(key), format!("`{key}`: `{text}`: {why}"), None);
    parse(&text).map_err(refuse).ok()
}

/// An array of strings, or one of them alone.
fn each<T>(
    section: &Section<'_, '_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let all = match section.get(key)?.get_ref().as_str() {
        Some(text) => vec![(text.to_owned(), section.key_span(key))],
        None => section.strings(key)?,
    };
    let read = |(text, span): (String, Range<usize>)| {
        let refuse = |why| section.findings.error(span, format!("`{key}`: `{text}`: {why}"), None);
        parse(&text).map_err(refuse).ok()
    };
    Some(all.into_iter().filter_map(read).collect())
}

fn size(section: &Section<'_, '_>, key: &'static str) -> Option<ByteSize> {
    section.parsed::<ByteSize>(key).filter(|size| {
        if size.0 < 1 << 12 {
            section.findings.error(
                section.key_span(key),
                format!("`{key}` is at least a page: \"4k\""),
                None,
            );
        }
        size.0 >= 1 << 12
    })
}

/// RFC 1123, 2.1; hostname(7).
fn host_name(text: &str) -> Result<String, String> {
    let label = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let fine = text.len() <= 64 && text.split('.').all(label);
    if fine { Ok(text.to_owned()) } else { Err("it is no name of a host".to_owned()) }
}

/// An array of capabilities that are granted.
pub(super) fn capabilities(section: &Section<'_, '_>, key: &'static str) -> Option<Vec<String>> {
    each(section, key, |text| match capability(text)?.as_str() {
        "ALL" => Err("it grants everything: name what is needed".to_owned()),
        name => Ok(name.to_owned()),
    })
}

fn word(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '#');
    if fine { Ok(text.to_owned()) } else { Err("it is not one word".to_owned()) }
}

/// `NET_ADMIN`, `cap_net_admin` and the like, as `CAP_NET_ADMIN`.
fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match name {
        "ALL" => Ok(name.to_owned()),
        _ if CAPABILITIES.split_whitespace().any(|known| known == name) => Ok(format!("CAP_{name}")),
        _ => Err("capabilities(7) does not have it".to_owned()),
    }
}

/// `/run[:option,…]`, as `docker run --tmpfs` takes it.
fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let target = port::absolute(target).filter(|path| path.parent().is_some());
    let target = target.ok_or_else(|| "the target is an absolute path below / without `..`".to_owned())?;
    if ["/proc", "/sys", "/dev"].iter().any(|kernel| target.starts_with(kernel)) {
        return Err("the target belongs to the kernel (for /dev/shm there is `shm_size`)".to_owned());
    }
    let mut tmpfs = Tmpfs { target, size: None, mode: None, exec: false };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", size) => tmpfs.size = Some(size.parse::<ByteSize>().map_err(|error| error.to_string())?),
            ("mode", mode) => {
                let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                tmpfs.mode = Some(mode.ok_or_else(|| "`mode` takes an octal number".to_owned())?);
            }
            ("exec", "") => tmpfs.exec = true,
            ("noexec" | "rw" | "nosuid" | "nodev", "") => {}
            (other, _) => return Err(format!("`{other}` is none of size=, mode=, exec")),
        }
    }
    Ok(tmpfs)
}

/// cpuset(7), "List format".
fn cpu_list(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u16>().ok();
    let part = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(part).is_some(),
    };
    let fine = text.split(',').all(part);
    if fine { Ok(text.to_owned()) } else { Err("write numbers of processors: \"0-3,5\"".to_owned()) }
}

/// A table of names and addresses, or Compose's `name:address` and `name=address`.
fn extra_hosts(section: &Section<'_, '_>) -> Option<BTreeMap<String, IpAddr>> {
    let findings = section.findings;
    let pairs = pairs(section, "extra_hosts", |text| text.split_once('=').or_else(|| text.split_once(':')))?;
    let mut hosts = BTreeMap::new();
    for (name, address, span) in pairs {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        match (host_name(&name), bare.parse()) {
            (Ok(name), Ok(address)) => {
                hosts.insert(name, address);
            }
            (Err(why), _) => findings.error(span, format!("`extra_hosts`: `{name}`: {why}"), None),
            (_, Err(_)) => {
                findings.error(span, format!("`extra_hosts`: `{address}` is not an address"), None)
            }
        }
    }
    Some(hosts)
}

/// Only what a container has for itself: its network's parameters, and those of its IPC.
fn sysctls(section: &Section<'_, '_>) -> Option<BTreeMap<String, String>> {
    let pairs = pairs(section, "sysctls", |text| text.split_once('='))?;
    let mut all = BTreeMap::new();
    for (name, value, span) in pairs {
        let name = name.replace('/', ".");
        let plain = name.split('.').all(|part| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        });
        let own = name.starts_with("net.")
            || name.starts_with("fs.mqueue.")
            || IPC_SYSCTLS.split_whitespace().any(|known| known == name);
        if plain && own {
            all.insert(name, value);
        } else {
            let hint =
                Some("a container has net.*, fs.mqueue.* and the IPC ones of kernel.* for itself".to_owned());
            section.findings.error(span, format!("`sysctls`: `{name}` is the host's"), hint);
        }
    }
    Some(all)
}

/// Pairs of a table, or of an array of strings that `split` takes apart.
fn pairs(
    section: &Section<'_, '_>,
    key: &'static str,
    split: impl Fn(&str) -> Option<(&str, &str)>,
) -> Option<Vec<(String, String, Range<usize>)>> {
    let mut pairs = Vec::new();
    if section.get(key)?.get_ref().as_table().is_some() {
        for (name, span, value) in section.table(key)?.entries() {
            match value.get_ref() {
                DeValue::String(text) => pairs.push((name.to_owned(), text.to_string(), span)),
                DeValue::Integer(number) => pairs.push((name.to_owned(), number.to_string(), span)),
                other => {
                    let message = format!("`{key}`: `{name}` takes a text, not a {}", other.type_str());
                    section.findings.error(value.span(), message, None);
                }
            }
        }
        return Some(pairs);
    }
    for (text, span) in section.strings(key)? {
        match split(&text) {
            Some((name, value)) => pairs.push((name.trim().to_owned(), value.trim().to_owned(), span)),
            None => section.findings.error(span, format!("`{key}`: `{text}` is no pair"), None),
        }
    }
    Some(pairs)
}

fn ulimits(section: &Section<'_, '_>) -> Option<BTreeMap<String, Ulimit>> {
    let table = section.table("ulimits")?;
    let findings = section.findings;
    let mut limits = BTreeMap::new();
    for (name, span, value) in table.entries() {
        if !ULIMITS.split_whitespace().any(|known| known == name) {
            findings.error(span, format!("`ulimits`: setrlimit(2) has no `{name}`"), None);
            continue;
        }
        match ulimit(value) {
            Some(limit) if limit.soft.unwrap_or(u64::MAX) <= limit.hard.unwrap_or(u64::MAX) => {
                limits.insert(name.to_owned(), limit);
            }
            Some(_) => {
                findings.error(value.span(), format!("`ulimits`: `{name}`: `soft` is above `hard`"), None)
            }
            None => {
                let message =
                    format!("`ulimits`: `{name}` takes a number (-1: unlimited), or {{ soft, hard }}");
                findings.error(value.span(), message, None);
            }
        }
    }
    Some(limits)
}

fn ulimit(value: Value<'_, '_>) -> Option<Ulimit> {
    let number = |value: &DeValue<'_>| -> Option<Option<u64>> {
        let number = value.as_integer()?;
        match i64::from_str_radix(number.as_str(), number.radix()).ok()? {
            -1 => Some(None),
            number => u64::try_from(number).ok().map(Some),
        }
    };
    match value.get_ref() {
        DeValue::Table(table) => {
            let of = |key: &str| number(table.get(key)?.get_ref());
            (table.len() == 2).then_some(())?;
            Some(Ulimit { soft: of("soft")?, hard: of("hard")? })
        }
        other => number(other).map(|both| Ulimit { soft: both, hard: both }),
    }
}
