//! Chains, sets, elements and rules, as messages tell of them: the kernel's answers, and our own changes, which are the
//! same. So what is there can be held against what a script would make. Pure.

use super::decode::{Expression, expression, value, verdict};
use super::hand::split;
use super::message::Given;

/// `NFT_MSG_…` of linux/netfilter/nf_tables.h.
const TABLE: u16 = 0;
const CHAIN: u16 = 3;
const RULE: u16 = 6;
const SET: u16 = 9;
const ELEMENTS: u16 = 12;
/// `NFT_GOTO`
const GOTO: u32 = (-4i32).cast_unsigned();

/// Where something is: the table's family (`NFPROTO_…`) and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Home {
    pub family: u8,
    pub table: String,
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    pub home: Home,
    /// `NFT_TABLE_F_…`
    pub flags: u32,
    /// The port of the socket that it belongs to.
    pub owner: Option<u32>,
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Chain {
    pub home: Home,
    pub name: String,
    /// What makes packets come to it by itself.
    pub base: Option<Base>,
}

/// A chain's hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub kind: String,
    /// `NF_INET_…`
    pub hook: u32,
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`
    pub policy: u32,
}

/// A set or map, without what is in it.
#[derive(Debug, Clone)]
pub struct Set {
    pub home: Home,
    pub name: String,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub set: String,
    pub key: Vec<u8>,
    /// Whether it is the first value behind a range that is meant.
    pub is_end: bool,
    /// The last value, where the set keeps ranges in one element.
    pub last: Option<Vec<u8>>,
    /// The chain that a map leads into with it.
    pub into: Option<String>,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub home: Home,
    pub chain: String,
    pub handle: u64,
    pub expressions: Vec<Expression>,
    pub comment: Option<String>,
}

/// All that some messages tell of.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub tables: Vec<Table>,
    pub chains: Vec<Chain>,
    pub sets: Vec<Set>,
    pub elements: Vec<Element>,
    pub rules: Vec<Rule>,
}

impl Objects {
    /// Reads messages. What tells of something else, or of what is taken away, is passed over.
    pub fn read(mut messages: &[u8]) -> Self {
        let mut objects = Self::default();
        while let Some((message, rest)) = split(messages) {
            messages = rest;
            objects.add(message);
        }
        objects
    }

    fn add(&mut self, message: &[u8]) -> Option<()> {
        let (kind, family, given) = Given::of(message)?;
        let home = Home { family, table: given.text(1)? };
        match kind {
            TABLE => {
                let (flags, owner) = (given.number(2).unwrap_or(0), given.number(7));
                self.tables.push(Table { home, flags, owner });
            }
            CHAIN => self.chains.push(Chain { home, name: given.text(3)?, base: base(given) }),
            SET => self.sets.push(Set { home, name: given.text(2)? }),
            ELEMENTS => {
                let set = given.text(2)?;
                self.elements.extend(given.inside(3).list(1).filter_map(|given| element(&set, given)));
            }
            RULE => self.rules.push(Rule {
                home,
                chain: given.text(2)?,
                handle: given.long(3).unwrap_or(0),
                expressions: given.inside(4).list(1).map(expression).collect(),
                comment: given.get(7).and_then(comment),
            }),
            _ => {}
        }
        Some(())
    }
}

fn base(chain: Given<'_>) -> Option<Base> {
    let hook = chain.inside(4);
    Some(Base {
        kind: chain.text(7)?,
        hook: hook.number(1)?,
        priority: hook.number(2)?.cast_signed(),
        policy: chain.number(5).unwrap_or(1),
    })
}

fn element(set: &str, given: Given<'_>) -> Option<Element> {
    let leads = |(code, chain): (u32, Option<String>)| chain.filter(|_| code == GOTO);
    Some(Element {
        set: set.to_owned(),
        key: value(given.inside(1))?,
        is_end: given.number(3).unwrap_or(0) & 1 != 0,
        last: value(given.inside(10)),
        into: verdict(given.inside(2)).and_then(leads),
    })
}

/// The comment among what nft(8) has kept with a rule: kind, length, text with its end.
fn comment(mut kept: &[u8]) -> Option<String> {
    loop {
        let [kind, length, rest @ ..] = kept else { return None };
        let text = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            let text = text.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        kept = rest.get(usize::from(*length)..)?;
    }
}
