//! Starting, stopping, ending and removing.

use std::fs;
use std::time::{Duration, Instant};

use gitopsd::engine::{ContainerState, Engine};
use gitopsd::types::Reason;

use crate::containers::{self, Rig, wait_for};

#[test]
fn a_signal_is_told() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "echo up; exec sleep 100");
    rig.start(&request);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(rig.pid(&request.id)),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let exit = rig.wait_exit(&request.id);
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (None, Some(9), false));
}

#[test]
fn what_cannot_start_says_why_and_leaves_no_process() {
    let rig = Rig::new();
    let with = |change: &dyn Fn(&mut gitopsd::engine::ContainerRequest)| {
        let mut request = rig.script("shop.1", "true");
        change(&mut request);
        let error = rig.engine.start(&request).unwrap_err();
        assert_eq!(error.reason, Reason::StartFailed, "{}", error.to_refusal());
        let message = error.to_refusal().message;
        let processes: Vec<_> = rig.traces().into_iter().filter(|t| t.starts_with("process")).collect();
        assert!(processes.is_empty(), "{processes:?}");
        assert_eq!(rig.state(&request.id), Some(ContainerState::Remains), "{message}");
        rig.engine.remove(&request.id).unwrap();
        message
    };
    let message = with(&|r| r.spec.command = Some(vec!["/bin/serve".into()]));
    assert!(message.contains("`/bin/serve` is not in the image"), "{message}");
    let message = with(&|r| r.spec.command = Some(vec!["/etc/passwd".into()]));
    assert!(message.contains("may not be executed"), "{message}");
    let message = with(&|r| r.spec.user = Some("nobody".into()));
    assert!(message.contains("user `nobody` is not in the image's /etc/passwd"), "{message}");
    let message = with(&|r| r.spec.volumes = vec![containers::bind("/no/such/place", "/data", false)]);
    assert!(message.contains("bind source /no/such/place cannot be used: it does not exist"), "{message}");
    let message = with(&|r| r.image.layers = vec!["/no/such/layer".into()]);
    assert!(message.contains("layer /no/such/layer is not there"), "{message}");
    let message = with(&|r| r.spec.command = Some(Vec::new()));
    assert!(message.contains("names a command"), "{message}");
    assert_eq!(rig.traces(), Vec::<String>::new());
}

#[test]
fn stop_asks_first_and_then_does_not() {
    let rig = Rig::new();
    let polite =
        rig.script("polite.1", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    rig.start(&polite);
    rig.wait_log(&polite.id, "up");
    rig.engine.stop(&polite.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&polite.id).code, Some(5));
    assert_eq!(rig.engine.log_tail(&polite.id, 1), ["bye"]);

    let mut quit =
        rig.script("quit.1", "trap 'exit 6' QUIT; trap '' TERM; echo up; while :; do sleep 0.05; done");
    quit.image.config.stop_signal = "SIGQUIT".into();
    rig.start(&quit);
    rig.wait_log(&quit.id, "up");
    rig.engine.stop(&quit.id, Duration::from_secs(20)).unwrap();
    assert_eq!(rig.wait_exit(&quit.id).code, Some(6));

    let deaf = rig.script("deaf.1", "trap '' TERM; sleep 1000 & echo up; while :; do sleep 0.05; done");
    rig.start(&deaf);
    rig.wait_log(&deaf.id, "up");
    let begun = Instant::now();
    rig.engine.stop(&deaf.id, Duration::from_millis(300)).unwrap();
    assert!(
        begun.elapsed() >= Duration::from_millis(300)
            && begun.elapsed() < Duration::from_secs(10) * crate::containers::slow()
    );
    let exit = rig.wait_exit(&deaf.id);
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    rig.engine.stop(&deaf.id, Duration::from_secs(1)).unwrap();
    rig.engine.stop(&"never.1".parse().unwrap(), Duration::from_secs(1)).unwrap();
}

#[test]
fn starting_twice_is_starting_once() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec sleep 1000");
    rig.start(&request);
    let pid = rig.pid(&request.id);
    rig.start(&request);
    assert_eq!(rig.pid(&request.id), pid);
    rig.new_agent().start(&request).unwrap();
    assert_eq!(rig.pid(&request.id), pid);
    assert_eq!(rig.find(&request.id).unwrap().address, Some(request.address));
}

#[test]
fn a_flood_of_output_grows_nothing() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "exec yes \"$(head -c 200 /dev/zero | tr '\\0' x)\"");
    rig.start(&request);
    let shim = rig.shim_pid(&request.id);
    let older = rig.log_file(&request.id).with_extension("log.2");
    wait_for("two rotations", || older.exists().then_some(()));
    let status = fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .map(|kb| kb.parse().unwrap())
        .unwrap();
    assert!(resident < 32 << 10, "the shim has grown to {resident} kB");
    rig.engine.remove(&request.id).unwrap();
    let logs: u64 = fs::read_dir(rig.path("state/logs/shop"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(logs <= 30 << 20, "{logs}");
    // The last line may have been cut short by the end.
    let tail = rig.engine.log_tail(&request.id, 5);
    assert!(tail[..4].iter().all(|line| line.len() == 200), "{tail:?}");
}

#[test]
fn two_agents_on_one_machine_do_not_see_each_other() {
    let (one, two) = (Rig::new(), Rig::new());
    let (first, second) = (
        one.script("shop.1", "echo one; exec sleep 1000"),
        two.script("shop.1", "echo two; exec sleep 1000"),
    );
    one.start(&first);
    two.start(&second);
    one.wait_log(&first.id, "one");
    two.wait_log(&second.id, "two");
    assert_eq!(one.engine.observe().unwrap().len(), 1);
    one.engine.remove(&first.id).unwrap();
    assert_eq!(one.traces(), Vec::<String>::new());
    assert!(matches!(two.state(&second.id), Some(ContainerState::Running { .. })));
}

#[test]
fn twenty_lives_leave_nothing() {
    let rig = Rig::new();
    for generation in 1..=20 {
        let request = rig.script(&format!("shop.{generation}"), "echo up; exec sleep 1000");
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        if generation % 2 == 0 {
            rig.engine.stop(&request.id, Duration::ZERO).unwrap();
        }
        rig.engine.remove(&request.id).unwrap();
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
    assert_eq!(rig.engine.observe().unwrap(), []);
    assert_eq!(rig.engine.log_tail(&"shop.20".parse().unwrap(), 1), ["up"], "logs are kept");
}

#[test]
fn a_one_shot_takes_the_place_of_the_command_and_keeps_the_entrypoint() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "echo service");
    request.image.config.entrypoint =
        vec!["sh".into(), "-c".into(), "echo entry \"$@\"; exit 2".into(), "x".into()];
    request.one_shot = Some(vec!["migrate".into(), "up".into()]);
    let (exit, log) = rig.run(&request);
    assert_eq!((exit.code, log), (Some(2), vec!["entry migrate up".to_owned()]));
}

#[test]
fn how_it_ended_is_told_by_its_policy() {
    // The policy is the core's business; the engine's is that nothing is left out of what the core decides on.
    let rig = Rig::new();
    for (number, script, code, signal, says) in [
        (1, "exit 0", Some(0), None, "exited with code 0"),
        (2, "exit 3", Some(3), None, "exited with code 3"),
        (3, "kill -USR1 $$; exec sleep 100", None, Some(10), "was ended by signal 10"),
    ] {
        let mut request = rig.script(&format!("shop.{number}"), script);
        // A first process of its own keeps signals without a handler from the second one, and passes its end on.
        request.spec.options.init = signal.map(|_| true);
        let (exit, _) = rig.run(&request);
        let told = match signal {
            // As a shell says it.
            Some(signal) => (exit.code, Some(128 + signal)),
            None => (exit.code, code),
        };
        assert_eq!((told.0, exit.signal, exit.oom_killed), (told.1, None, false), "{script}");
        if signal.is_none() {
            assert_eq!(exit.to_string(), says);
        }
    }
}

#[test]
fn a_child_that_is_killed_for_memory_is_told_while_its_container_goes_on_and_at_its_end() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.1",
        "tail /dev/zero; echo child=$?; cat; while test ! -e /tmp/end; do sleep 0.05; done; exit 4",
    );
    request.spec.mem_limit = Some(gitopsd::types::ByteSize(24 << 20));
    rig.start(&request);
    rig.wait_log(&request.id, "child=137");
    let seen = rig.find(&request.id).unwrap();
    assert!(matches!(seen.state, ContainerState::Running { .. }), "{seen:?}");
    assert_eq!(seen.oom_kills, 1);
    rig.engine.exec(&request.id, &["touch".into(), "/tmp/end".into()], Duration::from_secs(60)).unwrap();
    let exit = rig.wait_exit(&request.id);
    assert_eq!((exit.code, exit.oom_killed), (Some(4), true));
    assert_eq!(
        exit.to_string(),
        "exited with code 4, after the kernel had killed a process in it for want of memory"
    );
    // What a shell passes on of its child is the same end.
    let mut request = rig.script("shop.2", "tail /dev/zero; exit $?");
    request.spec.mem_limit = Some(gitopsd::types::ByteSize(24 << 20));
    let (exit, _) = rig.run(&request);
    assert_eq!((exit.code, exit.oom_killed), (Some(137), true));
    assert_eq!(exit.to_string(), "was killed for want of memory");
    assert_eq!(rig.find(&request.id).unwrap().oom_kills, 0, "of this start, not of one before");
}
