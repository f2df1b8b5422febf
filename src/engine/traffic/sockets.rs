//! Sockets of the calling thread's network namespace, over sock_diag(7): counting, ending, and who listens.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::inet_diag::{self, Msg, ReqV2, Sockid, TcpState};
use netlink_bindings::traits::{NetlinkRequest, Protocol as Netlink};
use netlink_bindings::utils::find_attr;
use netlink_socket2::NetlinkSocket;
use nix::libc;

use crate::types::{InstanceId, Protocol};

/// `SOCK_DESTROY` of linux/sock_diag.h; needs CONFIG_INET_DIAG_DESTROY.
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_SKV6ONLY` of linux/inet_diag.h.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `NETLINK_SOCK_DIAG` of linux/netlink.h.
const NETLINK_SOCK_DIAG: u16 = 4;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// Neither listening, nor in TIME-WAIT, nor without a peer.
const CONNECTED: [TcpState; 9] = [
    TcpState::Established,
    TcpState::SynSent,
    TcpState::SynRecv,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
    TcpState::NewSynRecv,
];

/// With an end, or something before it, that the other side has not confirmed.
const UNFINISHED: [TcpState; 6] = [
    TcpState::Established,
    TcpState::SynRecv,
    TcpState::FinWait1,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];

/// One socket.
#[derive(Debug, Clone)]
pub struct Socket {
    family: u8,
    id: Sockid,
    /// Whose connection: the number that `/proc/PID/fd` shows.
    pub inode: u32,
    /// Whether an IPv6 socket refuses IPv4.
    pub v6_only: bool,
    /// Whether its program has closed it, and the other side knows: nothing comes of it any more, however long that one
    /// keeps its end open.
    is_over: bool,
}

impl Socket {
    /// Its own address; one that is IPv4 inside IPv6 is given as IPv4.
    pub fn local(&self) -> IpAddr {
        address(self.family, &self.id.src)
    }

    /// Its own port.
    pub fn local_port(&self) -> u16 {
        self.id.sport()
    }

    fn is_loopback(&self) -> bool {
        address(self.family, &self.id.dst).is_loopback()
    }
}

/// Connections that came in from outside: their port is one that somebody listens on here. Connections of the
/// container to others (a database) never end by themselves and are no business of a drain.
pub fn incoming() -> io::Result<Vec<Socket>> {
    let listening: BTreeSet<u16> = listening(Protocol::Tcp)?.iter().map(Socket::local_port).collect();
    let mut sockets = dump(Protocol::Tcp, CONNECTED.iter().copied().map(only).sum())?;
    // One that has stopped listening is being stopped: then every connection may be a client's.
    sockets.retain(|socket| {
        !socket.is_over
            && !socket.is_loopback()
            && (listening.is_empty() || listening.contains(&socket.local_port()))
    });
    Ok(sockets)
}

/// Connections of which the other side does not know yet that they are over, or has not got all that was written.
pub fn unfinished() -> io::Result<Vec<Socket>> {
    let mut sockets = dump(Protocol::Tcp, UNFINISHED.iter().copied().map(only).sum())?;
    sockets.retain(|socket| !socket.is_loopback());
    Ok(sockets)
}

/// Ends connections: both sides see a reset.
pub fn reset(sockets: &[Socket], id: &InstanceId) -> io::Result<()> {
    for socket in sockets {
        match destroy(socket) {
            // Nothing else ends a connection from outside; the clients stay until they close.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                tracing::warn!(instance = %id, "this kernel cannot end connections (CONFIG_INET_DIAG_DESTROY)");
                break;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Sockets that wait for strangers on `protocol`.
pub fn listening(protocol: Protocol) -> io::Result<Vec<Socket>> {
    match protocol {
        Protocol::Tcp => dump(protocol, only(TcpState::Listen)),
        // A UDP socket that is bound and not connected is in state CLOSE.
        Protocol::Udp => dump(protocol, only(TcpState::Close)),
    }
}

/// Ends one connection: both sides see a reset. Fine if it has ended meanwhile.
fn destroy(socket: &Socket) -> io::Result<()> {
    let header = ReqV2 {
        family: socket.family,
        protocol: number(Protocol::Tcp),
        states: u32::MAX,
        sockid: socket.id.clone(),
        ..Default::default()
    };
    let mut netlink = NetlinkSocket::new();
    let answer = netlink.request(&Destroy(header))?.recv_ack();
    match answer.map_err(io::Error::from) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// A request that the crate has no type for.
struct Destroy(ReqV2);

impl NetlinkRequest for Destroy {
    fn protocol(&self) -> Netlink {
        Netlink::Raw { protonum: NETLINK_SOCK_DIAG, request_type: SOCK_DESTROY }
    }
    fn flags(&self) -> u16 {
        0
    }
    fn payload(&self) -> &[u8] {
        self.0.as_slice()
    }
    type ReplyType<'a> = &'a [u8];
    fn decode_reply(reply: &[u8]) -> &[u8] {
        reply
    }
}

fn dump(protocol: Protocol, states: u32) -> io::Result<Vec<Socket>> {
    let mut netlink = NetlinkSocket::new();
    let mut sockets = Vec::new();
    for family in FAMILIES {
        let header = ReqV2 { family, protocol: number(protocol), states, ..Default::default() };
        match protocol {
            Protocol::Tcp => {
                let request = inet_diag::Request::new().op_tcp_diag_dump(&header);
                let mut reply = netlink.request(&request)?;
                while let Some(answer) = reply.recv() {
                    let (message, attributes) = answer?;
                    sockets.push(socket(&message, attributes.get_buf()));
                }
            }
            Protocol::Udp => {
                let request = inet_diag::Request::new().op_udp_diag_dump(&header);
                let mut reply = netlink.request(&request)?;
                while let Some(answer) = reply.recv() {
                    let (message, attributes) = answer?;
                    sockets.push(socket(&message, attributes.get_buf()));
                }
            }
        }
    }
    Ok(sockets)
}

fn socket(message: &Msg, attributes: &[u8]) -> Socket {
    // A byte in the kernel; the crate takes it for a flag without a value.
    let v6_only = find_attr(attributes, INET_DIAG_SKV6ONLY).is_some_and(|value| value.first() == Some(&1));
    // One that no program has open has no inode.
    let is_over = message.state == TcpState::FinWait2 as u8 && message.inode == 0;
    Socket { family: message.family, id: message.sockid.clone(), inode: message.inode, v6_only, is_over }
}

fn only(state: TcpState) -> u32 {
    1 << state as u32
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

fn address(family: u8, bytes: &[u8; 16]) -> IpAddr {
    if family == FAMILIES[0] {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
    }
}
