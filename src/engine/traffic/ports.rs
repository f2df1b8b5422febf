//! Who listens on a port of the host already: publishing it would silently take its traffic away.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::net::IpAddr;

use super::sockets::{self, Socket};
use crate::types::{PortMapping, Protocol};

/// The first of `ports` that a process holds, as one line for people. `six`: a port of all of the host's addresses is
/// one of its IPv6 addresses too.
pub fn conflict(ports: &[PortMapping], six: bool) -> io::Result<Option<String>> {
    let mut listening: BTreeMap<Protocol, Vec<Socket>> = BTreeMap::new();
    for port in ports {
        let sockets = match listening.entry(port.protocol) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(sockets::listening(port.protocol)?),
        };
        if let Some(socket) = sockets.iter().find(|socket| holds(socket, port, six)) {
            return Ok(Some(format!(
                "port {}/{} is held by {}, which listens on {}",
                port.host_port,
                port.protocol,
                owner(socket.inode),
                show(socket)
            )));
        }
    }
    Ok(None)
}

/// Whether what is sent to the published port would otherwise reach this socket.
fn holds(socket: &Socket, port: &PortMapping, six: bool) -> bool {
    let takes = |own: IpAddr| port.takes(own) && (six || own.is_ipv4() || port.host_ip.is_ipv6());
    let same_address = match socket.local() {
        own if own.is_loopback() && own.is_ipv6() => false,
        own if !own.is_unspecified() => takes(own),
        IpAddr::V4(_) => port.host_ip.is_ipv4(),
        // `::` takes IPv4 too, unless it was told not to.
        IpAddr::V6(own) => port.host_ip.is_ipv6() || !socket.v6_only || takes(own.into()),
    };
    socket.local_port() == port.host_port && same_address
}

fn show(socket: &Socket) -> String {
    match socket.local() {
        IpAddr::V4(own) => format!("{own}:{}", socket.local_port()),
        IpAddr::V6(own) => format!("[{own}]:{}", socket.local_port()),
    }
}

/// The process that has the socket open, as `nginx (pid 812)`.
fn owner(inode: u32) -> String {
    let wanted = format!("socket:[{inode}]");
    let holds_it = |pid: &u32| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    match pids.find(holds_it) {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} (pid {pid})", name.trim())
        }
        None => "a process that cannot be seen from here".to_owned(),
    }
}
