//! Work that stays behind containers: a scope of its own beside them, with little weight.
//!
//! systemd shares processors and disks among units, and a process's own priority counts only within its unit: a pull in
//! the agent's unit would get as much as all containers together.
//! Source: systemd.scope(5), systemd.resource-control(5); Linux Documentation/admin-guide/cgroup-v2.rst, "Weights".

use std::fs;

use super::bus::Bus;
use super::names::Tree;
use super::wire::{Value, Writer};

/// A container has 100 unless its service file says otherwise.
const WEIGHT: u64 = 10;

/// Moves a child of this process into a scope of the containers' slice. The scope goes with it.
pub(super) fn put(tree: &Tree, pid: u32) -> Result<(), String> {
    let mut bus = Bus::connect().map_err(|error| error.to_string())?;
    // Its number could be somebody else's by now.
    if !is_child(pid) {
        return Ok(());
    }
    let properties = [
        ("Description", Value::Text("An image layer being unpacked".to_owned())),
        ("PIDs", Value::Numbers(vec![pid])),
        ("Slice", Value::Text(tree.slice())),
        ("CPUWeight", Value::Number(WEIGHT)),
        ("IOWeight", Value::Number(WEIGHT)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ];
    let mut body = Writer::default();
    body.text(&tree.scope(pid));
    body.text("fail");
    body.array(8, &properties, |w, (name, value)| w.property(name, value));
    // No further units.
    body.array(8, [(); 0], |_, ()| {});
    bus.ask_systemd("StartTransientUnit", "ssa(sv)a(sa(sv))", body, &[]).map_err(|error| error.to_string())
}

/// Whether this process is its parent (proc_pid_stat(5): the name, in brackets, may hold anything).
fn is_child(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
    parent.and_then(|parent| parent.parse().ok()) == Some(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_children_are_moved() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(is_child(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_child(child.id()));
        assert!(!is_child(std::process::id()));
        assert!(!is_child(1));
    }
}
