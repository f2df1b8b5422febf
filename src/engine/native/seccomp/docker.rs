//! The filter beside Docker's default profile: the same answer to every call there is, but for what is named here.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::verdict;
use super::*;
use crate::types::{CAPABILITIES, DEFAULT_CAPABILITIES};

/// What the profile allows, and who; the file says where it is from.
const PROFILE: &str = include_str!("docker.txt");

/// Number and name of every call, a line each, for each kind of program that runs.
#[cfg(target_arch = "x86_64")]
const TABLES: &[(u32, &str)] =
    &[(ARCH, include_str!("../runtime/calls.x86_64")), (i386::ARCH, include_str!("calls.i386"))];
#[cfg(target_arch = "aarch64")]
const TABLES: &[(u32, &str)] = &[(ARCH, include_str!("../runtime/calls.aarch64"))];

/// Calls of 32-bit programs that are answered otherwise, whatever the container may do: the answer, and why.
const OTHERWISE: &[(&[&str], u32, &str)] = &[
    (
        &["socketcall"],
        UNKNOWN,
        "the family of its socket is in memory, where no filter can look, and some lead past every namespace",
    ),
    (
        &[
            "nice",
            "oldfstat",
            "oldlstat",
            "oldolduname",
            "oldstat",
            "olduname",
            "readdir",
            "sgetmask",
            "sigaction",
            "signal",
            "sigpending",
            "sigsuspend",
            "ssetmask",
        ],
        ALLOW,
        "what old programs call for what newer ones do by a call that is allowed",
    ),
    (
        &["break", "ftime", "gtty", "idle", "lock", "mpx", "prof", "profil", "stty", "ulimit"],
        ALLOW,
        "no kernel has them: it says so itself (syscalls(2), ENOSYS)",
    ),
];

/// The names, or numbers, of the profile's lines that begin with this word.
fn listed(word: &str) -> impl Iterator<Item = &'static str> {
    let lines = PROFILE.lines().filter(|line| !line.starts_with('#'));
    let ours = lines.filter_map(|line| line.split_once(' ')).filter(move |(first, _)| *first == word);
    ours.flat_map(|(_, rest)| rest.split(' '))
}

fn numbers(word: &str) -> Vec<u32> {
    listed(word).map(|number| number.parse().unwrap()).collect()
}

fn table(text: &'static str) -> BTreeMap<&'static str, u32> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(number, name)| (name, number.parse().unwrap())).collect()
}

/// What the profile says of calls to who has `capabilities`, without arguments that it looks at.
fn docker(capabilities: &[&str]) -> impl Fn(&str) -> u32 {
    let words = capabilities.iter().chain(&["always"]);
    let allowed: BTreeSet<&str> = words.flat_map(|word| listed(word).collect::<Vec<_>>()).collect();
    let admin = capabilities.contains(&"CAP_SYS_ADMIN");
    move |name| match name {
        "clone3" if !admin => UNKNOWN,
        _ if allowed.contains(name) => ALLOW,
        _ => REFUSE,
    }
}

#[test]
fn every_call_is_answered_as_under_docker() {
    let mut sets: Vec<Vec<&str>> = vec![Vec::new(), DEFAULT_CAPABILITIES.to_vec(), CAPABILITIES.to_vec()];
    sets.extend(CAPABILITIES.iter().map(|capability| vec![*capability]));
    for capabilities in &sets {
        let (program, docker) = (filter(capabilities), docker(capabilities));
        for (arch, text) in TABLES {
            let calls = table(text);
            assert!(calls.len() > 300, "{}", calls.len());
            for (name, number) in calls {
                let other = OTHERWISE.iter().find(|(names, ..)| names.contains(&name) && *arch != ARCH);
                let wanted = other.map_or_else(|| docker(name), |(_, answer, _)| *answer);
                let given = verdict(&program, *arch, number, 0);
                assert_eq!(given, wanted, "{name} ({number} of {arch:#x}) with {capabilities:?}");
            }
        }
    }
}

/// A name that is nowhere would be one that nobody asks about.
#[test]
fn every_name_is_a_call() {
    let calls: Vec<_> = TABLES.iter().map(|(_, text)| table(text)).collect();
    let known = |name: &str| calls.iter().any(|calls| calls.contains_key(name));
    for capability in CAPABILITIES.iter().chain(&["always"]) {
        let unknown: Vec<&str> = listed(capability).filter(|name| !known(name)).collect();
        // Those of the other architecture are in the profile too.
        assert!(cfg!(not(target_arch = "x86_64")) || unknown.is_empty(), "{unknown:?}");
    }
    let docker = docker(&CAPABILITIES);
    for name in OTHERWISE.iter().flat_map(|(names, ..)| *names) {
        assert!(known(name) || cfg!(not(target_arch = "x86_64")), "{name}");
        assert_eq!(docker(name) == ALLOW, *name == "socketcall", "{name} is no difference");
    }
}

#[test]
fn arguments_are_looked_at_as_under_docker() {
    let (usual, mighty) = (filter(&DEFAULT_CAPABILITIES), filter(&CAPABILITIES));
    for (arch, text) in TABLES {
        let calls = table(text);
        let ask = |name: &str, argument| {
            [&usual, &mighty].map(|program| verdict(program, *arch, calls[name], argument))
        };
        let families = numbers("socket");
        // Those that no kernel has are refused by it.
        for family in 0..46 {
            let wanted = if families.contains(&family) { ALLOW } else { REFUSE };
            assert_eq!(ask("socket", family), [wanted; 2], "a socket of family {family}");
        }
        let personalities = numbers("personality");
        for value in personalities.iter().copied().chain((0..32).map(|bit| 1 << bit)) {
            let wanted = if personalities.contains(&value) { ALLOW } else { REFUSE };
            assert_eq!(ask("personality", value), [wanted; 2], "personality({value:#x})");
        }
        for bit in 0..32 {
            let is_namespace = [17, 25, 26, 27, 28, 29, 30].contains(&bit);
            let wanted = if is_namespace { REFUSE } else { ALLOW };
            assert_eq!(ask("clone", 1 << bit), [wanted, ALLOW], "clone with bit {bit}");
        }
    }
}
