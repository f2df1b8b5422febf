//! A container that goes, and clients that use a port again.
//!
//! A connection that its server has reset is known to conntrack for ten seconds more, and what begins another one from the same
//! port of the same client goes where that one went: a SYN is let through as it is, by the old address translation
//! (`nf_conntrack_tcp_packet` of the kernel, TCP_CONNTRACK_IGNORE; it is looked up anew only where the connection was
//! closed, or reset by the client). There nobody listens any more. So a container that goes answers no SYN, which the client
//! sends again a second later, and what the kernel remembers of its connections is deleted.

use std::io;
use std::net::IpAddr;

use super::conntrack::{Flows, Which};
use super::owner;
use crate::types::InstanceId;

/// In the container's own network namespace, and gone with it. SYN alone begins a connection (RFC 9293, 3.10.7.2). What its
/// programs ask each other goes on: they may need that for their last answers.
const DEAF: &str = r#"
add table inet gitopsd-end
add chain inet gitopsd-end input { type filter hook input priority -300 ; policy accept ; }
flush chain inet gitopsd-end input
add rule inet gitopsd-end input iifname != "lo" tcp flags syn / fin,syn,rst,ack drop
"#;

/// Has the calling thread's network namespace drop whatever begins a TCP connection.
pub fn drop_new() -> io::Result<()> {
    owner::apply_once(DEAF)
}

/// Deletes what conntrack knows of `which` TCP connections that were led to a container at these addresses. Only a courtesy:
/// nothing waits for what cannot be done.
pub fn forget(flows: &mut Flows, id: &InstanceId, addresses: &[IpAddr], which: Which) {
    if addresses.is_empty() {
        return;
    }
    match flows.forget_connections(addresses, which) {
        Ok(0) => {}
        Ok(count) => tracing::debug!("{id}: {count} connections are forgotten"),
        Err(error) => tracing::warn!("cannot forget connections of {id}: {error}"),
    }
}
