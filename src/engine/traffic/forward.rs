//! Lets containers' packets through chains of other firewalls that drop what is forwarded.
//!
//! Whatever our own table accepts, the chain of another table can still drop (nft(8), "VERDICT STATEMENT"). Docker sets
//! the policy of iptables' FORWARD to DROP for the whole host, and so does ufw; firewalld rejects what no zone of its own
//! asks for. So two rules of ours, marked with our name, go to the head of their chain: from our containers, and to them
//! where our own table has let a connection in already. They are the only rules outside of our own table. Put back when a
//! firewall is loaded anew, taken away at teardown.

use std::io;
use std::process::{Command, Stdio};

use super::netlink::ask::Asker;
use super::netlink::objects::Rule;
use super::{nft, owner};
use crate::engine::native::net::names::Names;

/// Tables of firewalls, as nftables calls them: that of iptables, that of firewalld.
pub const FOREIGN: [&str; 2] = ["filter", "firewalld"];

/// Whoever uses iptables' own tables rather than nftables.
const LEGACY: [(&str, &str); 2] = [
    ("iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// Which of the two kinds of firewall is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Those whose rules are nftables', by whatever program.
    pub nft: bool,
    /// Those with iptables' own tables, of which nftables knows nothing.
    pub legacy: bool,
}

/// Puts the rules where they are missing; `here` = false takes them away.
pub fn settle(asker: &mut Asker, names: &Names, here: bool, look: Look) -> io::Result<()> {
    let mut trouble = None;
    let mut keep = |result: io::Result<()>| {
        if let Err(error) = result {
            trouble.get_or_insert(error);
        }
    };
    for (family, program) in [("ip", "iptables-nft"), ("ip6", "ip6tables-nft")] {
        if look.nft && nft::has(asker, family, "filter")? {
            keep(iptables(program, names, here));
        }
    }
    for (program, tables) in LEGACY {
        if look.legacy
            && std::fs::read_to_string(tables).is_ok_and(|text| text.lines().any(|line| line == "filter"))
        {
            keep(iptables(program, names, here));
        }
    }
    if look.nft && nft::has(asker, "inet", "firewalld")? {
        keep(firewalld(asker, names, here));
    }
    trouble.map_or(Ok(()), Err)
}

fn mark(names: &Names) -> String {
    format!("gitopsd:{}", names.instance)
}

/// The rules' matches, as iptables takes them. `+` is any of our containers.
fn matches(names: &Names) -> [Vec<String>; 2] {
    let any = format!("{}+", names.veth_prefix);
    let words = |text: &str| -> Vec<String> {
        let end = format!("-m comment --comment {} -j ACCEPT", mark(names));
        format!("{text} {end}").split(' ').map(str::to_owned).collect()
    };
    [words(&format!("-i {any}")), words(&format!("-o {any} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"))]
}

/// Docker has a chain that is for others' rules; elsewhere they go to the head of all.
fn iptables(program: &str, names: &Names, here: bool) -> io::Result<()> {
    let Some(forward) = list(program, "FORWARD")? else { return Ok(()) };
    let docker = list(program, "DOCKER-USER")?;
    let (chain, rules) = match &docker {
        Some(rules) => ("DOCKER-USER", rules),
        None => ("FORWARD", &forward),
    };
    let mark = mark(names);
    let ours = |rules: &str| {
        rules.lines().filter(|line| line.split(' ').any(|word| word.trim_matches('"') == mark)).count()
    };
    let drops = ["DROP", "REJECT"].iter().any(|verdict| forward.contains(verdict));
    let wanted = here && (drops || docker.is_some());
    for rule in matches(names) {
        let there = ours(rules);
        if wanted && there < 2 {
            // One of the two may be there: it is not doubled.
            if !run(program, &[&["-C", chain], &strs(&rule)[..]].concat())?.status.success() {
                checked(program, run(program, &[&["-I", chain, "1"], &strs(&rule)[..]].concat())?)?;
            }
        } else if !wanted && there > 0 {
            run(program, &[&["-D", chain], &strs(&rule)[..]].concat())?;
        }
        // Left from before Docker came, or from after it went.
        if docker.is_some() && ours(&forward) > 0 {
            run(program, &[&["-D", "FORWARD"], &strs(&rule)[..]].concat())?;
        }
    }
    Ok(())
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The rules of a chain; `None` = there is no such chain, or no such program.
fn list(program: &str, chain: &str) -> io::Result<Option<String>> {
    match run(program, &["-S", chain]) {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        // Rules that were made without iptables are nobody's to change by it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn run(program: &str, arguments: &[&str]) -> io::Result<std::process::Output> {
    // Another program may be changing rules: it is waited for.
    Command::new(program).args(["-w", "2"]).args(arguments).stdin(Stdio::null()).output()
}

fn checked(program: &str, output: std::process::Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().next().unwrap_or("it said nothing");
    Err(io::Error::other(format!("{program}: {line} ({})", output.status)))
}

/// Its table is its own to load anew, as a whole: rules of others in it are gone then, and come back.
fn firewalld(asker: &mut Asker, names: &Names, here: bool) -> io::Result<()> {
    const CHAIN: &str = "filter_FORWARD";
    let Ok(Some(rules)) = nft::chain(asker, "firewalld", CHAIN) else { return Ok(()) };
    let mark = mark(names);
    let is_ours = |rule: &&Rule| rule.comment.as_ref() == Some(&mark);
    let ours: Vec<u64> = rules.iter().filter(is_ours).map(|rule| rule.handle).collect();
    if here == (ours.len() == 2) && (here || ours.is_empty()) {
        return Ok(());
    }
    let mut script: String =
        ours.iter().map(|handle| format!("delete rule inet firewalld {CHAIN} handle {handle}\n")).collect();
    if here {
        let veth = &names.veth_prefix;
        for rule in
            [format!("iifname \"{veth}*\""), format!("oifname \"{veth}*\" ct state established,related")]
        {
            script
                .push_str(&format!("insert rule inet firewalld {CHAIN} {rule} accept comment \"{mark}\"\n"));
        }
    }
    owner::apply_once(&script)
}
