//! The profile of AppArmor that containers run under, on machines that have it; on others that nothing is missed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use gitopsd::engine::Engine as _;
use gitopsd::types::Options;

use crate::containers::Rig;

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
