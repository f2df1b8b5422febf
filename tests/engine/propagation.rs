//! Hosts where every mount is shared, as systemd makes it: nothing that is mounted there later may arrive in a container.

use std::process::Command;

use crate::containers::{Rig, bind};

#[test]
fn no_later_mount_of_the_host_arrives() {
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "shared"])
        .arg(std::env::current_exe().unwrap())
        .env("GITOPSD_TEST_SHARED", "1")
        .args(["--exact", "propagation::where_all_is_shared", "--ignored", "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a child of another test"]
fn where_all_is_shared() {
    if std::env::var_os("GITOPSD_TEST_SHARED").is_none() {
        return;
    }
    let shared = |table: &str| table.lines().filter(|line| line.contains(" shared:")).count();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(shared(&table) > 0, "{table}");
    let mut rig = Rig::new();
    rig.engine = rig.new_agent().with_subuids(Some((1_000_000, 4 * 65536)));
    std::fs::create_dir(rig.path("data")).unwrap();
    for users in [None, Some(true)] {
        let id = if users.is_some() { "mapped.1" } else { "shop.1" };
        let mut request = rig.script(id, "cat /proc/self/mountinfo");
        request.spec.options.user_namespace = users;
        request.spec.volumes.push(bind(rig.path("data"), "/data", false));
        let (exit, lines) = rig.run(&request);
        assert_eq!(exit.code, Some(0), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains(" /data ")), "{lines:?}");
        for line in lines {
            assert!(!line.contains(" shared:") && !line.contains(" master:"), "{id}: {line}");
        }
    }
}
