//! Files of the config repo in the container: from where the agent keeps their contents, by way of a small file system in
//! memory that only the container and its shim see. So they have their own owners and modes, and a disk that can no
//! longer be written is no hindrance.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};

use nix::mount::{MsFlags, mount};

use super::super::launch::Launch;
use super::super::layout::RunFiles;
use super::super::spec::BindMount;
use super::super::user::Identity;
use crate::engine::EngineError;
use crate::state::contents;
use crate::types::{ConfigFile, Reason};

/// Beside their contents: a page a file at most, and the directory.
const SPARE: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// Writes the files and gives back their mounts.
pub(super) fn prepare(
    launch: &Launch,
    run: &RunFiles,
    identity: &Identity,
) -> Result<Vec<BindMount>, EngineError> {
    if launch.configs.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |what: String| {
        let id = &launch.id;
        move |error: io::Error| EngineError::new(Reason::StartFailed, format!("{id}: {what}"), error)
    };
    let dir = run.configs();
    let size =
        launch.configs.iter().map(|config| config.size.saturating_add(PAGE)).fold(SPARE, u64::saturating_add);
    let options = format!("size={size},mode=0700");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .and_then(|()| Ok(mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some(options.as_str()))?))
        .map_err(failed("a place for its config files cannot be made".to_owned()))?;
    let mut mounts = Vec::new();
    for (number, config) in launch.configs.iter().enumerate() {
        let bytes =
            contents::get(&launch.layout.state_dir, &config.content, config.size).map_err(|error| {
                let refusal = error.to_refusal();
                let what = format!("{}: config file {}", launch.id, config.target.display());
                EngineError::new(refusal.reason, what, io::Error::other(refusal.message))
            })?;
        let path = dir.join(number.to_string());
        write(&path, &bytes, config, identity)
            .map_err(failed(format!("config file {}", config.target.display())))?;
        mounts.push(BindMount { source: path, target: config.target.clone(), read_only: true });
    }
    let none: Option<&str> = None;
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &dir, none, flags, none)
        .map_err(|error| failed("its config files cannot be made read-only".to_owned())(error.into()))?;
    Ok(mounts)
}

fn write(path: &std::path::Path, bytes: &[u8], config: &ConfigFile, identity: &Identity) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // As Compose has it: those of the user it runs as, unless said.
    let (uid, gid) = (config.uid.unwrap_or(identity.uid), config.gid.unwrap_or(identity.gid));
    fchown(&file, Some(uid), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(config.mode & 0o777))
}
