//! Names of units, and where systemd keeps their processes. Pure, except for [`Tree::detect`].
//!
//! Source: systemd.unit(5), "Unit names"; systemd's CGROUP_DELEGATION.md.

use std::fs;
use std::path::{Path, PathBuf};

use super::Unit;
use crate::types::InstanceId;

/// The container's own group, below its unit's.
pub(in super::super) const CONTAINER: &str = "ctr";
/// The shim's group, below its unit's. On cgroup v2 a group that passes controllers on holds no process itself.
pub(in super::super) const SHIM: &str = "shim";

/// How units of containers are called, and where their groups are below each hierarchy's mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Tree {
    /// Of the instance. `-` would make it a part of another slice, and no instance has a `:`.
    prefix: String,
    /// Where systemd's own tree begins: `/`, except in some containers.
    root: PathBuf,
}

impl Tree {
    /// The names of one instance, if systemd runs this machine (sd_booted(3)).
    pub fn detect(instance: &str) -> Option<Self> {
        let booted = fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir());
        booted.then(|| {
            let first = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
            Self::new(instance, root(&first))
        })
    }

    fn new(instance: &str, root: PathBuf) -> Self {
        Self { prefix: instance.replace('-', ":"), root }
    }

    /// The slice of every container of the instance.
    pub fn slice(&self) -> String {
        format!("{}.slice", self.prefix)
    }

    /// The unit of a container, as it is called at the first attempt (1) or a later one.
    ///
    /// A name cannot always be had again: a unit whose shim has died stays as long as its container runs, and systemd
    /// holds the names of transient units that it met at a `daemon-reload` to be files that it fails to read.
    pub fn unit(&self, id: &InstanceId, attempt: u32) -> Unit {
        let name = match attempt {
            1 => format!("{}-{id}.service", self.prefix),
            later => format!("{}-{id}.{later}.service", self.prefix),
        };
        Unit { group: self.slice_group().join(&name), name }
    }

    /// The scope of a process that prepares something for containers. None of a container's: it is no service.
    pub fn scope(&self, pid: u32) -> String {
        format!("{}-unpack.{pid}.scope", self.prefix)
    }

    /// The group of the slice.
    pub fn slice_group(&self) -> PathBuf {
        self.root.join(self.slice())
    }

    /// The inverse of [`Self::unit`].
    pub fn id_of(&self, unit: &str) -> Option<InstanceId> {
        let name = unit.strip_prefix(&self.prefix)?.strip_prefix('-')?.strip_suffix(".service")?;
        let later = || {
            let (name, attempt) = name.rsplit_once('.')?;
            attempt.parse::<u32>().ok().filter(|attempt| *attempt > 1)?;
            name.parse().ok()
        };
        name.parse().ok().or_else(later)
    }
}

/// Where systemd's tree begins, from its own place in it. Source: proc_pid_cgroup(5).
fn root(of_first: &str) -> PathBuf {
    let above = unit_path(of_first).and_then(|path| path.strip_suffix("/init.scope")).unwrap_or_default();
    Path::new("/").join(above)
}

/// The service that a process belongs to, from its `/proc/PID/cgroup`.
pub(super) fn service_of(text: &str) -> Option<String> {
    let parts = unit_path(text)?.rsplit('/');
    parts.into_iter().find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// The place in the hierarchy by which systemd tells units apart: the unified one, or v1's own of systemd.
fn unit_path(text: &str) -> Option<&str> {
    let of = |controllers: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (named, path) = rest.split_once(':')?;
            (named == controllers).then_some(path)
        })
    };
    of("").filter(|path| *path != "/").or_else(|| of("name=systemd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_two_instances_are_never_the_same() {
        let id: InstanceId = "web.7".parse().unwrap();
        let plain = Tree::new("gitopsd", "/".into());
        assert_eq!(plain.unit(&id, 1).name, "gitopsd-web.7.service");
        assert_eq!(plain.unit(&id, 1).group, Path::new("/gitopsd.slice/gitopsd-web.7.service"));
        assert_eq!(plain.unit(&id, 2).name, "gitopsd-web.7.2.service");
        for attempt in [1, 2, 30] {
            assert_eq!(plain.id_of(&plain.unit(&id, attempt).name), Some(id.clone()));
        }
        let second: InstanceId = "web.7-2".parse().unwrap();
        assert_eq!(plain.unit(&second, 2).name, "gitopsd-web.7-2.2.service");
        for attempt in [1, 2] {
            assert_eq!(plain.id_of(&plain.unit(&second, attempt).name), Some(second.clone()));
            assert_ne!(plain.unit(&second, attempt), plain.unit(&id, 2));
        }
        let other = Tree::new("gitopsd-a", "/".into());
        assert_eq!(other.unit(&id, 1).name, "gitopsd:a-web.7.service");
        assert_eq!(other.slice(), "gitopsd:a.slice");
        assert_ne!(other.unit(&id, 1), plain.unit(&"a-web.7".parse().unwrap(), 1));
        assert_eq!(plain.id_of(&other.unit(&id, 1).name), None);
        assert_eq!(plain.id_of(&plain.scope(7)), None);
        for nobody in [
            "gitopsd.service",
            "gitopsd-web.service",
            "gitopsd-web.7.x.service",
            "gitopsd-web.7.1.service",
            "x",
        ] {
            assert_eq!(plain.id_of(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn places_are_read_from_every_layout() {
        let unified = "0::/system.slice/gitopsd.service\n";
        let hybrid = "12:memory:/\n1:name=systemd:/system.slice/gitopsd.service/x\n0::/\n";
        for text in [unified, hybrid] {
            assert_eq!(service_of(text).as_deref(), Some("gitopsd.service"));
        }
        assert_eq!(service_of("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(root("0::/init.scope\n"), Path::new("/"));
        assert_eq!(root("0::/machine/x/init.scope\n"), Path::new("/machine/x"));
        assert_eq!(root("2:memory:/\n1:name=systemd:/init.scope\n0::/init.scope\n"), Path::new("/"));
        assert_eq!(root("rubbish"), Path::new("/"));
    }
}
