//! Which users of the host the users of a container are, where it has a user namespace: 65536 numbers for each container
//! out of the host's range, no two with the same ones. They stay for as long as the container's writable layer does,
//! which holds files of these users.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, PoisonError};

use super::layout::Layout;
use crate::engine::EngineError;
use crate::state::atomic;
use crate::types::{InstanceId, Reason};

/// Users of one container: as many as names of users in images have numbers.
pub(super) const EACH: u32 = 65536;

/// The host's number of a user or group of a container whose root is `first`.
pub(super) fn outside(first: u32, id: u32) -> u32 {
    first.saturating_add(id.min(EACH - 1))
}

/// Hands them out.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// First number and count.
    range: Option<(u32, u32)>,
    /// Two containers that start at once do not take the same ones.
    one_at_a_time: Mutex<()>,
}

impl Ids {
    pub fn new(range: Option<(u32, u32)>) -> Self {
        Self { range, one_at_a_time: Mutex::default() }
    }

    /// The host's number of the container's root: what it had before, else the first that is free, written down.
    pub fn of(&self, layout: &Layout, id: &InstanceId) -> Result<u32, EngineError> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let path = layout.ids(id);
        let failed = |error| EngineError::new(Reason::StorageIo, format!("{id}: its users' numbers"), error);
        if let Some(first) = atomic::read_one::<u32>(&path).map_err(failed)? {
            return Ok(first);
        }
        let refuse =
            |why: &str| EngineError::plain(Reason::StartFailed, format!("{id}: `userns_mode`: {why}"));
        let (first, count) = self.range.ok_or_else(|| {
            refuse("this host has no numbers for users of containers: `engine.subuids` in its configuration")
        })?;
        let taken = taken(layout).map_err(failed)?;
        let mut slots = (0..count / EACH).filter_map(|slot| first.checked_add(slot.checked_mul(EACH)?));
        let free = slots.find(|slot| !taken.iter().any(|other| slot.abs_diff(*other) < EACH));
        let free =
            free.ok_or_else(|| refuse("all numbers of `engine.subuids` are taken by other containers"))?;
        atomic::write(&path, &free).map_err(failed)?;
        Ok(free)
    }
}

fn taken(layout: &Layout) -> Result<BTreeSet<u32>, crate::state::StateError> {
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(layout.states()).into_iter().flatten().flatten() {
        taken.extend(atomic::read_one::<u32>(&entry.path().join("ids.json"))?);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            Layout { state_dir: dir.path().into(), run_dir: dir.path().into(), instance: "gitopsd".into() };
        let ids = Ids::new(Some((100_000, 3 * EACH - 1)));
        let of = |name: &str| {
            let id: InstanceId = name.parse().unwrap();
            fs::create_dir_all(layout.state(&id)).unwrap();
            ids.of(&layout, &id)
        };
        assert_eq!(of("a.1").unwrap(), 100_000);
        assert_eq!(of("a.2").unwrap(), 100_000 + EACH);
        assert_eq!(of("a.1").unwrap(), 100_000, "it stays");
        assert!(of("a.3").unwrap_err().what.contains("taken"));
        fs::remove_dir_all(layout.state(&"a.1".parse().unwrap())).unwrap();
        assert_eq!(of("a.3").unwrap(), 100_000);
        assert!(Ids::default().of(&layout, &"b.1".parse().unwrap()).unwrap_err().what.contains("subuids"));
    }
}
