//! Questions: the kernel's objects of nftables, listed.
//!
//! Source: netlink(7), "NLM_F_DUMP"; linux/netfilter/nf_tables.h.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvfrom, send};

use super::hand::{open, split};
use super::message::{Attributes, Given, HEADER, question};
use super::objects::Objects;

/// `NFT_MSG_…` of linux/netfilter/nf_tables.h.
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;
/// `NLM_F_ACK` and `NLM_F_DUMP` of linux/netlink.h, and what it says of a list that changed while it was read.
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// As often a list is begun again that changes while it is read.
const TRIES: u32 = 20;
/// Before the second time; it grows by as much each time, to a fifth of a second in all.
const PAUSE: Duration = Duration::from_millis(1);

/// Asks. All who use one have to be in the same network namespace: that of its socket is the one of whoever asked first, or first after
/// an error.
///
/// The socket is kept, for the sake of speed: whoever closes one of netfilter's waits until the kernel has freed what the last change took
/// away, which takes a grace period of RCU, 8 to 16 ms (`nft_rcv_nl_event` of the kernel's nf_tables_api.c).
#[derive(Debug, Default)]
pub struct Asker {
    socket: Option<OwnedFd>,
    /// Of the last question.
    number: u32,
}

impl Asker {
    /// The number of the rule set: another one after every change to any table of this network namespace.
    pub fn generation(&mut self) -> io::Result<u32> {
        let answer = self.ask(GET_GENERATION, ACK, 0, &Attributes::default())?;
        let number = Given::of(&answer.messages).and_then(|(_, _, given)| given.number(1));
        number.ok_or_else(|| io::Error::other("the kernel gave no number of its rules"))
    }

    /// The tables of a family.
    pub fn tables(&mut self, family: u8) -> io::Result<Vec<u8>> {
        self.list(GET_TABLE, family, &Attributes::default())
    }

    /// The chains of a family.
    pub fn chains(&mut self, family: u8) -> io::Result<Vec<u8>> {
        self.list(GET_CHAIN, family, &Attributes::default())
    }

    /// The rules of a table, or those of one of its chains.
    pub fn rules(&mut self, family: u8, table: &str, chain: Option<&str>) -> io::Result<Vec<u8>> {
        let filter = Attributes::default().text(1, table);
        self.list(GET_RULE, family, &chain.map_or(filter.clone(), |chain| filter.text(2, chain)))
    }

    /// The rules of all tables of all families.
    pub fn all_rules(&mut self) -> io::Result<Vec<u8>> {
        self.list(GET_RULE, 0, &Attributes::default())
    }

    /// The sets and maps of a table, without what is in them.
    pub fn sets(&mut self, family: u8, table: &str) -> io::Result<Vec<u8>> {
        self.list(GET_SET, family, &Attributes::default().text(1, table))
    }

    /// What is in a set or map.
    pub fn elements(&mut self, family: u8, table: &str, set: &str) -> io::Result<Vec<u8>> {
        let filter = Attributes::default().text(1, table).text(2, set);
        let mut list = self.whole(GET_ELEMENTS, family, &filter)?;
        // For the next packet the kernel counts how many elements were in the ones before. If it moves them to a larger table meanwhile, as it
        // does a moment after many have come, these are others, and some are left out (`nft_rhash_walk`): it says nothing of that.
        for tries in 1..TRIES {
            if list.packets <= 1 {
                break;
            }
            let again = self.whole(GET_ELEMENTS, family, &filter)?;
            // Not byte by byte: some tell how long they have left.
            let [before, now] = [&list, &again].map(|list| Objects::read(&list.messages).elements);
            if before == now {
                break;
            }
            list = again;
            std::thread::sleep(PAUSE * tries);
        }
        Ok(list.messages)
    }

    /// All messages of a list, one behind the other.
    fn list(&mut self, kind: u16, family: u8, filter: &Attributes) -> io::Result<Vec<u8>> {
        Ok(self.whole(kind, family, filter)?.messages)
    }

    /// A list, of one moment as far as the kernel knows.
    fn whole(&mut self, kind: u16, family: u8, filter: &Attributes) -> io::Result<Answer> {
        let mut tries = 1;
        loop {
            match self.ask(kind, DUMP, family, filter) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {
                    // Whoever changes it may be in the middle of many changes.
                    std::thread::sleep(PAUSE * tries);
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    fn ask(&mut self, kind: u16, flags: u16, family: u8, filter: &Attributes) -> io::Result<Answer> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open()?,
        };
        self.number = self.number.wrapping_add(1);
        let asked = question(kind, flags, self.number, family, filter);
        let answer = answer(&socket, &asked, self.number)?;
        // One with an answer that was not read to its end is not asked again.
        self.socket = Some(socket);
        answer
    }
}

/// What the kernel said.
#[derive(Debug, Default)]
struct Answer {
    messages: Vec<u8>,
    /// In how many packets these came.
    packets: usize,
}

/// An answer up to its end, which may be a refusal.
fn answer(socket: &OwnedFd, asked: &[u8], number: u32) -> io::Result<io::Result<Answer>> {
    send(socket.as_raw_fd(), asked, MsgFlags::empty())?;
    let mut answer = Answer::default();
    // The kernel makes its packets as long as this, up to 32 KiB.
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, from) = match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // Other programs can send to it, too.
        if from.is_none_or(|from| from.pid() != 0) {
            continue;
        }
        let mut messages = buffer.get(..length).unwrap_or_default();
        if split(messages).is_none() {
            return Err(io::Error::other(
                "the kernel gave an answer about its rules that cannot be understood",
            ));
        }
        // The end of it may come alone.
        let mut is_counted = false;
        while let Some((message, rest)) = split(messages) {
            messages = rest;
            let half = |at: usize| {
                message.get(at..).and_then(|it| it.first_chunk()).copied().map(u16::from_ne_bytes)
            };
            let whole = |at: usize| message.get(at..).and_then(|it| it.first_chunk()).copied();
            if whole(8).map(u32::from_ne_bytes) != Some(number) {
                continue;
            }
            let code = whole(HEADER).map_or(0, i32::from_ne_bytes);
            if half(6).is_some_and(|flags| flags & INTERRUPTED != 0) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match half(4) {
                Some(ERROR | DONE) if code != 0 => {
                    return Ok(Err(io::Error::from_raw_os_error(code.saturating_neg())));
                }
                Some(ERROR | DONE) => return Ok(Ok(answer)),
                _ => {
                    answer.packets += usize::from(!std::mem::replace(&mut is_counted, true));
                    answer.messages.extend_from_slice(message);
                }
            }
        }
    }
}
