//! Tells when somebody else changes rules that traffic depends on: a flush of all of them, a firewall that is loaded
//! anew. Without it the loop would see that only at its next turn.
//!
//! Source: linux/netfilter/nfnetlink.h and nf_tables.h; every change is sent to the group NFNLGRP_NFTABLES.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::forward::FOREIGN;

/// Bit of the group NFNLGRP_NFTABLES, number 7.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_DELTABLE`, `…DELCHAIN`, `…DELRULE`, `…DELSET`, `…DELSETELEM`: the lower byte.
const TAKEN: [u8; 5] = [2, 5, 8, 11, 14];
/// `NFT_MSG_DELRULE`: from there on nothing that makes a chain drop what it let through.
const LAST_OF_CHAINS: u8 = 8;
/// Of struct nlmsghdr, and of struct nfgenmsg behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, … : the table's name is the first attribute of all of them.
const TABLE: u16 = 1;

/// A firewall changes many rules at once: one look for all of them.
const SETTLE: Duration = Duration::from_millis(100);
/// From one word to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Calls `told` from a thread of its own, for as long as it gives true, whenever something was taken out of `table`, or
/// a firewall's chain of forwarded packets changed. Belongs to the caller's network namespace.
pub fn begin(table: &str, told: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    let table = table.to_owned();
    let listen = move || {
        while hear(&socket, &table) {
            std::thread::sleep(SETTLE);
            forget(&socket);
            if !told() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name("nft-watch".to_owned()).spawn(listen)?;
    Ok(())
}

/// Waits for a change that matters; false when there is nothing to listen to any more.
fn hear(socket: &OwnedFd, table: &str) -> bool {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if matters(buffer.get(..length).unwrap_or_default(), table) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            // More changes than were heard: one of them may matter.
            Err(Errno::ENOBUFS) => return true,
            Err(error) => {
                tracing::warn!("changes of nftables are no longer heard of: {error}");
                return false;
            }
        }
    }
}

/// Leaves out what has come meanwhile.
fn forget(socket: &OwnedFd) {
    let mut buffer = vec![0; 1 << 16];
    while matches!(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT), Ok(1..)) {}
}

/// Whether one of some messages is about rules that ours depend on.
fn matters(mut messages: &[u8], table: &str) -> bool {
    while let Some(length) = messages.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(message) = messages.get(..length).filter(|message| message.len() >= HEADER + GENERIC) else {
            return false;
        };
        if about(message, table) == Some(true) {
            return true;
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn about(message: &[u8], table: &str) -> Option<bool> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let [subsystem, verb] = kind.to_be_bytes();
    if subsystem != SUBSYSTEM {
        return Some(false);
    }
    let mut attributes = message.get(HEADER + GENERIC..)?;
    while let Some(header) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes(header.get(..2)?.try_into().ok()?)).max(4);
        let kind = u16::from_ne_bytes(header.get(2..4)?.try_into().ok()?) & 0x3fff;
        if kind == TABLE {
            let name = attributes.get(4..length)?.split(|byte| *byte == 0).next()?;
            let ours = name == table.as_bytes() && TAKEN.contains(&verb);
            let foreign = FOREIGN.iter().any(|foreign| foreign.as_bytes() == name);
            return Some(ours || (foreign && verb <= LAST_OF_CHAINS));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(verb: u8, attribute: u16, table: &str) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        body.extend((4 + table.len() as u16 + 1).to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(table.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut whole = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        whole.extend((u16::from(SUBSYSTEM) << 8 | u16::from(verb)).to_ne_bytes());
        whole.resize(HEADER, 0);
        whole.extend(body);
        whole
    }

    #[test]
    fn what_is_taken_out_of_our_table_matters() {
        assert!(matters(&message(2, 1, "gitopsd"), "gitopsd"));
        assert!(matters(&[message(8, 1, "other"), message(14, 1, "gitopsd")].concat(), "gitopsd"));
        for other in [message(6, 1, "gitopsd"), message(2, 1, "gitopsd-two"), message(2, 2, "gitopsd")] {
            assert!(!matters(&other, "gitopsd"), "{other:?}");
        }
        // A firewall's chains matter whatever happens to them, what is in its sets does not.
        assert!(matters(&message(3, 1, "filter"), "gitopsd"));
        assert!(!matters(&message(12, 1, "filter"), "gitopsd"));
        // Whatever comes, cut short or not, is heard without a panic.
        let whole = message(2, 1, "gitopsd");
        for end in 0..whole.len() {
            matters(&whole[..end], "gitopsd");
        }
        assert!(!matters(&[0; 64], "gitopsd"));
    }
}
