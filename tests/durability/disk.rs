//! File systems in loop devices: small ones, ones whose power is cut, ones that fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::sync::{Mutex, MutexGuard};

use super::support::wait_for;

/// Tests that watch what reaches a disk, and when, run one after the other (nextest: .config/nextest.toml).
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// How a file system is made and mounted.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// Arguments of `mkfs.NAME`.
    pub make: &'static [&'static str],
    pub options: &'static str,
}

/// Its journal does not save what nobody synced: it would commit every five seconds by itself.
pub const EXT4: Kind =
    Kind { name: "ext4", make: &["-q", "-F", "-E", "lazy_itable_init=0"], options: "commit=300" };
/// As most hosts mount theirs: it turns read-only when something is wrong.
pub const EXT4_CAREFUL: Kind = Kind { options: "errors=remount-ro", ..EXT4 };
/// With few inodes.
pub const EXT4_FEW: Kind = Kind { make: &["-q", "-F", "-N", "4000"], ..EXT4 };
/// The copy is mounted while the last process of a killed pull may still hold the original.
pub const XFS: Kind = Kind { name: "xfs", make: &["-q", "-f"], options: "nouuid" };
pub const BTRFS: Kind = Kind { name: "btrfs", make: &["-q", "-f"], options: "commit=300" };

impl Kind {
    /// Whether this machine can make it, and knows it; says why not.
    pub fn is_here(&self) -> bool {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        let known = known.lines().any(|line| line.trim() == self.name);
        let made = Command::new(format!("mkfs.{}", self.name)).arg("-V").output().is_ok();
        if !known || !made {
            println!(
                "skipped: {}: known to the kernel {known}, mkfs.{} is here {made}",
                self.name, self.name
            );
        }
        known && made
    }
}

/// A file system in a file, mounted. Unmounted at the end, its device with it.
pub struct Disk {
    dir: tempfile::TempDir,
    image: PathBuf,
    kind: Kind,
    device: Option<String>,
}

impl Disk {
    /// A new one of so many MiB, which the file takes only where it is written.
    pub fn new(kind: Kind, size: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-disk-").tempdir().unwrap();
        let image = dir.path().join("image");
        Self::made(dir, image, kind, size)
    }

    /// A new one whose file lies in a given directory.
    pub fn below(folder: &Path, kind: Kind, size: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-disk-").tempdir().unwrap();
        Self::made(dir, folder.join("image"), kind, size)
    }

    fn made(dir: tempfile::TempDir, image: PathBuf, kind: Kind, size: u64) -> Self {
        fs::File::create(&image).unwrap().set_len(size << 20).unwrap();
        run(&format!("mkfs.{}", kind.name), &[kind.make, &[text(&image)]].concat());
        let mut disk = Self { dir, image, kind, device: None };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The loop device, without `/dev/`.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap().strip_prefix("/dev/").unwrap()
    }

    /// What the disk holds now, as a disk of its own in place of this one: all that this one's file system did not write
    /// yet is lost, and its journal is replayed.
    pub fn after_power_cut(mut self) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-disk-").tempdir().unwrap();
        let image = dir.path().join("image");
        run("cp", &["--sparse=always", "--reflink=auto", text(&self.image), text(&image)]);
        // Two of one identity cannot be mounted at the same time.
        self.unmount();
        let mut disk = Self { dir, image, kind: self.kind, device: None };
        disk.mount();
        disk
    }

    /// Nothing is left in memory of what it held.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Unmounts it, mends what its errors broke as a host does at its start, mounts it.
    pub fn repair(&mut self) {
        self.unmount();
        // fsck(8): 1 and 2 say that errors were corrected.
        let status = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output().unwrap().status;
        assert!(status.code().is_some_and(|code| code <= 2), "{status}");
        self.mount();
    }

    fn mount(&mut self) {
        fs::create_dir_all(self.root()).unwrap();
        let device = run("losetup", &["--find", "--show", text(&self.image)]);
        self.device = Some(device.trim().to_owned());
        run("mount", &["-t", self.kind.name, "-o", self.kind.options, device.trim(), text(&self.root())]);
    }

    fn unmount(&mut self) {
        if let Some(device) = self.device.take() {
            let root = self.root();
            wait_for("the disk to be let go of", || {
                Command::new("umount").arg(&root).output().unwrap().status.success().then_some(())
            });
            run("losetup", &["--detach", &device]);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails may still have files open: then it goes with the last of them.
        if let Some(device) = self.device.take() {
            let _ = Command::new("umount").arg("--lazy").arg(self.root()).output();
            let _ = Command::new("losetup").args(["--detach", &device]).output();
        }
    }
}

/// A file system in memory that is as small as one likes.
pub struct Memory(tempfile::TempDir);

impl Memory {
    pub fn new(size: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-memory-").tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs", text(dir.path())]);
        Self(dir)
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.root()).output();
    }
}

/// syncfs(2), as anybody might call it.
pub fn sync(root: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(root)?)?)
}

/// Leaves so many bytes of what others than root may take; remove the file to give the rest back.
pub fn fill_up(root: &Path, left: u64) -> PathBuf {
    let path = root.join("ballast");
    let file = fs::File::create(&path).unwrap();
    let length = free(root).checked_sub(left).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    file.sync_all().unwrap();
    path
}

/// Bytes that others than root may take.
pub fn free(root: &Path) -> u64 {
    let stat = rustix::fs::statvfs(root).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
