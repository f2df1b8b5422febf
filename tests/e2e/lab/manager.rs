//! As much of systemd as it takes to keep the agent's descriptors while there is none (`FileDescriptorStoreMax=` of
//! systemd.service(5)); `scripts/test-boot` has the real one.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

pub struct Manager {
    path: PathBuf,
    kept: Arc<Mutex<Option<Kept>>>,
}

struct Kept {
    name: String,
    descriptor: OwnedFd,
}

impl Manager {
    /// Listens at `path`.
    pub fn begin(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let kept = Arc::new(Mutex::new(None));
        let keeps = kept.clone();
        std::thread::spawn(move || {
            loop {
                let (text, descriptor) = receive(&socket);
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
                let asked = text.lines().any(|line| line == "FDSTORE=1");
                if let Some(descriptor) = descriptor.filter(|_| asked) {
                    *keeps.lock().unwrap() = Some(Kept { name: name.to_owned(), descriptor });
                }
            }
        });
        Self { path: path.to_owned(), kept }
    }

    /// Whether something is kept.
    pub fn keeps(&self) -> bool {
        self.kept.lock().unwrap().is_some()
    }

    /// What the service is stopped with: nothing is kept any more.
    pub fn stop(&self) {
        self.kept.lock().unwrap().take();
    }

    /// The same command as systemd would run it: handed over, from descriptor 3 on, is what is kept.
    pub fn command(&self, of: &Command) -> Command {
        let mut command = match &*self.kept.lock().unwrap() {
            None => Command::new(of.get_program()),
            Some(Kept { name, descriptor }) => {
                let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"";
                let mut command = Command::new("sh");
                command.args(["-c", script, "sh"]).arg(of.get_program());
                command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
                command.stdin(Stdio::from(descriptor.try_clone().unwrap()));
                command
            }
        };
        command.args(of.get_args()).env("NOTIFY_SOCKET", &self.path);
        command
    }
}

fn receive(socket: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let mut descriptors = message.cmsgs().unwrap().filter_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made it for this message, and nobody else knows of it.
    let descriptor = descriptors.next().map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let length = message.bytes;
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptor)
}
