//! The files of a container's /etc that only the host can know: hosts, hostname, resolv.conf.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc;

use crate::engine::Hosts;
use crate::types::{InstanceId, NetworkMode, Options};

/// Their names, in the container's state directory and in its `/etc`.
pub(super) const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The same in every container: this machine, and the groups of RFC 4291, 2.7.1.
const LOCAL: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nfe00::0 ip6-localnet\n\
                     ff00::0 ip6-mcastprefix\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n";

/// No resolv.conf that says something is longer.
const LONGEST: u64 = 64 * 1024;

/// Writes all three into `dir`.
pub(super) fn write(
    dir: &Path,
    id: &InstanceId,
    address: Ipv4Addr,
    hosts: &Hosts,
    options: &Options,
) -> io::Result<()> {
    write_hosts(dir, id, address, hosts, options)?;
    let name = options.hostname.as_deref().unwrap_or(id.service.as_str());
    write_new(&dir.join("hostname"), &format!("{name}\n"))?;
    write_new(&dir.join("resolv.conf"), &resolver_file(options))?;
    for name in NAMES {
        // Whatever umask the agent runs with: every user in the container reads them.
        let path = dir.join(name);
        if fs::metadata(&path)?.permissions().mode() & 0o7777 != 0o644 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// Writes what is not there already: on a file system that became read-only a container can still be started again.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if says(path, text) { Ok(()) } else { fs::write(path, text) }
}

/// Writes `hosts` alone, also below a running container: in place, as it has this very file mounted, and never emptied
/// first, as it may be reading it.
pub(super) fn write_hosts(
    dir: &Path,
    id: &InstanceId,
    address: Ipv4Addr,
    hosts: &Hosts,
    options: &Options,
) -> io::Result<()> {
    let text = hosts_file(id, address, hosts, options);
    let path = dir.join("hosts");
    if says(&path, &text) { Ok(()) } else { write_in_place(&path, &text) }
}

/// Gives a container that was started before the host had a resolver, as at a boot, the one that it has by now. What names
/// one is left alone: it may be the container's own.
pub(super) fn complete_resolver(dir: &Path, options: &Options) -> io::Result<()> {
    let path = dir.join("resolv.conf");
    match read_up_to(&path, LONGEST) {
        Ok(now) if now.as_deref().is_none_or(names_a_resolver) => return Ok(()),
        _ => {}
    }
    let text = resolver_file(options);
    if names_a_resolver(&text) { write_in_place(&path, &text) } else { Ok(()) }
}

/// Whether a file is there that says just this.
fn says(path: &Path, text: &str) -> bool {
    read_up_to(path, text.len() as u64).is_ok_and(|now| now.as_deref() == Some(text))
}

/// What a file says that a container can write, and make as long as it likes; `None`: more than `longest` bytes.
fn read_up_to(path: &Path, longest: u64) -> io::Result<Option<String>> {
    let file = plain(fs::OpenOptions::new().read(true), path)?;
    let mut bytes = Vec::new();
    file.take(longest.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= longest).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Opens nothing but a plain file, and waits for nobody.
fn plain(how: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let file = how.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no file")) }
}

fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = plain(fs::OpenOptions::new().write(true).create(true).truncate(false), path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// Source: hosts(5). A container's own name comes last, so that a peer's line for the same name wins; the service's name
/// is its own address alone.
fn hosts_file(id: &InstanceId, own: Ipv4Addr, hosts: &Hosts, options: &Options) -> String {
    let mut text = String::from(LOCAL);
    for (name, address) in options.extra_hosts.iter().flatten() {
        let _ = writeln!(text, "{address} {name}");
    }
    // A program that looks for its own name means itself, at any port and before it has traffic: Erlang's nodes do.
    for (name, addresses) in hosts.iter().filter(|(name, _)| **name != id.service.as_str()) {
        for address in addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{address} {name}");
        }
    }
    if let Some(name) = options.hostname.as_deref().filter(|name| *name != id.service.as_str()) {
        let _ = writeln!(text, "{own} {name}");
    }
    let _ = writeln!(text, "{own} {}", id.service);
    text
}

/// The host's resolver; where the container has a network of its own, without addresses that mean the host itself: in the container they would mean the container.
fn resolver_file(options: &Options) -> String {
    let mut text = match &options.dns {
        Some(servers) => servers.iter().map(|server| format!("nameserver {server}\n")).collect(),
        None if options.network_mode == Some(NetworkMode::Host) => {
            fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
        }
        None => resolver_of_host(),
    };
    // Source: resolv.conf(5): of several lines the last one counts.
    for (key, words) in [("search", &options.dns_search), ("options", &options.dns_opt)] {
        if let Some(words) = words {
            let _ = writeln!(text, "{key} {}", words.join(" "));
        }
    }
    text
}

/// What a container with a network of its own is told of the host's resolvers; empty: there are none.
pub(super) fn resolver_of_host() -> String {
    // The second one is what systemd-resolved asks behind its stub on 127.0.0.53.
    for source in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let kept = without_loopback(&fs::read_to_string(source).unwrap_or_default());
        if names_a_resolver(&kept) {
            return kept;
        }
    }
    String::new()
}

fn names_a_resolver(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("nameserver"))
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
    use std::os::unix::fs::MetadataExt as _;

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
    fn only_who_has_no_resolver_gets_one_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let options = Options { dns: Some(vec!["192.0.2.53".parse().unwrap()]), ..Options::default() };
        for (now, then) in [
            ("", "nameserver 192.0.2.53\n"),
            ("search example.org\n", "nameserver 192.0.2.53\n"),
            ("nameserver 192.0.2.7\n", "nameserver 192.0.2.7\n"),
        ] {
            fs::write(&path, now).unwrap();
            let file = fs::metadata(&path).unwrap();
            complete_resolver(dir.path(), &options).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), then, "{now:?}");
            // The very file, as the container has it mounted.
            assert_eq!(fs::metadata(&path).unwrap().ino(), file.ino());
        }
    }

    #[test]
    fn what_a_container_made_huge_or_odd_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let huge = |name| fs::File::create(dir.path().join(name)).unwrap().set_len(1 << 40).unwrap();
        let options = Options { dns: Some(vec!["192.0.2.53".parse().unwrap()]), ..Options::default() };
        let (id, address) = ("shop.7".parse().unwrap(), Ipv4Addr::new(10, 98, 1, 2));
        let hosts = || write_hosts(dir.path(), &id, address, &Hosts::new(), &options);
        huge("hosts");
        hosts().unwrap();
        let text = fs::read_to_string(dir.path().join("hosts")).unwrap();
        assert!(text.ends_with("10.98.1.2 shop\n"), "{text}");
        // It may be the container's own.
        huge("resolv.conf");
        complete_resolver(dir.path(), &options).unwrap();
        assert_eq!(fs::metadata(dir.path().join("resolv.conf")).unwrap().len(), 1 << 40);
        // As a container that is started again has it.
        write(dir.path(), &id, address, &Hosts::new(), &options).unwrap();
        let text = fs::read_to_string(dir.path().join("resolv.conf")).unwrap();
        assert_eq!(text, "nameserver 192.0.2.53\n");

        for name in ["hosts", "resolv.conf"] {
            let path = dir.path().join(name);
            fs::remove_file(&path).unwrap();
            fs::write(dir.path().join("others"), "").unwrap();
            std::os::unix::fs::symlink("others", &path).unwrap();
        }
        assert!(hosts().is_err() && complete_resolver(dir.path(), &options).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("others")).unwrap(), "");
        for name in ["hosts", "resolv.conf"] {
            let path = dir.path().join(name);
            fs::remove_file(&path).unwrap();
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        }
        assert!(hosts().is_err() && complete_resolver(dir.path(), &options).is_err());
    }

    #[test]
    fn hosts_name_the_peers_and_the_container() {
        let hosts = Hosts::from([
            ("db".to_owned(), vec![Ipv4Addr::new(10, 98, 0, 9).into()]),
            ("shop".to_owned(), vec![Ipv4Addr::new(10, 98, 0, 8).into()]),
        ]);
        let text =
            hosts_file(&"shop.7".parse().unwrap(), Ipv4Addr::new(10, 98, 1, 2), &hosts, &Options::default());
        assert!(text.ends_with("10.98.0.9 db\n10.98.1.2 shop\n"), "{text}");
    }
}
