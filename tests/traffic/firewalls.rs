//! Beside other firewalls: what they would drop of containers' packets comes through, also after they were loaded anew.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::host::*;

pub const PORTS: &[&str] = &["0.0.0.0:80:8080/tcp"];
const SHORT: Duration = Duration::from_millis(500);

/// A program of a firewall in this thread's namespaces; ended with the test.
pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One container with a published port; the outside has a server.
pub fn shop(host: &Host) -> Agent {
    let agent = host.agent("gitopsd", 1);
    agent.container("shop.1", 11, 8080);
    agent.container("db.1", 12, 8080);
    serve(&host.outside, (OUTSIDE, 7000).into(), "outside");
    agent.connect(&["default: 11 12"]);
    agent.point(&agent.route("shop.1", 11, PORTS));
    agent
}

/// Whether it works: in, out, and from container to container.
pub fn works(host: &Host, agent: &Agent) -> bool {
    let within = |path: &Path, to: (std::net::Ipv4Addr, u16)| {
        inside(path, || Client::connect_within(to, SHORT)?.ask()).is_ok()
    };
    let path = |id: &str| agent.run_dir.join("netns").join(id);
    within(&host.outside, (HOST, 80))
        && within(&path("shop.1"), (OUTSIDE, 7000))
        && within(&path("db.1"), (agent.address(200), 8080))
}

/// [`works`], once a packet that was lost on the way has been sent again.
fn comes_through(host: &Host, agent: &Agent) {
    wait_long("the way through", || works(host, agent));
}

/// The same where nothing tells when the rules of others are there: the agent looks again.
fn comes_through_in_time(host: &Host, agent: &Agent) {
    wait_long("the way through", || {
        agent.connect(&["default: 11 12"]);
        works(host, agent)
    });
}

#[test]
fn a_policy_of_iptables_that_drops() {
    let host = Host::new();
    let agent = shop(&host);
    comes_through(&host, &agent);
    // Nothing of others is written to where nothing is dropped.
    run("iptables-nft -N SOMEBODYS");
    agent.connect(&["default: 11 12"]);
    assert!(!run("iptables-nft -S").contains("gitopsd"));

    run("iptables-nft -P FORWARD DROP");
    assert!(!works(&host, &agent), "the policy does not bite");
    agent.connect(&["default: 11 12"]);
    comes_through(&host, &agent);
    let rules = run("iptables-nft -S FORWARD");
    assert_eq!(rules.matches("gitopsd:gitopsd").count(), 2, "{rules}");
    // It stays readable for iptables, and another look adds nothing.
    agent.connect(&["default: 11 12"]);
    run("nft add table inet somebodys");
    agent.connect(&["default: 11 12"]);
    assert_eq!(run("iptables-nft -S FORWARD"), rules);
    // The container is as closed as before.
    let direct = inside(&host.outside, || Client::connect_within((agent.address(11), 8080), SHORT).map(drop));
    assert!(direct.is_err());

    run("iptables-nft -F FORWARD");
    agent.connect(&["default: 11 12"]);
    comes_through(&host, &agent);
    // Docker comes, whose chain is for rules of others.
    run("iptables-nft -N DOCKER-USER");
    run("iptables-nft -I FORWARD -j DOCKER-USER");
    agent.connect(&["default: 11 12"]);
    comes_through(&host, &agent);
    assert_eq!(run("iptables-nft -S DOCKER-USER").matches("gitopsd:gitopsd").count(), 2);
    assert!(!run("iptables-nft -S FORWARD").contains("gitopsd:gitopsd"));
    agent.teardown();
    assert!(!run("iptables-nft -S").contains("gitopsd:gitopsd"));
}

#[test]
fn a_policy_of_iptables_own_tables() {
    let host = Host::new();
    let agent = shop(&host);
    run("iptables-legacy -P FORWARD DROP");
    assert!(!works(&host, &agent), "the policy does not bite");
    // Nothing tells of these: they are looked at every few seconds.
    comes_through_in_time(&host, &agent);
    agent.teardown();
    assert!(!run("iptables-legacy -S").contains("gitopsd:gitopsd"));
}

/// A Docker of this host's own.
pub fn docker(host: &Host) -> Daemon {
    let at = |name: &str| host.dir.path().join(name).display().to_string();
    let log = std::fs::File::create(host.dir.path().join("log")).unwrap();
    let daemon = Command::new("dockerd")
        .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
        .args(["--host", &format!("unix://{}", at("sock")), "--storage-driver", "vfs"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("dockerd (package docker.io)");
    let daemon = Daemon(daemon);
    wait_long("Docker's rules", || {
        let rules = run("iptables-nft -S");
        Path::new(&at("sock")).exists()
            && rules.contains("-P FORWARD DROP")
            && rules.contains("-N DOCKER-USER")
    });
    daemon
}

/// Docker closes the chain where it is the one that lets the host forward.
pub fn before_docker() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
}

#[test]
fn beside_a_real_docker() {
    let host = Host::new();
    before_docker();
    let first = docker(&host);
    let agent = shop(&host);
    // It may not have led all to its chain yet.
    comes_through_in_time(&host, &agent);
    // It comes again, and with it all of its rules.
    drop(first);
    run("iptables-nft -F");
    run("iptables-nft -X");
    let _second = docker(&host);
    comes_through_in_time(&host, &agent);
    agent.teardown();
}

/// A command of ufw, with settings of this host's own.
pub fn ufw(host: &Host, words: &str) {
    // Its settings are the machine's: it is given a copy.
    let copy = host.dir.path().join("ufw");
    if !copy.exists() {
        run(&format!("cp -a /etc/ufw {}", copy.display()));
    }
    let script = format!("mount --bind {} /etc/ufw && exec ufw {words}", copy.display());
    let output = Command::new("unshare").args(["-m", "sh", "-ec", &script]).output().unwrap();
    assert!(output.status.success(), "ufw {words}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn beside_a_real_ufw() {
    let host = Host::new();
    let agent = shop(&host);
    ufw(&host, "--force enable");
    assert!(run("iptables-nft -S FORWARD").contains("-P FORWARD DROP"));
    assert!(!works(&host, &agent), "the policy does not bite");
    for _ in 0..2 {
        agent.connect(&["default: 11 12"]);
        comes_through(&host, &agent);
        ufw(&host, "reload");
    }
    ufw(&host, "--force disable");
    agent.connect(&["default: 11 12"]);
    comes_through(&host, &agent);
    agent.teardown();
    assert!(!run("iptables-nft -S").contains("gitopsd:gitopsd"));
}

/// A firewalld of this host's own.
pub struct Firewalld {
    bus: String,
    _daemons: [Daemon; 2],
}

impl Firewalld {
    pub fn begin(host: &Host) -> Self {
        let dir = host.dir.path();
        // A bus of its own, on which everybody may do everything, in the place of the machine's.
        let bus = format!("unix:path={}", dir.join("bus").display());
        let settings = format!(
            "<busconfig><type>session</type><listen>{bus}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow own=\"*\"/><allow eavesdrop=\"true\"/><allow user=\"*\"/></policy></busconfig>"
        );
        std::fs::write(dir.join("bus.conf"), settings).unwrap();
        let daemon = |program: &str, arguments: &[&str]| {
            let child = Command::new(program)
                .args(arguments)
                .env("DBUS_SYSTEM_BUS_ADDRESS", &bus)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            Daemon(child.unwrap_or_else(|error| panic!("{program}: {error}")))
        };
        let config = format!("--config-file={}", dir.join("bus.conf").display());
        let first = daemon("dbus-daemon", &["--nofork", &config]);
        wait_long("the bus", || dir.join("bus").exists());
        run(&format!("cp -a /etc/firewalld {}", dir.join("firewalld").display()));
        let own = dir.join("firewalld").display().to_string();
        let second = daemon("firewalld", &["--nofork", "--nopid", "--system-config", &own]);
        let loaded = || {
            let chain =
                Command::new("nft").args("list chain inet firewalld filter_FORWARD".split(' ')).output();
            String::from_utf8_lossy(&chain.unwrap().stdout).contains("reject")
        };
        wait_long("firewalld's rules", loaded);
        Self { bus, _daemons: [first, second] }
    }

    pub fn reload(&self) {
        let reload =
            Command::new("firewall-cmd").arg("--reload").env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus).output();
        let reload = reload.unwrap();
        assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    }
}

#[test]
fn beside_a_real_firewalld() {
    let host = Host::new();
    let firewalld = Firewalld::begin(&host);
    let agent = shop(&host);
    comes_through(&host, &agent);
    let rules = || run("nft list chain inet firewalld filter_FORWARD").matches("gitopsd:gitopsd").count();
    assert_eq!(rules(), 2);
    firewalld.reload();
    assert_eq!(rules(), 0, "it was not loaded anew");
    assert!(!works(&host, &agent));
    agent.connect(&["default: 11 12"]);
    comes_through(&host, &agent);
    assert_eq!(rules(), 2);
    agent.teardown();
    assert_eq!(rules(), 0);
}

/// For programs that take their time to come up.
pub fn wait_long(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
