//! Questions about the rule set, over netlink. Changes are `owner`'s.

use std::io;

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::NetlinkSocket;

use super::listing::{self, Table};
use super::netlink::objects::{Objects, Rule};
use super::netlink::{OWNER, PERSIST, ask};
use super::owner::Standing;
use crate::engine::native::net::names::Subnet6;

/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// As often a table is read anew that changes meanwhile.
const TRIES: usize = 5;

/// `NFPROTO_INET`, `NFPROTO_IPV4` and `NFPROTO_IPV6` of linux/netfilter.h, by nft's words.
const FAMILIES: [(&str, u8); 3] = [("inet", 1), ("ip", 2), ("ip6", 10)];

/// The number of the rule set: another one after every change to any table of this network namespace.
pub fn generation() -> io::Result<u32> {
    let request = Request::new().op_getgen_do(&Nfgenmsg::new());
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let (_, attributes) = reply.recv_one().map_err(explain)?;
    attributes.get_id().map_err(io::Error::other)
}

/// Whether a table exists.
pub fn has(family: &str, table: &str) -> io::Result<bool> {
    let Some((_, number)) = FAMILIES.iter().find(|(word, _)| *word == family) else { return Ok(false) };
    let header = Nfgenmsg { nfgen_family: *number, ..Default::default() };
    let request = Request::new().op_gettable_dump(&header);
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let mut found = false;
    while let Some(answer) = reply.recv() {
        let (_, attributes) = answer.map_err(explain)?;
        found |= attributes.get_name().is_ok_and(|name| name.to_bytes() == table.as_bytes());
    }
    Ok(found)
}

/// Whom a table of ours belongs to.
pub fn standing(table: &str) -> io::Result<Standing> {
    Ok(match found(table)? {
        None => Standing::Absent,
        Some((flags, Some(port))) if flags & OWNER != 0 => Standing::Owned(port),
        Some((flags, _)) if flags & PERSIST != 0 => Standing::Orphan,
        Some(_) => Standing::Open,
    })
}

/// A table's flags, and the port of its owner.
fn found(table: &str) -> io::Result<Option<(u32, Option<u32>)>> {
    let header = Nfgenmsg { nfgen_family: FAMILIES[0].1, ..Default::default() };
    let request = Request::new().op_gettable_dump(&header);
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let mut found = None;
    while let Some(answer) = reply.recv() {
        let (_, attributes) = answer.map_err(explain)?;
        if attributes.get_name().is_ok_and(|name| name.to_bytes() == table.as_bytes()) {
            found = Some((attributes.get_flags().unwrap_or(0), attributes.get_owner().ok()));
        }
    }
    Ok(found)
}

/// Everything of our table, from one moment; nothing if there is none.
pub fn table(table: &str, subnet6: Option<Subnet6>) -> io::Result<Option<Table>> {
    let mut tries = 1;
    loop {
        let before = generation()?;
        let read = read(table, subnet6);
        if generation()? == before {
            return read;
        }
        // Somebody changes rules without a pause: what was read is as good as any, and is read again when they are done.
        if tries >= TRIES {
            return read;
        }
        tries += 1;
    }
}

fn read(table: &str, subnet6: Option<Subnet6>) -> io::Result<Option<Table>> {
    let Some((flags, _)) = found(table)? else { return Ok(None) };
    let family = FAMILIES[0].1;
    let sets = ask::sets(family, table)?;
    let mut messages = [ask::chains(family)?, ask::rules(family, table, None)?].concat();
    for set in &Objects::read(&sets).sets {
        messages.extend(ask::elements(family, table, &set.name)?);
    }
    messages.extend(sets);
    let mut read = listing::read(&Objects::read(&messages), table, subnet6);
    read.is_dormant = flags & DORMANT != 0;
    Ok(Some(read))
}

/// The rules of one chain of family inet; nothing if there is no such chain.
pub fn chain(table: &str, chain: &str) -> io::Result<Option<Vec<Rule>>> {
    let family = FAMILIES[0].1;
    let chains = Objects::read(&ask::chains(family)?).chains;
    if !chains.iter().any(|other| other.home.table == table && other.name == chain) {
        return Ok(None);
    }
    Ok(Some(Objects::read(&ask::rules(family, table, Some(chain))?).rules))
}

fn explain(error: netlink_socket2::ReplyError) -> io::Error {
    io::Error::new(error.as_io_error().kind(), error.to_string())
}
