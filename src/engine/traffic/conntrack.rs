//! Forgets UDP flows: without a connection's end they would follow the old generation for as long as a client goes on.
//!
//! Only UDP: to delete entries of TCP connections that are still open makes clients wait a second and more.

use std::io;
use std::net::IpAddr;

use netlink_bindings::conntrack::{IterableConntrackAttrs, Nfgenmsg, Request};
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
const INET: u8 = libc::AF_INET as u8;
const INET6: u8 = libc::AF_INET6 as u8;

/// Deletes every UDP flow that was redirected to `address`. Returns how many.
pub fn forget_udp(address: IpAddr) -> io::Result<usize> {
    let mut netlink = NetlinkSocket::new();
    let mut flows = Vec::new();
    {
        let header = Nfgenmsg { nfgen_family: family(address), ..Default::default() };
        let mut request = Request::new().op_get_dump(&header);
        // The kernel picks them out since 5.8; an older one gives all flows, and `redirected` does.
        let from = request.encode().nested_tuple_reply().nested_tuple_ip();
        let (from, flags) = match address {
            IpAddr::V4(address) => (from.push_ip_v4_src(address), FILTER_IP_SRC | FILTER_PROTO_NUM),
            // Kernels compare IPv6 addresses the wrong way round here: those that are equal are left out.
            IpAddr::V6(address) => (from.push_ip_v6_src(address), FILTER_PROTO_NUM),
        };
        let _ = from
            .end_nested()
            .nested_tuple_proto()
            .push_proto_num(libc::IPPROTO_UDP as u8)
            .end_nested()
            .end_nested()
            .nested_filter()
            .push_reply_flags(flags)
            .end_nested();
        let mut reply = netlink.request(&request)?;
        while let Some(answer) = reply.recv() {
            let (_, attributes) = answer?;
            flows.extend(redirected(&attributes, address));
        }
    }
    for flow in &flows {
        let answer = netlink.request(&Delete::new(family(address), flow))?.recv_ack();
        match answer.map_err(io::Error::from) {
            // It ran out meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(flows.len())
}

/// The original direction of a UDP flow whose answers come from `address` although it was sent to another one.
fn redirected(flow: &IterableConntrackAttrs<'_>, address: IpAddr) -> Option<Vec<u8>> {
    let original = flow.get_tuple_orig().ok()?;
    let protocol = original.get_tuple_proto().ok()?.get_proto_num().ok()?;
    let (there, back) = (original.get_tuple_ip().ok()?, flow.get_tuple_reply().ok()?.get_tuple_ip().ok()?);
    let (to, from) = match address {
        IpAddr::V4(_) => (IpAddr::V4(there.get_ip_v4_dst().ok()?), IpAddr::V4(back.get_ip_v4_src().ok()?)),
        IpAddr::V6(_) => (IpAddr::V6(there.get_ip_v6_dst().ok()?), IpAddr::V6(back.get_ip_v6_src().ok()?)),
    };
    let udp = i32::from(protocol) == libc::IPPROTO_UDP;
    (udp && from == address && to != address).then(|| original.get_buf().to_vec())
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
