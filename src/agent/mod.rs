//! The imperative shell: waits, looks, lets `reconcile` decide, carries out, tells. `round` is the loop.
//!
//! One thread runs the loop and owns all state. What takes long (fetches, look-ups, pulls, starts, probes, pushes)
//! runs beside it and reports by a `Wake`; the loop never waits for it.

mod admit;
mod age;
mod ailing;
mod arrivals;
mod board;
pub mod clock;
mod conclude;
pub mod control;
mod culprit;
mod drains;
mod effects;
mod errors;
mod execute;
mod fault;
mod garbage;
mod gate;
pub mod images;
mod jobs;
mod lead;
mod memory;
mod names;
pub mod native;
mod news;
mod observe;
mod operator;
mod outbox;
mod preflight;
mod probes;
mod round;
pub mod secrets;
mod shims;
mod socket;
mod source;
mod summary;
mod tags;
mod trust;
mod waiters;
mod wake;
mod wakers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::config::ZoneCache;
use crate::config::agent::AgentConfig;
use crate::engine::Traffic;
use crate::engine::native::Network as _;
use crate::forge::{self, Poster};
use crate::git::{Repository, Signer};
use crate::reconcile::step::Plan;
use crate::reconcile::world::{Desired, Observed};
use crate::registry::{Registry, Store};
use crate::report::events::EventLog;
use crate::report::message::Kind;
use crate::report::notify::Notifier;
use crate::report::status::Status;
use crate::report::{Message, journal};
use crate::state::StateDir;
use crate::state::addresses::Pool;
use crate::state::clean::Before;
use crate::state::journal::Journal;
use crate::state::lock::InstanceLock;
use crate::state::trust::{HighWater, Reset};
use crate::types::{CommitId, Digest, Exit, HealthCheck, Hosts, InstanceId, Refusal, ServiceName};
use effects::{Effects, Hands};
use garbage::Garbage;
use native::Native;
use probes::Probes;
use shims::Shims;
use socket::Socket;
use source::Source;
use waiters::Waiter;
use wake::Wake;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its state directory.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// Something it needs of the host.
    #[error("{0}")]
    Host(Refusal),
    /// Something it needs of the operating system.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl AgentError {
    fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// The agent: everything the loop knows and holds.
pub struct Agent {
    config: AgentConfig,
    state: StateDir,
    store: Arc<Store>,
    hands: Hands,
    pool: Pool,
    /// What is remembered: the same as on disk, but for what is [`Self::unsaved`].
    journal: Journal,
    /// What is wanted: the same as on disk, but for look-ups under way.
    desired: Option<Desired>,
    high_water: Option<HighWater>,
    /// Who signed the commit that is acted on, where that is checked.
    signer: Option<(CommitId, Signer)>,
    /// What an operator has it believe instead of descendants of the mark, until a head is admitted.
    reset: Option<Reset>,
    /// An operator does not wait for windows: until the next look is over.
    waives: bool,
    source: Source,
    effects: Effects,
    probes: Probes,
    shims: Shims,
    /// What was seen of each container that drains.
    drains: drains::Drains,
    /// What is known of starts that lie ahead.
    starts: clock::Starts,
    /// What was counted of the connections of candidates that have traffic.
    errors: errors::Errors,
    /// The checks that images have of their own, where they have one.
    image_checks: BTreeMap<Digest, Option<HealthCheck>>,
    /// What was seen last, and what was decided on it.
    seen: Observed,
    plan: Plan,
    /// Why the host could not be looked at.
    blind: Option<Refusal>,
    /// Why state cannot be written.
    fault: Option<Refusal>,
    /// Services whose record on disk is older than the one in memory.
    unsaved: BTreeSet<ServiceName>,
    /// The last word on each service that is not as the repo wants it: only a change of it is news.
    refusals: BTreeMap<ServiceName, Refusal>,
    /// The incumbents that fail their health check.
    ailing: BTreeMap<ServiceName, Refusal>,
    /// State that could not be read and is made anew.
    lost: Option<Refusal>,
    /// Why networks are not as they should be.
    unconnected: Option<Refusal>,
    /// The names that each running container was told.
    named: BTreeMap<InstanceId, Hosts>,
    /// The resolvers that the host had then.
    resolvers: String,
    /// How often the kernel killed a process in each running container for want of memory.
    oom_kills: BTreeMap<InstanceId, u64>,
    /// How a container ended that is being started again, or was given up for it.
    ends: BTreeMap<ServiceName, Exit>,
    repository: Arc<Repository>,
    outbox_changed: bool,
    outbox: outbox::Outbox,
    board: board::Board,
    /// What this host said last of a whole commit.
    arrivals: arrivals::Arrivals,
    /// What it found that tags stood for at the commit in force.
    tags: Option<crate::state::tagged::KeptTags>,
    /// Tags that it was said of that they moved: from what, to what.
    moved_tags: BTreeMap<ServiceName, (Digest, Digest)>,
    waiters: Vec<Waiter>,
    zones: ZoneCache,
    secrets: secrets::Secrets,
    garbage: Garbage,
    events: EventLog,
    notifier: Notifier,
    status: Option<Status>,
    socket: Option<Socket>,
    waker: wake::Waker,
    wakes: mpsc::Receiver<Wake>,
    /// Keeps what runs beside the loop alive.
    runtime: Option<tokio::runtime::Runtime>,
    watches: wakers::Watches,
    _instance: InstanceLock,
}

/// Runs the agent until it is told to stop; with `once`, until every service is settled or held. Gives whether the
/// host is in sync.
pub fn run(config: AgentConfig, once: bool) -> Result<bool, AgentError> {
    journal::init();
    let mut agent = Agent::new(config)?;
    agent.start();
    let in_sync = agent.run(once);
    if let Err(error) = agent.state.end_boot() {
        tracing::warn!("{}", error.to_refusal());
    }
    // What is under way beside the loop is not waited for: the next agent finds what it was, and goes on.
    if let Some(runtime) = agent.runtime.take() {
        runtime.shutdown_background();
    }
    Ok(in_sync)
}

impl Agent {
    fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let state = StateDir::open(&config.state_dir)?;
        let instance = InstanceLock::take(&config.instance).map_err(AgentError::Host)?;
        crate::state::atomic::make_dir(&config.run_dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            // Made when more is under way, and gone again when idle. Each container that takes its time to end has one: however
            // many these are, a probe and a look at the repo find one, too.
            .max_blocking_threads(4096)
            .thread_keep_alive(Duration::from_secs(5))
            .enable_all()
            .build()
            .map_err(|error| AgentError::io("starting the runtime", error))?;
        let handle = runtime.handle().clone();
        let Native { engine, network, traffic } =
            Native::open(&config).map_err(|error| AgentError::Host(error.to_refusal()))?;
        let traffic = match native::hand() {
            Ok(hand) => traffic.with_hand(hand),
            Err(error) => {
                tracing::warn!(
                    "systemd cannot keep the rules of traffic for the time without an agent: {error}"
                );
                traffic
            }
        };
        let journal = state.load_journal()?;
        // What an older version made has no IPv6: without this, what is sent there would leave the host.
        if journal.records.values().any(|record| !record.is_absent())
            && let Err(error) = network.open_host()
        {
            tracing::warn!("{}", error.to_refusal());
        }
        let store = match Store::open(&config.state_dir) {
            // What runs is supervised all the same; nothing new can be pulled.
            Err(error) if state.fault().is_some() => {
                tracing::error!("{}", error.to_refusal());
                Store::beside(&config.state_dir)
            }
            store => store.map_err(|error| AgentError::Host(error.to_refusal()))?,
        };
        let store = Arc::new(store);
        let registry = Registry::new(store.clone(), config.registries.clone());
        let registry = registry.map_err(|error| AgentError::Host(error.to_refusal()))?;
        let engine = Arc::new(engine);
        let behind = engine.clone();
        let registry = registry.with_s3(config.s3.clone()).with_keep_blobs(config.keep_blobs);
        let registry = registry.with_put_behind(move |pid| behind.put_behind(pid));
        let registry = Arc::new(registry);
        let repository = Repository::open(&config.repo, &config.state_dir.join("git"));
        let mut repository = repository.map_err(|error| AgentError::Host(error.to_refusal()))?;
        if let (Some(remote), Some(access)) = (&config.report.remote, &config.report.access) {
            let audit = repository.with_audit(remote, access);
            repository = audit.map_err(|error| AgentError::Host(error.to_refusal()))?;
        }
        let repository = Arc::new(repository.signing_with(config.report.key.clone()));
        let (waker, wakes) = mpsc::channel();
        let socket = Socket::listen(&config.run_dir, waker.clone())
            .map_err(|error| AgentError::io(format!("listening in {}", config.run_dir.display()), error))?;
        let traffic: Arc<dyn Traffic> = Arc::new(traffic);
        let watches = wakers::begin(&config, &handle, &waker, traffic.clone())?;
        let hands = Hands { engine, traffic, registry, runtime: handle.clone() };
        let source =
            Source::new(repository.clone(), hands.registry.clone(), handle.clone(), waker.clone(), &config);
        // It is read out of the repo anew. Its former version may be of an older commit, and is not to be deployed.
        let (desired, lost) = match state.load_desired() {
            Err(error @ crate::state::StateError::Damaged { .. }) => (None, Some(error.to_refusal())),
            desired => (desired?, None),
        };
        let poster = config.status.as_ref().map(|status| Poster::new(status, &config.host.name));
        let board = board::Board::new(
            poster.transpose().map_err(AgentError::Host)?,
            forge::memory::load(&config.state_dir),
        );
        Ok(Self {
            journal,
            desired,
            high_water: state.load_high_water()?,
            signer: None,
            reset: trust::in_force(&state),
            waives: false,
            pool: Pool::new(config.engine.subnet),
            effects: Effects::new(hands.clone(), waker.clone()),
            shims: Shims::new(handle.clone(), hands.engine.clone(), waker.clone()),
            probes: Probes::new(handle, hands.engine.clone(), hands.traffic.clone(), waker.clone()),
            drains: drains::Drains::new(),
            starts: clock::Starts::new(),
            errors: errors::Errors::new(),
            image_checks: BTreeMap::new(),
            seen: Observed::default(),
            plan: Plan { services: BTreeMap::new(), wake_at: None },
            blind: None,
            fault: None,
            unsaved: BTreeSet::new(),
            refusals: BTreeMap::new(),
            ailing: BTreeMap::new(),
            lost,
            unconnected: None,
            named: BTreeMap::new(),
            resolvers: String::new(),
            oom_kills: BTreeMap::new(),
            ends: BTreeMap::new(),
            outbox_changed: true,
            outbox: outbox::Outbox::default(),
            board,
            arrivals: arrivals::Arrivals::new(state.load_arrival()),
            tags: state.load_tags(),
            moved_tags: BTreeMap::new(),
            waiters: Vec::new(),
            zones: ZoneCache::default(),
            secrets: secrets::Secrets::default(),
            garbage: Garbage::at_start(),
            events: EventLog::open(&config.state_dir),
            notifier: Notifier::default(),
            status: None,
            socket: Some(socket),
            source,
            store,
            hands,
            repository,
            state,
            config,
            waker,
            wakes,
            runtime: Some(runtime),
            watches,
            _instance: instance,
        })
    }

    fn start(&mut self) {
        let version = crate::state::version::version();
        let text = format!(
            "gitopsd {version} on {}: follows {} branch {}",
            self.config.host.name, self.config.repo.url, self.config.repo.branch
        );
        self.tell(Some(Message::new(Kind::AgentStarted, text)));
        self.tell_reset();
        // Each look says so too; but the repo may be out of reach for long.
        let trusted = self.config.repo.trust.signatures.as_ref().map(crate::git::trusted_signers);
        if let Some(Err(why)) = trusted {
            tracing::error!("nobody's signature counts: {why}");
        }
        match self.state.before_boot() {
            Ok(Before::SameBoot) => {}
            Ok(Before::OrderlyBoot) => self.begin_anew(),
            Ok(Before::BrokenBoot) => {
                self.begin_anew();
                self.look_at_store();
            }
            Err(error) => tracing::warn!("{}", error.to_refusal()),
        }
        // Only now: the look of an agent that ends during it is the next one's.
        if let Err(error) = self.state.begin_boot() {
            tracing::warn!("{}", error.to_refusal());
        }
        self.connect();
        // A route that is right is pointed once more: that brings the table's fixed part up to this version's.
        match self.hands.traffic.observe() {
            Ok(routes) => {
                for route in routes.values() {
                    if let Err(error) = self.hands.traffic.point(route) {
                        tracing::warn!("{}: {}", route.service, error.to_refusal());
                    }
                }
            }
            Err(error) => tracing::warn!("{}", error.to_refusal()),
        }
        for refusal in self.journal.frozen.values().chain(&self.lost).cloned().collect::<Vec<_>>() {
            self.tell(Some(Message::new(Kind::StateTrouble, refusal.message.clone()).because(&refusal)));
        }
    }

    /// After a boot nothing is a repetition of what was before: every incumbent is started at once, in order.
    fn begin_anew(&mut self) {
        for incumbent in self.journal.records.values_mut().filter_map(|record| record.incumbent.as_mut()) {
            (incumbent.restarts, incumbent.restarted_at) = (0, None);
        }
    }

    /// Sends a message to the journal and to the events.
    fn tell(&mut self, message: Option<Message>) {
        if let Some(message) = message {
            journal::send(&message);
            self.events.append(&crate::report::events::Event::of(&message, clock::now()));
        }
    }

    /// Notes why a service is not as the repo wants it; `None` = it is, or something is under way.
    fn refuse(&mut self, service: &ServiceName, refusal: Option<&Refusal>) {
        match refusal {
            Some(refusal) if self.refusals.get(service) != Some(refusal) => {
                self.refusals.insert(service.clone(), refusal.clone());
                let text = format!("{service}: {}", refusal.message);
                let mut message = Message::of(Kind::ServiceRefused, service, text).because(refusal);
                message.commit = self.desired.as_ref().map(|desired| desired.commit.id.clone());
                self.tell(Some(message));
            }
            Some(_) => {}
            None => {
                self.refusals.remove(service);
            }
        }
    }
}
