//! What systemd hands over when it starts the agent: sockets that it listens to (systemd.socket(5)), and what an agent before this one
//! has asked it to keep (`FileDescriptorStoreMax=` of systemd.service(5)), under a name.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// What [`super::notify::keep`] has it keep: the socket that the traffic's rules belong to.
pub const RULES: &str = "rules";

/// All of it, with the names. Source: sd_listen_fds(3).
pub fn all() -> io::Result<Vec<(String, OwnedFd)>> {
    let numbers = sd_notify::listen_fds()?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    // Duplicates, which are ours by type: no other code of this process owns the numbers that are only named here.
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let duplicate = |number| pidfd_getfd(&own, number, PidfdGetfdFlags::empty());
    names.zip(numbers).map(|(name, number)| Ok((name, duplicate(number)?))).collect()
}

/// What was kept under this name.
pub fn kept(name: &str) -> io::Result<Option<OwnedFd>> {
    Ok(all()?.into_iter().find(|(other, _)| other == name).map(|(_, kept)| kept))
}
