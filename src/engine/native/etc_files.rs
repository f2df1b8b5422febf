//! The files of a container's /etc that only the host can know: hosts, hostname, resolv.conf.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::fitting;
use super::launch::Launch;
use crate::types::{Container, ServiceName};

/// Their names, in the container's state directory and in its `/etc`.
pub(super) const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes all three into `dir`.
pub(super) fn write(dir: &Path, launch: &Launch, hosts: &BTreeMap<ServiceName, Ipv4Addr>) -> io::Result<()> {
    write_hosts(dir, launch, hosts)?;
    fs::write(dir.join("hostname"), format!("{}\n", fitting::hostname(launch)))?;
    fs::write(dir.join("resolv.conf"), resolver_file(&launch.container))?;
    for name in NAMES {
        // Whatever umask the agent runs with: every user in the container reads them.
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Writes `hosts` alone, also below a running container: in place, as it has this very file mounted, and never emptied
/// first, as it may be reading it.
pub(super) fn write_hosts(
    dir: &Path,
    launch: &Launch,
    hosts: &BTreeMap<ServiceName, Ipv4Addr>,
) -> io::Result<()> {
    use std::io::Write as _;
    let text = hosts_file(launch, hosts);
    let path = dir.join("hosts");
    if fs::read_to_string(&path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// Source: hosts(5). The container's own name comes last, so that a peer's line for the same name wins.
fn hosts_file(launch: &Launch, hosts: &BTreeMap<ServiceName, Ipv4Addr>) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    // Writing to a String cannot fail. The first line of a name counts: what the service says itself goes before.
    for (name, address) in launch.container.extra_hosts.iter().flatten() {
        let _ = writeln!(text, "{address} {name}");
    }
    for (name, address) in hosts {
        let _ = writeln!(text, "{address} {name}");
    }
    let _ = write!(text, "{} {}", launch.address, launch.id.service);
    // hosts(5): the canonical name, then its aliases.
    match &launch.container.hostname {
        Some(name) => {
            let _ = writeln!(text, " {name}");
        }
        None => text.push('\n'),
    }
    text
}

/// What the service says, else what the host has.
fn resolver_file(container: &Container) -> String {
    let kept = host_resolvers();
    let said = |word: &str| match word {
        "nameserver" => container.dns.is_some(),
        "search" | "domain" => container.dns_search.is_some(),
        "options" => container.dns_opt.is_some(),
        _ => false,
    };
    let mut text = String::new();
    for line in kept.lines().filter(|line| !said(line.split_whitespace().next().unwrap_or_default())) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    for address in container.dns.iter().flatten() {
        let _ = writeln!(text, "nameserver {address}");
    }
    for (word, all) in [("search", &container.dns_search), ("options", &container.dns_opt)] {
        if let Some(all) = all.as_ref().filter(|all| !all.is_empty()) {
            let _ = writeln!(text, "{word} {}", all.join(" "));
        }
    }
    text
}

/// The host's resolvers, without addresses that mean the host itself: in the container they would mean the container.
fn host_resolvers() -> String {
    // The second one is what systemd-resolved asks behind its stub on 127.0.0.53.
    for source in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let kept = without_loopback(&fs::read_to_string(source).unwrap_or_default());
        if kept.lines().any(|line| line.starts_with("nameserver")) {
            return kept;
        }
    }
    String::new()
}

/// Source: resolv.conf(5).
fn without_loopback(text: &str) -> String {
    let keep = |line: &&str| {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { return true };
        address.split('%').next().unwrap_or_default().parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback())
    };
    text.lines().filter(keep).map(|line| format!("{}\n", line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_resolvers_are_left_out() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.2\n  nameserver fe80::1%eth0\noptions edns0\n";
        assert_eq!(
            without_loopback(text),
            "# x\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\noptions edns0\n"
        );
    }

    #[test]
    fn hosts_name_the_peers_and_the_container() {
        let hosts = BTreeMap::from([("db".parse().unwrap(), Ipv4Addr::new(10, 98, 0, 9))]);
        let mut launch = Launch::sample("shop.7");
        let text = hosts_file(&launch, &hosts);
        assert!(text.ends_with("10.98.0.9 db\n10.98.0.2 shop\n"), "{text}");
        launch.container.hostname = Some("shop.example.org".into());
        launch.container.extra_hosts = Some(BTreeMap::from([("db".into(), [10, 1, 1, 1].into())]));
        let text = hosts_file(&launch, &hosts);
        assert!(text.ends_with("10.1.1.1 db\n10.98.0.9 db\n10.98.0.2 shop shop.example.org\n"), "{text}");
    }

    #[test]
    fn a_service_may_have_resolvers_of_its_own() {
        let container = Container {
            dns: Some(vec![[10, 0, 0, 53].into()]),
            dns_search: Some(vec!["example.org".into()]),
            dns_opt: Some(Vec::new()),
            ..Container::default()
        };
        let text = resolver_file(&container);
        let own = |line: &&str| line.starts_with("nameserver") || line.starts_with("search");
        let lines: Vec<&str> = text.lines().filter(own).collect();
        assert_eq!(lines, ["nameserver 10.0.0.53", "search example.org"]);
        assert!(!text.contains("options"), "{text}");
        assert_eq!(resolver_file(&Container::default()), host_resolvers());
    }
}
