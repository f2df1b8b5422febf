//! The profile of AppArmor that containers run under, on machines that have it; on others that nothing is missed.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use gitopsd::engine::Engine as _;
use gitopsd::types::{InstanceId, Options};

use crate::containers::{Rig, look_after, wait_for};

/// Whether this machine can have containers under a profile of ours.
fn is_here() -> bool {
    let own = fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
    let parser =
        ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"].iter().any(|path| Path::new(path).exists());
    own.trim_end() == "unconfined" && parser && !Path::new("/run/systemd/container").exists()
}

const LOOK: &str = "cat /proc/self/attr/apparmor/current 2>/dev/null || echo none";

#[test]
fn a_profile_holds_what_a_capability_would_allow() {
    let rig = Rig::new();
    let script =
        format!("{LOOK}; mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED; echo up; exec sleep 1000");
    let seen = |id: &str, options: Options| {
        let mut request = rig.script(id, &script);
        request.spec.options = Options { cap_add: Some(vec!["CAP_SYS_ADMIN".into()]), ..options };
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        let command = ["sh", "-c", LOOK].map(str::to_owned);
        let command = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap().output;
        (rig.engine.log_tail(&request.id, 9).join(","), command.trim_end().to_owned())
    };
    let both = |log: &str, command: &str| (log.to_owned(), command.to_owned());
    let without = if is_here() { "unconfined" } else { "none" };
    let confined = match is_here() {
        true => both("gitopsd-default (enforce),up", "gitopsd-default (enforce)"),
        false => both("none,MOUNTED,up", "none"),
    };
    assert_eq!(seen("shop.1", Options::default()), confined);
    let open = both(&format!("{without},MOUNTED,up"), without);
    assert_eq!(seen("shop.2", Options { without_apparmor: Some(true), ..Options::default() }), open);
    // A new agent gives the kernel its own version of it, while containers run under the one that is there.
    let mut third = rig.script("shop.3", LOOK);
    third.spec.options.cap_drop = Some(vec!["ALL".into()]);
    rig.new_agent().start(&third).unwrap();
    rig.wait_exit(&third.id);
    let name = confined.1;
    assert_eq!(rig.engine.log_tail(&third.id, 9), [name.as_str()]);
}

#[test]
fn a_first_process_of_ours_is_under_it_too() {
    let rig = Rig::new();
    for (id, user) in [("shop.1", None), ("shop.2", Some("app".to_owned()))] {
        let mut request = rig.script(id, "kill -0 1 && echo reached; echo up; exec sleep 1000");
        request.spec.user = user;
        request.spec.options.init = Some(true);
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        let label = fs::read_to_string(format!("/proc/{}/attr/apparmor/current", rig.pid(&request.id)));
        let label = label.unwrap_or_else(|_| "none".into());
        assert_eq!(label.trim_end(), if is_here() { "gitopsd-default (enforce)" } else { "none" }, "{id}");
        // Under another one it could not be sent signals by its own program.
        assert_eq!(rig.engine.log_tail(&request.id, 9), ["reached", "up"], "{id}");
    }
}

/// As aa-remove-unknown(8) and the removal of AppArmor's package do it. Source: apparmor(7), securityfs.
fn take_away(profile: &str) {
    let file = fs::OpenOptions::new().write(true).open("/sys/kernel/security/apparmor/.remove");
    file.unwrap().write_all(profile.as_bytes()).unwrap();
}

/// Whoever runs it has to say that no other containers are on this machine: they would lose their profile as well.
#[test]
#[ignore = "takes the profile from all containers of the machine: scripts/test-boot suites"]
fn containers_whose_profile_was_taken_away_go_on_and_can_be_reached() {
    if std::env::var_os("GITOPSD_TEST_ALONE").is_none() {
        return;
    }
    assert!(is_here(), "a machine without AppArmor");
    let rig = Rig::new();
    let script = format!("trap 'echo bye; exit 5' TERM; {LOOK}; echo up; while :; do sleep 0.05; done");
    let start = |id: &str| {
        let request = rig.script(id, &script);
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        request.id
    };
    let label = |id| fs::read_to_string(format!("/proc/{}/attr/apparmor/current", rig.pid(id))).unwrap();
    let look = ["sh".to_owned(), "-c".to_owned(), format!("{LOOK}; kill -0 1 && echo reached")];
    let (under_it, under_none) = ("gitopsd-default (enforce)\nreached\n", "unconfined\nreached\n");
    let check_command = |id: &InstanceId, told: &str| {
        let command = rig.engine.exec(id, &look, Duration::from_secs(60)).unwrap();
        assert_eq!(
            (command.code, command.output.as_str()),
            (Some(0), told),
            "{id}, for a check of its health"
        );
        let mut person = vec!["exec", "--generation", "1", id.service.as_str(), "--"];
        person.extend(look.iter().map(String::as_str));
        let output = rig.command(&person).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), told, "{id}, for a person: {output:?}");
    };
    let first = start("first.1");
    check_command(&first, under_it);
    take_away("gitopsd-default");
    assert_eq!(label(&first).trim_end(), "unconfined", "the kernel has the profile still");
    check_command(&first, under_none);
    // The same agent gives it again for the next container; the first one goes on without.
    let second = start("second.1");
    assert_eq!(label(&second).trim_end(), "gitopsd-default (enforce)");
    check_command(&first, under_none);
    check_command(&second, under_it);
    // One who takes over from a shim that has died, and the end that was asked for, are as ever.
    let shim = rig.shim_pid(&first);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("another shim", || {
        look_after(&rig.engine);
        (rig.shim_pid(&first) != shim).then_some(())
    });
    take_away("gitopsd-default");
    for id in [&first, &second] {
        rig.engine.stop(id, Duration::from_secs(20)).unwrap();
        let code = rig.wait_exit(id).code;
        // The first one's end is one that the kernel may keep to itself.
        let untold = *id == first && code.is_none() && !crate::crashes::kernel_tells();
        assert!(code == Some(5) || untold, "{id}: {code:?}");
        assert_eq!(rig.engine.log_tail(id, 1), ["bye"], "{id}");
    }
    // Started again it is under the profile again.
    check_command(&start("first.1"), under_it);
}
