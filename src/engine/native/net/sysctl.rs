//! Kernel settings of the calling thread's network namespace, below /proc/sys/net.

use std::fs;
use std::io;

/// Sets `net.<name>` (slashes for dots) unless it has that value already.
///
/// Comparing first matters: writing ip_forward again resets other settings of every interface
/// (Documentation/networking/ip-sysctl.rst).
pub fn set(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    if fs::read_to_string(&path).map_err(explain)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(explain)
}

/// As [`set`], and fine where the kernel has no such setting.
pub fn set_if_known(name: &str, value: &str) -> io::Result<()> {
    match set(name, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
