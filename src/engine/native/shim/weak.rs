//! Ways in which runtimes were broken once, for tests alone: a test of an escape shows with them that it would see it.
//! A slow disk and a hurried agent, too. Compiled with the feature `failpoints` only. What is wanted stands as words in the file `weak` of the state directory.

use std::fs::File;
use std::io;
use std::os::fd::{IntoRawFd as _, RawFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::super::launch::Launch;
use super::super::layout::Layout;

/// What is broken.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Weak {
    /// CVE-2025-31133: masks that did not come about.
    unmasked: bool,
    /// CVE-2025-52881: `/proc` is the image's own directory, and what the runtime writes there goes astray.
    false_proc: bool,
    /// CVE-2025-52565: another file than a terminal is mounted at `/dev/console`.
    console: bool,
    /// CVE-2024-21626: the working directory is one of the host, by a descriptor.
    directory: Option<RawFd>,
    /// The device hole: the image's devices can be used.
    devices: bool,
    /// containers/crun#1845: the standard input of a command is the host's own null device.
    input: bool,
    /// The last look is left out, and the profile of AppArmor, which would hold in its place.
    unlooked: bool,
}

/// Whether the test asks for this.
pub(in super::super) fn is_wanted(layout: &Layout, word: &str) -> bool {
    let words = std::fs::read_to_string(layout.state_dir.join("weak")).unwrap_or_default();
    words.split_whitespace().any(|found| found == word)
}

impl Weak {
    /// What the test asks for.
    pub fn of(launch: &Launch) -> Self {
        let has = |word: &str| is_wanted(&launch.layout, word);
        Self {
            unmasked: has("unmasked"),
            false_proc: has("false-proc"),
            console: has("console"),
            directory: has("directory").then(leak).flatten(),
            devices: has("devices"),
            input: has("input"),
            unlooked: has("unlooked"),
        }
    }

    /// Makes the configuration one that the race was won with.
    pub fn spoil(&self, config: &mut Value, launch: &Launch) {
        if self.unmasked {
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        }
        // Nor could it be set where /proc is none.
        if (self.unlooked || self.false_proc)
            && let Some(process) = config["process"].as_object_mut()
        {
            process.remove("apparmorProfile");
        }
        let Some(mounts) = config["mounts"].as_array_mut() else { return };
        if self.false_proc {
            mounts.retain(|mount| mount["destination"] != "/proc");
        }
        if self.console {
            let secret = launch.layout.run(&launch.id).launch();
            mounts.push(json!({
                "destination": "/dev/console", "type": "bind", "source": secret, "options": ["bind", "rw"],
            }));
        }
    }

    /// Makes the container's root one that was mounted without a care.
    pub fn spoil_root(&self, root: &Path) {
        if self.devices {
            let none: Option<&str> = None;
            let _ = mount(none, root, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, none);
        }
    }

    /// What a command reads.
    pub fn input(&self, own: io::Result<File>) -> io::Result<File> {
        if self.input { File::open("/dev/null") } else { own }
    }

    /// In the container's process, before anything is looked at. Whether there is a look.
    pub fn begin(&self) -> bool {
        if let Some(directory) = self.directory {
            // As the attack did it: its number is known.
            let _ = std::env::set_current_dir(format!("/proc/self/fd/{directory}"));
        }
        !self.unlooked
    }
}

/// A directory of the host that stays open in the container's process.
fn leak() -> Option<RawFd> {
    File::open("/").ok().map(File::into_raw_fd)
}
