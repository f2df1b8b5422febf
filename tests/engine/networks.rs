//! Whose network a container has, as a program inside sees it.

use std::sync::Arc;
use std::time::Duration;

use gitopsd::engine::native::net::BridgeNetwork;
use gitopsd::engine::native::net::names::Subnet6;
use gitopsd::engine::native::{NativeConfig, NativeEngine};
use gitopsd::engine::{ContainerRequest, Engine as _};
use gitopsd::types::NetworkMode;
use nix::sched::{CloneFlags, unshare};

use crate::containers::Rig;

/// A host in a network namespace of its own: that of this test's thread.
fn rig() -> Rig {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut rig = Rig::new();
    let subnet6 = Subnet6::new("fd00:d0c:5:1::".parse().unwrap());
    let network = BridgeNetwork::new(&rig.instance, ([10, 98, 7, 0].into(), 24), &rig.path("run")).unwrap();
    let config = NativeConfig {
        state_dir: rig.path("state"),
        run_dir: rig.path("run"),
        instance: rig.instance.clone(),
        program: env!("CARGO_BIN_EXE_gitopsd").into(),
    };
    rig.engine = NativeEngine::new(config, Arc::new(network.with_ipv6(Some(subnet6)))).unwrap();
    rig
}

const LOOK: &str = "ls -l /proc/self/ns/net; cat /proc/net/dev | tr -d ' '; cat /proc/net/if_inet6; cat /etc/hosts; \
                    echo end; exec sleep 1000";

fn with(rig: &Rig, id: &str, mode: NetworkMode) -> ContainerRequest {
    let mut request = rig.script(id, LOOK);
    request.spec.options.network_mode = Some(mode);
    request
}

/// What it saw: its namespace, and its interfaces.
fn seen(rig: &Rig, request: &ContainerRequest) -> (String, Vec<String>, String) {
    rig.start(request);
    rig.wait_log(&request.id, "end");
    let log = rig.engine.log_tail(&request.id, 1000);
    let namespace = log.iter().rfind(|line| line.contains("net:[")).unwrap();
    let namespace = namespace.rsplit(' ').next().unwrap().to_owned();
    let names = log.iter().filter_map(|line| line.split_once(':'));
    let names =
        names.filter(|(name, rest)| !name.contains(' ') && rest.contains(|c: char| c.is_ascii_digit()));
    let mut names: Vec<String> = names
        .map(|(name, _)| name.to_owned())
        .filter(|name| ["lo", "eth0"].contains(&name.as_str()))
        .collect();
    names.sort();
    (namespace, names, log.join("\n"))
}

#[test]
fn networks_that_are_not_the_containers_own() {
    let rig = rig();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string();
    let shop = rig.script("shop.1", LOOK);
    let (theirs, links, log) = seen(&rig, &shop);
    assert_ne!(theirs, own);
    assert_eq!(links, ["eth0", "lo"]);
    // fd00:d0c:5:1::10.98.7.2, all of it its own.
    assert!(log.contains("fd000d0c00050001000000000a620702"), "{log}");

    let (isolated, links, _) = seen(&rig, &with(&rig, "job.1", NetworkMode::None));
    assert!(isolated != own && isolated != theirs);
    assert_eq!(links, ["lo"]);

    // Where systemd starts shims, the host's network is systemd's, whatever the agent's own is.
    let host_net = match std::fs::exists("/run/systemd/system").unwrap() {
        true => "/proc/1/ns/net".to_owned(),
        false => format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()),
    };
    let ports = || {
        let mut look = std::process::Command::new("nsenter");
        look.arg(format!("--net={host_net}")).args(["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
        String::from_utf8(look.output().unwrap().stdout).unwrap()
    };
    let before = ports();
    assert!(before.trim().parse::<u16>().is_ok(), "{before}");
    let mut host = with(&rig, "node.1", NetworkMode::Host);
    host.address = [10, 98, 7, 1].into();
    assert_eq!(seen(&rig, &host).0, std::fs::read_link(&host_net).unwrap().display().to_string());
    assert_eq!(ports(), before, "a setting of the host was changed");

    let mut side = with(&rig, "side.1", NetworkMode::Service("shop".parse().unwrap()));
    let error = rig.engine.start(&side).unwrap_err().to_refusal();
    assert!(error.message.contains("shop"), "{error}");
    side.joins = Some(shop.id.clone());
    let (shared, links, _) = seen(&rig, &side);
    assert_eq!((shared, links.as_slice()), (theirs.clone(), &["eth0".to_owned(), "lo".to_owned()][..]));

    // Whose network it is may end and start again: the network stays, and so does who shares it.
    rig.engine.stop(&shop.id, Duration::ZERO).unwrap();
    assert_eq!(seen(&rig, &shop).0, theirs);
    let pid = rig.pid(&side.id);
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().display().to_string(), theirs);
    // A look at all of them leaves all of them as they are.
    rig.engine.observe().unwrap();
    assert_eq!(rig.pid(&side.id), pid);

    for request in [&side, &shop, &host, &with(&rig, "job.1", NetworkMode::None)] {
        rig.engine.remove(&request.id).unwrap();
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
}

/// A new network namespace has it down.
#[test]
fn the_loopback_interface_is_up() {
    let rig = rig();
    let look = "cat /sys/class/net/lo/flags; nc -l -p 7 -e echo heard &
        until nc 127.0.0.1 7 2>/dev/null; do sleep 0.05; done; echo end; exec sleep 1000";
    for (id, mode) in [("shop.1", NetworkMode::Bridge), ("job.1", NetworkMode::None)] {
        let mut request = rig.script(id, look);
        request.spec.options.network_mode = Some(mode);
        rig.start(&request);
        rig.wait_log(&request.id, "end");
        // IFF_UP and IFF_LOOPBACK. Source: netdevice(7).
        assert_eq!(rig.engine.log_tail(&request.id, 9), ["0x9", "heard", "end"]);
    }
}
