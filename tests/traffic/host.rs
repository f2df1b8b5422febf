//! A host in a network namespace, a client outside of it, and small servers to ask.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gitopsd::engine::native::net::names::Subnet6;
use gitopsd::engine::native::net::{BridgeNetwork, namespace};
use gitopsd::engine::native::network::Network as _;
use gitopsd::engine::traffic::NftTraffic;
use gitopsd::engine::{Route, Traffic as _};
use gitopsd::types::{InstanceId, Membership, PortMapping, Protocol};

/// The host's address towards the outside (RFC 5737 addresses).
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client outside.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The same in IPv6 (RFC 3849).
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// Where containers are from.
pub const SUBNET6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xd0c, 5, 1, 0, 0, 0, 0);
/// How long anything may take that ought to be immediate.
const PATIENCE: Duration = Duration::from_secs(5);

/// One host with an outside.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub outside: PathBuf,
}

impl Host {
    /// Moves this thread into a network namespace of its own and gives it an outside.
    pub fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        namespace::pin(&outside).unwrap();
        run("ip link set lo up");
        run("ip link add uplink type veth peer name eth0");
        move_into("eth0", &outside);
        run(&format!("ip addr add {HOST}/24 dev uplink"));
        run("ip link set uplink up");
        inside(&outside, || {
            run("ip link set lo up");
            run(&format!("ip addr add {OUTSIDE}/24 dev eth0"));
            run("ip link set eth0 up");
            run(&format!("ip route add default via {HOST}"));
            Ok(())
        })
        .unwrap();
        // The kernel takes notice of a link a moment after it is set up; until then packets are lost.
        wait_for("the link", || run("ip -o -br link show uplink").contains(" UP "));
        // As Docker and Kubernetes leave it: bridged frames pass the rules.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1");
        Self { dir, outside }
    }

    /// Another agent on this host.
    pub fn agent(&self, instance: &str, net: u8) -> Agent {
        Agent::at(&self.dir.path().join(instance), instance, net)
    }

    /// Another agent on this host, whose containers have IPv6 too; the host and the outside get addresses of it.
    pub fn agent6(&self, instance: &str, net: u8) -> Agent {
        run(&format!("ip -6 addr add {HOST6}/64 dev uplink nodad"));
        inside(&self.outside, || {
            run(&format!("ip -6 addr add {OUTSIDE6}/64 dev eth0 nodad"));
            run(&format!("ip -6 route add default via {HOST6}"));
            Ok(())
        })
        .unwrap();
        let Agent { network, traffic, run_dir, net } = self.agent(instance, net);
        let subnet6 = Some(Subnet6::new(SUBNET6));
        Agent { network: network.with_ipv6(subnet6), traffic: traffic.with_ipv6(subnet6), run_dir, net }
    }

    /// Everything in this namespace that an agent might leave.
    pub fn traces(&self) -> String {
        let mounts = self.mounts().join(" ");
        format!("{}\n{}\n{}\n{mounts}", run("ip -o -br link"), run("ip route"), run("nft list tables"))
    }

    /// Mount points below this host's directory.
    fn mounts(&self) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(self.dir.path())).map(str::to_owned).collect()
    }
}

impl Drop for Host {
    /// Also what a test that failed half-way has left.
    fn drop(&mut self) {
        for mount in self.mounts() {
            let _ = namespace::unpin(Path::new(&mount));
        }
    }
}

/// What one agent works with.
pub struct Agent {
    pub network: BridgeNetwork,
    pub traffic: NftTraffic,
    pub run_dir: PathBuf,
    net: u8,
}

impl Agent {
    /// One with this directory.
    pub fn at(run_dir: &Path, instance: &str, net: u8) -> Self {
        let subnet = (Ipv4Addr::new(10, 213, net, 0), 24);
        Self {
            network: BridgeNetwork::new(instance, subnet, run_dir).unwrap(),
            traffic: NftTraffic::new(instance, subnet, run_dir).unwrap(),
            run_dir: run_dir.to_owned(),
            net,
        }
    }

    /// The same, on a kernel that knows no owners of tables, so that others can change its rules.
    pub fn open(self) -> Self {
        Self { traffic: self.traffic.open_to_others(), ..self }
    }

    /// An address of this agent's subnet.
    pub fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.net, last)
    }

    /// A container with the address `last`, and a server on `port` in it that answers with the container's name.
    pub fn container(&self, id: &str, last: u8, port: u16) -> PathBuf {
        let path = self.network.attach(&self::id(id), self.address(last)).unwrap();
        serve(&path, (Ipv4Addr::UNSPECIFIED, port).into(), id);
        path
    }

    /// The IPv6 address of the container that has `last`.
    pub fn address6(&self, last: u8) -> Ipv6Addr {
        Subnet6::new(SUBNET6).of(self.address(last))
    }

    /// Says who is on which network: `name: last last`, and who has no way out: `internal: last`.
    pub fn connect(&self, lines: &[&str]) {
        self.traffic.connect(&self.members(lines), false).unwrap();
    }

    pub fn members(&self, lines: &[&str]) -> Membership {
        let mut members = Membership::default();
        for line in lines {
            let (name, numbers) = line.split_once(": ").unwrap();
            let addresses = numbers.split(' ').map(|last| self.address(last.parse().unwrap()));
            match name {
                "internal" => members.internal = addresses.collect(),
                name => {
                    members.networks.insert(name.parse().unwrap(), addresses.collect());
                }
            }
        }
        members
    }

    /// A route of `id` to the address `last`; service addresses begin at 200.
    pub fn route(&self, id: &str, last: u8, ports: &[&str]) -> Route {
        let id = self::id(id);
        Route {
            service_address: self.address(if id.service.as_str() == "shop" { 200 } else { 201 }),
            service: id.service,
            generation: id.generation,
            address: self.address(last),
            also: Vec::new(),
            ports: ports.iter().map(|text| port(text)).collect(),
            canary: None,
        }
    }

    /// Points traffic there, and checks that the kernel says so.
    pub fn point(&self, route: &Route) {
        self.traffic.point(route).unwrap();
        let seen = self.traffic.observe().unwrap().remove(&route.service).expect("no route after point()");
        assert_eq!((seen.generation, seen.address), (route.generation, route.address));
    }

    pub fn teardown(&self) {
        self.traffic.teardown().unwrap();
        self.network.teardown().unwrap();
    }
}

pub fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

/// `address:host:container/protocol`
pub fn port(text: &str) -> PortMapping {
    let (numbers, protocol) = text.split_once('/').unwrap();
    let mut numbers = numbers.rsplitn(3, ':');
    let mut next = || numbers.next().unwrap();
    PortMapping {
        container_port: next().parse().unwrap(),
        host_port: next().parse().unwrap(),
        host_ip: next().trim_matches(['[', ']']).parse().unwrap(),
        protocol: if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp },
    }
}

/// Runs a command line in this thread's namespace; gives what it wrote.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    namespace::inside(path, work)
}

/// Hands an interface to the namespace at `path`, through a process that lives there meanwhile.
fn move_into(interface: &str, path: &Path) {
    let mut holder = inside(path, || Command::new("sleep").arg("60").spawn()).unwrap();
    run(&format!("ip link set {interface} netns {}", holder.id()));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// A TCP server in the namespace at `path`: to every line it answers `name peer-address`. Lives as long as the test.
pub fn serve(path: &Path, at: SocketAddr, name: &str) {
    let listener = inside(path, || TcpListener::bind(at)).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let name = name.clone();
            std::thread::spawn(move || {
                let peer = stream.peer_addr()?.ip();
                let lines = BufReader::new(stream.try_clone()?).lines();
                for line in lines {
                    line?;
                    stream.write_all(format!("{name} {peer}\n").as_bytes())?;
                }
                io::Result::Ok(())
            });
        }
    });
}

/// A UDP server in the namespace at `path` that answers with `name`.
pub fn serve_udp(path: &Path, port: u16, name: &str) {
    let socket = inside(path, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// A connection that asks again and again.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: impl Into<SocketAddr>) -> io::Result<Self> {
        Self::connect_within(address, PATIENCE)
    }

    pub fn connect_within(address: impl Into<SocketAddr>, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address.into(), patience)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Who answers, and what it takes for our address.
    pub fn ask(&mut self) -> io::Result<String> {
        self.stream.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

/// One connection, one question, from the namespace at `path`.
pub fn ask_from(path: &Path, address: impl Into<SocketAddr>) -> io::Result<String> {
    let address = address.into();
    inside(path, || ask(address))
}

/// One connection, one question, from this thread's namespace.
pub fn ask(address: impl Into<SocketAddr>) -> io::Result<String> {
    Client::connect(address)?.ask()
}

/// Waits until something holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this kernel keeps others from a table: Linux 6.9 and newer.
pub fn knows_owners() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 9)
}
