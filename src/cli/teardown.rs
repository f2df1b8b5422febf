//! `gitopsd teardown`: takes this instance off the host.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use super::{Failure, run, write_json};
use crate::agent::native::Native;
use crate::config::agent::AgentConfig;
use crate::engine::{Engine, EngineError};
use crate::state::StateDir;
use crate::state::journal::Journal;
use crate::state::lock::InstanceLock;
use crate::types::plural;

/// How long a container without a record may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// Stops every container and removes every kernel object of the instance; with `purge` its state too.
pub fn teardown(path: &Path, purge: bool, yes: bool, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let config = run::config(path)?;
    // Also the proof that no agent is at work.
    let state = StateDir::open(&config.state_dir)?;
    let instance = InstanceLock::take(&config.instance)?;
    if !yes && !confirmed(&config, purge, out)? {
        return Err(Failure::plain("nothing was done"));
    }
    // A damaged journal must not keep the rest from going.
    let journal = state.load_journal().unwrap_or_default();
    let containers = take_down(&config, &journal).map_err(|error| Failure::from(error.to_refusal()))?;
    if purge {
        for folder in [&config.state_dir, &config.run_dir] {
            remove_tree(folder)?;
        }
    }
    drop(state);
    instance.forget();
    if json {
        write_json(out, &serde_json::json!({ "containers": containers, "purged": purge }))?;
    } else {
        let kept = if purge { "its state too" } else { "its state is kept" };
        writeln!(
            out,
            "{} is off this host: {}, networks and rules; {kept}",
            config.instance,
            plural(containers, "container", "containers")
        )?;
    }
    Ok(0)
}

fn confirmed(config: &AgentConfig, purge: bool, out: &mut dyn Write) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "teardown stops every container: say --yes where nobody can be asked".to_owned(),
        ));
    }
    let state =
        if purge { format!(" and {} with all volumes", config.state_dir.display()) } else { String::new() };
    write!(
        out,
        "This stops every container of instance {}{state}. Type the instance's name: ",
        config.instance
    )?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == config.instance)
}

fn take_down(config: &AgentConfig, journal: &Journal) -> Result<usize, EngineError> {
    let Native { engine, network, traffic } = Native::open(config)?;
    traffic.teardown()?;
    let containers = engine.observe()?;
    for seen in &containers {
        let record = journal.records.get(&seen.id.service);
        let deployed = record.and_then(|record| record.live(seen.id.generation));
        engine.stop(&seen.id, deployed.map_or(GRACE, |deployed| deployed.spec.stop_grace_period))?;
        engine.remove(&seen.id)?;
    }
    engine.teardown();
    network.teardown()?;
    Ok(containers.len())
}

/// Removes what is in a folder, and the folder.
fn remove_tree(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::plain(format!("removing {}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}
