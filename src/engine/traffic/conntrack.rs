//! Forgets UDP flows that go another way than the rules say, as without a connection's end they would go on as they began for as
//! long as a client does; and TCP connections to a container that goes.
//!
//! Of TCP only those that are over, or that nobody has answered and nobody will: to delete entries of connections that are still
//! open makes clients wait a second and more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_bindings::conntrack::{IterableConntrackAttrs, IterableTupleAttrs, Nfgenmsg, Request};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::push_header;
use netlink_socket2::NetlinkSocket;
use nix::libc;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` of linux/netfilter/nfnetlink_conntrack.h.
const CT_DELETE: u16 = 1 << 8 | 2;
/// `CTA_TUPLE_ORIG` with NLA_F_NESTED.
const CTA_TUPLE_ORIG: u16 = 1 | 1 << 15;
/// `CTA_FILTER_F_CTA_IP_SRC` and `CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's net/netfilter/nf_internals.h.
const FILTER_IP_SRC: u32 = 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const NETLINK_NETFILTER: u16 = 12;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
/// `TCP_CONNTRACK_SYN_SENT` of linux/netfilter/nf_conntrack_tcp.h: nobody has answered yet, and the client asks again.
const UNANSWERED: u8 = 1;
/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE`: only what begins another connection comes of those.
const OVER: [u8; 2] = [7, 8];
const INET: u8 = libc::AF_INET as u8;
const INET6: u8 = libc::AF_INET6 as u8;

/// What the kernel knows of flows. Its socket is kept: see `ask::Asker`.
#[derive(Default)]
pub struct Flows(NetlinkSocket);

/// TCP connections that are to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that are over.
    Over,
    /// Those too that nobody has answered: of a container that answers nobody any more. One that does may do so between the
    /// list and the deletion, and its client would be led elsewhere in the middle of it.
    Unanswered,
    /// All of them.
    All,
}

impl Flows {
    /// Deletes the UDP flows that `leads` would lead elsewhere than they go, or that were redirected to one of `lost` and
    /// that nothing leads there any more. `leads`: where what a client sends to an address may be sent on to; nothing =
    /// nowhere by the rules in question. With `all` every flow of the host is looked at, else those answered by one of `lost`.
    /// Returns how many there were.
    pub fn forget_stale(
        &mut self,
        lost: &[IpAddr],
        all: bool,
        leads: impl Fn(SocketAddr) -> Vec<SocketAddr>,
    ) -> io::Result<usize> {
        let from: Vec<(u8, Option<IpAddr>)> = match all {
            true => [INET, INET6].map(|family| (family, None)).to_vec(),
            false => answered_by(lost),
        };
        self.forget(UDP, &from, |flow, _| is_stale(flow, lost, &leads))
    }

    /// Deletes `which` of the TCP connections that were redirected to one of `addresses`. Returns how many there were.
    pub fn forget_connections(&mut self, addresses: &[IpAddr], which: Which) -> io::Result<usize> {
        self.forget(TCP, &answered_by(addresses), |flow, attributes| {
            let state = || attributes.get_protoinfo().ok()?.get_protoinfo_tcp().ok()?.get_tcp_state().ok();
            let ours = flow.from != flow.to && addresses.contains(&flow.from.ip());
            ours && match which {
                Which::Over => state().is_some_and(|state| OVER.contains(&state)),
                Which::Unanswered => {
                    state().is_some_and(|state| state == UNANSWERED || OVER.contains(&state))
                }
                Which::All => true,
            }
        })
    }

    fn forget(
        &mut self,
        protocol: u8,
        from: &[(u8, Option<IpAddr>)],
        goes: impl Fn(&Flow, &IterableConntrackAttrs<'_>) -> bool,
    ) -> io::Result<usize> {
        let forgotten = forget(&mut self.0, protocol, from, goes);
        if forgotten.is_err() {
            // The rest of an answer may still wait in it.
            self.0 = NetlinkSocket::new();
        }
        forgotten
    }
}

/// What is answered by these addresses.
fn answered_by(addresses: &[IpAddr]) -> Vec<(u8, Option<IpAddr>)> {
    addresses.iter().map(|address| (family(*address), Some(*address))).collect()
}

/// Deletes flows of one protocol, of a family and answered by an address: those that `goes` says. Returns how many there
/// were.
fn forget(
    netlink: &mut NetlinkSocket,
    protocol: u8,
    from: &[(u8, Option<IpAddr>)],
    goes: impl Fn(&Flow, &IterableConntrackAttrs<'_>) -> bool,
) -> io::Result<usize> {
    let mut flows = Vec::new();
    // Each look is a walk through the whole of the kernel's table.
    for (family, from) in from {
        let header = Nfgenmsg { nfgen_family: *family, ..Default::default() };
        let mut request = Request::new().op_get_dump(&header);
        // The kernel picks them out since 5.8; an older one gives all flows, and `goes` does.
        let answers = request.encode().nested_tuple_reply().nested_tuple_ip();
        let (answers, flags) = match from {
            Some(IpAddr::V4(address)) => (answers.push_ip_v4_src(*address), FILTER_IP_SRC | FILTER_PROTO_NUM),
            // Kernels compare IPv6 addresses the wrong way round here: those that are equal are left out.
            Some(IpAddr::V6(address)) => (answers.push_ip_v6_src(*address), FILTER_PROTO_NUM),
            None if *family == INET6 => (answers.push_ip_v6_src(Ipv6Addr::UNSPECIFIED), FILTER_PROTO_NUM),
            None => (answers.push_ip_v4_src(Ipv4Addr::UNSPECIFIED), FILTER_PROTO_NUM),
        };
        let _ = answers
            .end_nested()
            .nested_tuple_proto()
            .push_proto_num(protocol)
            .end_nested()
            .end_nested()
            .nested_filter()
            .push_reply_flags(flags)
            .end_nested();
        let mut reply = netlink.request(&request)?;
        while let Some(answer) = reply.recv() {
            let (_, attributes) = answer?;
            let flow = ends(&attributes, protocol).filter(|flow| goes(flow, &attributes));
            flows.extend(flow.map(|flow| (*family, flow.original)));
        }
    }
    for (family, flow) in &flows {
        let answer = netlink.request(&Delete::new(*family, flow))?.recv_ack();
        match answer.map_err(io::Error::from) {
            // It ran out meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(flows.len())
}

/// A UDP flow, or a TCP connection.
struct Flow {
    /// Where the client sends to.
    to: SocketAddr,
    /// Where answers come from.
    from: SocketAddr,
    /// Its original direction, as the kernel gave it.
    original: Vec<u8>,
}

fn is_stale(flow: &Flow, lost: &[IpAddr], leads: impl Fn(SocketAddr) -> Vec<SocketAddr>) -> bool {
    match leads(flow.to).as_slice() {
        [] => flow.from != flow.to && lost.contains(&flow.from.ip()),
        wanted => !wanted.contains(&flow.from),
    }
}

/// `None`: it is of another protocol. Others than these two have no ports, or ones of their own kind.
fn ends(flow: &IterableConntrackAttrs<'_>, of: u8) -> Option<Flow> {
    let (original, reply) = (flow.get_tuple_orig().ok()?, flow.get_tuple_reply().ok()?);
    let protocol = original.get_tuple_proto().ok()?.get_proto_num().ok()?;
    if protocol != of {
        return None;
    }
    let address = |tuple: &IterableTupleAttrs<'_>, to: bool| -> Option<IpAddr> {
        let ip = tuple.get_tuple_ip().ok()?;
        let four = if to { ip.get_ip_v4_dst() } else { ip.get_ip_v4_src() };
        let six = if to { ip.get_ip_v6_dst() } else { ip.get_ip_v6_src() };
        four.map(IpAddr::V4).or_else(|_| six.map(IpAddr::V6)).ok()
    };
    let to = SocketAddr::new(
        address(&original, true)?,
        original.get_tuple_proto().ok()?.get_proto_dst_port().ok()?,
    );
    let from =
        SocketAddr::new(address(&reply, false)?, reply.get_tuple_proto().ok()?.get_proto_src_port().ok()?);
    Some(Flow { to, from, original: original.get_buf().to_vec() })
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv6() { INET6 } else { INET }
}

/// A request that the crate has no type for.
struct Delete(Vec<u8>);

impl Delete {
    fn new(family: u8, original: &[u8]) -> Self {
        let mut payload = Nfgenmsg { nfgen_family: family, ..Default::default() }.as_slice().to_vec();
        push_header(&mut payload, CTA_TUPLE_ORIG, u16::try_from(original.len()).unwrap_or(u16::MAX));
        payload.extend_from_slice(original);
        Self(payload)
    }
}

impl NetlinkRequest for Delete {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: NETLINK_NETFILTER, request_type: CT_DELETE }
    }
    fn flags(&self) -> u16 {
        0
    }
    fn payload(&self) -> &[u8] {
        &self.0
    }
    type ReplyType<'a> = &'a [u8];
    fn decode_reply(reply: &[u8]) -> &[u8] {
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_where_the_rules_lead_stays() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let leads =
            |to: SocketAddr| (to == at("192.0.2.1:53")).then(|| at("10.98.1.8:5353")).into_iter().collect();
        let lost = ["10.98.1.7".parse().unwrap()];
        let stale = |to: &str, from: &str| {
            is_stale(&Flow { to: at(to), from: at(from), original: Vec::new() }, &lost, leads)
        };
        // Led to the old generation; begun before the port was published; to a port that is no longer published.
        assert!(stale("192.0.2.1:53", "10.98.1.7:5353"));
        assert!(stale("192.0.2.1:53", "192.0.2.1:53"));
        assert!(stale("192.0.2.1:54", "10.98.1.7:5354"));
        // As it should be; straight to the container; somebody else's.
        assert!(!stale("192.0.2.1:53", "10.98.1.8:5353"));
        assert!(!stale("10.98.1.7:5353", "10.98.1.7:5353"));
        assert!(!stale("198.51.100.1:53", "198.51.100.1:53"));
        assert!(!stale("192.0.2.1:54", "10.98.1.9:5354"));
    }
}
