//! What goes wrong, and how it is done.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use gitopsd::reconcile::record::Phase;

use super::super::lab::wait_for;
use super::dice::Dice;
use super::host::Host;

/// Most commits are switched to within this, on a machine with nothing else to do: pulled, started, and well for 300 ms.
const BEFORE_SWITCH: Duration = Duration::from_millis(500);
/// Pull, start, probes, switch, bake, drain and the end of the old one.
const WHOLE: Duration = Duration::from_millis(3500);

/// Rules are taken away that nobody owns, from an agent that can put them back.
pub const FLUSH: &str = "flush";

/// One thing that goes wrong, and for how long where it comes back.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// `kill -9` of the agent; another one is started after a while.
    Agent(Duration),
    /// `kill -9` of one of the shims.
    Shim,
    /// `kill -9` of the candidate's program, or of whatever was begun last; with `--spare`, only before the switch to it begins.
    Green,
    /// `nft flush ruleset`.
    Flush,
    /// No registry for a while.
    Registry(Duration),
    /// No config repo for a while.
    Git(Duration),
    /// Another commit, before the first is through.
    Commit,
}

impl Fault {
    pub fn any(dice: &mut Dice) -> Self {
        let pause = dice.span(Duration::from_millis(1500));
        match dice.below(10) {
            0..=1 => Self::Agent(pause),
            2..=3 => Self::Shim,
            4..=5 => Self::Green,
            6 => Self::Flush,
            7 => Self::Registry(pause),
            8 => Self::Git(pause),
            _ => Self::Commit,
        }
    }

    /// When, after the commit: as often before the switch as after it.
    pub fn moment(dice: &mut Dice) -> Duration {
        let span = if dice.below(2) == 0 { BEFORE_SWITCH } else { WHOLE };
        dice.span(span)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Shim => "shim",
            Self::Green => "green",
            Self::Flush => "flush",
            Self::Registry(_) => "registry",
            Self::Git(_) => "git",
            Self::Commit => "commit",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Hit {
    /// There was nothing to hit.
    Missed,
    /// This was hit.
    Done(String),
    /// A commit was added.
    Commit(String),
}

/// What ends a fault that lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Undo {
    Agent,
    Registry,
    Git,
}

impl Host {
    /// Does it. `before`: the generation that served when this swap began.
    pub fn inflict(&mut self, fault: Fault, before: u64, dice: &mut Dice) -> Hit {
        match fault {
            Fault::Agent(pause) => self.lasting(Undo::Agent, pause),
            Fault::Registry(pause) => self.lasting(Undo::Registry, pause),
            Fault::Git(pause) => self.lasting(Undo::Git, pause),
            Fault::Shim => {
                let all = self.generations();
                let chosen = all.get(usize::try_from(dice.below(all.len().max(1) as u64)).unwrap());
                chosen.map_or(Hit::Missed, |generation| self.kill_recorded(*generation, "shim.json", "/pid"))
            }
            Fault::Green => {
                let green = self.generations().into_iter().filter(|generation| *generation > before).max();
                let Some(green) = green else { return Hit::Missed };
                if self.spares {
                    return self.kill_without_traffic(green);
                }
                let had = self.leads_to(green);
                let is_watched = self.phase(green).is_some();
                let since = Instant::now();
                let hit = self.kill_recorded(green, "run.json", "/init/pid");
                // Or it got it just now: its end is not seen that quickly. Nobody asks one without traffic.
                if hit != Hit::Missed && (had || self.leads_to(green)) {
                    self.watch_gap(if is_watched { "green" } else { "what serves" }, since);
                }
                hit
            }
            Fault::Flush => {
                let why = match () {
                    // It stays where it is, and nothing is excused.
                    () if self.is_owned() => None,
                    () if !self.is_under_way(Undo::Agent) && self.agent_answers() => Some(FLUSH),
                    () => Some("flush without an agent"),
                };
                let since = Instant::now();
                assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
                if let Some(why) = why {
                    self.watch_gap(why, since);
                }
                Hit::Done(String::new())
            }
            // Nobody could push.
            Fault::Commit if self.is_under_way(Undo::Git) => Hit::Missed,
            Fault::Commit => {
                self.more += 1;
                Hit::Commit(self.commit(&format!("more{}", self.more)))
            }
        }
    }

    /// Begins a fault that lasts, unless it is there already.
    fn lasting(&mut self, undo: Undo, pause: Duration) -> Hit {
        if self.is_under_way(undo) {
            return Hit::Missed;
        }
        match undo {
            Undo::Agent => self.lab.kill_agent(),
            Undo::Registry => self.lab.stop_registry(),
            Undo::Git => std::fs::rename(self.lab.path("repo.git"), self.lab.path("aside.git")).unwrap(),
        }
        self.under_way.push((Instant::now() + pause, undo));
        Hit::Done(format!("{} ms", pause.as_millis()))
    }

    /// Ends it.
    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Agent => self.lab.start_agent(),
            Undo::Registry => self.lab.start_registry(),
            Undo::Git => std::fs::rename(self.lab.path("aside.git"), self.lab.path("repo.git")).unwrap(),
        }
    }

    /// `kill -9` of a generation, unless the switch to it has begun. The agent stands still meanwhile, so that it does not
    /// begin it between the question and the kill.
    fn kill_without_traffic(&self, generation: u64) -> Hit {
        let runs = !self.is_under_way(Undo::Agent);
        if runs {
            self.lab.signal_agent(Signal::SIGSTOP);
        }
        let hit = match self.phase(generation) {
            Some(phase) if phase < Phase::Canary => self.kill_recorded(generation, "run.json", "/init/pid"),
            _ => Hit::Missed,
        };
        if runs {
            self.lab.signal_agent(Signal::SIGCONT);
        }
        hit
    }

    /// `kill -9` of a process that a container's record names; back once it has ended.
    fn kill_recorded(&self, generation: u64, file: &str, pointer: &str) -> Hit {
        let path = self.lab.path(&format!("run/containers/web.{generation}/{file}"));
        let Ok(text) = std::fs::read_to_string(path) else { return Hit::Missed };
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(pid) = value.pointer(pointer).and_then(serde_json::Value::as_i64) else {
            return Hit::Missed;
        };
        match kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL) {
            Ok(()) => {
                wait_for("the end of what was killed", || is_over(pid).then_some(()));
                Hit::Done(format!("web.{generation}"))
            }
            Err(_) => Hit::Missed,
        }
    }
}

/// Whether a process has ended, be it that nobody has asked for its exit code yet.
fn is_over(pid: i64) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().unwrap().starts_with(['Z', 'X']),
        Err(_) => true,
    }
}
