//! Where a container here differs from one of Docker on purpose.

/// One difference, and why.
pub struct Meant {
    /// Key of Compose for which it counts; `*` = all.
    pub key: &'static str,
    /// Glob over the names of facts.
    pub fact: &'static str,
    /// Glob over what only Docker's container has; `-` = nothing.
    pub docker: &'static str,
    /// Glob over what only ours has.
    pub here: &'static str,
    /// The reason.
    pub why: &'static str,
    /// Where it is so.
    pub on: On,
}

/// Machines that differ in what Docker does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum On {
    /// Every machine.
    Any,
    /// One with cgroup v1.
    V1,
    /// One with cgroup v2 alone.
    V2,
    /// One that names no resolver.
    NoResolver,
    /// One whose kernel has AppArmor.
    AppArmor,
    /// One whose kernel shows its memory as a file.
    Kcore,
}

impl On {
    /// Whether it is this machine.
    pub fn here(self) -> bool {
        match self {
            Self::Any => true,
            Self::V1 => !on_v2(),
            Self::V2 => on_v2(),
            Self::NoResolver => {
                !std::fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| text.contains("nameserver"))
            }
            Self::Kcore => std::path::Path::new("/proc/kcore").exists(),
            Self::AppArmor => std::path::Path::new("/proc/self/attr/apparmor/current").exists(),
        }
    }
}

/// Whether there is cgroup v2 alone.
pub fn on_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl std::fmt::Display for On {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "",
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
            Self::NoResolver => "no resolver",
            Self::AppArmor => "AppArmor",
            Self::Kcore => "/proc/kcore",
        })
    }
}

impl Meant {
    const fn only(self, on: On) -> Self {
        Self { on, ..self }
    }
}

const fn meant(
    key: &'static str,
    fact: &'static str,
    docker: &'static str,
    here: &'static str,
    why: &'static str,
) -> Meant {
    Meant { key, fact, docker, here, why, on: On::Any }
}

/// Without MKNOD, NET_RAW and AUDIT_WRITE: the names are long.
const CAPABILITIES: &str = "capabilities Cap[BPE]*";

/// All of them. One that is never seen fails the test, too.
pub const MEANT: &[Meant] = &[
    meant(
        "*",
        CAPABILITIES,
        "00000000a8?4?5fb",
        "0000000080?4?5fb",
        "Podman's 11 capabilities instead of Docker's 14: MKNOD, NET_RAW and AUDIT_WRITE have to be asked for",
    ),
    meant(
        "user",
        "capabilities CapBnd",
        "00000000a80425fb",
        "00000000800405fb",
        "the same, for another user",
    ),
    meant(
        "*",
        "can make a device | can open a new device",
        "yes",
        "no",
        "no MKNOD, and the root is mounted `nodev`: on cgroup v2 nothing else would stop it",
    ),
    meant("*", "can raw socket", "yes", "no", "no NET_RAW; `ping` works by `net.ipv4.ping_group_range`"),
    meant("*", "filter NoNewPrivs", "0", "1", "no program gains rights by being executed: always"),
    meant(
        "*",
        "mounts / options | mounts /etc/* options | mounts /data/* options",
        "r[ow],relatime",
        "r[ow],nodev,relatime",
        "no device of an image or a volume can be used",
    ),
    meant("*", "mounts / propagation", "master", "-", "no mount of the host ever arrives in a container"),
    meant(
        "*",
        "mounts /proc/interrupts *",
        "-",
        "*",
        "masked: when devices interrupt tells of what others do (as Docker does since version 28)",
    ),
    meant(
        "*",
        "mounts /sys/fs/cgroup options",
        "rw,*",
        "ro,*",
        "nothing can be made beside the container's own groups",
    )
    .only(On::V1),
    meant("*", "can write cgroups", "yes", "no", "the same, tried").only(On::V1),
    meant(
        "*",
        "filter apparmor",
        "docker-default (enforce)",
        "gitopsd-default (enforce)",
        "the profile is our own, with the same rules in short",
    )
    .only(On::AppArmor),
    meant("*", "resolver nameserver 8.8.*", "there", "-", "Docker asks Google where the host names nobody")
        .only(On::NoResolver),
    meant(
        "privileged",
        "capabilities Cap[BPE]*",
        "0000003fffffffff",
        "000001ffffffffff",
        "Docker 20.10 knows no capability after AUDIT_READ; here it is all of the kernel's",
    ),
    meant("privileged", "devices /dev/tty", "*0:5*", "*0:0*", "the runtime's own, as in every container"),
    meant(
        "cpu_shares",
        "cgroup cpu.weight",
        "20",
        "59",
        "Docker's runtime weighs by a straight line, by which 1024 shares are 39; here they are 100, as in runc since 1.3.2",
    )
    .only(On::V2),
    meant(
        "*",
        "devices /dev/core | devices /dev/kcore",
        "*",
        "*",
        "a link to a file that is masked; the runtime's library calls it by the file's name",
    )
    .only(On::Kcore),
    meant(
        "*",
        "signals SigIgn",
        "0000000080000000",
        "0000000000000000",
        "no signal is ignored at the start; Docker leaves 32",
    ),
    meant(
        "*",
        "sysctl net/ipv6/conf/all/disable_ipv6",
        "1",
        "0",
        "Docker turns IPv6 off in a container that has no network with it",
    ),
    meant(
        "*",
        "hosts 10.98.* shop | hosts 10.98.* front",
        "-",
        "there",
        "a container knows its own name's address; Docker's has no network in this test",
    ),
    meant("init", "mounts /sbin/docker-init *", "*", "-", "the first process is no file of the host"),
    meant("init", "process first", "docker-init", "init", "the same"),
    meant("init", "process pid", "*", "2", "it starts the program at once"),
    meant("pid", "process parent | process pid", "*", "*", "numbers of the host, which are new each time"),
    meant(
        "ipc",
        "mounts /dev/shm options",
        "*",
        "rw,nosuid,nodev,noexec*",
        "shared memory holds no programs and no devices",
    ),
    meant(
        "blkio_config",
        "cgroup blkio.bfq.weight",
        "100",
        "300",
        "Docker looks for a file that kernels since 5.0 do not have, and leaves the weight out",
    ),
];
