//! Whom the rules belong to: what others can take away of them, and how soon it is back.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gitopsd::engine::Traffic as _;
use gitopsd::engine::traffic::watch::{self, Heard};
use gitopsd::types::Reason;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};

use super::host::*;
use super::pressure::Pressure;

const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp", "0.0.0.0:53:5353/udp"];

/// One container with published ports.
fn shop(agent: &Agent) {
    let path = agent.container("shop.1", 11, 8080);
    serve_udp(&path, 5353, "shop.1");
    agent.connect(&["default: 11"]);
    agent.point(&agent.route("shop.1", 11, PORTS));
}

#[test]
fn nobody_else_can_change_an_owned_table() {
    if !knows_owners() {
        return;
    }
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    shop(&agent);
    let pressure = Pressure::begin(&host, 4);
    pressure.runs();
    // What a restart of Debian's nftables.service does, among others.
    for _ in 0..20 {
        run("nft flush ruleset");
        pressure.runs();
    }
    for refused in
        ["delete table inet gitopsd", "flush chain inet gitopsd svc-shop", "add chain inet gitopsd own"]
    {
        let output = std::process::Command::new("nft").args(refused.split(' ')).output().unwrap();
        assert!(!output.status.success(), "{refused}");
    }
    let result = pressure.end();
    assert_eq!((result.failed, result.broken), (0, 0), "{result:?}");
    assert!(result.answered > 100, "{result:?}");
    // Everybody can read it.
    assert!(run("nft list table inet gitopsd").contains("generation 1"));
    // A second agent of the same name is told why it cannot.
    let second = host.agent("gitopsd", 1);
    let error = second.traffic.point(&second.route("shop.1", 11, &["0.0.0.0:81:8080/tcp"])).unwrap_err();
    assert_eq!(error.reason, Reason::Network);
    assert!(error.to_refusal().message.contains("belongs to another process"), "{error:?}");
    // Its owner ends: the table stays as it is, traffic flows, and the next one takes it over.
    let mut client = inside(&host.outside, || Client::connect((HOST, 80))).unwrap();
    drop(agent);
    assert!(client.ask().unwrap().starts_with("shop.1 "));
    assert!(ask_from(&host.outside, (HOST, 80)).is_ok());
    second.point(&second.route("shop.1", 11, PORTS));
    run("nft flush ruleset");
    assert!(client.ask().unwrap().starts_with("shop.1 "));
    assert!(ask_from(&host.outside, (HOST, 80)).is_ok());
    drop(second);
    // Without an owner it is anybody's again; whoever comes next makes it anew.
    run("nft flush ruleset");
    assert!(ask((HOST, 80)).is_err());
    let third = host.agent("gitopsd", 1);
    third.point(&third.route("shop.1", 11, PORTS));
    assert!(ask((HOST, 80)).is_ok());
    third.teardown();
    assert!(!run("nft list tables").contains("gitopsd"));
}

#[test]
fn what_is_taken_away_is_back_within_a_tenth_of_a_second() {
    let host = Host::new();
    let agent = Arc::new(Mutex::new(host.agent("gitopsd", 1).open()));
    shop(&agent.lock().unwrap());
    let restored = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let (watched, count, end) = (agent.clone(), restored.clone(), over.clone());
    // As the agent does, on the watch's own thread, which is in this namespace.
    let told = move |heard| {
        if heard == Heard::Changed && !end.load(Ordering::SeqCst) {
            let amiss = watched.lock().unwrap().traffic.restore().unwrap();
            count.fetch_add(usize::from(amiss), Ordering::SeqCst);
        }
        true
    };
    watch::begin("gitopsd", told).unwrap();
    // A client of UDP that never stops asking from one port: to conntrack the same flow, before, meanwhile, after.
    let client = inside(&host.outside, || std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect((HOST, 53)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // From the end of the command; the quickest of some, as the machine may have other things to do.
    let mut quickest = BTreeMap::new();
    let damages = [
        "flush ruleset",
        "delete table inet gitopsd",
        "flush chain inet gitopsd nat-pre",
        "flush chain inet gitopsd svc-shop",
        "delete element inet gitopsd anywhere { tcp . 80 }",
        "flush set inet gitopsd net-default",
    ];
    for damage in damages.iter().copied().cycle().take(5 * damages.len()) {
        let before = restored.load(Ordering::SeqCst);
        run(&format!("nft {damage}"));
        let since = Instant::now();
        wait_for(damage, || restored.load(Ordering::SeqCst) > before);
        let took = since.elapsed();
        quickest.entry(damage).and_modify(|best: &mut Duration| *best = took.min(*best)).or_insert(took);
        assert!(ask_from(&host.outside, (HOST, 80)).unwrap().starts_with("shop.1 "), "{damage}");
        let seen = agent.lock().unwrap().traffic.observe().unwrap();
        assert_eq!(seen.len(), 1, "{damage}");
        let mut answer = [0; 64];
        wait_for("an answer over UDP", || client.send(b"who").is_ok() && client.recv(&mut answer).is_ok());
    }
    // Of a machine that is busy with other things the kernel itself keeps a change waiting.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let limit = Duration::from_millis(100).mul_f64((load / cores as f64).max(1.0));
    assert!(quickest.values().all(|took| *took < limit), "{quickest:?}, load {load}");
    // What it does itself, and what others do elsewhere, is nothing to put back.
    let quiet = restored.load(Ordering::SeqCst);
    {
        let agent = agent.lock().unwrap();
        agent.point(&agent.route("shop.1", 11, &PORTS[..1]));
        agent.traffic.withdraw(&id("shop.1").service).unwrap();
    }
    run("nft add table inet somebodys");
    run("nft delete table inet somebodys");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(restored.load(Ordering::SeqCst), quiet);
    assert!(agent.lock().unwrap().traffic.observe().unwrap().is_empty());
    over.store(true, Ordering::SeqCst);
    agent.lock().unwrap().teardown();
}

/// Rules of our chains, found by what they say: what is done with each, and what instead.
const RULES: [(&str, &str, &str, &str); 5] = [
    ("delete", "nat-pre", "vmap @services", ""),
    ("delete", "svc-shop", "tcp dport 80 dnat ip to", ""),
    ("replace", "guard", "127.0.0.0/8", "drop"),
    ("replace", "svc-shop", "tcp dport 80 dnat ip to", "tcp dport 80 dnat ip to 10.213.1.12:8080"),
    ("replace", "svc-shop", "tcp dport 80 dnat ip to", "tcp dport 81 dnat ip to 10.213.1.11:8080"),
];

const OTHERS: [&str; 23] = [
    // Rules at either end, and one that is there already.
    "insert rule inet gitopsd nat-pre accept",
    "add rule inet gitopsd filter-forward counter drop",
    "add rule inet gitopsd between tcp dport 5432 accept",
    "insert rule inet gitopsd svc-shop tcp dport 80 dnat ip to 10.213.1.11:8081",
    "insert rule inet gitopsd svc-shop drop",
    "add rule inet gitopsd svc-shop counter",
    "add rule inet gitopsd svc-shop tcp dport 80 dnat ip to 10.213.1.11:8080",
    // Chains.
    "flush chain inet gitopsd svc-shop",
    "flush chain inet gitopsd between",
    "add chain inet gitopsd filter-forward { policy drop ; }",
    // Elements: taken away, added, led elsewhere.
    "delete element inet gitopsd services { 10.213.1.200 }",
    "delete element inet gitopsd anywhere { udp . 53 }",
    "delete element inet gitopsd at { 127.0.0.1 . tcp . 5432 }",
    "delete element inet gitopsd hairpin { 10.213.1.11 . 10.213.1.11 }",
    "delete element inet gitopsd net-default { 10.213.1.11 }",
    "add element inet gitopsd net-default { 10.213.1.13 }",
    "add element inet gitopsd anywhere { tcp . 81 : goto svc-shop }",
    "delete element inet gitopsd anywhere { tcp . 80 }\nadd element inet gitopsd anywhere { tcp . 80 : drop }",
    "delete element inet gitopsd anywhere { tcp . 80 }\nadd element inet gitopsd anywhere { tcp . 80 : goto svc-db }",
    "flush map inet gitopsd services",
    // All of it.
    "add table inet gitopsd { flags dormant ; }",
    "delete table inet gitopsd",
    "flush ruleset",
];

/// All of the table, without handles and counts; the order of objects and elements says nothing. Nothing if it is gone.
fn listed() -> Vec<String> {
    let words = ["-s", "list", "table", "inet", "gitopsd"];
    let output = std::process::Command::new("nft").args(words).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let mut blocks: Vec<String> = list
        .split("\n\n")
        .map(|block| match block.contains("elements = {") {
            true => {
                let mut words: Vec<&str> = block.split([',', '{', '}', '\n']).map(str::trim).collect();
                words.sort_unstable();
                words.join(" ")
            }
            false => block.trim_matches(['\n', '}', ' ', '\t']).replace("table inet gitopsd {\n", ""),
        })
        .collect();
    blocks.sort_unstable();
    blocks
}

/// Where others can change the table: whatever they do to what is ours is noticed, and undone in one step.
#[test]
fn whatever_others_change_is_noticed_and_undone() {
    let host = Host::new();
    let agent = host.agent6("gitopsd", 1).open();
    shop(&agent);
    agent.container("db.1", 12, 8080);
    agent.point(&agent.route("db.1", 12, &["127.0.0.1:5432:8080/tcp"]));
    assert!(!agent.traffic.restore().unwrap());
    let before = listed();
    let change = |script: &str| {
        let path = host.dir.path().join("change.nft");
        std::fs::write(&path, script).unwrap();
        run(&format!("nft -f {}", path.display()));
        assert_ne!(listed(), before, "{script}");
        assert!(agent.traffic.restore().unwrap(), "not noticed: {script}");
        assert_eq!(listed(), before, "not undone: {script}");
        assert!(!agent.traffic.restore().unwrap(), "{script}");
        assert!(ask_from(&host.outside, (HOST, 80)).unwrap().starts_with("shop.1 "), "{script}");
    };
    for (verb, chain, says, instead) in RULES {
        let list = run(&format!("nft -a list chain inet gitopsd {chain}"));
        let line = list.lines().find(|line| line.contains(says)).expect(says);
        let handle = line.rsplit(' ').next().unwrap();
        change(&format!("{verb} rule inet gitopsd {chain} handle {handle} {instead}\n"));
    }
    for script in OTHERS {
        change(&format!("{script}\n"));
    }
    // What others have in tables of their own is nothing to put right.
    run("nft add table inet somebodys");
    assert!(!agent.traffic.restore().unwrap());
    agent.teardown();
}

/// More changes than the kernel keeps for a listener who is busy: the firewall's chain among what was lost is heard of.
#[test]
fn a_load_that_is_too_large_to_be_heard_whole_is_heard_of() {
    let host = Host::new();
    let (began, begun) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = heard.clone();
    let told = move |what| {
        all.lock().unwrap().push(what);
        // Only the first one takes as long as the load does.
        let _ = began.send(());
        let _ = wait.recv();
        true
    };
    watch::begin("gitopsd", told).unwrap();
    run("nft add table inet gitopsd");
    begun.recv_timeout(Duration::from_secs(5)).unwrap();
    // Each element is a message of its own, and a long one.
    let file = host.dir.path().join("load");
    let comment = "x".repeat(120);
    let elements: Vec<String> = (0..60_000).map(|number| format!("{number} comment \"{comment}\"")).collect();
    let noise = format!(
        "add table ip noise\nadd set ip noise n {{ type mark; }}\nadd element ip noise n {{ {} }}\n",
        elements.join(", ")
    );
    std::fs::write(&file, noise).unwrap();
    run(&format!("nft -f {}", file.display()));
    let firewall = "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\n";
    std::fs::write(&file, firewall).unwrap();
    run(&format!("nft -f {}", file.display()));
    drop(go);
    wait_for("both kinds", || {
        heard.lock().unwrap().as_slice() == [Heard::Changed, Heard::Changed, Heard::Firewall]
    });
}

/// Whoever may change rules may send to anybody's sockets, too.
#[test]
fn what_others_send_is_no_answer() {
    let host = Host::new();
    let agent = host.agent("gitopsd", 1);
    let routes = [agent.route("shop.1", 11, PORTS), agent.route("shop.2", 12, PORTS)];
    agent.point(&routes[0]);
    let other =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
    let other = other.unwrap();
    // The end of an answer, with the number of the first and of the next questions; and one that nobody asked for.
    let end =
        |number: u32| [&36u32.to_ne_bytes()[..], &[2, 0, 0, 0], &number.to_ne_bytes(), &[0; 24]].concat();
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let mut told = 0;
    for line in sockets.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port: u32 = words[2].parse().unwrap();
        if words[1] == "12" && port != 0 {
            for number in 0..100 {
                let to = NetlinkAddr::new(port, 0);
                sendto(other.as_raw_fd(), &end(number), &to, MsgFlags::empty()).unwrap();
                told += 1;
            }
        }
    }
    assert!(told >= 100, "{sockets}");
    for turn in 1..6 {
        let to = &routes[turn % 2];
        agent.traffic.point(to).unwrap();
        let seen = agent.traffic.observe().unwrap();
        assert_eq!(seen.get(&to.service).map(|route| route.generation), Some(to.generation), "turn {turn}");
    }
    agent.teardown();
}
