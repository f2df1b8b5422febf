//! Who a shim belongs to: a unit of systemd where systemd runs the machine, else nobody. The one seam between the two.
//!
//! Either way the shim inherits the container's lock, a pipe to report on and its log, and nothing of the agent's.

mod behind;
mod bus;
mod forked;
mod names;
mod unit;
mod wire;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use self::bus::Bus;
pub(super) use self::names::{CONTAINER, SHIM, Tree};
pub(super) use self::unit::{Turn, Unit};
use super::launch::Launch;
use super::layout::RunFiles;
use super::shim;
use crate::types::InstanceId;

/// How shims are started on this machine.
#[derive(Debug)]
pub(super) enum Supervisor {
    /// By forking twice.
    Forked,
    /// As transient units.
    Systemd(Tree),
}

/// How one shim is about to be started.
#[derive(Debug)]
pub(super) enum Way<'a> {
    /// By forking twice.
    Fork,
    /// As a unit, over a conversation that has begun.
    Unit(&'a Tree, Bus),
}

impl Supervisor {
    /// What this machine has.
    pub fn detect(instance: &str) -> Self {
        Tree::detect(instance).map_or(Self::Forked, Self::Systemd)
    }

    /// Puts a child that only prepares something behind the containers. Without systemd its own priority does that.
    pub fn put_behind(&self, pid: u32) {
        if let Self::Systemd(tree) = self
            && let Err(error) = behind::put(tree, pid)
        {
            tracing::debug!("process {pid} has no scope of its own: {error}");
        }
    }

    /// Decides for one shim. A systemd that cannot be reached is no reason not to run containers.
    pub fn way(&self, id: &InstanceId) -> Way<'_> {
        let Self::Systemd(tree) = self else { return Way::Fork };
        match Bus::connect() {
            Ok(bus) => Way::Unit(tree, bus),
            Err(error) => {
                tracing::warn!(instance = %id, "systemd cannot be reached, so it is started without a unit: {error}");
                Way::Fork
            }
        }
    }
}

/// Changes the limits of a running container's unit from what `before` says to what `after` says, as far as `turn` goes.
/// Without a unit there is nothing around the container's own limits.
pub(super) fn limit(before: &Launch, after: &Launch, turn: Turn) -> io::Result<()> {
    let Some(unit) = &before.unit else { return Ok(()) };
    unit::limit(&mut Bus::connect()?, unit, before, after, turn)
}

/// A shim that is to be started.
pub(super) struct Order<'a> {
    /// Our own program.
    pub program: &'a Path,
    /// The container's directory.
    pub run: &'a RunFiles,
    /// `shim::START` or `shim::ADOPT`.
    pub mode: &'a str,
    /// What it is to run, or runs.
    pub launch: &'a Launch,
    /// Whether a unit has to keep the container's list of devices. On cgroup v1 the runtime does, and may only take
    /// from what the unit has.
    pub list_devices: bool,
}

impl Way<'_> {
    /// The unit that a new container is to have, for the first attempt or a later one.
    pub fn unit(&self, id: &InstanceId, attempt: u32) -> Option<Unit> {
        let Self::Unit(tree, _) = self else { return None };
        Some(tree.unit(id, attempt))
    }

    /// Starts the shim in `unit`; gives back the pipe on which it reports. The shim has lock and log as its own.
    ///
    /// # Errors
    /// `AlreadyExists`: the unit's name is taken.
    pub fn start(
        &mut self,
        order: &Order<'_>,
        unit: Option<&Unit>,
        lock: &File,
        log: &File,
    ) -> io::Result<OwnedFd> {
        let Order { program, run, mode, launch, .. } = *order;
        let (Self::Unit(tree, bus), Some(unit)) = (self, unit) else {
            return forked::start(program, run, mode, lock.try_clone()?, log.try_clone()?);
        };
        let listed = order.list_devices && launch.options.privileged != Some(true);
        let devices = match listed {
            // A shim that takes over makes no device, and the container stays in its own unit.
            true if mode == shim::ADOPT => Some(Vec::new()),
            true => Some(shim::prepare_devices(launch).map_err(io::Error::other)?),
            false => None,
        };
        let plan = unit::Plan { tree, name: &unit.name, order, devices: devices.as_deref() };
        unit::start(bus, &plan, lock, log)
    }
}
