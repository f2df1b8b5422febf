//! What makers of container engines fell into before, the ways out of a container that were known once, and the tests
//! that would see either here.

use std::fs;
use std::path::Path;

/// A trap: what goes wrong, what holds here, and who looks. A name is a test's; in quotes, a claim of `tests/boot`.
pub struct Trap {
    /// What goes wrong.
    pub what: &'static str,
    /// What is done about it.
    pub guard: &'static str,
    /// Who looks.
    pub seen: &'static [&'static str],
}

const fn trap(what: &'static str, guard: &'static str, seen: &'static [&'static str]) -> Trap {
    Trap { what, guard, seen }
}

/// All of them.
pub const TRAPS: &[Trap] = &[
    trap(
        "on cgroup v2 the runtime's library filters no devices",
        "no MKNOD, a root without devices, `DevicePolicy=closed` around it; what relies on a filter is refused where there is none",
        &[
            "devices_of_the_host_cannot_be_made_nor_used",
            "a_device_for_one_way_alone_and_the_right_to_make_devices_need_a_filter",
            "'with MKNOD it cannot either'",
            "'a privileged container can: the test would see it'",
        ],
    ),
    trap(
        "only youki's binary seals itself, its library does not",
        "shim and helper of `exec` execute themselves again from a mount that is only read",
        &["the_hosts_binary_cannot_be_written_to", "the_program_on_disk_is_out_of_reach"],
    ),
    trap(
        "without libseccomp the library leaves the filter of system calls out, with a warning",
        "a filter of our own, compiled ahead, set in the container's process right before its program",
        &[
            "the_filter_of_system_calls_is_there_unless_taken_away",
            "every_call_is_answered_as_under_docker",
            "programs_of_32_bits_run_and_are_filtered_too",
        ],
    ),
    trap(
        "`noNewPrivileges` of false takes away the right that a filter needs",
        "it is true, always",
        &["a_program_sees_its_own_small_world", "a_container_is_what_the_runtime_spec_promises"],
    ),
    trap(
        "that a number of a process is there says nothing about whose it is",
        "number, start time and boot are kept, and the process is held by a pidfd",
        &[
            "a_record_with_a_reused_pid_is_not_believed",
            "after_a_power_cut_services_come_back_in_order_alone_and_trust_no_number",
        ],
    ),
    trap(
        "what a killed start leaves holds up the next one (`container already exists`)",
        "each start begins with a removal of what is there, under the container's lock",
        &[
            "half_a_start_is_seen_and_can_be_removed",
            "a_shim_killed_in_the_middle_of_a_start_leaves_nothing_behind",
        ],
    ),
    trap(
        "a container dies of SIGPIPE after its shim",
        "its outputs are named pipes that it has open for reading too; the next shim goes on there",
        &["a_dead_shim_is_replaced_and_an_unseen_end_is_unknown", "'its output goes on'"],
    ),
    trap(
        "a shell as the first process does not hear SIGTERM",
        "the shim owns the grace period, and the unit waits longer than that; `init = true`",
        &[
            "stop_asks_first_and_then_does_not",
            "a_first_process_reaps_and_passes_signals_on",
            "'systemctl stop ends the container in its own way'",
        ],
    ),
    trap(
        "a shim that only forked dies with the agent's unit",
        "a unit of its own or, without systemd, a session and a group of its own",
        &[
            "a_shim_is_in_no_group_and_no_session_of_the_agents",
            "'containers survive a stop of the agent'",
            "'containers survive systemctl kill of its whole unit'",
        ],
    ),
    trap(
        "the library leaves the loopback interface down",
        "it is up before the container is made",
        &["the_loopback_interface_is_up"],
    ),
    trap(
        "the library's defaults are not Docker's: capabilities that are inherited, 1024 open files",
        "everything is said in `config.json`, and nothing of the agent's own arrives",
        &[
            "root_inside_is_not_root_outside",
            "nothing_of_what_the_agent_was_started_with_arrives",
            "a_container_here_is_as_under_docker_from_inside",
        ],
    ),
    trap(
        "systemd's private socket answers what a common client of D-Bus cannot read",
        "a small client of our own, over the system's bus first",
        &[
            "a_real_bus_understands_us",
            "another_program_on_the_socket_is_not_taken_for_systemd",
            "'the container is in its unit'",
        ],
    ),
    trap(
        "root without CAP_SYS_RESOURCE may raise no limit, and the kernel does not say which; crun takes no mixed cgroups",
        "containers get what the agent has, which it says once; what a service asks for beyond is refused by name; crun sees one hierarchy",
        &[
            "an_agent_that_may_raise_no_limit_gives_what_it_has",
            "a_limit_that_cannot_be_given_is_refused_by_name",
            "crun_runs_the_same_containers",
        ],
    ),
    trap(
        "what is masked and only read goes by path, so whoever shares the mount namespace can exchange it",
        "no two containers share one, and no mount of the host arrives later",
        &["no_two_containers_share_a_mount_namespace", "no_later_mount_of_the_host_arrives"],
    ),
];

/// Known ways out: name, what holds here, the tests; each of them sees the way lead out when the guard is taken away.
pub const ESCAPES: &[Trap] = &[
    trap(
        "CVE-2019-5736: the host's binary is written to through `/proc/self/exe`",
        "the mount that is only read; without it the answer is another one",
        &[
            "the_hosts_binary_cannot_be_written_to",
            "without_the_mount_the_write_is_refused_for_another_reason",
        ],
    ),
    trap(
        "CVE-2024-21626: the working directory is a descriptor of the runtime",
        "none is open, and the last look refuses a directory outside",
        &[
            "no_descriptor_of_the_host_is_a_working_directory",
            "a_working_directory_on_the_host_is_seen_and_nothing_is_executed",
        ],
    ),
    trap(
        "CVE-2025-31133: what is masked is mounted from the image's `/dev/null`",
        "the last look refuses what shows",
        &[
            "masks_do_not_follow_what_the_image_says_of_dev_and_proc",
            "what_is_not_masked_is_seen_and_nothing_is_executed",
        ],
    ),
    trap(
        "CVE-2025-52565: another file than a terminal is mounted at `/dev/console`",
        "there is none to mount, and the last look refuses what is no terminal",
        &["no_console_is_mounted_from_outside"],
    ),
    trap(
        "CVE-2025-52881: what is written to `/proc` goes astray",
        "the last look refuses a `/proc` that is not the kernel's",
        &["a_false_proc_is_seen_and_nothing_is_executed"],
    ),
    trap(
        "containers/crun#1845, opencontainers/runc#3674: what a command reads is the host's `/dev/null`, which its root or its user can close for everybody",
        "it has a null device of its own, in a file system that is mounted nowhere",
        &["the_hosts_null_device_is_nobodys_to_change"],
    ),
    trap(
        "the device hole: a disk of the host is made or found in the image, and read",
        "see the first row above",
        &[
            "devices_of_the_host_cannot_be_made_nor_used",
            "'a privileged container can: the test would see it'",
        ],
    ),
];

/// Both as parts of the page.
pub fn page() -> String {
    let mut page = String::from(
        "\n## Traps, and known ways out\n\nWhat others fell into, what holds here, and who looks: tests, and in quotes \
         claims of the booted machines (`tests/boot`).\n\n| what goes wrong | what holds | seen by |\n|---|---|---|\n",
    );
    let row = |trap: &Trap| {
        let seen: Vec<String> = trap
            .seen
            .iter()
            .map(|name| if name.starts_with('\'') { (*name).to_owned() } else { format!("`{name}`") })
            .collect();
        format!("| {} | {} | {} |\n", trap.what, trap.guard, seen.join(", "))
    };
    page.extend(TRAPS.iter().map(row));
    page.push_str(
        "\nEach of these fails without its guard, which is taken away in the test itself: builds for tests can be told to be as \
         weak as others were\n(`src/engine/native/shim/weak.rs`), and then the way has to lead out.\n\n| way out | what \
         holds | seen by |\n|---|---|---|\n",
    );
    page.extend(ESCAPES.iter().map(row));
    page
}

/// Every file below with this ending, as one text.
fn all_below(dir: &Path, ending: Option<&str>, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all_below(&path, ending, text);
        } else if path.extension().and_then(|found| found.to_str()) == ending {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// All tests, as a text to look their names up in.
pub fn tests() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for dir in ["tests", "src"] {
        all_below(&root.join(dir), Some("rs"), &mut text);
    }
    text
}

#[test]
fn whoever_is_named_is_there() {
    let (tests, mut claims) = (tests(), String::new());
    all_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot"), None, &mut claims);
    assert_eq!(TRAPS.len(), 14);
    for trap in TRAPS.iter().chain(ESCAPES) {
        assert!(!trap.seen.is_empty(), "{}", trap.what);
        for name in trap.seen {
            let there = match name.starts_with('\'') {
                true => claims.contains(name),
                false => tests.contains(&format!("fn {name}()")),
            };
            assert!(there, "there is no {name}");
        }
    }
}
