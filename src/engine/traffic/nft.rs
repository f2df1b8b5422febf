//! Questions about the rule set, over netlink. Changes are `owner`'s.

use std::io;

use super::listing::{self, INET, Table};
use super::netlink::ask::Asker;
use super::netlink::objects::{Objects, Rule, Table as Found};
use super::netlink::{OWNER, PERSIST};
use super::owner::Standing;
use crate::engine::native::net::names::Subnet6;

/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// As often a table is read anew that changes meanwhile.
const TRIES: usize = 5;

/// `NFPROTO_INET`, `NFPROTO_IPV4` and `NFPROTO_IPV6` of linux/netfilter.h, by nft's words.
const FAMILIES: [(&str, u8); 3] = [("inet", INET), ("ip", 2), ("ip6", 10)];

/// Whether a table exists.
pub fn has(asker: &mut Asker, family: &str, table: &str) -> io::Result<bool> {
    let Some((_, family)) = FAMILIES.iter().find(|(word, _)| *word == family) else { return Ok(false) };
    Ok(found(asker, *family, table)?.is_some())
}

/// Whom a table of ours belongs to.
pub fn standing(asker: &mut Asker, table: &str) -> io::Result<Standing> {
    Ok(match found(asker, INET, table)? {
        None => Standing::Absent,
        Some(Found { flags, owner: Some(port), .. }) if flags & OWNER != 0 => Standing::Owned(port),
        Some(Found { flags, .. }) if flags & PERSIST != 0 => Standing::Orphan,
        Some(_) => Standing::Open,
    })
}

/// A table, without what is in it.
fn found(asker: &mut Asker, family: u8, table: &str) -> io::Result<Option<Found>> {
    let tables = Objects::read(&asker.tables(family)?).tables;
    Ok(tables.into_iter().find(|other| other.home.table == table))
}

/// Everything of our table, from one moment; nothing if there is none.
pub fn table(asker: &mut Asker, table: &str, subnet6: Option<Subnet6>) -> io::Result<Option<Table>> {
    let mut tries = 1;
    loop {
        let before = asker.generation()?;
        let read = read(asker, table, subnet6);
        if asker.generation()? == before {
            return read;
        }
        // Somebody changes rules without a pause: what was read is as good as any, and is read again when they are done.
        if tries >= TRIES {
            return read;
        }
        tries += 1;
    }
}

fn read(asker: &mut Asker, table: &str, subnet6: Option<Subnet6>) -> io::Result<Option<Table>> {
    let Some(Found { flags, .. }) = found(asker, INET, table)? else { return Ok(None) };
    let sets = asker.sets(INET, table)?;
    let mut messages = [asker.chains(INET)?, asker.rules(INET, table, None)?].concat();
    for set in &Objects::read(&sets).sets {
        messages.extend(asker.elements(INET, table, &set.name)?);
    }
    messages.extend(sets);
    let mut read = listing::read(&Objects::read(&messages), table, subnet6);
    read.is_dormant = flags & DORMANT != 0;
    Ok(Some(read))
}

/// The rules of one chain of family inet; nothing if there is no such chain.
pub fn chain(asker: &mut Asker, table: &str, chain: &str) -> io::Result<Option<Vec<Rule>>> {
    let chains = Objects::read(&asker.chains(INET)?).chains;
    if !chains.iter().any(|other| other.home.table == table && other.name == chain) {
        return Ok(None);
    }
    Ok(Some(Objects::read(&asker.rules(INET, table, Some(chain))?).rules))
}
