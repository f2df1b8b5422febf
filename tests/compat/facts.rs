//! What `probe.sh` says of a container's inside, and how two such worlds differ.

use std::collections::{BTreeMap, BTreeSet};

/// The program that looks.
pub const PROBE: &str = include_str!("probe.sh");

/// Names of facts and their values; a name can have several.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts(BTreeMap<String, BTreeSet<String>>);

/// One fact that is not the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// `kind name`.
    pub fact: String,
    /// What only the first one has, `-` for nothing.
    pub first: String,
    /// What only the second one has.
    pub second: String,
}

impl Facts {
    /// Reads the probe's output, which has to be whole.
    pub fn read(text: &str) -> Self {
        let mut facts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in text.lines() {
            let (name, value) = line.split_once(" = ").unwrap_or_else(|| panic!("no fact: {line}\n{text}"));
            facts.entry(name.to_owned()).or_default().insert(normal(name, value));
        }
        assert!(facts.contains_key("end"), "the probe did not reach its end:\n{text}");
        Self(facts)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// Every fact that `self` and `other` do not share.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let none = BTreeSet::new();
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let mut found = Vec::new();
        for fact in names {
            let (here, there) = (self.0.get(fact).unwrap_or(&none), other.0.get(fact).unwrap_or(&none));
            let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| {
                let only: Vec<&str> = one.difference(other).map(String::as_str).collect();
                if only.is_empty() { "-".to_owned() } else { only.join("; ") }
            };
            if here != there {
                found.push(Difference {
                    fact: fact.clone(),
                    first: only(here, there),
                    second: only(there, here),
                });
            }
        }
        found
    }
}

/// Without what is different each time: the numbers of namespaces are told apart only by whose they are.
fn normal(name: &str, value: &str) -> String {
    let Some(kind) = name.strip_prefix("namespaces ") else { return value.to_owned() };
    let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    if host.to_string_lossy() == value { "the host's".to_owned() } else { "its own".to_owned() }
}

/// The first word of a fact's name.
pub fn kind(fact: &str) -> &str {
    fact.split(' ').next().unwrap_or_default()
}
