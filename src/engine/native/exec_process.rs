//! What a command in a container is to the runtime: the container's own process, with another command.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use nix::fcntl::OFlag;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::apparmor;
use super::exec_session::Session;
use super::in_root;
use super::launch::Launch;
use super::layout::RunFiles;
use super::user::{self, Identity};
use super::userns::outside;

/// A process, described.
#[derive(Debug)]
pub(super) struct Process {
    /// `process` of the OCI configuration.
    pub oci: serde_json::Value,
    /// Who it runs as, by the host's numbers.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

/// The container's own process with another command: the same user, environment, directory, rights and limits, where
/// `session` says no other. What the library would fill in itself is not the same (1024 open files, for one). `init` is the
/// container's first process, whose root is looked into.
///
/// # Errors
/// A line for people.
pub(super) fn describe(
    run: &RunFiles,
    launch: &Launch,
    init: i32,
    command: &[String],
    session: &Session,
) -> Result<Process, String> {
    let failed = |error: io::Error| format!("{}: its configuration: {error}", launch.id);
    let mut process = container_process(run).map_err(failed)?;
    apparmor::follow(&mut process, init);
    process["args"] = command.into();
    process["terminal"] = session.tty.into();
    let mut env = Vec::new();
    if session.user.is_some() || session.workdir.is_some() {
        let root = File::open(format!("/proc/{init}/root"))
            .map_err(|error| format!("{}: its root cannot be opened: {error}", launch.id))?;
        if let Some(user) = &session.user {
            let groups = launch.options.group_add.as_deref().unwrap_or_default();
            let Identity { uid, gid, groups, home } = user::look_up(&root, user, groups)?;
            if !launch.env.iter().any(|entry| entry.starts_with("HOME=")) {
                env.push(format!("HOME={home}"));
            }
            process["user"]["uid"] = uid.into();
            process["user"]["gid"] = gid.into();
            process["user"]["additionalGids"] = groups.into();
        }
        if let Some(dir) = &session.workdir {
            check_directory(&root, dir)?;
            process["cwd"] = dir.to_string_lossy().into();
        }
    }
    env.extend_from_slice(&session.env);
    if !env.is_empty() {
        let own = process["env"].as_array().into_iter().flatten().filter_map(|entry| entry.as_str());
        process["env"] = merged(own, &env).into();
    }
    for limit in process["rlimits"].as_array_mut().into_iter().flatten() {
        if limit["type"] != "RLIMIT_NOFILE" {
            continue;
        }
        let most = open_files(limit["hard"].as_u64().unwrap_or(0));
        for kind in ["soft", "hard"] {
            limit[kind] = limit[kind].as_u64().unwrap_or(most).min(most).into();
        }
    }
    let id = |name: &str| process["user"][name].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let outside = |id: u32| launch.first_id.map_or(id, |first| outside(first, id));
    let (uid, gid) = (outside(id("uid")), outside(id("gid")));
    Ok(Process { oci: process, uid, gid })
}

/// The most open files that this process can give: as many as the container has, where it may be allowed fewer (an agent's
/// unit, a person's session) and has the right to change that. Source: getrlimit(2), "CAP_SYS_RESOURCE".
fn open_files(wanted: u64) -> u64 {
    let own = getrlimit(Resource::Nofile);
    let hard = own.maximum.unwrap_or(u64::MAX);
    if hard >= wanted || setrlimit(Resource::Nofile, Rlimit { maximum: Some(wanted), ..own }).is_err() {
        return hard;
    }
    wanted
}

impl Process {
    /// As a file that a runtime reads.
    ///
    /// # Errors
    /// A line for people: there is no memory.
    pub fn in_memory(&self) -> Result<File, String> {
        let write = || {
            let memory = rustix::fs::memfd_create("process.json", rustix::fs::MemfdFlags::CLOEXEC)?;
            let mut file = File::from(memory);
            file.write_all(&serde_json::to_vec(&self.oci)?)?;
            Ok(file)
        };
        write().map_err(|error: io::Error| format!("what the command is to be cannot be written: {error}"))
    }
}

fn container_process(run: &RunFiles) -> io::Result<serde_json::Value> {
    let config = std::fs::read(run.bundle().join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_slice(&config)?;
    Ok(config["process"].take())
}

fn check_directory(root: &File, dir: &Path) -> Result<(), String> {
    match in_root::open(root, dir, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("directory {} is not in the container", dir.display()))
        }
        Err(error) => Err(format!("directory {}: {error}", dir.display())),
    }
}

/// `NAME=value` entries, the later ones on top.
fn merged<'a>(own: impl Iterator<Item = &'a str>, more: &'a [String]) -> Vec<String> {
    let pairs = own.chain(more.iter().map(String::as_str)).filter_map(|entry| entry.split_once('='));
    let map: BTreeMap<&str, &str> = pairs.collect();
    map.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win() {
        let more = ["B=3=4".to_owned(), "C=".to_owned()];
        assert_eq!(merged(["A=1", "B=2"].into_iter(), &more), ["A=1", "B=3=4", "C="]);
    }
}
