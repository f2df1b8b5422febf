//! Points traffic at containers by nftables: the service addresses, the published ports, the atomic switch.
//!
//! One table of our own, `inet <instance>`. Others are read only to see whether a port that is to be published is redirected
//! there already; what they would drop of containers' packets is let through by two rules (`forward`). The kernel holds the truth: every question is answered from the
//! table, and a restart of the agent neither flushes nor recreates it, because that would cut established connections.

mod check;
mod conntrack;
mod farewell;
mod forward;
mod handover;
mod listing;
mod meaning;
mod netlink;
mod nft;
mod others;
mod owner;
mod ports;
mod quiet;
mod ruleset;
mod skeleton;
mod sockets;
mod spread;
mod udp;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::native::net::links::Links;
use super::native::net::names::{Names, Subnet, Subnet6};
use super::native::net::{namespace, namespace_path};
use super::{EngineError, Route, Traffic};
use crate::types::{Branch, InstanceId, Membership, PortMapping, Reason, ServiceName};
use conntrack::Which;
use forward::Look;
use listing::Table;
use netlink::ask::Asker;
pub use netlink::hand::Hand;
use owner::Writer;
use skeleton::{Frame, Sets};

/// From one look at iptables' own tables to the next, at the least: nothing says when they change.
const LEGACY_LOOK: Duration = Duration::from_secs(5);

/// From one look at the connections of a container that has ended to the next.
const LOOK: Duration = Duration::from_millis(10);

/// Traffic rules of one instance.
///
/// The first [`Traffic::point`] of a process also brings the fixed part of the table up to date. An agent that has
/// just started may therefore point every route that it observes at where it leads already.
pub struct NftTraffic {
    frame: Frame,
    run_dir: PathBuf,
    known: Mutex<Known>,
    /// Asks who else has a port: of a host with many rules that takes its time, and nothing else waits for it.
    others: Mutex<Asker>,
    follower: udp::Follower,
}

/// What was read or done last.
#[derive(Default)]
struct Known {
    /// The rule set's number when the table was read, and the table; `None` inside: there is no table.
    read: Option<(u32, Option<Table>)>,
    /// Whether this process has brought the skeleton up to date.
    skeleton: bool,
    /// Whether this process has looked for UDP flows that one before it has left where they were.
    caught_up: bool,
    /// The rule set's number when the skeleton was seen to be as it should be.
    whole: Option<u32>,
    /// Who is to be on which network; `None`: nobody has said.
    sets: Option<Sets>,
    /// The rule set's number when other firewalls were seen to let containers through.
    open: Option<u32>,
    /// When those that nftables knows nothing of were last looked at.
    legacy: Option<Instant>,
    /// Reads the tables.
    asker: Asker,
    /// Writes the table.
    writer: Writer,
    /// The rule set's number after our own last change.
    settled: Option<u32>,
    /// Every route as it was pointed, or found at the start: what is put back when others take rules away.
    kept: Option<BTreeMap<ServiceName, Route>>,
}

impl NftTraffic {
    /// Checks the subnet. The table is made by the first [`Traffic::point`].
    pub fn new(instance: &str, subnet: (Ipv4Addr, u8), run_dir: &Path) -> Result<Self, EngineError> {
        Ok(Self {
            frame: Frame { names: Names::new(instance), subnet: Subnet::new(subnet)?, subnet6: None },
            run_dir: run_dir.to_owned(),
            known: Mutex::default(),
            others: Mutex::default(),
            follower: udp::Follower::default(),
        })
    }

    /// The same, without claiming the table where the kernel could keep others from it.
    #[must_use]
    pub fn open_to_others(self) -> Self {
        self.known().writer.open_to_others = true;
        self
    }

    /// The same, with a socket for changes that was opened before.
    pub fn with_hand(self, hand: Hand) -> Self {
        self.known().writer.hand = Some(hand);
        self
    }

    /// The same, for containers that have IPv6.
    pub fn with_ipv6(mut self, subnet6: Option<Subnet6>) -> Self {
        self.frame.subnet6 = subnet6;
        self
    }

    fn table(&self) -> &str {
        &self.frame.names.table
    }

    /// Deletes the table, and with it every route of this instance.
    pub fn teardown(&self) -> Result<(), EngineError> {
        let mut known = self.known();
        let Known { mut asker, mut writer, .. } = std::mem::take(&mut *known);
        let table = self.table();
        let deleted = match nft::has(&mut asker, "inet", table) {
            Ok(true) => writer.apply(&mut asker, table, &format!("delete table inet {table}\n")),
            other => other.map(|_| ()),
        };
        let closed = forward::settle(&mut asker, &self.frame.names, false, Look { nft: true, legacy: true });
        *known = Known { asker, writer, ..Known::default() };
        deleted.and(closed).map_err(|error| self.failed("delete", error))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as the kernel has it. Reads it again only if the rule set has changed since.
    fn read(&self, known: &mut Known) -> io::Result<Option<Table>> {
        // A change while it is read gives a newer number than the one kept: then the next call reads again.
        let generation = known.asker.generation()?;
        if let Some((then, table)) = &known.read
            && *then == generation
        {
            return Ok(table.clone());
        }
        let table = nft::table(&mut known.asker, self.table(), self.frame.subnet6)?;
        known.read = Some((generation, table.clone()));
        known.kept.get_or_insert_with(|| table.as_ref().map(|it| it.routes.clone()).unwrap_or_default());
        Ok(table)
    }

    /// Runs a change; whatever became of it, the table has to be read again.
    fn apply(&self, known: &mut Known, script: &str) -> io::Result<()> {
        // As it was when it was read: a change since then has not been looked at.
        let before = match known.read.take() {
            Some((then, _)) => then,
            None => known.asker.generation()?,
        };
        let Known { asker, writer, .. } = known;
        writer.apply(asker, self.table(), script)?;
        // One transaction, one number: another one means that somebody else changed something beside it.
        known.settled = known.asker.generation().ok().filter(|now| *now == before.wrapping_add(1));
        Ok(())
    }

    /// Has all UDP flows follow the rules, once: an agent that was killed just after a switch has left some where they were.
    fn catch_up(&self, known: &mut Known, table: Option<&Table>) {
        if !std::mem::replace(&mut known.caught_up, true) {
            let routes = table.into_iter().flat_map(|table| table.routes.values());
            self.follower.catch_up(self.frame.subnet6, routes);
        }
    }

    /// Brings the table's fixed part and its sets to what `members` say.
    fn arrange(&self, known: &mut Known, members: &Membership, keep: bool) -> Result<(), EngineError> {
        let table = self.read(known).map_err(|error| self.failed("read", error))?;
        self.catch_up(known, table.as_ref());
        let mut sets = self.frame.sets(members);
        let Some(now) = &table else {
            // Without a container there is nothing to connect; with one it is to have a way out before its first switch.
            known.sets = Some(sets);
            if members.networks.is_empty() {
                return Ok(());
            }
            let script = self.frame.script(&Table::default(), known.sets.as_ref());
            self.apply(known, &script).map_err(|error| self.failed("change", error))?;
            known.skeleton = true;
            return Ok(());
        };
        if keep {
            for (name, there) in &now.sets {
                sets.entry(name.clone()).or_default().extend(there);
            }
        }
        let number = known.read.as_ref().map(|(number, _)| *number);
        let script = match known.skeleton {
            true => self.frame.change(now, &sets, number.is_some() && known.whole == number),
            false => self.frame.script(now, Some(&sets)),
        };
        known.sets = Some(sets);
        if known.skeleton && script.is_empty() {
            known.whole = number;
        }
        if !script.is_empty() {
            self.apply(known, &script).map_err(|error| self.failed("change", error))?;
            known.skeleton = true;
        }
        Ok(())
    }

    /// Who else redirects one of `ports`.
    fn redirected(&self, ports: &[PortMapping]) -> Result<Option<String>, EngineError> {
        if ports.is_empty() {
            return Ok(None);
        }
        let mut asker = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others::who_has(&mut asker, self.table(), ports)
            .map_err(|error| EngineError::new(Reason::Network, "cannot list the rules of nftables", error))
    }

    fn failed(&self, verb: &str, error: io::Error) -> EngineError {
        EngineError::new(
            Reason::Network,
            format!("cannot {verb} the nftables table inet {}", self.table()),
            error,
        )
    }

    /// Whether a container's network is its own: in one that it shares the connections are another one's, and its owner alone
    /// has an interface.
    fn has_own_network(&self, id: &InstanceId) -> bool {
        matches!(Links::new().find(&self.frame.names.veth(id)), Ok(Some(_)))
    }

    /// The addresses that connections to a container are led to.
    fn addresses_of(&self, id: &InstanceId) -> Result<Vec<IpAddr>, EngineError> {
        let all = self.inside(id, || Ok(udp::addresses().collect::<Vec<_>>()))?;
        let own = all.into_iter().flatten().filter_map(|address| match address {
            IpAddr::V4(address) => Some(address).filter(|address| self.frame.subnet.usable(*address)),
            IpAddr::V6(_) => None,
        });
        let own = own.flat_map(|address| ruleset::hairpins(address, self.frame.subnet6));
        Ok(own.map(|(_, address)| address).collect())
    }

    /// Runs `work` in the container's network namespace; `None` if there is none.
    fn inside<T: Send>(
        &self,
        id: &InstanceId,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<Option<T>, EngineError> {
        let path = namespace_path(&self.run_dir, id);
        if !namespace::is_pinned(&path) {
            return Ok(None);
        }
        namespace::inside(&path, work).map(Some).map_err(|error| {
            EngineError::new(Reason::Network, format!("cannot work in the network of {id}"), error)
        })
    }
}

impl Traffic for NftTraffic {
    fn observe(&self) -> Result<BTreeMap<ServiceName, Route>, EngineError> {
        let table = self.read(&mut self.known()).map_err(|error| self.failed("read", error))?;
        Ok(table.unwrap_or_default().routes)
    }

    fn connect(&self, members: &Membership, keep: bool) -> Result<(), EngineError> {
        let mut known = self.known();
        self.arrange(&mut known, members, keep)?;
        if members.networks.is_empty() {
            return Ok(());
        }
        // Also when our own table is whole: a firewall may have been loaded anew.
        let open = |known: &mut Known| -> io::Result<()> {
            let legacy = known.legacy.is_none_or(|last| last.elapsed() >= LEGACY_LOOK);
            let nft = known.open != Some(known.asker.generation()?);
            if legacy || nft {
                known.open = None;
                forward::settle(&mut known.asker, &self.frame.names, true, Look { nft, legacy })?;
                known.open = Some(known.asker.generation()?);
                known.legacy = known.legacy.filter(|_| !legacy).or_else(|| Some(Instant::now()));
            }
            Ok(())
        };
        open(&mut known).map_err(|error| {
            let what = "another firewall's chain of forwarded packets cannot be opened for containers";
            EngineError::new(Reason::Network, what, error)
        })
    }

    fn take_over(&self, route: &Route, givers: &BTreeSet<ServiceName>) -> Result<(), EngineError> {
        let mut known = self.known();
        let table = self.read(&mut known).map_err(|error| self.failed("read", error))?;
        self.catch_up(&mut known, table.as_ref());
        let skeleton = known.skeleton && table.is_some();
        let now = table.unwrap_or_default();
        let given = handover::given(&now, route, givers);
        let left = handover::give(self.table(), self.frame.subnet6, &now, &given).1;
        self.check(route, &left)?;
        let old = now.routes.get(&route.service);
        if skeleton && old.is_some_and(|old| same(old, route)) {
            return Ok(());
        }
        // Ports that are new to this table may have come into another one since they were asked for.
        let new = check::new_ports(&now, route);
        let _turn = (!new.is_empty()).then(others::Turn::take);
        match self.redirected(&new) {
            Ok(None) => {}
            Ok(Some(who)) => return Err(EngineError::plain(Reason::PortInUse, who)),
            // Not knowing is no reason to stop.
            Err(error) => tracing::warn!("{}: {}", route.service, error.to_refusal().message),
        }
        let mut script = String::new();
        if !skeleton {
            script.push_str(&self.frame.script(&now, known.sets.as_ref()));
        }
        let moved = match given.is_empty() {
            true => {
                script.push_str(&ruleset::switch(self.table(), self.frame.subnet6, &now, route));
                self.apply(&mut known, &script)
            }
            false => self.move_ports(&mut known, &script, &now, route, &given),
        };
        moved.map_err(|error| self.failed("change", error))?;
        known.skeleton = true;
        let kept = known.kept.get_or_insert_default();
        kept.extend(given.iter().chain([route]).map(|route| (route.service.clone(), route.clone())));
        crate::failpoint::hit("flows::before");
        for giver in &given {
            tracing::info!("{} takes over a port of the host from {}", route.service, giver.service);
            self.follower.follow(self.frame.subnet6, now.routes.get(&giver.service), Some(giver), false);
        }
        self.follower.follow(self.frame.subnet6, old, Some(route), false);
        Ok(())
    }

    fn withdraw(&self, service: &ServiceName) -> Result<(), EngineError> {
        let mut known = self.known();
        let table = self.read(&mut known).map_err(|error| self.failed("read", error))?;
        let now = table.unwrap_or_default();
        let script = ruleset::withdraw(self.table(), self.frame.subnet6, &now, service);
        known.kept.get_or_insert_default().remove(service);
        if script.is_empty() {
            return Ok(());
        }
        self.apply(&mut known, &script).map_err(|error| self.failed("change", error))?;
        self.follower.follow(self.frame.subnet6, now.routes.get(service), None, false);
        Ok(())
    }

    fn restore(&self) -> Result<bool, EngineError> {
        let mut known = self.known();
        let number = known.asker.generation().map_err(|error| self.failed("look at", error))?;
        if known.settled == Some(number) {
            return Ok(false);
        }
        // An agent that has said nothing yet has nothing to put back.
        let (Some(kept), Some(sets)) = (known.kept.clone(), known.sets.clone()) else { return Ok(true) };
        let table = self.read(&mut known).map_err(|error| self.failed("read", error))?;
        let mut now = table.unwrap_or_default();
        // An entry that somebody has led elsewhere is nobody's, and is made anew.
        for route in kept.values() {
            let own = ruleset::chain(&route.service);
            for entry in ruleset::entries(route) {
                if let Some(into) = now.entries.get_mut(&entry).filter(|into| **into != own) {
                    into.clear();
                }
            }
        }
        let is_there =
            |route: &&Route| now.routes.get(&route.service).is_some_and(|there| same(there, route));
        let lost: Vec<&Route> = kept.values().filter(|route| !is_there(route)).collect();
        let mut script = self.frame.change(&now, &sets, false);
        for route in &lost {
            script.push_str(&ruleset::switch(self.table(), self.frame.subnet6, &now, route));
        }
        if script.is_empty() {
            known.settled = Some(number);
            return Ok(false);
        }
        self.apply(&mut known, &script).map_err(|error| self.failed("restore", error))?;
        known.skeleton = true;
        for route in lost {
            self.follower.follow(self.frame.subnet6, Some(route), Some(route), true);
        }
        Ok(true)
    }

    fn connections(&self, id: &InstanceId) -> Result<usize, EngineError> {
        Ok(self.inside(id, sockets::incoming)?.map_or(0, |sockets| sockets.len()))
    }

    fn reset_connections(&self, id: &InstanceId) -> Result<(), EngineError> {
        let reset = || sockets::reset(&sockets::incoming()?, id);
        self.inside(id, reset)?;
        let own = self.addresses_of(id)?;
        farewell::forget(&mut self.follower.flows(), id, &own, Which::Unanswered);
        Ok(())
    }

    fn delay_refusals(&self, id: &InstanceId) -> Result<(), EngineError> {
        match self.has_own_network(id) {
            true => self.inside(id, quiet::delay_refusals).map(|_| ()),
            // Of a network that it shares nobody knows whose port is whose.
            false => Ok(()),
        }
    }

    fn forget_unanswered(&self, id: &InstanceId) {
        if self.has_own_network(id)
            && let Ok(own) = self.addresses_of(id)
        {
            farewell::forget(&mut self.follower.flows(), id, &own, Which::Unanswered);
        }
    }

    fn turn_away(&self, id: &InstanceId) -> Result<(), EngineError> {
        if self.has_own_network(id) {
            self.inside(id, farewell::drop_new)?;
            let own = self.addresses_of(id)?;
            farewell::forget(&mut self.follower.flows(), id, &own, Which::Unanswered);
        }
        Ok(())
    }

    fn end_connections(&self, id: &InstanceId, patience: Duration) -> Result<usize, EngineError> {
        if !self.has_own_network(id) {
            return Ok(0);
        }
        let own = self.addresses_of(id)?;
        farewell::forget(&mut self.follower.flows(), id, &own, Which::Unanswered);
        let end = || {
            let end = Instant::now() + patience;
            loop {
                let left = sockets::unfinished()?;
                if left.is_empty() || Instant::now() >= end {
                    return sockets::reset(&left, id).map(|()| left.len());
                }
                std::thread::sleep(LOOK);
            }
        };
        let ended = self.inside(id, end);
        farewell::forget(&mut self.follower.flows(), id, &own, Which::All);
        // UDP has no end to tell of: whoever goes on sending is led where the rules lead by now.
        self.follower.forget(id, &own);
        Ok(ended?.unwrap_or(0))
    }

    fn port_conflict(&self, ports: &[PortMapping]) -> Result<Option<String>, EngineError> {
        let listener = ports::conflict(ports, self.frame.subnet6.is_some())
            .map_err(|error| EngineError::new(Reason::Network, "cannot list the ports in use", error))?;
        match listener {
            Some(who) => Ok(Some(who)),
            None => self.redirected(ports),
        }
    }
}

/// Whether two routes lead the same way; the order of ports says nothing.
fn same(a: &Route, b: &Route) -> bool {
    let sorted = |ports: &[PortMapping]| {
        let mut ports = ports.to_vec();
        ports.sort();
        ports.dedup();
        ports
    };
    let branch =
        |route: &Route| route.canary.clone().map(|branch| Branch { ports: sorted(&branch.ports), ..branch });
    (a.service_address, a.generation, a.address) == (b.service_address, b.generation, b.address)
        && a.also == b.also
        && sorted(&a.ports) == sorted(&b.ports)
        && branch(a) == branch(b)
}
