//! The last step before the container's own program: undo what a Rust process has set up for itself, then execve(2).

use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use oci_spec::runtime::Spec;
use rustix::termios::Winsize;

use super::super::seccomp::Filter;
use super::enter::Enter;
use super::last_look::Look;

/// How the message ends that a program is not there.
pub const NOT_FOUND: &str = "is not in the image, or the interpreter that it names is not";

/// Executes the program of the OCI configuration; tells why it could not on a pipe that execve(2) closes.
#[derive(Debug, Clone)]
pub(in super::super) struct Program {
    /// Writing end, close-on-exec; open in this process as long as this value is used.
    pub failure: RawFd,
    /// System calls that the program may make; empty = all.
    pub filter: Filter,
    /// Whether a small first process stays behind, see [`super::init`].
    pub init: bool,
    /// What is looked at before it.
    pub look: Look,
    /// What a test has broken.
    #[cfg(feature = "failpoints")]
    pub weak: super::weak::Weak,
    /// The size of the terminal that is its standard input; `None` = it has none.
    pub window: Option<Winsize>,
    /// Who it becomes only now.
    pub enter: Option<Enter>,
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = match self.execute(spec) {
            Ok(never) => match never {},
            Err(message) => message,
        };
        // SAFETY: the pipe's writing end stays open until this process executes or ends; nobody closes it here.
        let failure = unsafe { BorrowedFd::borrow_raw(self.failure) };
        let _ = nix::unistd::write(failure, message.as_bytes());
        Err(ExecutorError::Other(message))
    }

    /// Nothing: execve(2) itself is the only judge that is right about every image.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

impl Program {
    fn look(&self) -> Result<(), String> {
        #[cfg(feature = "failpoints")]
        if !self.weak.begin() {
            return Ok(());
        }
        self.look.look()
    }

    fn execute(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        self.look()?;
        if let Some(enter) = &self.enter {
            enter.enter()?;
        }
        execute(spec, self)
    }
}

fn execute(spec: &Spec, this: &Program) -> Result<std::convert::Infallible, String> {
    let Program { filter, init, window, .. } = this;
    let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
    let args: Vec<CString> = args
        .into_iter()
        .flatten()
        .map(|text| CString::new(text.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|_| "the command holds a NUL".to_owned())?;
    let program = args.first().ok_or("there is no command")?;
    let profile = spec.process().as_ref().and_then(|process| process.apparmor_profile().as_deref());
    if let Some(window) = window {
        // So that it is right from the first moment on. Where this process may not, the helper does it a moment later.
        let _ = rustix::termios::tcsetwinsize(std::io::stdin(), *window);
        let _ = std::os::unix::fs::fchown(std::io::stdin(), Some(nix::unistd::getuid().as_raw()), None);
    }
    if !filter.is_empty() {
        // Also says that no program that is executed gains rights, without which the kernel takes no filter.
        seccompiler::apply_filter(filter).map_err(|error| format!("the filter of system calls: {error}"))?;
    }
    reset_signals();
    if *init {
        super::init::split(profile)?;
        reset_signals();
    }
    nix::unistd::execvp(program, &args).map_err(|error| {
        let program = program.to_string_lossy();
        match error {
            Errno::ENOENT => format!("`{program}` {NOT_FOUND}"),
            Errno::EACCES => format!("`{program}` may not be executed by this user"),
            Errno::ENOEXEC => format!("`{program}` is not a program for this machine"),
            other => format!("`{program}` cannot be executed: {}", other.desc()),
        }
    })
}

/// Rust ignores SIGPIPE, the shim ignores more, and posix_spawn(3) leaves the C library's own two signals ignored;
/// ignored signals stay ignored over execve(2), and `yes | head` in a container would never end.
pub(in super::super) fn reset_signals() {
    // The kernel's own structure, as the C library refuses to change its own two signals: SIG_DFL, no flags, no mask.
    let default_action = [0u64; 4];
    for number in 1..=nix::libc::SIGRTMAX() {
        // SAFETY: rt_sigaction(2) reads a structure of at most 32 bytes and, as the third pointer is null, writes none;
        // SIG_DFL runs no code of ours. Signals that may not be changed give an error, which is fine.
        unsafe {
            nix::libc::syscall(
                nix::libc::SYS_rt_sigaction,
                number,
                default_action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8,
            );
        }
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}
