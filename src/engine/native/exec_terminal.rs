//! Terminals of commands: the one that the container gets, from its own devpts, and the one that a person sits at.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, IsTerminal as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::layout::RunFiles;

nix::ioctl_write_int_bad!(
    /// Opens the other side of a terminal without its name, which is that of another mount namespace: ioctl_tty(2).
    open_peer,
    nix::libc::TIOCGPTPEER
);

/// The size of a terminal that nobody sits at.
const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// The size of the window that we are in.
pub(super) fn window() -> Winsize {
    let sizes = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin())];
    sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0).unwrap_or(SIZE)
}

/// Where the runtime hands over the controlling side of the terminal that it makes in the container.
///
/// Source: OCI runtime command line, `--console-socket`.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
    links: PathBuf,
}

impl Console {
    /// Makes the socket, in the container's own directory on the host.
    pub fn bind(run: &RunFiles) -> io::Result<Self> {
        let name = format!("console-{}", std::process::id());
        let path = run.dir.join(&name);
        let _ = fs::remove_file(&path);
        // By a descriptor, as the name of a socket may have 107 bytes and no more.
        let dir = File::open(&run.dir)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path, links: run.runtime() })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The controlling side. The runtime has handed it over when it says that the command runs.
    pub fn receive(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(fd) = fds.next()
            {
                return Ok(fd);
            }
        }
        Err(io::Error::other("the runtime sent none"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // The library reaches the socket by a link of its own, and leaves that.
        let dirs = fs::read_dir(&self.links).into_iter().flatten().flatten();
        let links = dirs.filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten().flatten();
        for link in links.filter(|link| fs::read_link(link.path()).is_ok_and(|target| target == self.path)) {
            let _ = fs::remove_file(link.path());
        }
    }
}

/// The terminal of a command, and ours, if we have one, as the keyboard and screen of it.
pub(super) struct Terminal {
    master: File,
    _ours: Option<Raw>,
}

impl Terminal {
    /// Gives the command's side to its user; with `keys`, has our own pass every key on.
    pub fn new(master: OwnedFd, uid: u32, keys: bool) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // SAFETY: this ioctl reads no memory of ours.
        let peer = unsafe { open_peer(master.as_raw_fd(), flags.bits()) }?;
        // SAFETY: the kernel has just opened it for us; nobody else knows of it.
        let peer = unsafe { OwnedFd::from_raw_fd(peer) };
        fchown(&peer, Some(uid), None)?;
        drop(peer);
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let this = Self { master: master.into(), _ours: if keys { Raw::enter()? } else { None } };
        // It may have changed since the command was described.
        this.resize();
        Ok(this)
    }

    /// One more descriptor of the controlling side.
    pub fn end(&self) -> io::Result<File> {
        self.master.try_clone()
    }

    /// Has the command's terminal be as large as ours.
    pub fn resize(&self) {
        // A command that has ended has no window.
        let _ = tcsetwinsize(&self.master, window());
    }
}

/// Our own terminal, as it was before.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
