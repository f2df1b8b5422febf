//! Beside the loop: one prober and one watch a running container.
//!
//! The loop is woken when a verdict can have changed, not at every probe: a settled host is probed in silence. Whatever is well
//! refuses nobody at once from then on, should it end ([`Traffic::delay_refusals`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::clock;
use super::wake::{Wake, Waker};
use crate::engine::{Engine, EngineError, ExecOutput, Traffic, probe};
use crate::reconcile::health::{EffectiveCheck, ProbeHistory, Verdict, judge};
use crate::types::{InstanceId, Notified, Reason, Timestamp};

type Histories = Arc<Mutex<BTreeMap<InstanceId, ProbeHistory>>>;

/// A container that is to be probed.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Whose probes they are.
    pub id: InstanceId,
    /// Its first process.
    pub pid: i32,
    /// When that was started: another start is another subject.
    pub started_at: Timestamp,
    /// Where to knock.
    pub address: Ipv4Addr,
    /// How.
    pub check: EffectiveCheck,
}

struct Running {
    subject: Subject,
    tasks: Vec<JoinHandle<()>>,
}

/// All probers.
pub struct Probes {
    runtime: Handle,
    engine: Arc<dyn Engine>,
    traffic: Arc<dyn Traffic>,
    waker: Waker,
    histories: Histories,
    running: BTreeMap<InstanceId, Running>,
}

impl Probes {
    /// None yet.
    pub fn new(runtime: Handle, engine: Arc<dyn Engine>, traffic: Arc<dyn Traffic>, waker: Waker) -> Self {
        Self { runtime, engine, traffic, waker, histories: Histories::default(), running: BTreeMap::new() }
    }

    /// Probes exactly these from now on.
    pub fn follow(&mut self, subjects: Vec<Subject>) {
        let wanted: BTreeMap<InstanceId, Subject> =
            subjects.into_iter().map(|subject| (subject.id.clone(), subject)).collect();
        self.running.retain(|id, running| {
            let keep = wanted.get(id) == Some(&running.subject);
            if !keep {
                running.tasks.iter().for_each(JoinHandle::abort);
                lock(&self.histories).remove(id);
            }
            keep
        });
        for (id, subject) in wanted {
            if !self.running.contains_key(&id) {
                let tasks = vec![self.spawn_watch(&subject), self.spawn_prober(subject.clone())];
                self.running.insert(id, Running { subject, tasks });
            }
        }
    }

    /// What has been seen so far.
    pub fn histories(&self) -> BTreeMap<InstanceId, ProbeHistory> {
        lock(&self.histories).clone()
    }

    /// Wakes the loop when the container's first process ends.
    fn spawn_watch(&self, subject: &Subject) -> JoinHandle<()> {
        let (pid, waker) = (subject.pid, self.waker.clone());
        self.runtime.spawn(async move {
            if let Ok(()) = ended(pid).await {
                // The loop may be gone: then nobody is left to tell.
                let _ = waker.send(Wake::Look("a container ended"));
            }
        })
    }

    fn spawn_prober(&self, subject: Subject) -> JoinHandle<()> {
        let (engine, waker, histories) = (self.engine.clone(), self.waker.clone(), self.histories.clone());
        let traffic = self.traffic.clone();
        let mut history = ProbeHistory::new(subject.started_at);
        lock(&histories).insert(subject.id.clone(), history.clone());
        self.runtime.spawn(async move {
            if subject.check.probes.is_empty() {
                tokio::time::sleep(subject.check.steady).await;
                delay_refusals(traffic, subject.id);
                return;
            }
            // Once a start: what falls sick again and again has no such second each time.
            let mut was_well = false;
            loop {
                let due = history.next_probe_at(&subject.check);
                let pause = Duration::try_from(due.duration_since(clock::now())).unwrap_or_default();
                // A clock that was set back must not silence the prober.
                tokio::time::sleep(pause.min(subject.check.interval)).await;
                let result = attempt(&subject, &engine).await;
                let now = clock::now();
                let before = judge(&subject.check, Some(&history), subject.started_at, now);
                history.record(&subject.check, now, result);
                let after = judge(&subject.check, Some(&history), subject.started_at, now);
                lock(&histories).insert(subject.id.clone(), history.clone());
                if after == Verdict::Healthy && !std::mem::replace(&mut was_well, true) {
                    delay_refusals(traffic.clone(), subject.id.clone());
                }
                if std::mem::discriminant(&before) != std::mem::discriminant(&after)
                    && waker.send(Wake::Look("a health verdict changed")).is_err()
                {
                    return;
                }
            }
        })
    }
}

/// Beside the probes: the kernel takes its time for it. Only a courtesy, and nothing waits for what cannot be done.
fn delay_refusals(traffic: Arc<dyn Traffic>, id: InstanceId) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = traffic.delay_refusals(&id) {
            tracing::warn!("{}: {}", id.service, error.to_refusal());
        }
    });
}

async fn attempt(subject: &Subject, engine: &Arc<dyn Engine>) -> Result<(), String> {
    let inside = Container { engine, id: &subject.id };
    for question in &subject.check.probes {
        let (service, timeout) = (subject.id.service.as_str(), subject.check.timeout);
        probe::attempt(question, service, subject.address, timeout, &inside).await?;
    }
    Ok(())
}

/// A container that is asked from within: what blocks does so off the async threads.
struct Container<'a> {
    engine: &'a Arc<dyn Engine>,
    id: &'a InstanceId,
}

impl probe::Inside for Container<'_> {
    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Result<ExecOutput, EngineError> {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        let run = tokio::task::spawn_blocking(move || engine.exec(&id, &command, timeout));
        run.await.unwrap_or_else(|error| {
            Err(EngineError::new(Reason::Internal, "running the health check", error))
        })
    }

    async fn notified(&self) -> Option<Notified> {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        tokio::task::spawn_blocking(move || engine.notified(&id)).await.ok().flatten()
    }
}

/// Waits for the end of a process that need not be our child (pidfd_open(2): readable once it has ended).
pub(super) async fn ended(pid: i32) -> std::io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(std::io::ErrorKind::InvalidInput)?;
    let fd: OwnedFd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK) {
        Ok(fd) => fd,
        // Gone already.
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: an `OwnedFd` stays the same open descriptor for as long as it lives, which is as long as the `AsyncFd`.
    let watched =
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(std::io::Error::other)?;
    watched.readable().await.map(|_| ())
}

/// A prober that panicked has left a whole map behind.
fn lock(histories: &Histories) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, ProbeHistory>> {
    histories.lock().unwrap_or_else(PoisonError::into_inner)
}
