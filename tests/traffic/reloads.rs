//! Other firewalls are loaded anew while clients ask without a pause: what these notice is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gitopsd::engine::Traffic as _;
use gitopsd::engine::traffic::watch::{self, Heard};

use super::firewalls::{Firewalld, before_docker, docker, shop, ufw, wait_long, works};
use super::host::*;
use super::pressure::Pressure;

/// Does what the agent does when it hears of a change; on the watch's own thread, which is in this namespace.
struct Watched {
    agent: Arc<Agent>,
    over: Arc<AtomicBool>,
}

impl Watched {
    fn begin(host: &Host) -> Self {
        let (agent, over) = (Arc::new(shop(host)), Arc::<AtomicBool>::default());
        let (watched, end) = (agent.clone(), over.clone());
        let told = move |heard| {
            if end.load(Ordering::SeqCst) {
                return false;
            }
            match heard {
                Heard::Changed => assert!(watched.traffic.restore().is_ok()),
                // The firewall may be in the middle of it: then it is heard of again.
                Heard::Firewall => {
                    drop(watched.traffic.connect(&watched.members(&["default: 11 12"]), false))
                }
            }
            true
        };
        watch::begin("gitopsd", told).unwrap();
        Self { agent, over }
    }

    fn end(self, host: &Host, pressure: Pressure) {
        pressure.runs();
        let noticed = pressure.end();
        assert_eq!((noticed.failed, noticed.broken), (0, 0), "{noticed:?}");
        assert!(noticed.answered > 100, "{noticed:?}");
        wait_long("the way through, everywhere", || works(host, &self.agent));
        self.over.store(true, Ordering::SeqCst);
        self.agent.teardown();
    }
}

#[test]
fn ufw_under_load() {
    let host = Host::new();
    ufw(&host, "--force enable");
    let watched = Watched::begin(&host);
    wait_long("the way through", || works(&host, &watched.agent));
    let pressure = Pressure::begin(&host, 4);
    for _ in 0..3 {
        pressure.runs();
        ufw(&host, "reload");
    }
    watched.end(&host, pressure);
}

#[test]
fn firewalld_under_load() {
    let host = Host::new();
    let firewalld = Firewalld::begin(&host);
    let watched = Watched::begin(&host);
    wait_long("the way through", || works(&host, &watched.agent));
    let pressure = Pressure::begin(&host, 4);
    for _ in 0..3 {
        pressure.runs();
        firewalld.reload();
    }
    watched.end(&host, pressure);
}

#[test]
fn docker_under_load() {
    let host = Host::new();
    before_docker();
    let first = docker(&host);
    let watched = Watched::begin(&host);
    wait_long("the way through", || works(&host, &watched.agent));
    let pressure = Pressure::begin(&host, 4);
    pressure.runs();
    drop(first);
    pressure.runs();
    let _second = docker(&host);
    watched.end(&host, pressure);
}
