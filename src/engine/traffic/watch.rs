//! Tells when somebody else changes rules that traffic depends on: a flush of all of them, a firewall that is loaded
//! anew. Without it the loop would see that only at its next turn.
//!
//! Source: linux/netfilter/nfnetlink.h and nf_tables.h; every change is sent to the group NFNLGRP_NFTABLES.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

use super::forward::FOREIGN;
use super::netlink::hand::split;
use super::netlink::message::{GENERIC, HEADER};

/// Bit of the group NFNLGRP_NFTABLES, number 7.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWTABLE`, `…DELTABLE`, the same of chains, rules and elements, and `…DELSET`: the lower byte.
const CHANGES: [u8; 9] = [0, 2, 3, 5, 6, 8, 11, 12, 14];
/// `NFT_MSG_DELRULE`: from there on nothing that makes a chain drop what it let through.
const LAST_OF_CHAINS: u8 = 8;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, … : the table's name is the first attribute of all of them.
const TABLE: u16 = 1;

/// Bytes that may wait to be read, of which the kernel makes twice as many: thousands of rules that are loaded at once.
/// What is more than that is told of as lost.
const BUFFER: usize = 4 << 20;

/// What was lost is told of after this at the latest.
const FLOOD: Duration = Duration::from_millis(50);

/// A firewall changes many rules at once: one look for all of them.
const SETTLE: Duration = Duration::from_millis(20);
/// From one look for a firewall to the next: at first, and at the most, if it goes on and on.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Something of our own table changed, by whomever: told at once, each time.
    Changed,
    /// A firewall's chain of forwarded packets changed: told when it has come to rest.
    Firewall,
}

/// Calls `told` from a thread of its own, for as long as it gives true, whenever something of `table` changed, by
/// whomever, or a firewall's chain of forwarded packets changed. Belongs to the caller's network namespace.
pub fn begin(table: &str, told: impl Fn(Heard) -> bool + Send + 'static) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    // Beyond the machine's limit, for which root is needed; with less of it more is told of as lost.
    if let Err(error) = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER) {
        tracing::debug!("changes of nftables have the usual buffer: {error}");
    }
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    let table = table.to_owned();
    std::thread::Builder::new().name("nft-watch".to_owned()).spawn(move || listen(&socket, &table, told))?;
    Ok(())
}

fn listen(socket: &OwnedFd, table: &str, told: impl Fn(Heard) -> bool) {
    let [mut pause, longest] = PAUSES;
    // When the next look for a firewall is due, and when the last one was.
    let (mut due, mut last): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let heard = hear(socket, table, left);
        if matches!(heard, Some(What::One(Heard::Changed) | What::Lost)) && !told(Heard::Changed) {
            return;
        }
        match heard {
            Some(What::One(Heard::Changed)) => {}
            Some(What::One(Heard::Firewall) | What::Lost) => {
                let settled = Instant::now() + SETTLE;
                due.get_or_insert(last.map_or(settled, |last| settled.max(last + pause)));
            }
            None if due.is_some() => {
                let quiet = last.is_none_or(|last| last.elapsed() > longest.saturating_mul(2));
                pause = if quiet { PAUSES[0] } else { pause.saturating_mul(2).min(longest) };
                (due, last) = (None, Some(Instant::now()));
                if !told(Heard::Firewall) {
                    return;
                }
            }
            None => return,
        }
    }
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A change.
    One(Heard),
    /// More changes than there was room for: both kinds may be among them.
    Lost,
}

/// Waits for a change that matters; `None` when the time is up, or when there is nothing to listen to any more.
fn hear(socket: &OwnedFd, table: &str, left: Option<Duration>) -> Option<What> {
    let mut buffer = vec![0; 1 << 16];
    let mut end = left.map(|left| Instant::now() + left);
    let mut lost: Option<Instant> = None;
    loop {
        // Where it goes on and on nobody waits for its end.
        if lost.is_some_and(|since| since.elapsed() > FLOOD) {
            return Some(What::Lost);
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        // One more millisecond, as a part of one would be none.
        let left = left.and_then(|left| PollTimeout::try_from(left + Duration::from_millis(1)).ok());
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], left.unwrap_or(PollTimeout::NONE)) {
            Ok(0) if lost.is_some() => return Some(What::Lost),
            Ok(0) => return None,
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return deaf(error),
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => match about(buffer.get(..length).unwrap_or_default(), table) {
                Some(heard) if lost.is_none() => return Some(What::One(heard)),
                _ => {}
            },
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // The kernel takes nothing in, and says so only this once, until all that waits was read.
            Err(Errno::ENOBUFS) => {
                let now = Instant::now();
                (lost, end) = (lost.or(Some(now)), Some(now));
            }
            Err(error) => return deaf(error),
        }
    }
}

fn deaf(error: Errno) -> Option<What> {
    tracing::warn!("changes of nftables are no longer heard of: {error}");
    None
}

/// What some messages are about, as far as our rules depend on it; our own table first.
fn about(mut messages: &[u8], table: &str) -> Option<Heard> {
    let mut heard = None;
    while let Some((message, rest)) = split(messages) {
        messages = rest;
        match one(message, table) {
            Some(Heard::Changed) => return Some(Heard::Changed),
            other => heard = heard.or(other),
        }
    }
    heard
}

fn one(message: &[u8], table: &str) -> Option<Heard> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let [subsystem, verb] = kind.to_be_bytes();
    if subsystem != SUBSYSTEM {
        return None;
    }
    let mut attributes = message.get(HEADER + GENERIC..)?;
    while let Some(header) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes(header.get(..2)?.try_into().ok()?)).max(4);
        let kind = u16::from_ne_bytes(header.get(2..4)?.try_into().ok()?) & 0x3fff;
        if kind == TABLE {
            let name = attributes.get(4..length)?.split(|byte| *byte == 0).next()?;
            let foreign = FOREIGN.iter().any(|foreign| foreign.as_bytes() == name);
            return match () {
                () if name == table.as_bytes() && CHANGES.contains(&verb) => Some(Heard::Changed),
                () if foreign && verb <= LAST_OF_CHAINS => Some(Heard::Firewall),
                () => None,
            };
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
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
    fn what_changes_in_our_table_matters() {
        let ours = |messages: &[u8]| about(messages, "gitopsd");
        assert_eq!(ours(&message(2, 1, "gitopsd")), Some(Heard::Changed));
        assert_eq!(
            ours(&[message(8, 1, "filter"), message(14, 1, "gitopsd")].concat()),
            Some(Heard::Changed)
        );
        assert_eq!(ours(&message(6, 1, "gitopsd")), Some(Heard::Changed), "one more rule");
        for other in [message(9, 1, "gitopsd"), message(2, 1, "gitopsd-two"), message(2, 2, "gitopsd")] {
            assert_eq!(ours(&other), None, "{other:?}");
        }
        // A firewall's chains matter whatever happens to them, what is in its sets does not.
        assert_eq!(ours(&message(3, 1, "filter")), Some(Heard::Firewall));
        assert_eq!(ours(&message(12, 1, "filter")), None);
        // Whatever comes, cut short or not, is heard without a panic.
        let whole = message(2, 1, "gitopsd");
        for end in 0..whole.len() {
            ours(&whole[..end]);
        }
        assert_eq!(ours(&[0; 64]), None);
    }
}
