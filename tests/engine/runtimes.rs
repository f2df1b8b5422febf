//! The same containers by an OCI runtime of the host: the other tests of this program, told to use it.

use std::process::Command;

/// What no runtime but the built-in one does, and why.
const BUILT_IN_ONLY: &[&str] = &[
    // `init = true` is refused by name.
    "a_first_process_reaps_and_passes_signals_on",
    "the_first_process_cannot_be_opened",
    "a_first_process_of_ours_is_under_it_too",
    // So is `userns_mode = "auto"`.
    "root_inside_is_nobody_outside",
    "commands_and_the_stop_are_as_without",
    "other_keys_go_with_it",
    "a_user_namespace_on_a_disk",
    "a_state_directory_behind_a_link",
    "how_it_ended_is_told_by_its_policy",
    "what_cannot_be_had_is_told",
    // A record as older versions of the built-in one left it.
    "a_container_of_an_older_version_is_supervised",
    // They weaken the built-in one and see what still holds.
    "a_false_proc_is_seen",
    "a_working_directory_on_the_host_is_seen",
    "no_console_is_mounted_from_outside",
    "what_is_not_masked_is_seen",
    "without_the_mount_the_write_is_refused",
    // 32-bit programs: a runtime's filter knows the machine's own calls alone.
    "programs_of_32_bits_run_and_are_filtered_too",
    // They execute this program in the container; a runtime would execute itself, and has its own guard.
    "the_hosts_binary_cannot_be_written_to",
];

/// crun takes `nodev` from the root; its rules of devices hold on both versions of cgroups, so that it is not needed.
const NOT_CRUN: &[&str] = &["devices_of_the_host_cannot_be_made_nor_used"];

/// The core of it: what is seen inside, limits, commands, the stop, the agent's and the shim's death.
const CORE: &[&str] = &[
    "world::",
    "options::",
    "commands::",
    "lives::a_signal",
    "lives::starting_twice",
    "lives::stop_asks",
    "lives::what_cannot_start",
    "crashes::a_dead_shim",
    "crashes::containers_outlive",
    "files::volumes_keep",
    "escapes::devices",
    "escapes::the_hosts_null",
];

fn the_same_by(runtime: &str, but: &[&str]) {
    let found = Command::new(runtime).arg("--version").output();
    assert!(found.is_ok_and(|found| found.status.success()), "{runtime} is needed: package {runtime}");
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env("GITOPSD_TEST_RUNTIME", runtime);
    if std::env::var_os("GITOPSD_TEST_ALL").is_none() {
        again.args(CORE);
    }
    for test in BUILT_IN_ONLY.iter().chain(but).chain(&["runtimes::"]) {
        again.args(["--skip", test]);
    }
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = text.matches("... ok").count();
    assert!(output.status.success() && passed > 25, "{passed} passed:\n{text}");
}

#[test]
fn crun_runs_the_same_containers() {
    the_same_by("crun", NOT_CRUN);
}

#[test]
fn runc_runs_the_same_containers() {
    the_same_by("runc", &[]);
}

#[test]
fn a_runtime_that_is_not_there_is_told() {
    use gitopsd::engine::Engine as _;
    let rig = crate::containers::Rig::new();
    let engine = rig.new_agent().with_runtime(Some("no-such-runtime".into()));
    let error = engine.start(&rig.script("shop.1", "true")).unwrap_err();
    assert!(error.to_refusal().message.contains("`no-such-runtime` of `engine.runtime`"), "{error}");
}

/// What runs goes on under the runtime that it was started by.
#[test]
fn another_runtime_takes_over_what_runs() {
    use gitopsd::engine::Engine as _;
    let rig = crate::containers::Rig::new();
    let request = rig.script("shop.1", "trap 'exit 6' TERM; echo up; while :; do sleep 0.02; done");
    rig.engine.start(&request).unwrap();
    rig.wait_log(&request.id, "up");
    let pid = rig.pid(&request.id);
    let other = rig.new_agent().with_runtime(Some("runc".into()));
    other.start(&request).unwrap();
    assert_eq!(rig.pid(&request.id), pid);
    let command = ["sh".into(), "-c".into(), "exit 4".into()];
    assert_eq!(other.exec(&request.id, &command, std::time::Duration::from_secs(60)).unwrap().code, Some(4));
    let second = rig.script("shop.2", "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done");
    other.start(&second).unwrap();
    rig.wait_log(&second.id, "up");
    assert!(rig.path("run/containers/shop.2/oci/shop.2/state.json").exists(), "not made by runc");
    let command = ["sh".into(), "-c".into(), "exit 5".into()];
    assert_eq!(
        rig.engine.exec(&second.id, &command, std::time::Duration::from_secs(60)).unwrap().code,
        Some(5)
    );
    for (engine, id, code) in [(&other, &request.id, 6), (&rig.engine, &second.id, 7)] {
        engine.stop(id, std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(rig.wait_exit(id).code, Some(code));
        engine.remove(id).unwrap();
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
}
