//! nftables without nft(8). Changes: a script in its language, as far as our own rules use that, becomes one batch of
//! netlink messages, which is one transaction.
//!
//! The text stays what people read, compare and try by hand; here it is compiled. A line that is not understood is an
//! error and nothing is done. `same_as_nft` holds what the kernel has after each line against what nft makes of it.
//! Questions (`ask`) are answered by the same messages, which `objects` and `decode` read.

pub mod ask;
pub mod decode;
mod expressions;
pub mod hand;
pub mod message;
pub mod objects;
mod rule;

use std::net::IpAddr;

use expressions::{Compare, LIST_ELEMENT, Verdict, value};
use message::{Attributes, Batch};
use objects::Objects;

/// `NFT_MSG_…` of linux/netfilter/nf_tables.h.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;
/// `NLM_F_CREATE`, `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NFT_TABLE_F_OWNER`: only the socket that made the table may change it. `NFT_TABLE_F_PERSIST` (Linux 6.9): it stays
/// when that socket is closed, and waits for the next owner.
pub const OWNER: u32 = 1 << 1;
pub const PERSIST: u32 = 1 << 2;
/// `NFT_SET_MAP`, `NFT_SET_TIMEOUT`, `NFT_SET_EVAL`.
const MAP: u32 = 1 << 3;
const TIMEOUT: u32 = 1 << 4;
const DYNAMIC: u32 = 1 << 5;
/// `NFT_DATA_VERDICT`.
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// So many elements fit into one attribute, which is 64 KiB at the most.
const ELEMENTS: usize = 256;

/// A line that is not of the language that is spoken here.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no rule that can be made over netlink")]
pub struct Unknown(pub String);

/// The words of one line; what stands in quotes is one word.
pub struct Words<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let quoted = line.split('"').enumerate();
        let words = quoted.flat_map(|(place, part)| match place % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        Self { words: words.collect::<Vec<_>>().into_iter().peekable() }
    }

    fn next(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.words.peek().copied()
    }

    fn expect(&mut self, word: &str) -> Option<()> {
        (self.next()? == word).then_some(())
    }

    /// `!=`, `==`, or nothing, which is the same as that.
    fn comparison(&mut self) -> Compare {
        match self.peek() {
            Some("!=") => {
                self.next();
                Compare::NotEqual
            }
            Some("==") => {
                self.next();
                Compare::Equal
            }
            _ => Compare::Equal,
        }
    }
}

/// Compiles a script. `flags`: of each table that it adds. Gives, for each change of the batch, the line it is from.
pub fn compile(script: &str, flags: u32) -> Result<(Batch, Vec<&str>), Unknown> {
    let mut batch = Batch::new();
    let mut lines = Vec::new();
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        add(&mut batch, line, flags).ok_or_else(|| Unknown(line.to_owned()))?;
        lines.resize(batch.len() as usize, line);
    }
    Ok((batch, lines))
}

/// What a script adds, as the kernel would list it; `None` if it is not understood.
pub fn would_make(script: &str) -> Option<Objects> {
    let (batch, _) = compile(script, 0).ok()?;
    Some(Objects::read(&batch.finish()))
}

fn add(batch: &mut Batch, line: &str, flags: u32) -> Option<()> {
    let words = &mut Words::of(line);
    let (verb, what) = (words.next()?, words.next()?);
    words.expect("inet")?;
    let table = words.next()?;
    let of_table = Attributes::default().text(1, table);
    match (verb, what) {
        ("add", "table") => batch.add(NEW_TABLE, CREATE, &of_table.number(2, flags)),
        ("delete", "table") => batch.add(DELETE_TABLE, 0, &of_table),
        ("add", "chain") => batch.add(NEW_CHAIN, CREATE, &chain(of_table.text(3, words.next()?), words)?),
        ("flush", "chain") => batch.add(DELETE_RULE, 0, &of_table.text(2, words.next()?)),
        ("delete", "chain") => batch.add(DELETE_CHAIN, 0, &of_table.text(3, words.next()?)),
        ("add" | "insert", "rule") => {
            let of_chain = of_table.text(2, words.next()?);
            let (expressions, comment) = rule::compile(words)?;
            let rule = of_chain.nest(4, expressions.list());
            let rule = match comment {
                Some(comment) => rule.bytes(7, &remark(&comment)?),
                None => rule,
            };
            // The last one, or the first.
            batch.add(NEW_RULE, if verb == "add" { CREATE | APPEND } else { CREATE }, &rule);
        }
        ("delete", "rule") => {
            let of_chain = of_table.text(2, words.next()?);
            words.expect("handle")?;
            let handle: u64 = words.next()?.parse().ok()?;
            batch.add(DELETE_RULE, 0, &of_chain.bytes(3, &handle.to_be_bytes()));
        }
        ("add", "set" | "map") => {
            let named = of_table.text(2, words.next()?);
            // Whatever tells it from others in this batch.
            let number = batch.len().saturating_add(1);
            batch.add(NEW_SET, CREATE, &set(named, words, what == "map")?.number(10, number));
        }
        ("delete", "set") => batch.add(DELETE_SET, 0, &of_table.text(2, words.next()?)),
        ("add" | "delete", "element") => {
            let of_set = of_table.text(2, words.next()?);
            let (kind, flags) = if verb == "add" { (NEW_ELEMENTS, CREATE) } else { (DELETE_ELEMENTS, 0) };
            let elements = elements(words)?;
            for some in elements.chunks(ELEMENTS) {
                let list = some
                    .iter()
                    .fold(Attributes::default(), |list, element| list.nest(LIST_ELEMENT, element.clone()));
                batch.add(kind, flags, &of_set.clone().nest(3, list));
            }
        }
        _ => return None,
    }
    words.peek().is_none().then_some(())
}

/// `{ type nat hook prerouting priority -105 ; policy accept ; }`, or nothing.
fn chain(named: Attributes, words: &mut Words<'_>) -> Option<Attributes> {
    if words.peek().is_none() {
        return Some(named);
    }
    words.expect("{")?;
    words.expect("type")?;
    let kind = words.next()?;
    words.expect("hook")?;
    // NF_INET_… of linux/netfilter.h.
    let hook = match words.next()? {
        "prerouting" => 0,
        "input" => 1,
        "forward" => 2,
        "output" => 3,
        "postrouting" => 4,
        _ => return None,
    };
    words.expect("priority")?;
    let priority: i32 = words.next()?.parse().ok()?;
    [";", "policy", "accept", ";", "}"].into_iter().try_for_each(|word| words.expect(word))?;
    let hook = Attributes::default().number(1, hook).number(2, priority.cast_unsigned());
    // NF_ACCEPT
    Some(named.nest(4, hook).number(5, 1).text(7, kind))
}

/// `{ type ipv4_addr . inet_proto : verdict ; }`; of a set that rules add to, `size 16 ; flags dynamic,timeout ; timeout 60s ;` too.
fn set(named: Attributes, words: &mut Words<'_>, is_map: bool) -> Option<Attributes> {
    words.expect("{")?;
    words.expect("type")?;
    let (mut kind, mut length) = (0, 0);
    loop {
        // Numbers of nft's own; the kernel gives them back, and nft shows elements by them.
        let (number, bytes) = match words.next()? {
            "ipv4_addr" => (7, 4),
            "ipv6_addr" => (8, 16),
            "inet_proto" => (12, 4),
            "inet_service" => (13, 4),
            _ => return None,
        };
        (kind, length) = (kind << 6 | number, length + bytes);
        if words.peek() != Some(".") {
            break;
        }
        words.next();
    }
    if is_map {
        words.expect(":")?;
        words.expect("verdict")?;
    }
    words.expect(";")?;
    let (mut flags, mut size, mut timeout) = (if is_map { MAP } else { 0 }, None, None);
    while words.peek() != Some("}") {
        match words.next()? {
            "flags" if !is_map => {
                words.expect("dynamic,timeout")?;
                flags |= DYNAMIC | TIMEOUT;
            }
            "size" => size = Some(words.next()?.parse().ok()?),
            "timeout" => timeout = Some(milliseconds(words.next()?)?),
            _ => return None,
        }
        words.expect(";")?;
    }
    let set = named.number(3, flags).number(4, kind).number(5, length);
    let set = if is_map { set.number(6, VERDICT_TYPE).number(7, 0) } else { set };
    let set = match size {
        Some(size) => set.nest(9, Attributes::default().number(1, size)),
        None => set,
    };
    let set = match timeout {
        Some(timeout) => set.bytes(11, &timeout),
        None => set,
    };
    words.expect("}")?;
    Some(set)
}

/// `{ tcp . 80 : goto svc-web, 10.0.0.1 . 10.0.0.1 }`
fn elements(words: &mut Words<'_>) -> Option<Vec<Attributes>> {
    words.expect("{")?;
    let mut elements = Vec::new();
    loop {
        let mut key = Vec::new();
        let mut chain = None;
        let mut more = loop {
            let word = words.next()?;
            key.extend(part(word.trim_end_matches(','))?);
            if word.ends_with(',') || words.peek() != Some(".") {
                break word.ends_with(',');
            }
            words.next();
        };
        if !more && words.peek() == Some(":") {
            words.next();
            words.expect("goto")?;
            let word = words.next()?;
            more = word.ends_with(',');
            chain = Some(word.trim_end_matches(','));
        }
        let element = Attributes::default().nest(1, value(&key));
        elements.push(match chain {
            Some(chain) => element.nest(2, Verdict::Goto(chain).data()),
            None => element,
        });
        if !more {
            words.expect("}")?;
            return Some(elements);
        }
    }
}

/// `60s`, in the order of the network.
fn milliseconds(word: &str) -> Option<[u8; 8]> {
    let seconds: u64 = word.strip_suffix('s')?.parse().ok()?;
    Some(seconds.checked_mul(1000)?.to_be_bytes())
}

/// A part of a key, filled up to four bytes.
fn part(word: &str) -> Option<Vec<u8>> {
    if let Some(protocol) = rule::protocol(word) {
        return Some(vec![protocol, 0, 0, 0]);
    }
    if let Ok(port) = word.parse::<u16>() {
        let [high, low] = port.to_be_bytes();
        return Some(vec![high, low, 0, 0]);
    }
    word.parse::<IpAddr>().ok().map(rule::octets)
}

/// A comment as nft keeps it: `NFTNL_UDATA_RULE_COMMENT`, length, text with its end.
fn remark(comment: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(comment.len().checked_add(1)?).ok()?;
    Some([&[0, length], comment.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod read_as_nft;
#[cfg(test)]
mod same_as_nft;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_quotes_are_one() {
        let mut words = Words::of(r#"add rule x comment "generation 7""#);
        let all: Vec<&str> = std::iter::from_fn(|| words.next()).collect();
        assert_eq!(all, ["add", "rule", "x", "comment", "generation 7"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "add table ip t",
            "add rule inet t c tcp sport 80 drop",
            "add rule inet t c ip daddr nonsense drop",
            "add rule inet t c dnat ip to 10.0.0.1:99999",
            "add set inet t s { type mark ; }",
            "add element inet t s { }",
            "add element inet t s { tcp . 80 : goto }",
            "delete chain inet t c now",
            "add chain inet t c { type nat hook prerouting priority x ; policy accept ; }",
            "add",
        ] {
            assert!(compile(line, 0).is_err(), "{line}");
        }
        assert!(compile("\n", 0).unwrap().0.is_empty());
    }

    #[test]
    fn many_elements_become_several_messages() {
        let list: Vec<String> = (0..600u32).map(|n| std::net::Ipv4Addr::from_bits(n).to_string()).collect();
        let script = format!("add element inet t s {{ {} }}\nadd chain inet t c\n", list.join(", "));
        let (batch, lines) = compile(&script, 0).unwrap();
        assert_eq!((batch.len(), lines.len()), (4, 4));
        assert_eq!(lines[3], "add chain inet t c");
    }
}
