//! Questions: the kernel's objects of nftables, listed.
//!
//! Source: netlink(7), "NLM_F_DUMP"; linux/netfilter/nf_tables.h.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::hand::split;
use super::message::{Attributes, HEADER, question};

/// `NFT_MSG_…` of linux/netfilter/nf_tables.h.
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
/// `NLM_F_DUMP` of linux/netlink.h, and what it says of a list that changed while it was read.
const DUMP: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// As often a list is begun again that changes while it is read.
const TRIES: u32 = 20;
/// Before the second time; it grows by as much each time, to a fifth of a second in all.
const PAUSE: Duration = Duration::from_millis(1);

/// The chains of a family.
pub fn chains(family: u8) -> io::Result<Vec<u8>> {
    dump(GET_CHAIN, family, &Attributes::default())
}

/// The rules of a table, or those of one of its chains.
pub fn rules(family: u8, table: &str, chain: Option<&str>) -> io::Result<Vec<u8>> {
    let filter = Attributes::default().text(1, table);
    dump(GET_RULE, family, &chain.map_or(filter.clone(), |chain| filter.text(2, chain)))
}

/// The rules of all tables of all families.
pub fn all_rules() -> io::Result<Vec<u8>> {
    dump(GET_RULE, 0, &Attributes::default())
}

/// The sets and maps of a table, without what is in them.
pub fn sets(family: u8, table: &str) -> io::Result<Vec<u8>> {
    dump(GET_SET, family, &Attributes::default().text(1, table))
}

/// What is in a set or map.
pub fn elements(family: u8, table: &str, set: &str) -> io::Result<Vec<u8>> {
    dump(GET_ELEMENTS, family, &Attributes::default().text(1, table).text(2, set))
}

/// All messages of an answer, one behind the other.
fn dump(kind: u16, family: u8, filter: &Attributes) -> io::Result<Vec<u8>> {
    let asked = question(kind, DUMP, family, filter);
    let mut tries = 1;
    loop {
        match once(&asked) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {
                // Whoever changes it may be in the middle of many changes.
                std::thread::sleep(PAUSE * tries);
                tries += 1;
            }
            other => return other,
        }
    }
}

fn once(asked: &[u8]) -> io::Result<Vec<u8>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(socket.as_raw_fd(), asked, MsgFlags::empty())?;
    let mut answer = Vec::new();
    // The kernel makes its packets as long as this, up to 32 KiB.
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut messages = buffer.get(..length).unwrap_or_default();
        if split(messages).is_none() {
            return Err(io::Error::other(
                "the kernel gave an answer about its rules that cannot be understood",
            ));
        }
        while let Some((message, rest)) = split(messages) {
            messages = rest;
            let half = |at: usize| {
                message.get(at..).and_then(|it| it.first_chunk()).copied().map(u16::from_ne_bytes)
            };
            let code =
                message.get(HEADER..).and_then(|it| it.first_chunk()).copied().map_or(0, i32::from_ne_bytes);
            if half(6).is_some_and(|flags| flags & INTERRUPTED != 0) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match half(4) {
                Some(ERROR | DONE) if code != 0 => {
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                Some(ERROR | DONE) => return Ok(answer),
                _ => answer.extend_from_slice(message),
            }
        }
    }
}
