//! Questions about the rule set: small ones over netlink, listings through nft(8). Changes are `netlink`'s.

use std::io;
use std::process::{Command, Output, Stdio};

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::NetlinkSocket;

use super::netlink::{OWNER, PERSIST};
use super::owner::Standing;

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

/// Whether our table exists.
pub fn has_table(table: &str) -> io::Result<bool> {
    has("inet", table)
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
    let header = Nfgenmsg { nfgen_family: FAMILIES[0].1, ..Default::default() };
    let request = Request::new().op_gettable_dump(&header);
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let mut standing = Standing::Absent;
    while let Some(answer) = reply.recv() {
        let (_, attributes) = answer.map_err(explain)?;
        if !attributes.get_name().is_ok_and(|name| name.to_bytes() == table.as_bytes()) {
            continue;
        }
        let flags = attributes.get_flags().unwrap_or(0);
        standing = match (flags & OWNER != 0, attributes.get_owner()) {
            (true, Ok(port)) => Standing::Owned(port),
            (_, _) if flags & PERSIST != 0 => Standing::Orphan,
            (_, _) => Standing::Open,
        };
    }
    Ok(standing)
}

/// The table as JSON.
pub fn list(table: &str) -> io::Result<Vec<u8>> {
    checked(command(&["-j", "list", "table", "inet", table]).output().map_err(missing)?)
}

/// All tables as JSON, without what is in their sets and maps: some hosts have millions of addresses there.
pub fn list_all() -> io::Result<Vec<u8>> {
    checked(command(&["-t", "-j", "list", "ruleset"]).output().map_err(missing)?)
}

/// One chain as JSON.
pub fn list_chain(family: &str, table: &str, chain: &str) -> io::Result<Vec<u8>> {
    checked(command(&["-j", "list", "chain", family, table, chain]).output().map_err(missing)?)
}

/// One map as JSON, with all that is in it.
pub fn list_map(table: &str, map: &str) -> io::Result<Vec<u8>> {
    checked(command(&["-j", "list", "map", "inet", table, map]).output().map_err(missing)?)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("nft");
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn missing(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot run nft: {error}"))
}

/// nft's own first line is what a person needs.
fn checked(output: Output) -> io::Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().next().unwrap_or("it said nothing");
    Err(io::Error::other(format!("nft: {line} ({})", output.status)))
}

fn explain(error: netlink_socket2::ReplyError) -> io::Error {
    io::Error::new(error.as_io_error().kind(), error.to_string())
}
