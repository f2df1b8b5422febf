//! The socket by which one agent changes rules: a batch goes in, the kernel's answer comes out.
//!
//! A change of nftables is carried out while it is being sent, so that its answers are there as soon as `send` returns.
//! Where the kernel knows owners of tables, the table belongs to this socket for as long as it is open.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};
use rustix::net::netlink::NETFILTER;
use rustix::net::sockopt::socket_protocol;

use super::message::{Batch, HEADER};

/// `NLMSG_ERROR` of linux/netlink.h: an answer, 0 when it worked.
const ANSWER: u16 = 2;
/// A batch may be as long as this: sets of all members, and the rules of a service, are some kilobytes.
const LONGEST: usize = 4 << 20;

/// An open socket.
#[derive(Debug)]
pub struct Hand {
    socket: OwnedFd,
    port: u32,
}

/// A change that the kernel did not take.
#[derive(Debug)]
pub struct Refused {
    /// Which of the batch's changes, from 1; 0 = all of them together.
    pub change: u32,
    /// Why.
    pub error: io::Error,
}

impl Hand {
    /// Opens one in the network namespace of the caller.
    pub fn open() -> io::Result<Self> {
        Self::of(open()?)
    }

    /// Takes over one that an agent before this one has opened, and with it the table that belongs to it.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        let address: NetlinkAddr = getsockname(socket.as_raw_fd())?;
        if socket_protocol(&socket)? != Some(NETFILTER) {
            return Err(io::Error::other("it is no socket of nftables"));
        }
        Ok(Self { socket, port: address.pid() })
    }

    /// By which the kernel tells it from others: the owner of a table, whoever made a change.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Does all of a batch, or nothing of it.
    pub fn commit(&self, batch: Batch) -> Result<(), Refused> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.len();
        let bytes = batch.finish();
        let whole = |error: Errno| Refused { change: 0, error: error.into() };
        if bytes.len() > LONGEST {
            return Err(whole(Errno::EMSGSIZE));
        }
        // The default is some 200 KiB, and one message has to fit.
        if bytes.len() > 64 << 10 {
            setsockopt(&self.socket, sockopt::SndBufForce, &bytes.len().saturating_mul(2)).map_err(whole)?;
        }
        // What an earlier call may have left unread is not an answer to this one.
        loop {
            match self.receive(&mut [0; 1 << 13]) {
                Ok(None) => break,
                Ok(Some(_)) | Err(Errno::ENOBUFS) => {}
                Err(error) => return Err(whole(error)),
            }
        }
        loop {
            match send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(whole(error)),
            }
        }
        self.answer(last)
    }

    /// The first refusal, or the answer to the last change.
    fn answer(&self, last: u32) -> Result<(), Refused> {
        let mut buffer = vec![0; 1 << 16];
        let mut refused = None;
        let mut answered = false;
        while let Some(length) =
            self.receive(&mut buffer).map_err(|error| Refused { change: 0, error: error.into() })?
        {
            let mut messages = buffer.get(..length).unwrap_or_default();
            while let Some((message, rest)) = split(messages) {
                messages = rest;
                let Some((kind, change, code)) = read(message) else { continue };
                if kind != ANSWER {
                    continue;
                }
                answered |= change == last;
                if code != 0 {
                    let error = io::Error::from_raw_os_error(code.saturating_neg());
                    refused.get_or_insert(Refused { change, error });
                }
            }
        }
        match (refused, answered) {
            (Some(refused), _) => Err(refused),
            (None, true) => Ok(()),
            (None, false) => {
                let error = io::Error::other("the kernel gave no answer to a change of its rules");
                Err(Refused { change: 0, error })
            }
        }
    }

    /// One packet of answers, if one is there.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Hand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket of netfilter, in the network namespace of the caller.
pub fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// The first of some messages, and those behind it.
pub fn split(messages: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(*messages.first_chunk::<4>()?) as usize;
    let message = messages.get(..length).filter(|message| message.len() >= HEADER)?;
    Some((message, messages.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Kind and number of a message, and the code of an answer.
fn read(message: &[u8]) -> Option<(u16, u32, i32)> {
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let number = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*message.get(HEADER..)?.first_chunk()?);
    Some((kind, number, code))
}
