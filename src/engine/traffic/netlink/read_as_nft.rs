//! What is read over netlink, held against what nft(8) lists of the same table (libnftables-json(5)). Needs root, as most
//! tests do; in a network namespace of its own.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::super::listing::{self, Said, Table};
use super::super::meaning::Ports;
use super::super::spread::Draw;
use super::super::{nft, owner};
use super::ask::Asker;
use super::objects::Objects;
use super::same_as_nft::{frame, whole};

/// Lines that say all of a table, whoever has listed it.
type Lines = BTreeMap<String, Vec<String>>;

fn add(lines: &mut Lines, what: &str, line: String) {
    lines.entry(what.to_owned()).or_default().push(line);
}

/// As `nft -j` lists it.
fn by_nft() -> Lines {
    let output = Command::new("nft").args(["-j", "list", "table", "inet", "gitopsd"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut lines = Lines::new();
    for object in document["nftables"].as_array().unwrap() {
        if let Some(chain) = object.get("chain") {
            let base = chain.get("hook").map(|hook| {
                format!(
                    "{} {} {} {}",
                    chain["type"].as_str().unwrap(),
                    word(hook),
                    chain["prio"],
                    word(&chain["policy"])
                )
            });
            add(&mut lines, "chain", format!("{} {}", word(&chain["name"]), base.unwrap_or_default()));
        } else if let Some(map) = object.get("map") {
            for element in map["elem"].as_array().into_iter().flatten() {
                let key = parts(&element[0]).join(" ");
                let into = element[1]["goto"]["target"].as_str().unwrap_or("");
                add(&mut lines, &format!("map {}", word(&map["name"])), format!("{key} {into}"));
            }
        } else if let Some(set) = object.get("set") {
            let name = format!("set {}", word(&set["name"]));
            for element in set["elem"].as_array().into_iter().flatten() {
                add(&mut lines, &name, parts(element)[0].clone());
            }
        } else if let Some(rule) = object.get("rule") {
            let chain = word(&rule["chain"]);
            let line = if chain.starts_with("svc-") { sentence(rule) } else { String::new() };
            add(&mut lines, &format!("rules {chain}"), line);
        }
    }
    lines.iter_mut().filter(|(what, _)| !what.starts_with("rules")).for_each(|(_, lines)| lines.sort());
    lines
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The parts of a key, be it one or several.
fn parts(key: &Value) -> Vec<String> {
    match key["concat"].as_array() {
        Some(parts) => parts.iter().map(word).collect(),
        None => vec![word(key)],
    }
}

fn sentence(rule: &Value) -> String {
    let mut said = Vec::new();
    for expression in rule["expr"].as_array().unwrap() {
        let (left, right) = (&expression["match"]["left"], word(&expression["match"]["right"]));
        if let Some(payload) = left.get("payload") {
            match (payload["protocol"].as_str().unwrap(), payload["field"].as_str().unwrap()) {
                ("ip" | "ip6", "daddr") => said.push(format!("to {right}")),
                (protocol, "dport") => said.push(format!("{protocol} {right}")),
                other => panic!("{other:?}"),
            }
        } else if let Some(number) = left.get("numgen") {
            said.push(format!("random {right} of {}", number["mod"]));
        } else if let Some(hash) = left.get("jhash") {
            let family = word(&hash["expr"]["payload"]["protocol"]);
            said.push(format!("{family} {} {right}", hash["seed"]));
        } else {
            let dnat = &expression["dnat"];
            let port = dnat.get("port").map(|port| format!(" {port}"));
            said.push(format!("dnat {}{}", word(&dnat["addr"]), port.unwrap_or_default()));
        }
    }
    format!("{} {}", said.join(", "), rule["comment"].as_str().unwrap_or(""))
}

/// As it is read here.
fn by_netlink(objects: &Objects) -> Lines {
    let mut lines = Lines::new();
    for chain in &objects.chains {
        let base = chain.base.as_ref().map(|base| {
            let hook = ["prerouting", "input", "forward", "output", "postrouting"][base.hook as usize];
            let policy = ["drop", "accept"][base.policy as usize];
            format!("{} {hook} {} {policy}", base.kind, base.priority)
        });
        add(&mut lines, "chain", format!("{} {}", chain.name, base.unwrap_or_default()));
    }
    let table = listing::read(objects, "gitopsd", frame(true).subnet6);
    for (entry, into) in &table.entries {
        let (map, key) = entry.element();
        add(&mut lines, &format!("map {map}"), format!("{} {into}", key.replace(" . ", " ")));
    }
    for address in &table.hairpins {
        let set = if address.is_ipv4() { "hairpin" } else { "hairpin6" };
        add(&mut lines, &format!("set {set}"), address.to_string());
    }
    for (set, members) in &table.sets {
        members.iter().for_each(|member| add(&mut lines, &format!("set {set}"), member.to_string()));
    }
    for (chain, rules) in &table.rules {
        lines.insert(format!("rules {chain}"), vec![String::new(); rules.len()]);
    }
    for (chain, said) in listing::said(objects, "gitopsd") {
        lines.insert(format!("rules {chain}"), said.iter().map(shown).collect());
    }
    lines.iter_mut().filter(|(what, _)| !what.starts_with("rules")).for_each(|(_, lines)| lines.sort());
    lines
}

fn shown(Said { meaning, comment }: &Said) -> String {
    assert!(!meaning.is_strange, "{meaning:?}");
    let mut said: Vec<String> = meaning.to.iter().map(|to| format!("to {to}")).collect();
    if let Some(Ports::One(port)) = meaning.ports {
        said.push(format!("{} {port}", meaning.protocol().unwrap().unwrap()));
    }
    said.extend(meaning.draw.map(|draw| match draw {
        Draw::Connection { share, modulus } => format!("random {} of {modulus}", share.thousandths()),
        Draw::Client { share, seed, six: false } => format!("ip {seed} {}", share.thousandths()),
        Draw::Client { share, seed, six: true } => format!("ip6 {seed} {}", share.thousandths()),
    }));
    said.extend(meaning.lane.map(|lane| format!("random 1 of {}", lane.left())));
    let (target, port) = meaning.target.unwrap();
    said.push(format!("dnat {target}{}", port.map(|port| format!(" {port}")).unwrap_or_default()));
    format!("{} {}", said.join(", "), comment.as_deref().unwrap_or(""))
}

fn objects() -> Objects {
    let mut asker = Asker::default();
    let sets = asker.sets(1, "gitopsd").unwrap();
    let mut messages = [asker.chains(1).unwrap(), asker.rules(1, "gitopsd", None).unwrap()].concat();
    for set in Objects::read(&sets).sets {
        messages.extend(asker.elements(1, "gitopsd", &set.name).unwrap());
    }
    Objects::read(&[messages, sets].concat())
}

#[test]
fn what_is_listed_is_what_nft_lists() {
    for six in [false, true] {
        let run = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
            let frame = frame(six);
            let mut asker = Asker::default();
            let scripts = whole(&frame);
            let mut routes = 0;
            // One of them is made of what our rules do not say today.
            for script in scripts.iter().filter(|script| !script.contains("spare")) {
                owner::apply_once(script).unwrap();
                assert_eq!(by_netlink(&objects()), by_nft(), "{script}");
                let table = nft::table(&mut asker, "gitopsd", frame.subnet6).unwrap().unwrap();
                let now: Vec<String> = table.routes.keys().map(ToString::to_string).collect();
                let chains = table.chains.iter().filter(|chain| chain.starts_with("svc-")).count();
                // Without IPv6 a route has no ports of it: here they are there to be compared.
                assert!(!six || now.len() == chains, "a route is not whole: {table:?}");
                routes = routes.max(now.len());
            }
            // Without it that is the one which has lost its ports to the other.
            assert_eq!(routes, if six { 2 } else { 1 });
            // The fixed part is what was asked for: nothing is to be done, and the kernel takes no number for it.
            let before = nft::table(&mut asker, "gitopsd", frame.subnet6).unwrap().unwrap();
            let script = frame.script(&Table::default(), Some(&before.sets));
            owner::apply_once(&script).unwrap();
            let table = nft::table(&mut asker, "gitopsd", frame.subnet6).unwrap().unwrap();
            assert_eq!(frame.change(&table, &table.sets, false), "");
            assert_eq!(nft::table(&mut asker, "another", None).unwrap(), None);
        };
        std::thread::spawn(run).join().unwrap();
    }
}
