//! Commands run inside a running container.

use std::time::{Duration, Instant};

use gitopsd::engine::Engine;
use gitopsd::types::Reason;

use crate::containers::{Rig, wait_for};

#[test]
fn commands_run_inside() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "echo up; exec sleep 1000");
    request.spec.user = Some("app".into());
    request.spec.working_dir = Some("/tmp".into());
    request.spec.environment.insert("LOG".into(), "info".into());
    rig.start(&request);
    rig.wait_log(&request.id, "up");
    let exec = |script: &str, timeout: u64| {
        let command = ["sh", "-c", script].map(str::to_owned);
        rig.engine.exec(&request.id, &command, Duration::from_millis(timeout) * crate::containers::slow())
    };
    let done = exec(
        "echo $LOG $(pwd) $(hostname) $(id -u):$(id -G); echo err >&2; ps | grep -c '[s]leep 1000'; exit 3",
        9000,
    )
    .unwrap();
    assert_eq!(done.code, Some(3));
    assert_eq!(done.output, "info /tmp shop 1000:1001 1002\nerr\n1\n");
    let command =
        ["grep", "-E", "^(CapBnd|NoNewPrivs|SigIgn|SigBlk)", "/proc/self/status"].map(str::to_owned);
    let status = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap();
    let expected =
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nCapBnd:\t00000000800405fb\nNoNewPrivs:\t1\n";
    assert_eq!(status.output, expected);
    let limits = "ulimit -n; umask; cat /proc/self/oom_score_adj; grep -c . /proc/self/environ";
    let first = rig.script("first.1", &format!("{limits}; exec sleep 1000"));
    rig.start(&first);
    let again =
        wait_for("four lines", || Some(rig.engine.log_tail(&first.id, 9)).filter(|lines| lines.len() == 4));
    let command = ["sh", "-c", limits].map(str::to_owned);
    let second = rig.engine.exec(&first.id, &command, Duration::from_secs(60)).unwrap();
    assert_eq!(second.output.lines().collect::<Vec<_>>(), again);
    // In the same cgroups as the first process, so under the same limits.
    let groups = exec("diff /proc/self/cgroup /proc/1/cgroup", 9000).unwrap();
    assert_eq!(groups.code, Some(0), "{}", groups.output);

    assert_eq!(exec("kill -9 $$", 9000).unwrap().code, Some(137));
    let begun = Instant::now();
    let slow = exec("echo begun; sleep 77 & sleep 77", 300).unwrap();
    assert_eq!((slow.code, slow.output.as_str()), (None, "begun\n"));
    assert!(begun.elapsed() < Duration::from_secs(5) * crate::containers::slow());
    wait_for("the end of what a timed-out command started", || {
        (exec("ps | grep -c '[s]leep 77'", 9000).unwrap().output == "0\n").then_some(())
    });
    // What a command leaves behind holds its output open; that is no reason to wait for it.
    let begun = Instant::now();
    assert_eq!(exec("sleep 66 & echo left", 9000).unwrap().output, "left\n");
    assert!(begun.elapsed() < Duration::from_secs(5) * crate::containers::slow());
    let long = exec("seq 1 100000; echo end", 9000).unwrap().output;
    assert!(long.len() <= 4096 && long.ends_with("99999\n100000\nend\n"));

    let error = rig.engine.exec(&request.id, &["/no/such".into()], Duration::from_secs(60)).unwrap_err();
    assert!(error.to_refusal().message.contains("`/no/such` is not in the image"), "{}", error.to_refusal());
    rig.engine.stop(&request.id, Duration::from_millis(100)).unwrap();
    let error = exec("true", 1000).unwrap_err();
    assert_eq!(error.reason, Reason::Exited);
}
