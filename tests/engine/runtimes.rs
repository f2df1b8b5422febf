//! The same containers by an OCI runtime of the host: the other tests of this program, told to use it.

use std::process::Command;

/// What no runtime but the built-in one does, and why.
const BUILT_IN_ONLY: &[&str] = &[
    // `init = true` is the built-in one's in any case.
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

/// What the agent says while this is done.
fn said(work: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(file.reopen().unwrap()));
    tracing::subscriber::with_default(subscriber.with_ansi(false).finish(), work);
    std::fs::read_to_string(file.path()).unwrap()
}

/// The runtime that a container was started by; `Null` = the built-in one.
fn runtime_of(rig: &crate::containers::Rig, id: &str) -> serde_json::Value {
    let text = std::fs::read(rig.path(&format!("run/containers/{id}/launch.json"))).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["runtime"].clone()
}

/// A host that changes its runtime keeps the services that only the built-in one can run, over every later start.
#[test]
fn what_only_the_built_in_runtime_does_runs_under_it_with_a_warning() {
    use gitopsd::engine::Engine as _;
    let rig = crate::containers::Rig::new();
    let crun = ["/usr/bin/crun", "/usr/sbin/crun"].into_iter().find(|path| std::fs::exists(path).unwrap());
    let crun = crun.expect("crun is needed: package crun");
    let script =
        "trap 'exit 6' TERM; echo pid $$; cat /proc/self/uid_map; echo up; while :; do sleep 0.02; done";
    for (number, name) in ["crun", crun].into_iter().enumerate() {
        let engine = rig.new_agent().with_runtime(Some(name.to_owned()));
        let engine = engine.with_subuids(Some((1_000_000, 4 * 65536)));
        let start = |id: &str, change: &dyn Fn(&mut gitopsd::types::Options)| {
            let mut request = rig.script(&format!("{id}.{}", number + 1), script);
            change(&mut request.spec.options);
            let said = said(|| engine.start(&request).unwrap());
            rig.wait_log(&request.id, "up");
            (request.id, said)
        };
        let (plain, said) = start("plain", &|_| {});
        assert_eq!(runtime_of(&rig, &plain.to_string()), crun);
        assert!(!said.contains("built-in"), "{said}");
        let (init, said) = start("init", &|options| options.init = Some(true));
        assert!(said.contains("`init` is done by the built-in runtime only"), "{said}");
        assert!(said.contains(&format!("not under `{name}`")), "{said}");
        assert!(rig.engine.log_tail(&init, 9).contains(&"pid 2".to_owned()));
        let (own, said) = start("own", &|options| options.user_namespace = Some(true));
        assert!(said.contains("`userns_mode` is done by the built-in runtime only"), "{said}");
        let map = rig.engine.log_tail(&own, 9).join(" ");
        assert!(map.contains(" 65536"), "{map}");
        for id in [&init, &own] {
            assert_eq!(runtime_of(&rig, &id.to_string()), serde_json::Value::Null);
        }
        for id in [&plain, &init, &own] {
            let command = ["sh".into(), "-c".into(), "exit 4".into()];
            let output = engine.exec(id, &command, std::time::Duration::from_secs(60)).unwrap();
            assert_eq!(output.code, Some(4), "{id}");
            engine.stop(id, std::time::Duration::from_secs(20)).unwrap();
            assert_eq!(rig.wait_exit(id).code, Some(6), "{id}");
            engine.remove(id).unwrap();
        }
    }
    assert_eq!(rig.traces(), Vec::<String>::new());
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
