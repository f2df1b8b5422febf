//! `docs/compat.md`: every key of a Compose service, what becomes of it, and the test that sees it from inside a real
//! container. The page is written from what the parser says of itself: `UPDATE_GOLDEN=1`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use gitopsd::config::agent::HostIdentity;
use gitopsd::config::repo::{RepoFiles, RepoView, read};
use gitopsd::types::{Policy, Reason};

/// Key of Compose, a service file's line that uses it, and the test that shows its effect.
const KEYS: &[(&str, &str, &str)] = &[
    ("blkio_config", "blkio_config = { weight = 100 }", "a_disk_that_is_not_there_is_told"),
    ("cap_add", "cap_add = [\"CHOWN\"]", "capabilities_added_and_dropped"),
    ("cap_drop", "cap_drop = [\"ALL\"]", "capabilities_added_and_dropped"),
    ("cgroup", "cgroup = \"private\"", "root_inside_is_not_root_outside"),
    ("command", "command = \"serve\"", "a_program_sees_its_own_small_world"),
    (
        "configs",
        "configs = [{ content = \"a = 1\", target = \"/etc/a.conf\" }]",
        "config_files_are_seen_with_their_owner_and_mode_and_cannot_be_written",
    ),
    ("cpu_shares", "cpu_shares = 512", "limits_of_memory_and_processors"),
    ("cpus", "cpus = 1.5", "limits_hold"),
    ("cpuset", "cpuset = \"0-1,3\"", "limits_of_memory_and_processors"),
    ("depends_on", "depends_on = []", ""),
    ("deploy", "deploy = { bake = \"1s\" }", ""),
    ("devices", "devices = []", "devices_of_the_host"),
    ("dns", "dns = \"192.0.2.1\"", "groups_and_names"),
    ("dns_opt", "dns_opt = [\"ndots:2\"]", "groups_and_names"),
    ("dns_search", "dns_search = [\"example.org\"]", "groups_and_names"),
    ("domainname", "domainname = \"example.org\"", "groups_and_names"),
    ("entrypoint", "entrypoint = [\"/bin/x\"]", ""),
    ("env_file", "env_file = [{ path = \"a.env\", required = false }]", ""),
    ("environment", "environment = { A = 1 }", "a_program_sees_its_own_small_world"),
    ("expose", "expose = [8080, \"53/udp\"]", ""),
    ("extra_hosts", "extra_hosts = [\"db:192.0.2.7\"]", "groups_and_names"),
    ("group_add", "group_add = [\"audio\", 44]", "groups_and_names"),
    ("healthcheck", "healthcheck = { tcp = 80 }", ""),
    ("hostname", "hostname = \"front\"", "groups_and_names"),
    ("image", "", "a_program_sees_its_own_small_world"),
    ("init", "init = true", "a_first_process_reaps_and_passes_signals_on"),
    ("ipc", "ipc = \"private\"", "the_hosts_processes_and_ipc"),
    ("labels", "labels = { a = \"b\" }", ""),
    (
        "logging",
        "logging = { options = { max-size = \"1m\", max-file = \"2\" } }",
        "logs_are_kept_as_long_as_was_said",
    ),
    ("mem_limit", "mem_limit = \"64m\"", "want_of_memory_is_told"),
    ("mem_reservation", "mem_reservation = \"32m\"", "limits_of_memory_and_processors"),
    ("memswap_limit", "memswap_limit = -1", "limits_of_memory_and_processors"),
    ("network_mode", "network_mode = \"none\"", "networks_that_are_not_the_containers_own"),
    ("networks", "networks = { default = { aliases = [\"a\"] } }", ""),
    ("oom_score_adj", "oom_score_adj = 100", "kernel_parameters_and_limits_of_processes"),
    ("pid", "", "the_hosts_processes_and_ipc"),
    ("pids_limit", "pids_limit = 9", "limits_hold"),
    ("ports", "ports = [\"127.0.0.1:8000-8002:80-82/udp\"]", ""),
    ("privileged", "privileged = false", "privileged_means_all"),
    ("read_only", "read_only = true", "file_systems_in_memory_and_a_root_that_is_only_read"),
    (
        "security_opt",
        "security_opt = [\"no-new-privileges:true\"]",
        "the_filter_of_system_calls_is_there_unless_taken_away",
    ),
    ("restart", "restart = \"on-failure:3\"", "how_it_ended_is_told_by_its_policy"),
    ("shm_size", "shm_size = \"8m\"", "file_systems_in_memory_and_a_root_that_is_only_read"),
    ("stop_grace_period", "stop_grace_period = \"1s\"", ""),
    ("stop_signal", "stop_signal = \"USR1\"", "the_stop_signal_of_the_service"),
    ("sysctls", "sysctls = { \"net.core.somaxconn\" = 99 }", "kernel_parameters_and_limits_of_processes"),
    ("tmpfs", "tmpfs = \"/run:size=1m\"", "file_systems_in_memory_and_a_root_that_is_only_read"),
    (
        "ulimits",
        "ulimits = { nofile = { soft = 10, hard = 20 } }",
        "kernel_parameters_and_limits_of_processes",
    ),
    ("user", "user = \"app\"", "a_program_sees_its_own_small_world"),
    ("userns_mode", "userns_mode = \"host\"", ""),
    ("volumes", "volumes = [\"data:/data\"]", "volumes_keep_what_is_written_and_read_only_means_it"),
    ("working_dir", "working_dir = \"/srv\"", "a_program_sees_its_own_small_world"),
];

/// Keys of our own.
const OWN: [&str; 2] = ["fallback", "hosts"];

fn view(line: &str, policy: &Policy) -> RepoView {
    let files = RepoFiles::from([
        ("gitopsd.toml".to_owned(), b"format = 1\n".to_vec()),
        ("services/a.toml".to_owned(), format!("image = \"r.io/a:1\"\n{line}\n").into_bytes()),
    ]);
    read(&files, &HostIdentity { name: "h".parse().unwrap(), labels: Vec::new() }, policy)
}

#[test]
fn the_page_is_what_the_parser_knows() {
    let (read, refused) = gitopsd::config::service_keys();
    let listed: BTreeSet<&str> = KEYS.iter().map(|(key, _, _)| *key).chain(OWN).collect();
    assert_eq!(read.iter().copied().collect::<BTreeSet<_>>(), listed);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let tests: String = ["options", "world", "files", "networks", "lives"]
        .map(|name| fs::read_to_string(root.join(format!("tests/engine/{name}.rs"))).unwrap())
        .concat();
    let mut page = String::from(
        "# Compose keys\n\nWritten from `tests/compat.rs`. *Supported*: taken, and in force. The last column names the \
         test in `tests/engine`\nthat looks from inside a real container. What a host's policy has to grant says \
         `docs/config.md`.\n\n| key | state | seen from inside by |\n|---|---|---|\n",
    );
    for (key, _, test) in KEYS {
        assert!(test.is_empty() || tests.contains(&format!("fn {test}()")), "there is no test {test}");
        let test = if test.is_empty() { String::new() } else { format!("`{test}`") };
        page.push_str(&format!("| `{key}` | supported | {test} |\n"));
    }
    for key in refused {
        page.push_str(&format!("| `{key}` | refused by name | |\n"));
    }
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
        "memswap_limit = \"x\"",
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
