//! Where the programs of tests run beside the machine of whoever changes something, and with what result the last time.

/// One line of `tests/boot/suites.list`, or one of the kinds of `scripts/test-boot`.
struct Run {
    /// What runs.
    what: &'static str,
    /// Tests or claims that held, and all of them.
    held: &'static str,
    /// What is to be said of it.
    note: &'static str,
}

const fn run(what: &'static str, held: &'static str, note: &'static str) -> Run {
    Run { what, held, note }
}

const RUNS: &[Run] = &[
    run("suites: `compat inside::`", "2 of 2", "32 containers beside Docker's"),
    run("suites: `compat promises::`", "2 of 2", "by the built-in runtime, runc and crun"),
    run(
        "suites: `engine apparmor::`",
        "3 of 3",
        "with one that takes the profile from the kernel, for such machines alone",
    ),
    run("suites: `engine options:: world:: update:: top:: traps:: escapes::`", "46 of 46", ""),
    run("suites: `engine crashes:: lives::`", "22 of 22", "each as a unit of systemd"),
    run(
        "suites: `engine exec:: logs:: terminals:: users:: files:: commands:: networks:: old:: propagation::`",
        "42 of 42",
        "",
    ),
    run(
        "suites: `engine runtimes::`",
        "5 of 5",
        "the core of the others once more by crun (32) and by runc (33)",
    ),
    run(
        "`scripts/test-boot vm`",
        "150 of 150",
        "Redis and nginx over a deploy and a reboot; PostgreSQL, too, the time before",
    ),
    run(
        "`scripts/test-boot nspawn`",
        "157 of 157",
        "a booted container, on the kernel of the machine and cgroup v1; Tomcat and RabbitMQ, too",
    ),
];

/// As a part of the page.
pub fn page() -> String {
    let mut page = String::from(
        "\n## Where the suites ran\n\nBeside the machine of whoever changes something (`make test`, there on cgroup v1 and without systemd as the \
         first process), in a virtual machine without help of\nthe processor: Debian 12, kernel 6.1, systemd 252, cgroup v2 alone, AppArmor. \
         `scripts/test-boot suites` runs `tests/boot/suites.list`,\n`scripts/test-boot vm` boots twice. Each as it went the last time.\n\n\
         | what | held | |\n|---|---|---|\n",
    );
    page.extend(RUNS.iter().map(|run| format!("| {} | {} | {} |\n", run.what, run.held, run.note)));
    page
}
