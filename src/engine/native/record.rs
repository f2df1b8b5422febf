//! The records that outlive the agent: which process is whose, and how it ended. Small JSON files in `run_dir`.
//!
//! A pid alone proves nothing: it is used again after a while, and after a reboot at once. A process is known by pid,
//! start time and boot id together, and is signalled through a pidfd that was opened before the proof.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::Exit;
use crate::types::Timestamp;

/// No record is larger; a longer file is not one of ours.
const MAX_RECORD: u64 = 4 << 20;

/// Format of all records. Raised when a field changes its meaning or a new one may not be ignored; a shim, and what it
/// wrote, outlives the version that started it. A field that older versions may ignore, and that has a default for
/// records of theirs, raises nothing.
pub(super) const FORMAT: u32 = 1;

#[derive(Deserialize)]
struct Head {
    #[serde(default = "first_format")]
    format: u32,
}

fn first_format() -> u32 {
    1
}

/// The format of a record, if it is one of a newer version.
pub(super) fn newer_format(path: &Path) -> Option<u32> {
    read::<Head>(path).map(|head| head.format).filter(|format| *format > FORMAT)
}

/// Name of a process that stays unique over pid reuse and reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    /// In the pid namespace of the agent.
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessId {
    /// Names a process that exists now and cannot go away meanwhile (oneself, or a child not yet reaped).
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = read_stat(pid)?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: boot_id()? })
    }

    /// A handle on the process, if it still is the same one and has not ended.
    pub fn open(&self, boot_id: &str) -> Option<PidFd> {
        if self.boot_id != boot_id {
            return None;
        }
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Read after the pidfd is open: what is read belongs to the process the pidfd holds, or to nobody.
        let stat = read_stat(self.pid).ok()?;
        let same = stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X');
        same.then_some(PidFd(fd))
    }
}

/// A process that was proven to be the one meant.
#[derive(Debug)]
pub(super) struct PidFd(OwnedFd);

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PidFd {
    /// A handle on a child of ours that was not waited for yet, whether it has ended or not.
    pub fn of_child(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Another handle on the same process.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends signal number `signal`; a process that has ended already is fine.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        // By number, because the crates' signal types leave out the real-time signals that images may ask for.
        // SAFETY: pidfd_send_signal(2) reads no memory of ours when `info` is null.
        let result = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// How a process that has ended and was not our child did so: exit code, or signal. The kernel shows it for as long
    /// as nobody has reaped it; Linux 6.15 and later keep it for whoever has held the pidfd. `None`: it is not known.
    ///
    /// Source: proc_pid_stat(5), `exit_code`; linux/pidfd.h, `PIDFD_GET_INFO`.
    pub fn end(&self, process: &ProcessId, timeout: Duration) -> Option<(Option<i32>, Option<i32>)> {
        use std::os::fd::AsRawFd as _;
        /// `_IOWR(0xFF, 11, struct pidfd_info)` of its first version, 64 bytes.
        const PIDFD_GET_INFO: nix::libc::c_ulong = 0xC040_FF0B;
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            mask: u64,
            cgroup: u64,
            ids: [u32; 11],
            status: i32,
        }
        let words = |status| match nix::libc::WIFEXITED(status) {
            true => (Some(nix::libc::WEXITSTATUS(status)), None),
            false => (None, Some(nix::libc::WTERMSIG(status))),
        };
        let until = std::time::Instant::now() + timeout;
        loop {
            let stat = read_stat(process.pid).ok();
            if let Some(stat) = stat.filter(|it| it.start_time == process.start_time && it.state == 'Z') {
                return stat.exit_status.map(words);
            }
            let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
            // SAFETY: the number says how large the structure is that the kernel reads and writes: 64 bytes, as `Info`.
            let result = unsafe { nix::libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
            if result == 0 && info.mask & PIDFD_INFO_EXIT != 0 {
                return Some(words(info.status));
            }
            let unknown = nix::errno::Errno::last() == nix::errno::Errno::ENOTTY;
            if (result != 0 && unknown) || std::time::Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the process has ended; `false` when `timeout` was over first.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_readable(self.as_fd(), timeout)
    }
}

/// Waits until `fd` can be read or its other end is gone; `false` when `timeout` was over first.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let end = std::time::Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        // Rounded up, so that the last part of a millisecond is not spent turning in circles.
        let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
            Ok(0) if std::time::Instant::now() < end => {}
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Stat {
    state: char,
    start_time: u64,
    /// As waitpid(2) has it; of those that have ended.
    exit_status: Option<i32>,
}

/// The fields of `/proc/PID/stat` that are needed. The second field, the command, may hold spaces and brackets.
fn read_stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    let parse = || {
        let rest = text.rsplit_once(") ")?.1;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        // `rest` begins with field 3; the start time is field 22.
        let start_time = fields.nth(18)?.parse().ok()?;
        let exit_status = fields.nth(29).and_then(|field| field.trim().parse().ok());
        Some(Stat { state, start_time, exit_status })
    };
    parse().ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be read: {text}")))
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// `run.json`: the container's first process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RunRecord {
    /// The container's first process.
    pub init: ProcessId,
    /// When it was started.
    pub started_at: Timestamp,
    /// The container's own address.
    pub address: Ipv4Addr,
}

/// `exit.json`: how it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ExitRecord {
    /// The boot it happened in: after a reboot it says nothing any more.
    pub boot_id: String,
    /// How.
    pub exit: Exit,
}

/// Reads a record; `None` when it is absent, damaged or not one.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes a record so that a reader sees the old one or the new one, never a part. It may hold secrets: mode 0600.
///
/// No fsync: `run_dir` does not outlive a boot, and within one boot rename(2) is enough.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let bytes = serde_json::to_vec(value)?;
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_start_time_and_boot() {
        let boot = boot_id().unwrap();
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.open(&boot).is_some());
        assert!(me.open("another boot").is_none());
        let reused = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(reused.open(&boot).is_none(), "a reused pid was believed");
    }

    #[test]
    fn an_ended_process_is_not_opened() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        let boot = boot_id().unwrap();
        let fd = id.open(&boot).unwrap();
        fd.signal(nix::libc::SIGKILL).unwrap();
        assert!(fd.wait(Duration::from_secs(10)).unwrap());
        assert_eq!(fd.end(&id, Duration::ZERO), Some((None, Some(9))), "nobody has reaped it yet");
        assert!(id.open(&boot).is_none(), "a zombie was believed to run");
        child.wait().unwrap();
        assert!(id.open(&boot).is_none());
        fd.signal(nix::libc::SIGKILL).unwrap();
    }

    #[test]
    fn damaged_records_read_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        assert!(read::<RunRecord>(&path).is_none());
        fs::write(&path, b"{\"init\": {").unwrap();
        assert!(read::<RunRecord>(&path).is_none());
        let init = ProcessId { pid: 1, start_time: 2, boot_id: "b".into() };
        write(
            &path,
            &RunRecord {
                init: init.clone(),
                started_at: Timestamp::UNIX_EPOCH,
                address: Ipv4Addr::LOCALHOST,
            },
        )
        .unwrap();
        assert_eq!(read::<RunRecord>(&path).unwrap().init, init);
    }
}
