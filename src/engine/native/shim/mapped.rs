//! A container with a user namespace: what its root may not do itself, as it is nobody on the host, is done before, and its
//! configuration is changed accordingly.
//!
//! Layers, volumes and generated files are shown to it with its own users ([`super::idmap`]); its writable layer holds
//! the host's numbers. The network belongs to the host's user namespace, so that the container is begun in it rather
//! than enters it, and what shows or changes it is made from here: `/sys`, and kernel parameters below `net`.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::super::in_root;
use super::super::launch::Launch;
use super::super::userns::outside;
use super::idmap::{UserNamespace, in_network, place};
use super::rootfs;

/// What the container needs until it is made.
pub(super) struct Mapped {
    users: UserNamespace,
}

impl Mapped {
    /// Prepares all of it, and changes `config`. The root was looked at where [`rootfs::mount`] put it, and is mounted
    /// anew.
    pub fn prepare(
        launch: &Launch,
        first: u32,
        mounted: &Path,
        scratch: &Path,
        config: &mut Value,
    ) -> io::Result<Self> {
        let state = launch.layout.state(&launch.id);
        // That of the state, or in memory where that cannot be written.
        let writable = mounted.parent().unwrap_or(&state);
        rootfs::unmount(&state, scratch);
        let users = UserNamespace::new(first)?;
        let mut used: Vec<&Path> = launch.layers.iter().map(PathBuf::as_path).collect();
        used.extend([launch.layout.state_dir.as_path(), launch.layout.run_dir.as_path(), netns(launch)?]);
        let sources: Vec<PathBuf> =
            binds(config).filter_map(|bind| Some(bind["source"].as_str()?.into())).collect();
        used.extend(sources.iter().map(PathBuf::as_path));
        let place = place(&used)?;
        let root = mount_root(&users, &place, &state, writable, &launch.layers)?;
        config["root"]["path"] = json!(root);
        // As Docker does: the working directory of an image need not exist in it.
        let opened = File::open(&root)?;
        users.as_its_root(|| in_root::create_dir_all(&opened, &launch.cwd)).map_err(|error| {
            io::Error::new(error.kind(), format!("working directory {}: {error}", launch.cwd.display()))
        })?;

        fs::create_dir(place.join("binds"))?;
        for (number, bind) in binds(config).enumerate() {
            let target = place.join("binds").join(number.to_string());
            let source = PathBuf::from(bind["source"].as_str().unwrap_or_default());
            let read_only = bind["options"].as_array().is_some_and(|options| options.contains(&"ro".into()));
            let inside = bind["destination"].as_str().unwrap_or_default();
            users.show(&source, &target, read_only).map_err(|error| {
                io::Error::new(error.kind(), format!("what is mounted at {inside}: {error}"))
            })?;
            bind["source"] = json!(target);
        }
        devices(launch, config)?;
        network(launch, &place, config)?;
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.ok_or_else(|| io::Error::other("no namespaces"))?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user", "path": users.path() }));
        Ok(Self { users })
    }

    /// The host's number of a user or group of the container.
    pub fn outside(&self, id: u32) -> u32 {
        outside(self.users.first, id)
    }

    /// Makes the container from inside its network.
    pub fn build<T>(&self, launch: &Launch, work: impl FnOnce() -> T) -> io::Result<T> {
        in_network(netns(launch)?, || Ok(work()))
    }
}

/// The configuration names what was there only while the container was made; commands in it are started by it later.
pub(super) fn forget_place(root: &Path, config: &mut Value) {
    config["root"]["path"] = json!(root);
}

/// The configuration refuses the host's with a user namespace.
fn netns(launch: &Launch) -> io::Result<&Path> {
    let netns = launch.netns.as_deref();
    netns.ok_or_else(|| io::Error::other("a user namespace goes with a network of the container's own"))
}

fn binds(config: &mut Value) -> impl Iterator<Item = &mut Value> {
    let mounts = config["mounts"].as_array_mut();
    mounts.into_iter().flatten().filter(|mount| mount["type"] == "bind")
}

fn mount_root(
    users: &UserNamespace,
    place: &Path,
    state: &Path,
    writable: &Path,
    layers: &[PathBuf],
) -> io::Result<PathBuf> {
    let root = place.join("rootfs");
    for dir in [&root, &place.join("l")] {
        fs::create_dir(dir)?;
    }
    symlink(writable, place.join("s"))?;
    let mut names = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("l/{number}");
        users.show(layer, &place.join(&name), true)?;
        names.push(name);
    }
    let kept = state.join("upper");
    if writable != state && kept.is_dir() {
        // It holds the host's numbers as it is.
        symlink(&kept, place.join("l/kept"))?;
        names.push("l/kept".to_owned());
    }
    names.reverse();
    if let Some(top) = layers.last() {
        let (model, upper) = (fs::metadata(top)?, writable.join("upper"));
        chown(&upper, Some(outside(users.first, model.uid())), Some(outside(users.first, model.gid())))?;
        fs::set_permissions(&upper, Permissions::from_mode(model.mode() & 0o7777))?;
    }
    std::env::set_current_dir(place)?;
    let options =
        format!("lowerdir={},upperdir=s/upper,workdir=s/work,index=off,metacopy=off", names.join(":"));
    let mounted =
        mount(Some("overlay"), "rootfs", Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()));
    std::env::set_current_dir("/")?;
    mounted.map_err(|error| {
        io::Error::other(format!("the layers with the users of a user namespace: {error}"))
    })?;
    Ok(root)
}

/// Device files cannot be made in a user namespace: those of the host are shown, as they are.
fn devices(launch: &Launch, config: &mut Value) -> io::Result<()> {
    config["linux"]["devices"] = json!([]);
    let mounts = config["mounts"].as_array_mut().ok_or_else(|| io::Error::other("no mounts"))?;
    for device in launch.options.devices.iter().flatten() {
        let options = ["bind", "rprivate", "nosuid", "noexec"];
        mounts.push(json!({
            "destination": device.target, "type": "bind", "source": device.source, "options": options,
        }));
    }
    Ok(())
}

/// What only the owner of a network may do.
fn network(launch: &Launch, place: &Path, config: &mut Value) -> io::Result<()> {
    let sys = place.join("sys");
    fs::create_dir(&sys)?;
    let mut parameters = Vec::new();
    if let Some(sysctl) = config["linux"]["sysctl"].as_object_mut() {
        let names: Vec<String> = sysctl.keys().filter(|name| name.starts_with("net.")).cloned().collect();
        for name in names {
            let value = sysctl.remove(&name);
            parameters.extend(value.and_then(|value| Some((name, value.as_str()?.to_owned()))));
        }
    }
    in_network(netns(launch)?, || {
        for (name, value) in &parameters {
            let file = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(file, value)
                .map_err(|error| io::Error::new(error.kind(), format!("`{name}`: {error}")))?;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        let none: Option<&str> = None;
        Ok(mount(Some("sysfs"), &sys, Some("sysfs"), flags, none)?)
    })?;
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({ "destination": "/sys", "type": "bind", "source": sys, "options": options });
        }
    }
    Ok(())
}
