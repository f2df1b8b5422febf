//! A new version that dies while it is watched: the version before is there, and has the traffic again within milliseconds. Until
//! then a client would be refused by the kernel, as nobody listens any more, and that is an error it sees. So what listens when a
//! version gets its traffic refuses nobody while it is watched: the client sends its SYN again, a second later (RFC 6298, 2.1),
//! and is led to what serves.
//!
//! In the container's own network namespace, and gone with it. The kernel itself forgets the ports once the time is over, so that
//! nothing has to be taken back: whoever is refused after that is told so at once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use super::{owner, sockets};
use crate::types::Protocol;

/// What answers a SYN to a port on which nobody listens is a reset of sequence number 0 (RFC 9293, 3.10.7.1); of a connection
/// that there was it has another one.
const RULES: &str = r#"
add table inet gitopsd-quiet
delete table inet gitopsd-quiet
add table inet gitopsd-quiet
add set inet gitopsd-quiet ports { type inet_proto . inet_service ; flags timeout ; }
add chain inet gitopsd-quiet output { type filter hook output priority -300 ; policy accept ; }
add rule inet gitopsd-quiet output oifname != "lo" meta l4proto . th sport @ports tcp flags rst,ack / syn,rst,ack tcp sequence 0 drop
"#;

/// The script for these ports. In whole seconds, and at least one.
fn rules(ports: &BTreeSet<u16>, time: Duration) -> String {
    let mut text = RULES.to_owned();
    for port in ports {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "add element inet gitopsd-quiet ports {{ tcp . {port} timeout {}s }}",
            time.as_secs().saturating_add(1)
        );
    }
    text
}

/// Has the calling thread's network namespace refuse nobody for so long at the ports on which somebody listens there now.
pub fn refuse_nobody(time: Duration) -> io::Result<()> {
    let ports: BTreeSet<u16> =
        sockets::listening(Protocol::Tcp)?.iter().map(sockets::Socket::local_port).collect();
    if ports.is_empty() { Ok(()) } else { owner::apply_once(&rules(&ports, time)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::traffic::netlink;

    #[test]
    fn all_of_it_can_be_made_over_netlink() {
        let text = rules(&BTreeSet::from([80, 65535]), Duration::from_millis(2500));
        assert!(text.contains("{ tcp . 80 timeout 3s }"), "{text}");
        assert!(netlink::would_make(&text).is_some(), "{text}");
    }
}
