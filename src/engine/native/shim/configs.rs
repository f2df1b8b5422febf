//! Files of the config repo and secrets of the host in the container: from where the agent keeps their contents, by way of a
//! small file system in memory that only the container and its shim see. So they have their own owners and modes, and a
//! disk that can no longer be written is no hindrance.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::super::launch::Launch;
use super::super::layout::RunFiles;
use super::super::spec::BindMount;
use super::super::user::Identity;
use crate::engine::EngineError;
use crate::state::{StateError, contents, secrets};
use crate::types::{ConfigFile, Reason, SecretFile};

/// Beside their contents: a page a file at most, and the directory.
const SPARE: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// A file as the container is to see it.
struct Entry<'a> {
    /// For messages.
    what: String,
    target: &'a Path,
    bytes: Vec<u8>,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
}

/// Writes the files and gives back their mounts.
pub(super) fn prepare(
    launch: &Launch,
    run: &RunFiles,
    identity: &Identity,
) -> Result<Vec<BindMount>, EngineError> {
    let id = &launch.id;
    let entries = read(launch)?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |what: String| {
        move |error: io::Error| EngineError::new(Reason::StartFailed, format!("{id}: {what}"), error)
    };
    let dir = run.configs();
    let sizes = entries.iter().map(|entry| (entry.bytes.len() as u64).saturating_add(PAGE));
    let options = format!("size={},mode=0700", sizes.fold(SPARE, u64::saturating_add));
    DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .and_then(|()| in_memory(&dir, &options))
        .map_err(failed("a place for its config files and secrets cannot be made".to_owned()))?;
    let mut mounts = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        let path = dir.join(number.to_string());
        write(&path, &entry, identity).map_err(failed(entry.what))?;
        mounts.push(BindMount { source: path, target: entry.target.to_owned(), read_only: true });
    }
    let none: Option<&str> = None;
    let flags = FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &dir, none, flags, none).map_err(|error| {
        failed("its config files and secrets cannot be made read-only".to_owned())(error.into())
    })?;
    Ok(mounts)
}

const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// A file system that stays in memory where the kernel can promise that: since Linux 6.4 (tmpfs(5), `noswap`).
fn in_memory(dir: &Path, options: &str) -> io::Result<()> {
    let with = |options: &str| mount(Some("tmpfs"), dir, Some("tmpfs"), FLAGS, Some(options));
    match with(&format!("{options},noswap")) {
        Err(Errno::EINVAL) => Ok(with(options)?),
        result => Ok(result?),
    }
}

/// All of them, with their contents.
fn read(launch: &Launch) -> Result<Vec<Entry<'_>>, EngineError> {
    let configs = launch.configs.iter().map(|config| of_config(launch, config));
    configs.chain(launch.secrets.iter().map(|secret| of_secret(launch, secret))).collect()
}

fn of_config<'a>(launch: &Launch, config: &'a ConfigFile) -> Result<Entry<'a>, EngineError> {
    let ConfigFile { target, content, size, uid, gid, mode } = config;
    let what = format!("config file {}", target.display());
    let bytes = contents::get(&launch.layout.state_dir, content, *size);
    let bytes = bytes.map_err(|error| unread(launch, &what, &error))?;
    Ok(Entry { what, target, bytes, uid: *uid, gid: *gid, mode: *mode })
}

fn of_secret<'a>(launch: &Launch, secret: &'a SecretFile) -> Result<Entry<'a>, EngineError> {
    let SecretFile { source, target, content, uid, gid, mode } = secret;
    let what = format!("secret `{source}`");
    let Some(content) = content else {
        let message = format!("{}: {what} is asked for, and has no content", launch.id);
        return Err(EngineError::plain(Reason::Internal, message));
    };
    let bytes = secrets::get(&launch.layout.state_dir, content);
    let bytes = bytes.map_err(|error| unread(launch, &what, &error))?;
    Ok(Entry { what, target, bytes, uid: *uid, gid: *gid, mode: *mode })
}

fn unread(launch: &Launch, what: &str, error: &StateError) -> EngineError {
    let refusal = error.to_refusal();
    EngineError::new(refusal.reason, format!("{}: {what}", launch.id), io::Error::other(refusal.message))
}

fn write(path: &Path, entry: &Entry<'_>, identity: &Identity) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&entry.bytes)?;
    // As Compose has it: those of the user it runs as, unless said.
    let (uid, gid) = (entry.uid.unwrap_or(identity.uid), entry.gid.unwrap_or(identity.gid));
    fchown(&file, Some(uid), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(entry.mode & 0o777))
}
