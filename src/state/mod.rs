//! What survives a power cut: plain files, no database. A damaged file costs one service, and a person can read them.
//!
//! ```text
//! <state_dir>/
//!   FORMAT                        version of all this; a newer one is left alone
//!   lock                          held by the one agent that may write here
//!   reserve/                      space and inodes given back when the disk is full, so that state can still be written
//!   boot.json                     which boot an agent was last at work in, and whether it ended in order
//!   trust.json                    the newest commit ever admitted
//!   trust-reset.json              the last word of an operator who had another one believed
//!   desired.json                  what that commit wants of this host, its tags resolved
//!   configs/<sha256>              contents of config files that a generation may run with
//!   secrets/<hmac>                contents of secrets that a generation may run with, in the clear
//!   secrets/key                   what their names are made with, so that these tell nothing
//!   services/<service>.json       what the journal remembers of a service; `.previous.json` is the one before
//!   receipts/<id>.json            what happened, the newest thousand
//!   arrival.json                  what this host said last of a whole commit, where the repo has waves
//!   tags.json                     what it found last that tags stood for, where it says so to others
//!   outbox/<id>.json              receipts that are not in git yet
//!   commit-status.json            what a forge shows of this host
//! ```
//! `store/`, `containers/`, `volumes/` and `logs/` beside them belong to `registry` and `engine`, `git/` to `git`.

pub mod addresses;
pub mod arrival;
pub mod atomic;
pub mod boot;
pub mod clean;
pub mod contents;
pub mod desired;
pub mod journal;
pub mod lock;
pub mod receipts;
mod reserve;
pub mod secrets;
pub mod tagged;
pub mod trust;
pub mod version;

use std::path::{Path, PathBuf};

use crate::types::{Reason, Refusal};

/// The version of the layout that this agent reads and writes.
pub const FORMAT: u32 = 1;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The content is not what this agent writes.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// Written by a newer agent: not touched.
    #[error("{} is of format {found}, and this agent knows formats up to {FORMAT}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another agent has it.
    #[error("{} is held by another agent{}", path.display(), holder.map(|pid| format!(" with pid {pid}")).unwrap_or_default())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who, if it can be told.
        holder: Option<u32>,
    },
}

impl StateError {
    /// An I/O error on a path.
    pub fn io(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }

    /// The stable code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io { source, .. } if atomic::is_full(source) => Reason::DiskSpace,
            Self::Io { .. } => Reason::StorageIo,
            Self::Damaged { .. } | Self::Newer { .. } | Self::Locked { .. } => Reason::StateInvalid,
        }
    }

    /// The whole chain on one line.
    pub fn to_refusal(&self) -> Refusal {
        let message = match self {
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        };
        Refusal::new(self.reason(), message)
    }
}

/// The state directory, held: only its holder may write below it.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: lock::HostLock,
}

impl StateDir {
    /// Takes the directory, making it (mode 0700) when it is not there.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        atomic::make_dir(root)?;
        let lock = lock::HostLock::take(&root.join("lock"))?;
        let format = root.join("FORMAT");
        match std::fs::read_to_string(&format) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(found) if found > FORMAT => return Err(StateError::Newer { path: format, found }),
                Ok(_) => {}
                // A torn FORMAT of a first start: what lies beside it has checksums of its own.
                Err(_) => atomic::write_plain(&format, format!("{FORMAT}\n").as_bytes())?,
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                atomic::write_plain(&format, format!("{FORMAT}\n").as_bytes())?;
            }
            Err(error) => return Err(StateError::io("reading", &format, error)),
        }
        for folder in ["services", "receipts", "outbox"] {
            atomic::make_dir(&root.join(folder))?;
        }
        reserve::refill(root);
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Sets the reserve aside again once there is room: a full disk takes it for the records of that time.
    pub fn refill_reserve(&self) {
        reserve::refill(&self.root);
    }

    /// Why nothing can be written here now, as far as that can be told without writing.
    pub fn fault(&self) -> Option<Refusal> {
        let folders = [self.root.clone(), self.root.join("services"), self.root.join("receipts")];
        let denied = folders.iter().find_map(|folder| {
            let denied = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).err()?;
            Some(StateError::io("writing below", folder, denied.into()).to_refusal())
        });
        denied.or_else(|| reserve::shortage(&self.root))
    }

    /// Whether something can be written, by writing it.
    pub fn try_write(&self) -> Result<(), StateError> {
        let path = self.root.join("try");
        atomic::write_plain(&path, b"")?;
        atomic::remove(&path)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
