//! `docs/compat.md`: every key of a Compose service, what becomes of it, and the test that sees it from inside a real
//! container. The page is written from what the parser says of itself: `UPDATE_GOLDEN=1`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what is wrong by panicking"
)]

#[path = "support/containers.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod containers;
#[path = "compat/docker.rs"]
mod docker;
#[path = "compat/facts.rs"]
mod facts;
#[path = "compat/inside.rs"]
mod inside;
#[path = "compat/meant.rs"]
mod meant;
#[path = "compat/parsed.rs"]
mod parsed;
#[path = "compat/promises.rs"]
mod promises;
#[path = "compat/scenarios.rs"]
mod scenarios;
#[path = "compat/suites.rs"]
mod suites;
#[path = "compat/traps.rs"]
mod traps;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use gitopsd::config::COMPOSE_DEPLOY;
use gitopsd::config::agent::HostIdentity;
use gitopsd::config::repo::{RepoFiles, RepoView, read};
use gitopsd::types::{Policy, Reason};

use meant::MEANT;
use promises::PROMISES;
use scenarios::SCENARIOS;

/// Key of Compose, a service file's line that uses it, and the test that shows its effect.
const KEYS: &[(&str, &str, &str)] = &[
    ("blkio_config", "blkio_config = { weight = 100 }", "limits_of_disks"),
    ("cap_add", "cap_add = [\"CHOWN\"]", "capabilities_added_and_dropped"),
    ("cap_drop", "cap_drop = [\"ALL\"]", "capabilities_added_and_dropped"),
    ("cgroup", "cgroup = \"private\"", "a_container_is_what_the_runtime_spec_promises"),
    ("command", "command = \"serve\"", "a_program_sees_its_own_small_world"),
    (
        "configs",
        "configs = [{ content = \"a = 1\", target = \"/etc/a.conf\" }]",
        "config_files_are_seen_with_their_owner_and_mode_and_cannot_be_written",
    ),
    ("cpu_shares", "cpu_shares = 512", "limits_of_memory_and_processors"),
    ("cpus", "cpus = 1.5", "limits_hold"),
    ("cpuset", "cpuset = \"0-1,3\"", "limits_of_memory_and_processors"),
    ("depends_on", "depends_on = []", "after_a_boot_what_is_depended_on_comes_first"),
    (
        "deploy",
        "deploy = { bake = \"1s\" }",
        "a_version_that_falls_sick_after_the_switch_loses_its_traffic_again",
    ),
    ("devices", "devices = []", "devices_of_the_host"),
    ("dns", "dns = \"192.0.2.1\"", "groups_and_names"),
    ("dns_opt", "dns_opt = [\"ndots:2\"]", "groups_and_names"),
    ("dns_search", "dns_search = [\"example.org\"]", "groups_and_names"),
    ("domainname", "domainname = \"example.org\"", "groups_and_names"),
    ("entrypoint", "entrypoint = [\"/bin/x\"]", "an_entrypoint_of_the_service_sets_the_images_command_aside"),
    (
        "env_file",
        "env_file = [{ path = \"a.env\", required = false }]",
        "a_generation_keeps_the_files_that_it_began_with",
    ),
    ("environment", "environment = { A = 1 }", "a_program_sees_its_own_small_world"),
    ("expose", "expose = [8080, \"53/udp\"]", ""),
    ("extra_hosts", "extra_hosts = [\"db:192.0.2.7\"]", "groups_and_names"),
    ("group_add", "group_add = [\"audio\", 44]", "groups_and_names"),
    (
        "healthcheck",
        "healthcheck = { tcp = 80 }",
        "every_kind_of_check_lets_the_good_one_in_and_keeps_the_bad_one_out",
    ),
    ("hostname", "hostname = \"front\"", "groups_and_names"),
    ("image", "", "a_program_sees_its_own_small_world"),
    ("init", "init = true", "a_first_process_reaps_and_passes_signals_on"),
    ("ipc", "ipc = \"private\"", "the_hosts_processes_and_ipc"),
    ("labels", "labels = { a = \"b\" }", "limits_ports_labels_and_checks_change_in_place_under_load"),
    (
        "logging",
        "logging = { options = { max-size = \"1m\", max-file = \"2\" } }",
        "logs_are_kept_as_long_as_was_said",
    ),
    ("mem_limit", "mem_limit = \"64m\"", "want_of_memory_is_told"),
    ("mem_reservation", "mem_reservation = \"32m\"", "limits_of_memory_and_processors"),
    ("memswap_limit", "memswap_limit = -1", "limits_of_memory_and_processors"),
    ("network_mode", "network_mode = \"none\"", "networks_that_are_not_the_containers_own"),
    ("networks", "networks = { default = { aliases = [\"a\"] } }", "networks_are_islands"),
    ("oom_score_adj", "oom_score_adj = 100", "kernel_parameters_and_limits_of_processes"),
    ("pid", "", "the_hosts_processes_and_ipc"),
    ("pids_limit", "pids_limit = 9", "limits_hold"),
    ("ports", "ports = [\"127.0.0.1:8000-8002:80-82/udp\"]", "every_kind_of_port_settles_and_answers"),
    ("privileged", "privileged = false", "privileged_means_all"),
    ("read_only", "read_only = true", "file_systems_in_memory_and_a_root_that_is_only_read"),
    (
        "secrets",
        "secrets = [{ source = \"db-password\", target = \"password\" }]",
        "secrets_are_seen_with_their_owner_and_mode_and_lie_in_memory_alone",
    ),
    (
        "security_opt",
        "security_opt = [\"no-new-privileges:true\"]",
        "the_filter_of_system_calls_is_there_unless_taken_away",
    ),
    ("restart", "restart = \"on-failure:3\"", "restart_policies_hold_and_ends_are_told_everywhere"),
    ("shm_size", "shm_size = \"8m\"", "file_systems_in_memory_and_a_root_that_is_only_read"),
    ("stop_grace_period", "stop_grace_period = \"1s\"", "a_stop_takes_as_long_as_the_service_says"),
    ("stop_signal", "stop_signal = \"USR1\"", "the_stop_signal_of_the_service"),
    ("sysctls", "sysctls = { \"net.core.somaxconn\" = 99 }", "kernel_parameters_and_limits_of_processes"),
    ("tmpfs", "tmpfs = \"/run:size=1m\"", "file_systems_in_memory_and_a_root_that_is_only_read"),
    (
        "ulimits",
        "ulimits = { nofile = { soft = 10, hard = 20 } }",
        "kernel_parameters_and_limits_of_processes",
    ),
    ("user", "user = \"app\"", "a_program_sees_its_own_small_world"),
    ("userns_mode", "userns_mode = \"auto\"", "root_inside_is_nobody_outside"),
    ("volumes", "volumes = [\"data:/data\"]", "volumes_keep_what_is_written_and_read_only_means_it"),
    ("working_dir", "working_dir = \"/srv\"", "a_program_sees_its_own_small_world"),
];

/// Keys whose facts are compared in every container, or in that of another key.
const IN_ALL: [(&str, &str); 5] = [
    ("cgroup", "cgroup, namespaces"),
    ("command", "process"),
    ("dns_opt", "resolver"),
    ("dns_search", "resolver"),
    ("image", "all"),
];

/// What there is beside, and what could not be had.
const SUITES: &str = "
Explained differences between the runtimes: crun mounts the directory of cgroup hierarchies (version 1) without `nosuid`,
`nodev`, `noexec`, and takes `nodev` from the root; both are read-only or held by its rules of devices. runc before 1.2 does not
know `domainname`, which it therefore gets as a kernel parameter, too. No runtime puts a container into the hierarchy of systemd
(version 1) but runc and crun; the built-in one leaves it in the group of the shims.

`config.json` is also held against the validator of opencontainers/runtime-tools, which `make test-all` builds from Debian's
`golang-github-opencontainers-runtime-tools-dev`: it finds nothing. That package holds the validator and not the suite of
containers that belongs to it (`validation/`, `runtimetest`), and youki's `contest` is no published crate; so the table above
takes their place. The tests of `tests/engine` run with all three runtimes, too (`tests/engine/runtimes.rs`).
What only the built-in one does, `init` and `userns_mode`, it does also where `engine.runtime` names another one.
";

/// Keys of our own.
const OWN: [&str; 3] = ["fallback", "hosts", "schedule"];

fn view(line: &str, policy: &Policy) -> RepoView {
    let files = RepoFiles::from([
        ("gitopsd.toml".to_owned(), b"format = 1\n".to_vec()),
        ("services/a.toml".to_owned(), format!("image = \"r.io/a:1\"\n{line}\n").into_bytes()),
    ]);
    read(&files, &HostIdentity { name: "h".parse().unwrap(), labels: Vec::new() }, policy)
}

/// What `[defaults]` says and what a service says go together or are refused, as within one file.
#[test]
fn a_user_namespace_shares_nothing_in_any_layer() {
    for (line, refused) in [
        ("network_mode = \"host\"", true),
        ("pid = \"host\"", true),
        ("privileged = true", true),
        ("network_mode = \"none\"", false),
        ("userns_mode = \"host\"\nipc = \"host\"", false),
    ] {
        let files = RepoFiles::from([
            ("gitopsd.toml".to_owned(), b"format = 1\n[defaults]\nuserns_mode = \"auto\"\n".to_vec()),
            ("services/a.toml".to_owned(), format!("image = \"r.io/a:1\"\n{line}\n").into_bytes()),
        ]);
        let host = HostIdentity { name: "h".parse().unwrap(), labels: Vec::new() };
        let found = read(
            &files,
            &host,
            &Policy { privileged: true, host_namespaces: true, host_network: true, ..Policy::default() },
        );
        let services: Vec<_> = found.services.values().collect();
        assert_eq!(services.iter().all(|service| service.is_err()), refused, "{line}: {services:?}");
        assert!(!refused || format!("{services:?}").contains("userns_mode"), "{line}: {services:?}");
    }
}

#[test]
fn the_page_is_what_the_parser_knows() {
    let (read, refused) = gitopsd::config::service_keys();
    let listed: BTreeSet<&str> = KEYS.iter().map(|(key, _, _)| *key).chain(OWN).collect();
    assert_eq!(read.iter().copied().collect::<BTreeSet<_>>(), listed);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let tests = traps::tests();
    let mut page = String::from(
        "# Compose keys, and Docker\n\nWritten from the tables in `tests/compat.rs` and `tests/compat/`, which the tests \
         there hold against real containers.\n\n## Keys\n\n*Supported*: taken, and in force. *Compared*: a container that uses \
         the key under a real Docker, and the same one here, are looked\nat from inside (`tests/compat/probe.sh`: some two \
         hundred facts each); named are the kinds of facts that the key changes,\nand all of them are the same, but for what \
         is listed below. The last column names a test that sees it in force\n(`expose` is for people, as in Compose). What a \
         host's policy has to grant says `docs/config.md`.\n\n| key | state | compared with Docker | seen by |\n|---|---|---|---|\n",
    );
    for (key, _, test) in KEYS {
        assert!(test.is_empty() || tests.contains(&format!("fn {test}(")), "there is no test {test}");
        let test = if test.is_empty() { String::new() } else { format!("`{test}`") };
        let compared = IN_ALL.iter().find(|(named, _)| named == key).map(|(_, kinds)| (*kinds).to_owned());
        let scenario = SCENARIOS.iter().find(|scenario| scenario.key == *key);
        let compared = compared.or(scenario.map(|scenario| scenario.shows.join(", "))).unwrap_or_default();
        page.push_str(&format!("| `{key}` | supported | {compared} | {test} |\n"));
    }
    for key in refused {
        page.push_str(&format!("| `{key}` | refused by name | | |\n"));
    }
    page.push_str(
        "\n### `deploy`\n\nIts keys are those of `docs/config.md`. Of Compose's, `replicas` is the same; what is written otherwise here is refused \
         by name, and\nthe message says so:\n\n| key | here |\n|---|---|\n",
    );
    for (key, here) in COMPOSE_DEPLOY {
        page.push_str(&format!("| `{key}` | {here} |\n"));
    }
    page.push_str(
        "\n## What is not as under Docker, on purpose\n\nAll of it: a difference that is not listed here fails the test, and \
         so does one that is listed and is not there. `*` stands\nfor anything, `-` for nothing. A key: only in a container \
         that uses it. *On*: only on such machines. `make test` compares\non the machine that it runs on, `scripts/test-boot suites` in \
         a virtual one with systemd and cgroup v2 alone (Debian 12, kernel 6.1, AppArmor): all\nof its containers have run there, and the rows for such machines are what was found.\n`privileged` cannot be compared on a machine \
         that lacks a capability itself, as Docker's runtime starts nothing there; `tests/engine` has\nits own test of it.\n\n| key | on | fact | Docker | here | why |\n|---|---|---|---|---|---|\n",
    );
    for row in MEANT {
        let cell = |text: &str| text.replace(" | ", "`, `").replace('|', "\\|");
        let key = if row.key == "*" { String::new() } else { format!("`{}`", row.key) };
        let line = format!(
            "| {key} | {} | `{}` | `{}` | `{}` | {} |\n",
            row.on,
            cell(row.fact),
            cell(row.docker),
            cell(row.here),
            row.why
        );
        page.push_str(&line);
    }
    page.push_str(
        "\n## What the OCI runtime-spec promises\n\nEach row is looked at in a running container that uses as much of the \
         configuration as one can, against the `config.json`\nthat it was made from: made by the built-in runtime, by runc and by \
         crun, which agree (`tests/compat/promises.rs`), on cgroup v1 and \
         on cgroup v2 alone. None fails.\n\n| section | promise |\n|---|---|\n",
    );
    for (section, promise, _) in PROMISES {
        page.push_str(&format!("| {section} | {promise} |\n"));
    }
    page.push_str(SUITES);
    page.push_str(&traps::page());
    page.push_str(&suites::page());
    let path = root.join("docs/compat.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(page, fs::read_to_string(&path).unwrap(), "docs/compat.md is old: UPDATE_GOLDEN=1");
}

#[test]
fn every_key_is_taken() {
    for (key, line, _) in KEYS {
        let found = view(line, &Policy::default());
        assert!(found.diagnostics.is_empty(), "{key}: {:?}", found.diagnostics);
        assert!(found.services.values().all(Result::is_ok), "{key}: {:?}", found.services);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_line() {
    let (_, refused) = gitopsd::config::service_keys();
    let lines = refused.iter().map(|key| ((*key).to_owned(), format!("{key} = \"x\"")));
    let wrong = [
        "network_mode = \"container:x\"",
        "network_mode = \"service:a\"",
        "network_mode = \"service:b\"",
        "networks = [\"front\"]",
        "networks = [\"Front\"]",
        "networks = { default = { aliases = [\"a b\"] } }",
        "networks = { default = { ipv4_address = \"10.0.0.1\" } }",
        "userns_mode = \"keep-id\"",
        "userns_mode = \"auto\"\nprivileged = true",
        "userns_mode = \"auto\"\npid = \"host\"",
        "pid = \"service:b\"",
        "ipc = \"shareable\"",
        "security_opt = [\"apparmor=x\"]",
        "cap_add = [\"NET_RAWW\"]",
        "sysctls = { \"kernel.panic\" = 1 }",
        "sysctls = { \"net.ipv4/../x\" = 1 }",
        "devices = [\"/etc/passwd\"]",
        "devices = [\"/dev/zero:rx\"]",
        "ulimits = { nofiles = 1 }",
        "ulimits = { nofile = { soft = 2, hard = 1 } }",
        "tmpfs = [\"/\"]",
        "tmpfs = [\"/x:uid=root\"]",
        "tmpfs = [\"/proc/sys\"]",
        "volumes = [\"data:/x:z\"]",
        "volumes = [\"/srv:/x:rshared\"]",
        "volumes = [{ type = \"cluster\", source = \"a\", target = \"/x\" }]",
        "volumes = [{ type = \"volume\", source = \"a\", target = \"/x\", volume = { labels = {} } }]",
        "configs = [{ content = \"\", target = \"/sys/x\" }]",
        "secrets = [{ source = \"a\", target = \"/sys/x\" }]",
        "env_file = [\"../../x\"]",
        "cpuset = \"3-1\"",
        "cpu_shares = 1",
        "oom_score_adj = 2000",
        "extra_hosts = [\"db:host-gateway\"]",
        "dns = [\"resolver\"]",
        "hostname = \"a b\"",
        "group_add = [\"\"]",
        "logging = { driver = \"syslog\" }",
        "logging = { options = { max-size = \"1k\" } }",
        "blkio_config = { weight = 1 }",
        "blkio_config = { device_read_bps = { path = \"/dev/sda\", rate = \"1m\" } }",
        "blkio_config = { device_write_bps = [\"/dev/sda 1m\"] }",
        "blkio_config = { device_read_iops = [{ path = \"/dev/sda\" }] }",
        "blkio_config = { device_read_iops = [{ path = \"sda\", rate = 1 }] }",
        "blkio_config = { device_write_iops = [{ path = \"/dev/sda\", rate = 0 }] }",
        "blkio_config = { device_write_iops = [{ path = \"/dev/sda\", rate = 1, rates = 2 }] }",
        "blkio_config = [10]",
        "labels = [1.5]",
        "labels = [\"=b\"]",
        "labels = { \"\" = \"b\" }",
        "labels = \"a=b\"",
        "sysctls = [[\"net.core.somaxconn\", 99]]",
        "extra_hosts = { db = [\"192.0.2.9\"] }",
        "dns = [{ address = \"192.0.2.9\" }]",
        "ulimits = { nofile = \"10\" }",
        "logging = { options = [\"max-size=1m\"] }",
        "security_opt = { seccomp = \"unconfined\" }",
        "tmpfs = { target = \"/x\" }",
        "healthcheck = { http = \"/\", port = 80, status = 0o310 }",
        "memswap_limit = \"x\"",
        "memswap_limit = \"64m\"",
        "memswap_limit = 64000000\nmem_limit = \"64m\"",
        "expose = [\"70000\"]",
        "ports = [\"80-90:80-91\"]",
        "read_only = \"yes\"",
        "init = 1",
    ];
    let wrong = wrong.iter().map(|line| (line.split(' ').next().unwrap().to_owned(), (*line).to_owned()));
    for (key, line) in lines.chain(wrong) {
        let found = view(&line, &Policy::default());
        let errors: Vec<_> = found.diagnostics.iter().filter(|found| found.is_error()).collect();
        let at = |line| errors.iter().any(|error| error.line == line);
        assert!(at(2) && errors.len() == 1, "{line}: {errors:?}");
        let name = errors[0].message.contains(&format!("`{key}`"))
            || errors[0].message.contains('`') && line.contains('{');
        assert!(name, "{key} is not named: {:?}", errors[0]);
    }
}

#[test]
fn keys_of_deploy_that_are_written_otherwise_are_refused_with_what_to_write() {
    for (key, here) in COMPOSE_DEPLOY {
        // Each key of a table at its own line.
        let line = match key.split_once('.') {
            Some((table, key)) => format!("[deploy]\nreplicas = 4\n[deploy.{table}]\n{key} = \"x\""),
            None => format!("[deploy]\nreplicas = 4\n\n{key} = {{ x = 1 }}"),
        };
        let found = view(&line, &Policy::default());
        let [error] = &found.diagnostics[..] else { panic!("{key}: {:?}", found.diagnostics) };
        assert!(error.is_error() && error.line == 5, "{error:?}");
        assert!(
            error.message.contains(&format!("`{key}` of Compose")) && error.message.ends_with(here),
            "{error:?}"
        );
    }
    for (line, why) in [
        ("[deploy]\nupdate_config = {}", "its keys are written in [deploy]"),
        ("[deploy]\nupdate_config = 2", "its keys are written in [deploy]"),
        ("[deploy.update_config]\nparalelism = 2", "unknown key `paralelism` in [deploy.update_config]"),
        ("[deploy]\nparallelism = 0", "`parallelism` takes a number from 1 to 64"),
        ("parallelism = 2", "write `parallelism` in [deploy]"),
        ("[update_config]\nparallelism = 2", "write `parallelism` in [deploy]"),
    ] {
        let found = view(line, &Policy::default()).diagnostics;
        assert!(found.len() == 1 && found[0].message.contains(why), "{line}: {found:?}");
    }
}

#[test]
fn what_the_host_does_not_grant_is_refused_with_its_rule() {
    let refusal = |line: &str, policy: &Policy| {
        view(line, policy).services.into_values().next().unwrap().err().map(|refusal| {
            assert_eq!(refusal.reason, Reason::Policy, "{line}");
            refusal.message
        })
    };
    let granted = Policy {
        privileged: true,
        host_namespaces: true,
        host_network: true,
        unconfined: true,
        capabilities: vec!["CAP_NET_*".to_owned()],
        devices: vec!["/dev/dri/*".to_owned()],
        ..Policy::default()
    };
    for (line, rule) in [
        ("privileged = true", "policy.privileged"),
        ("oom_score_adj = -1", "policy.privileged"),
        ("pid = \"host\"", "policy.host_namespaces"),
        ("ipc = \"host\"", "policy.host_namespaces"),
        ("security_opt = [\"seccomp:unconfined\"]", "policy.unconfined"),
        ("security_opt = [\"apparmor:unconfined\"]", "policy.unconfined"),
        ("network_mode = \"host\"", "policy.host_network"),
        ("cap_add = [\"NET_ADMIN\"]", "policy.capabilities"),
        ("devices = [\"/dev/dri/card0:rw\"]", "policy.devices"),
    ] {
        let message = refusal(line, &Policy::default());
        assert!(message.as_ref().is_some_and(|text| text.contains(rule)), "{line}: {message:?}");
        assert_eq!(refusal(line, &granted), None, "{line}");
    }
    for line in ["cap_add = [\"ALL\"]", "cap_add = [\"SYS_ADMIN\"]", "devices = [\"/dev/sda\"]"] {
        assert!(refusal(line, &granted).is_some(), "{line}");
    }
}
