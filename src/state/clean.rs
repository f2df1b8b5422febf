//! Whether the last boot ended in order: after one that did not, what was written last is looked at again.

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic, boot};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Boot {
    boot_id: String,
    /// The agent ended in order in it.
    clean: bool,
}

impl StateDir {
    /// Notes that an agent is at work in this boot. Whether another boot ended without a word of the agent: by a power
    /// cut or a crash of the kernel.
    pub fn begin_boot(&self) -> Result<bool, StateError> {
        let path = self.root().join("boot.json");
        let now = Boot { boot_id: boot::boot_id(), clean: false };
        let former = match atomic::read::<Boot>(&path) {
            // A file that a crash has damaged is a sign of one.
            Err(StateError::Damaged { .. }) => Some(Boot { boot_id: String::new(), clean: false }),
            former => former?,
        };
        let unclean = former.as_ref().is_some_and(|former| former.boot_id != now.boot_id && !former.clean);
        if former.is_none_or(|former| former.boot_id != now.boot_id || former.clean) {
            atomic::write(&path, &now)?;
        }
        Ok(unclean)
    }

    /// Notes that the agent ends in order.
    pub fn end_boot(&self) -> Result<(), StateError> {
        let now = Boot { boot_id: boot::boot_id(), clean: true };
        atomic::write(&self.root().join("boot.json"), &now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_without_an_end_is_unclean() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let path = dir.path().join("boot.json");
        assert!(!state.begin_boot().unwrap(), "the first one");
        assert!(!state.begin_boot().unwrap(), "killed and started again");
        state.end_boot().unwrap();
        assert!(!state.begin_boot().unwrap(), "after an orderly end");
        let other = |clean| atomic::write(&path, &Boot { boot_id: "other".to_owned(), clean }).unwrap();
        other(true);
        assert!(!state.begin_boot().unwrap());
        other(false);
        assert!(state.begin_boot().unwrap());
        assert!(!state.begin_boot().unwrap(), "said once");
        for name in ["boot.json", "boot.previous.json"] {
            std::fs::write(dir.path().join(name), b"\0\0").unwrap();
        }
        assert!(state.begin_boot().unwrap(), "as a power cut leaves it");
    }
}
