//! One run of `gpgv`, Debian's smallest judge of OpenPGP signatures: no agent, no network, no home, no configuration.
//!
//! What it reads and writes is in memory: nothing is left behind, and nobody can exchange a file under it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

/// Where programs of the system are; the agent's own `PATH` is nobody's promise.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];

/// It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most that it is listened to, in bytes.
const MOST: u64 = 256 << 10;

/// Finds it.
pub fn find() -> Result<PathBuf, String> {
    find_in(&PLACES.map(Path::new))
}

fn find_in(places: &[&Path]) -> Result<PathBuf, String> {
    let program = places.iter().map(|place| place.join("gpgv")).find(|program| program.is_file());
    program.ok_or_else(|| {
        "gpgv, which checks OpenPGP signatures, is not here: install the package gpgv".to_owned()
    })
}

/// Has it look at a signature (not armored) over `message` with the keys of a keyring (not armored). Gives its status
/// lines, and whether it was content.
pub fn run(
    program: &Path,
    keyring: &[u8],
    signature: &[u8],
    message: &[u8],
) -> Result<(bool, String), String> {
    let failed = |what: &str| {
        let what = format!("{} {what}", program.display());
        move |error: std::io::Error| format!("{what}: {error}")
    };
    let files = || -> std::io::Result<[File; 4]> {
        Ok([held(keyring)?, held(signature)?, held(message)?, held(&[])?])
    };
    let [keyring, signature, message, mut said] = files().map_err(failed("could not be asked"))?;
    // Its own descriptors are closed when it starts; ours are there as long as it runs.
    let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut child = Command::new(program)
        .args(["--homedir", "/nonexistent", "--status-fd", "1", "--keyring", &path(&keyring)])
        .args([&path(&signature), "-"])
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::from(message))
        .stdout(Stdio::from(said.try_clone().map_err(failed("could not be asked"))?))
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("cannot be run"))?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => break Err(format!("{} did not end in {} s", program.display(), PATIENCE.as_secs())),
            Err(error) => break Err(failed("cannot be waited for")(error)),
        }
    };
    if status.is_err() {
        // It is ours, and has not been waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = status?;
    let mut text = Vec::new();
    said.seek(SeekFrom::Start(0))
        .and_then(|_| said.take(MOST).read_to_end(&mut text))
        .map_err(failed("cannot be heard"))?;
    Ok((status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// A file that is nowhere, at its beginning.
fn held(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("gitopsd-signature", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = find_in(&[dir.path()]).unwrap_err();
        assert!(error.contains("install the package gpgv"), "{error}");
        std::fs::write(dir.path().join("gpgv"), "").unwrap();
        assert_eq!(find_in(&[Path::new("/none"), dir.path()]).unwrap(), dir.path().join("gpgv"));
    }

    #[test]
    fn one_that_says_too_much_or_cannot_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("gpgv");
        std::fs::write(&program, "#!/bin/sh\nenv\nhead -c 1000000 /dev/zero\ncat <&0\n").unwrap();
        assert!(run(&program, b"", b"", b"").unwrap_err().contains("cannot be run"));
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (content, text) = run(&program, b"", b"", b"message").unwrap();
        assert!(content && text.len() as u64 == MOST && !text.contains("HOME="), "{}", text.len());
    }
}
