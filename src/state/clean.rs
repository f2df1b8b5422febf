//! Whether the last boot ended in order: after one that did not, what was written last is looked at again.

use serde::{Deserialize, Serialize};

use super::{StateDir, StateError, atomic, boot};

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Boot {
    boot_id: String,
    /// The agent ended in order in it.
    clean: bool,
    /// How often an agent of the next one has begun to look at what this one left.
    #[serde(default)]
    looks: u32,
}

/// What came before this start of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Another agent in this boot, or none ever.
    SameBoot,
    /// Another boot, which ended in order.
    OrderlyBoot,
    /// Another boot, which ended without a word of the agent: by a power cut or a crash of the kernel.
    BrokenBoot,
}

impl StateDir {
    /// What came before this start of the agent. It stays so until [`Self::begin_boot`]: an agent that ends before that
    /// leaves what is to be done about it to the next one.
    pub fn before_boot(&self) -> Result<Before, StateError> {
        let now = boot::boot_id();
        Ok(match self.former_boot()? {
            Some(former) if former.boot_id != now && former.clean => Before::OrderlyBoot,
            Some(former) if former.boot_id != now => Before::BrokenBoot,
            _ => Before::SameBoot,
        })
    }

    /// Notes that what the former boot left is about to be looked at. Gives how often that was begun: where the look itself
    /// ends the agent, it must not do so for ever.
    pub fn begin_look(&self) -> Result<u32, StateError> {
        let mut boot = self.former_boot()?.unwrap_or_default();
        boot.looks = boot.looks.saturating_add(1);
        atomic::write(&self.root().join("boot.json"), &boot)?;
        Ok(boot.looks)
    }

    /// Notes that an agent is at work in this boot, and has done what was to be done about what came before.
    pub fn begin_boot(&self) -> Result<(), StateError> {
        let now = Boot { boot_id: boot::boot_id(), ..Boot::default() };
        if self.former_boot()?.is_none_or(|former| former.boot_id != now.boot_id || former.clean) {
            atomic::write(&self.root().join("boot.json"), &now)?;
        }
        Ok(())
    }

    fn former_boot(&self) -> Result<Option<Boot>, StateError> {
        match atomic::read::<Boot>(&self.root().join("boot.json")) {
            // A file that a crash has damaged is a sign of one.
            Err(StateError::Damaged { .. }) => Ok(Some(Boot::default())),
            former => former,
        }
    }

    /// Notes that the agent ends in order.
    pub fn end_boot(&self) -> Result<(), StateError> {
        let now = Boot { boot_id: boot::boot_id(), clean: true, looks: 0 };
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
        let begin = || {
            let before = state.before_boot().unwrap();
            state.begin_boot().unwrap();
            before
        };
        assert_eq!(begin(), Before::SameBoot, "the first one");
        assert_eq!(begin(), Before::SameBoot, "killed and started again");
        state.end_boot().unwrap();
        assert_eq!(begin(), Before::SameBoot, "after an orderly end");
        let other =
            |clean| atomic::write(&path, &Boot { boot_id: "other".to_owned(), clean, looks: 0 }).unwrap();
        other(true);
        assert_eq!(begin(), Before::OrderlyBoot);
        other(false);
        assert_eq!(state.before_boot().unwrap(), Before::BrokenBoot);
        assert_eq!([state.begin_look().unwrap(), state.begin_look().unwrap()], [1, 2]);
        assert_eq!(state.before_boot().unwrap(), Before::BrokenBoot, "begun, and not done");
        assert_eq!(begin(), Before::BrokenBoot, "until it is acted on");
        assert_eq!(begin(), Before::SameBoot, "said once");
        other(false);
        assert_eq!(state.begin_look().unwrap(), 1, "another one");
        for name in ["boot.json", "boot.previous.json"] {
            std::fs::write(dir.path().join(name), b"\0\0").unwrap();
        }
        assert_eq!(begin(), Before::BrokenBoot, "as a power cut leaves it");
    }
}
