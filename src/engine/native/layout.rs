//! Where the engine keeps things: one place that spells out every path.
//!
//! `state_dir` survives a reboot (writable layers, volumes, logs), `run_dir` need not (records of processes).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{InstanceId, Job, ServiceName};

/// The directories of one instance of the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Layout {
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What need not.
    pub run_dir: PathBuf,
    /// Names the parent cgroup.
    pub instance: String,
}

impl Layout {
    /// Parent of every container's durable directory.
    pub fn states(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    /// Parent of every container's records.
    pub fn runs(&self) -> PathBuf {
        self.run_dir.join("containers")
    }

    /// Durable directory of a container: writable layer, mount point, generated files.
    pub fn state(&self, id: &InstanceId) -> PathBuf {
        self.states().join(id.to_string())
    }

    /// Which numbers its users have on the host, where they have others: its writable layer holds these.
    pub fn ids(&self, id: &InstanceId) -> PathBuf {
        self.state(id).join("ids.json")
    }

    /// The boot in which a one-shot was started, durable before its program runs.
    pub fn begun(&self, id: &InstanceId) -> PathBuf {
        self.state(id).join("begun")
    }

    /// How a one-shot ended, durable.
    pub fn ended(&self, id: &InstanceId) -> PathBuf {
        self.state(id).join("ended.json")
    }

    /// Records of a container.
    pub fn run(&self, id: &InstanceId) -> RunFiles {
        RunFiles { dir: self.runs().join(id.to_string()) }
    }

    /// The log file that is written to; older parts have `.1`, `.2` appended.
    pub fn log(&self, id: &InstanceId) -> PathBuf {
        log_file(&self.state_dir, id)
    }

    /// Directory of a named volume. `name` has passed [`is_volume_name`].
    pub fn volume(&self, service: &ServiceName, name: &str) -> PathBuf {
        self.state_dir.join("volumes").join(service.as_str()).join(name)
    }
}

/// The log file of a container below a state directory.
pub(super) fn log_file(state_dir: &Path, id: &InstanceId) -> PathBuf {
    // Two never write to one file at a time: `deploy.post` runs beside its service, the other one-shots in its place.
    let file = match id.job {
        Some(Job::Post) => format!("{}-{}.log", id.generation, Job::Post.word()),
        _ => format!("{}.log", id.number()),
    };
    state_dir.join("logs").join(id.service.as_str()).join(file)
}

/// Whether a named volume's name is safe as a file name.
pub(super) fn is_volume_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 255
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The files in a container's directory below `run_dir`.
#[derive(Debug, Clone)]
pub(super) struct RunFiles {
    /// The directory itself.
    pub dir: PathBuf,
}

impl RunFiles {
    /// Held (flock(2)) by whoever starts or supervises the container.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// What the agent asked the shim to start.
    pub fn launch(&self) -> PathBuf {
        self.dir.join("launch.json")
    }

    /// Which process the shim is.
    pub fn shim(&self) -> PathBuf {
        self.dir.join("shim.json")
    }

    /// What the shim itself had to say; empty when all is well.
    pub fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    /// Which process the container's first one is.
    pub fn record(&self) -> PathBuf {
        self.dir.join("run.json")
    }

    /// How it ended.
    pub fn exit(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// OCI bundle: `config.json`.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// State of the OCI runtime, one directory a container.
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("oci")
    }

    /// A writable layer for a container whose own cannot be written.
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Where a file or directory of the host is bound on its way into the container, in the shim's mount namespace.
    pub fn staged(&self, number: usize) -> PathBuf {
        self.dir.join("mounts").join(number.to_string())
    }

    /// Where the container's config files and secrets lie, in memory, in the shim's mount namespace.
    pub fn configs(&self) -> PathBuf {
        self.dir.join("configs")
    }

    /// The directory of the container's `NOTIFY_SOCKET`, which it sees.
    pub fn notify(&self) -> PathBuf {
        self.dir.join("notify")
    }

    /// What was said to it, as its shim has heard it.
    pub fn notified(&self) -> PathBuf {
        self.dir.join("notified.json")
    }

    /// The pipe behind the container's stdout or stderr.
    pub fn fifo(&self, stream: &str) -> PathBuf {
        self.dir.join(stream)
    }

    /// The container's id, read back from the directory's name.
    pub fn id_of(dir: &Path) -> Option<InstanceId> {
        dir.file_name()?.to_str()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::is_volume_name;

    #[test]
    fn volume_names_never_leave_their_directory() {
        for good in ["data", "a.b-c_d", "9"] {
            assert!(is_volume_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", ".hidden", &"x".repeat(256)] {
            assert!(!is_volume_name(bad), "{bad}");
        }
    }
}
