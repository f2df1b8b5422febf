//! Interfaces, addresses, routes and neighbours of the calling thread's network namespace, over rtnetlink(7).
//!
//! Each call is one request, and idempotent where the kernel lets it be. No names are made up here.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_bindings::traits::Pusher as _;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_bindings::{rt_addr, rt_link, rt_neigh, rt_route};
use netlink_socket2::{NetlinkSocket, ReplyError};
use nix::libc;
use sha2::{Digest as _, Sha256};

/// `VETH_INFO_PEER` of linux/veth.h.
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INFO_DATA`, `IFLA_IFNAME`, `IFLA_MTU` and `IFLA_NET_NS_FD` of linux/if_link.h.
const IFLA_INFO_DATA: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_FD: u16 = 28;
/// `IFF_UP` as the header's 32 bits.
const UP: u32 = libc::IFF_UP as u32;
/// `RTNH_F_ONLINK` of linux/rtnetlink.h.
const RTNH_F_ONLINK: u32 = 4;
/// `IFA_F_NODAD` of linux/if_addr.h: nobody else is on the link who could have the address.
const IFA_F_NODAD: u8 = 2;
const INET: u8 = libc::AF_INET as u8;
const INET6: u8 = libc::AF_INET6 as u8;

/// One interface as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Its label, where it has one.
    pub alias: Option<String>,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// The largest packet it takes, in bytes.
    pub mtu: u32,
}

/// What is asked about a route.
struct Route {
    /// Length of the destination's prefix.
    prefix: u8,
    /// The interface that it leads out of.
    index: i32,
    /// The lowest one counts.
    priority: u32,
}

/// An open conversation with the kernel about this thread's namespace.
pub struct Links {
    socket: NetlinkSocket,
}

impl Links {
    /// Opens nothing yet: the socket is made on first use, in the namespace that the thread has then.
    pub fn new() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// All interfaces.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        let request = rt_link::Request::new().op_getlink_dump(&rt_link::Ifinfomsg::new());
        let mut reply = self.socket.request(&request)?;
        let mut links = Vec::new();
        while let Some(answer) = reply.recv() {
            let (header, attributes) = answer.map_err(explain)?;
            links.push(Link {
                index: header.ifi_index,
                name: attributes
                    .get_ifname()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                alias: attributes.get_ifalias().ok().map(|alias| alias.to_string_lossy().into_owned()),
                mac: attributes.get_address().map(<[u8]>::to_vec).unwrap_or_default(),
                mtu: attributes.get_mtu().unwrap_or_default(),
            });
        }
        Ok(links)
    }

    /// The interface of that name, if there is one.
    pub fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        // A dump and not a GETLINK by name: `no such device` would be an error to tell from others.
        Ok(self.list()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a bridge. Fails if the name is taken.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut request =
            rt_link::Request::new().set_create().set_excl().op_newlink_do(&rt_link::Ifinfomsg::new());
        let _ = request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .nested_linkinfo()
            .push_kind(c"bridge")
            .end_nested();
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Makes a pair of interfaces in one step: `name` here, `peer` inside `namespace`. Fails if a name is taken.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        mtu: u32,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut request =
            rt_link::Request::new().set_create().set_excl().op_newlink_do(&rt_link::Ifinfomsg::new());
        let own = request
            .encode()
            .push_ifname_bytes(name.as_bytes())
            .push_address(&hardware_address(name))
            .push_mtu(mtu);
        let mut info = own.nested_linkinfo().push_kind(c"veth");
        // The crate has no type for veth's own data (linux/veth.h): a second header and attributes for the peer.
        let buffer = info.as_vec_mut();
        let data = push_nested_header(buffer, IFLA_INFO_DATA);
        let info_peer = push_nested_header(buffer, VETH_INFO_PEER);
        buffer.extend_from_slice(rt_link::Ifinfomsg::new().as_slice());
        push_header(buffer, IFLA_IFNAME, u16::try_from(peer.len() + 1).unwrap_or(u16::MAX));
        buffer.extend_from_slice(peer.as_bytes());
        buffer.push(0);
        push_header(buffer, IFLA_MTU, 4);
        buffer.extend_from_slice(&mtu.to_ne_bytes());
        push_header(buffer, IFLA_NET_NS_FD, 4);
        buffer.extend_from_slice(&namespace.as_raw_fd().to_ne_bytes());
        finalize_nested_header(buffer, info_peer);
        finalize_nested_header(buffer, data);
        let _ = info.end_nested();
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Takes an interface away; fine if it is gone already.
    pub fn delete(&mut self, index: i32) -> io::Result<()> {
        let header = rt_link::Ifinfomsg { ifi_index: index, ..Default::default() };
        let request = rt_link::Request::new().op_dellink_do(&header);
        let answer = self.socket.request(&request)?.recv_ack();
        match answer.map_err(explain) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Labels an interface.
    pub fn set_alias(&mut self, index: i32, alias: &str) -> io::Result<()> {
        let alias = CString::new(alias)?;
        let header = rt_link::Ifinfomsg { ifi_index: index, ..Default::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        let _ = request.encode().push_ifalias(&alias);
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Sets the largest packet that an interface takes.
    pub fn set_mtu(&mut self, index: i32, mtu: u32) -> io::Result<()> {
        let header = rt_link::Ifinfomsg { ifi_index: index, ..Default::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        let _ = request.encode().push_mtu(mtu);
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Sets an interface up.
    pub fn set_up(&mut self, index: i32) -> io::Result<()> {
        let header =
            rt_link::Ifinfomsg { ifi_index: index, ifi_flags: UP, ifi_change: UP, ..Default::default() };
        let request = rt_link::Request::new().op_setlink_do(&header);
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// All IPv4 addresses: interface, address, prefix length.
    pub fn addresses(&mut self) -> io::Result<Vec<(i32, Ipv4Addr, u8)>> {
        let header = rt_addr::Ifaddrmsg { ifa_family: INET, ..Default::default() };
        let request = rt_addr::Request::new().op_getaddr_dump(&header);
        let mut reply = self.socket.request(&request)?;
        let mut addresses = Vec::new();
        while let Some(answer) = reply.recv() {
            let (header, attributes) = answer.map_err(explain)?;
            if let Ok(IpAddr::V4(address)) = attributes.get_local() {
                addresses.push((header.ifa_index.cast_signed(), address, header.ifa_prefixlen));
            }
        }
        Ok(addresses)
    }

    /// Whether an interface of this namespace has an address.
    pub fn has_address(&mut self, address: IpAddr) -> io::Result<bool> {
        let header = rt_addr::Ifaddrmsg { ifa_family: family(address), ..Default::default() };
        let request = rt_addr::Request::new().op_getaddr_dump(&header);
        let mut reply = self.socket.request(&request)?;
        let mut found = false;
        while let Some(answer) = reply.recv() {
            let (_, attributes) = answer.map_err(explain)?;
            // Source: linux/if_addr.h: IPv6 has no local address beside the address.
            let own = attributes.get_local().or_else(|_| attributes.get_address());
            found |= own.is_ok_and(|own| own == address);
        }
        Ok(found)
    }

    /// The interface of the default route: of IPv4, or where there is none of IPv6.
    pub fn uplink(&mut self) -> io::Result<Option<i32>> {
        for family in [INET, INET6] {
            let defaults = self.routes(family)?.into_iter().filter(|route| route.prefix == 0);
            if let Some(best) = defaults.min_by_key(|route| (route.priority, route.index)) {
                return Ok(Some(best.index));
            }
        }
        Ok(None)
    }

    /// The interfaces that a route to one single address leads out of: of IPv4, or of IPv6.
    pub fn with_host_route(&mut self, six: bool) -> io::Result<BTreeSet<i32>> {
        let (family, prefix) = if six { (INET6, 128) } else { (INET, 32) };
        let routes = self.routes(family)?.into_iter();
        Ok(routes.filter(|route| route.prefix == prefix).map(|route| route.index).collect())
    }

    /// The routes of the main table that lead somewhere.
    fn routes(&mut self, family: u8) -> io::Result<Vec<Route>> {
        let header = rt_route::Rtmsg { rtm_family: family, ..Default::default() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut reply = self.socket.request(&request)?;
        let mut routes = Vec::new();
        while let Some(answer) = reply.recv() {
            let (header, attributes) = answer.map_err(explain)?;
            let leads = header.rtm_table == libc::RT_TABLE_MAIN && header.rtm_type == libc::RTN_UNICAST;
            if let (true, Ok(index)) = (leads, attributes.get_oif()) {
                routes.push(Route {
                    prefix: header.rtm_dst_len,
                    index: index.cast_signed(),
                    priority: attributes.get_priority().unwrap_or(0),
                });
            }
        }
        Ok(routes)
    }

    /// Gives an interface an address; fine if it has it.
    pub fn add_address(&mut self, index: i32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let header = rt_addr::Ifaddrmsg {
            ifa_family: family(address),
            ifa_flags: if address.is_ipv6() { IFA_F_NODAD } else { 0 },
            ifa_index: index.cast_unsigned(),
            ifa_prefixlen: prefix,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_change().op_newaddr_do(&header);
        let _ = request.encode().push_local(address).push_address(address);
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Sends `destination`/`prefix` out of an interface, straight or through `gateway`; replaces what was there.
    pub fn add_route(
        &mut self,
        (destination, prefix): (IpAddr, u8),
        index: i32,
        gateway: Option<IpAddr>,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let header = rt_route::Rtmsg {
            rtm_family: family(destination),
            rtm_dst_len: prefix,
            rtm_table: libc::RT_TABLE_MAIN,
            rtm_protocol: libc::RTPROT_STATIC,
            rtm_scope: if destination.is_ipv6() { libc::RT_SCOPE_UNIVERSE } else { scope },
            rtm_type: libc::RTN_UNICAST,
            // The gateway is reachable on this link although no subnet of the link says so.
            rtm_flags: if gateway.is_some() { RTNH_F_ONLINK } else { 0 },
            ..Default::default()
        };
        let mut request = rt_route::Request::new().set_change().op_newroute_do(&header);
        let mut attributes = request.encode();
        if prefix > 0 {
            attributes = attributes.push_dst(destination);
        }
        if let Some(gateway) = gateway {
            attributes = attributes.push_gateway(gateway);
        }
        if let Some(source) = source {
            attributes = attributes.push_prefsrc(source);
        }
        let _ = attributes.push_oif(index.cast_unsigned());
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }

    /// Fixes the hardware address of a neighbour, so that nobody has to ask for it or can answer falsely.
    pub fn add_neighbour(&mut self, index: i32, address: IpAddr, mac: &[u8]) -> io::Result<()> {
        let header = rt_neigh::Ndmsg {
            ndm_family: family(address),
            ndm_ifindex: index,
            ndm_state: rt_neigh::NudState::Permanent as u16,
            ..Default::default()
        };
        let mut request = rt_neigh::Request::new().set_change().op_newneigh_do(&header);
        let _ = request.encode().push_dst(address).push_lladdr(mac);
        self.socket.request(&request)?.recv_ack().map_err(explain)
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv6() { INET6 } else { INET }
}

/// The hardware address of our end, from its name. One that the kernel chose would be changed by udev a moment later
/// (systemd.link(5), `MACAddressPolicy=persistent`), and whoever had noted it would talk to nobody.
fn hardware_address(name: &str) -> [u8; 6] {
    let mut address = [0; 6];
    for (place, byte) in address.iter_mut().zip(Sha256::digest(name)) {
        *place = byte;
    }
    // Neither a group address nor one of a manufacturer (IEEE 802, "locally administered").
    address[0] = address[0] & 0xfc | 0x02;
    address
}

/// Keeps the kernel's own words (the extended ack) and its error number.
fn explain(error: ReplyError) -> io::Error {
    // Errors that callers tell apart have a number; the rest is for people.
    match error.as_io_error().raw_os_error() {
        Some(libc::ENODEV) => error.into(),
        _ => io::Error::new(error.as_io_error().kind(), error.to_string()),
    }
}
