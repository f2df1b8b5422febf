//! What IPv6 needs beside addresses and routes: settings of the host, of the host's ends, and of containers.

use std::fs;
use std::io;
use std::net::Ipv6Addr;

use super::sysctl;

/// The host's end of every container's interface, and so the gateway of each: the same one on every link.
pub(super) const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Smallest packet size that IPv6 takes (RFC 8200 section 5).
pub(super) const MIN_MTU: u32 = 1280;

/// Whether this host uses IPv6 at all.
pub fn is_used() -> bool {
    is_on("all") && is_on("default")
}

/// Whether an interface may have IPv6.
pub(super) fn is_on(link: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"))
        .is_ok_and(|text| text.trim() == "0")
}

/// Lets the host forward. A host that forwards no longer listens to routers unless it is told to: those of its
/// interfaces that got their routes that way are told, or the host itself would be cut off.
///
/// Source: Linux Documentation/networking/ip-sysctl.rst, `accept_ra` and `forwarding`.
pub(super) fn forward() -> io::Result<()> {
    const FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
    if fs::read_to_string(FORWARDING)?.trim() != "0" {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let accepts = entry?.path().join("accept_ra");
        if fs::read_to_string(&accepts).is_ok_and(|text| text.trim() == "1") {
            fs::write(&accepts, "2")?;
        }
    }
    sysctl::set("ipv6/conf/all/forwarding", "1")
}

/// Settings of the host's end, before it is set up: no address that the kernel makes up, nobody to listen to.
pub(super) fn prepare_outside(link: &str) -> io::Result<()> {
    for (name, value) in [
        ("disable_ipv6", "0"),
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("accept_redirects", "0"),
    ] {
        sysctl::set_if_known(&format!("ipv6/conf/{link}/{name}"), value)?;
    }
    Ok(())
}

/// Settings of the container's end, before it is set up.
pub(super) fn prepare_inside(link: &str) -> io::Result<()> {
    for name in ["all", link] {
        sysctl::set_if_known(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctl::set_if_known(&format!("ipv6/conf/{name}/accept_redirects"), "0")?;
        sysctl::set_if_known(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    }
    sysctl::set_if_known(&format!("ipv6/conf/{link}/accept_dad"), "0")
}
