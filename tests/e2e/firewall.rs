//! Another firewall closes the way of forwarded packets while clients ask: the agent hears of it and opens the way again. And
//! somebody flushes all rules while there is no agent, which the rules of traffic outlive.
//!
//! All of it is in a network namespace of its own: neither the policy nor the rules of the machine are touched.

#[path = "../traffic/host.rs"]
#[allow(dead_code, reason = "tests of traffic use the rest of it")]
pub mod host;
#[path = "../traffic/pressure.rs"]
mod pressure;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use host::{Client, HOST, Host, OUTSIDE, inside, knows_owners, run, serve};
use pressure::Pressure;

use super::image::Kind;
use super::lab::manager::Manager;
use super::lab::{Lab, free_port, wait_for, web};
use super::lives::polled_rarely;
use super::load::get;

const SHORT: Duration = Duration::from_millis(500);
/// A client gives up after 5 seconds, and TCP asks again after 1 and 3: what is closed for longer is felt. The agent comes round
/// by itself every 30 seconds.
const SOON: Duration = Duration::from_secs(3);
/// What the agent hears of its own rules is over after this.
const QUIET: Duration = Duration::from_secs(3);

/// Whether a server answers who asks from a namespace.
fn answers(from: &Path, at: (Ipv4Addr, u16)) -> bool {
    inside(from, || Client::connect_within(at, SHORT)?.ask()).is_ok()
}

/// How often the agent has come round because somebody changed rules. Read from its log: to ask it would wake it.
fn looks(lab: &Lab) -> usize {
    let log = std::fs::read_to_string(lab.path("agent.log")).unwrap();
    log.matches("looking: rules of nftables changed").count()
}

#[test]
fn a_way_that_a_firewall_closes_is_opened_without_anybody_asking() {
    let host = Host::new();
    let mut lab = Lab::new();
    polled_rarely(&lab);
    let image = lab.image("1", Kind::Good);
    // Its own program says that it is well; clients ask a server beside it, which keeps connections.
    let file = web(&image, 80, "").replace("127.0.0.1:80:8080", "80:7070");
    lab.deploy("web", &file.replace("http = \"/healthz\"", "http = \"/healthz\"\nport = 8080"), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    let container = lab.path("run/netns/web.1");
    serve(&container, (Ipv4Addr::UNSPECIFIED, 7070).into(), "web.1");
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");
    // In, and out.
    let works = || answers(&host.outside, (HOST, 80)) && answers(&container, (OUTSIDE, 7000));
    wait_for("the way through", || works().then_some(()));

    let mark = format!("gitopsd:{}", lab.instance);
    let is_open = || run("iptables-nft -S FORWARD").matches(&mark).count() == 2;
    let pressure = Pressure::begin(&host, 2);
    let mut times = Vec::new();
    // A policy that drops; then, twice, all that lets containers through is taken away.
    for change in ["-P FORWARD DROP", "-F FORWARD", "-F FORWARD"] {
        pressure.runs();
        std::thread::sleep(QUIET);
        let before = looks(&lab);
        let since = Instant::now();
        run(&format!("iptables-nft {change}"));
        wait_for("the rules that let containers through", || is_open().then_some(()));
        let took = since.elapsed();
        assert!(took < SOON, "{change}: {took:?}; {}", lab.agent_log());
        assert!(looks(&lab) > before, "{change} was seen by chance: {}", lab.agent_log());
        wait_for("the way through", || works().then_some(()));
        times.push(took);
    }
    pressure.runs();
    let noticed = pressure.end();
    println!("open again after {times:.0?}: {noticed:?}");
    assert_eq!((noticed.failed, noticed.broken), (0, 0), "{noticed:?}");

    // Without an agent it stays closed: clients do take this way.
    lab.kill_agent();
    run("iptables-nft -F FORWARD");
    assert!(!answers(&host.outside, (HOST, 80)) && !answers(&container, (OUTSIDE, 7000)));
    lab.start_agent();
    lab.wait_agent();
    wait_for("the way through", || works().then_some(()));
}

#[test]
fn nobody_flushes_the_rules_while_the_agent_is_started_anew() {
    let _host = Host::new();
    let mut lab = Lab::new();
    lab.manager = Some(Manager::begin(&lab.path("notify.sock")));
    let (v1, port) = (lab.image("1", Kind::Good), free_port());
    lab.deploy("web", &web(&v1, port, ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    lab.sync();
    assert!(lab.manager.as_ref().unwrap().keeps());
    let rules = || run(&format!("nft list table inet gitopsd-{}", lab.instance));
    if knows_owners() {
        let whole = rules();
        assert!(whole.contains("flags owner"), "{whole}");
    }
    lab.kill_agent();
    run("nft flush ruleset");
    if knows_owners() {
        assert_eq!(get(port, "/").unwrap(), "version 1\n");
    }
    // The next one is the same owner: it changes them.
    lab.start_agent();
    lab.wait_agent();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    lab.wait_serving("web", &v2);
    assert_eq!(get(port, "/").unwrap(), "version 2\n");
    // Once more: what was handed over stays kept.
    lab.kill_agent();
    run("nft flush ruleset");
    if knows_owners() {
        assert_eq!(get(port, "/").unwrap(), "version 2\n");
    }
    // When the service is stopped they are anybody's, as before.
    lab.manager.as_ref().unwrap().stop();
    run("nft flush ruleset");
    assert!(get(port, "/").is_err());
    lab.start_agent();
    lab.wait_agent();
    wait_for("an answer", || get(port, "/").ok());
}
