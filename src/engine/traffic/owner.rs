//! Whom our table belongs to, and writing it as its owner.
//!
//! A table with an owner can be changed by the owner's socket alone: `nft flush ruleset` of another program leaves it
//! where it is (Linux 5.12). One that persists stays when its owner has ended, and takes the next one (6.9). Where the
//! kernel knows only less than both, the table is open to everybody, and what others take away is put back (`watch`).

use std::io;

use nix::libc;

use super::netlink::ask::Asker;
use super::netlink::hand::{Hand, Refused};
use super::netlink::{OWNER, PERSIST, compile};
use super::nft;

/// What others may do with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Absent,
    /// Whatever they like: an older kernel, or an older version of this program, made it. Its flags cannot be changed.
    Open,
    /// The same, until an agent takes it over: its owner has ended.
    Orphan,
    /// Nothing: it belongs to the socket with this number.
    Owned(u32),
}

/// Writes one instance's table.
#[derive(Debug, Default)]
pub struct Writer {
    /// Opened by the first change, if it was not before.
    pub hand: Option<Hand>,
    /// Set once the kernel has said that it knows no owners, or by who wants none.
    pub open_to_others: bool,
}

impl Writer {
    /// Runs a script as one transaction: all of it happens or nothing.
    pub fn apply(&mut self, asker: &mut Asker, table: &str, script: &str) -> io::Result<()> {
        let standing = nft::standing(asker, table)?;
        let hand = match &mut self.hand {
            Some(hand) => hand,
            none => none.insert(Hand::open()?),
        };
        match standing {
            Standing::Owned(port) if port != hand.port() => {
                let why = format!(
                    "the table belongs to another process (netlink port {port}): an agent, or systemd that keeps it for one; `systemctl stop gitopsd` ends both"
                );
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            Standing::Orphan if !script.starts_with("delete table") => {
                // The same transaction that changes it takes it over.
                return write(hand, &format!("add table inet {table}\n{script}"), OWNER | PERSIST);
            }
            Standing::Absent if !self.open_to_others => {}
            Standing::Owned(_) => return write(hand, script, OWNER | PERSIST),
            Standing::Absent | Standing::Open | Standing::Orphan => return write(hand, script, 0),
        }
        match write(hand, script, OWNER | PERSIST) {
            // Which of the two it is depends on the kernel's age.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                write(hand, script, 0)?;
                self.open_to_others = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// Changes rules of others by a socket of its own.
pub fn apply_once(script: &str) -> io::Result<()> {
    write(&Hand::open()?, script, 0)
}

fn write(hand: &Hand, script: &str, flags: u32) -> io::Result<()> {
    let (batch, lines) = compile(script, flags).map_err(io::Error::other)?;
    hand.commit(batch).map_err(|Refused { change, error }| {
        let line = (change as usize).checked_sub(1).and_then(|place| lines.get(place));
        match (line, error.raw_os_error()) {
            // Asked for above: the number has to stay with it.
            (Some(line), _) if line.starts_with("add table") => error,
            (Some(line), _) => io::Error::new(error.kind(), format!("`{line}`: {error}")),
            (None, _) => error,
        }
    })
}
