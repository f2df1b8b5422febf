//! A program that ends while clients are led to it: the version before has the traffic again within milliseconds, or it is started
//! again. Until then the kernel would refuse who asks, as nobody listens any more, and that is an error the client sees. So a port
//! on which a container has listened is quiet in the first second of being refused: the client sends its SYN again, a second later
//! (RFC 6298, 2.1), and is led to what serves. Where nothing does, it is told so then.
//!
//! In the container's own network namespace, and gone with it. The kernel ends the second by itself: nothing has to be taken back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use super::{owner, sockets};
use crate::types::Protocol;

/// What answers a SYN to a port on which nobody listens is a reset of sequence number 0 (RFC 9293, 3.10.7.1); of a connection
/// that there was it has another one. Who is refused first puts the port into both sets, `quiet` before `refused`: so another
/// processor that finds it in `refused` finds it in `quiet` too. What goes on refusing is quiet again after a minute.
const RULES: &str = r#"
add table inet gitopsd-quiet
delete table inet gitopsd-quiet
add table inet gitopsd-quiet
add set inet gitopsd-quiet listened { type inet_proto . inet_service ; }
add set inet gitopsd-quiet refused { type inet_proto . inet_service ; size 65535 ; flags dynamic,timeout ; timeout 60s ; }
add set inet gitopsd-quiet quiet { type inet_proto . inet_service ; size 65535 ; flags dynamic,timeout ; timeout 1s ; }
add chain inet gitopsd-quiet refuse
add rule inet gitopsd-quiet refuse meta l4proto . th sport != @refused add @quiet { meta l4proto . th sport } add @refused { meta l4proto . th sport } drop
add rule inet gitopsd-quiet refuse meta l4proto . th sport @quiet drop
add chain inet gitopsd-quiet output { type filter hook output priority -300 ; policy accept ; }
add rule inet gitopsd-quiet output oifname != "lo" meta l4proto . th sport @listened tcp flags rst,ack / syn,rst,ack tcp sequence 0 goto refuse
"#;

/// The script for these ports.
fn rules(ports: &BTreeSet<u16>) -> String {
    let mut text = RULES.to_owned();
    for port in ports {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "add element inet gitopsd-quiet listened {{ tcp . {port} }}");
    }
    text
}

/// Has the calling thread's network namespace answer nobody in the first second, where the ports on which somebody listens there
/// for others now are to be refused.
pub fn delay_refusals() -> io::Result<()> {
    let listening = sockets::listening(Protocol::Tcp)?;
    let for_others = listening.iter().filter(|socket| !socket.local().is_loopback());
    let ports: BTreeSet<u16> = for_others.map(sockets::Socket::local_port).collect();
    if ports.is_empty() { Ok(()) } else { owner::apply_once(&rules(&ports)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::traffic::netlink;

    #[test]
    fn all_of_it_can_be_made_over_netlink() {
        let text = rules(&BTreeSet::from([80, 65535]));
        assert!(text.contains("{ tcp . 80 }"), "{text}");
        assert!(netlink::would_make(&text).is_some(), "{text}");
    }
}
