//! Whether the repo still gives the sign of life that it promises (`repo.max_age`): a server, or somebody between, that shows
//! the same commit for ever looks just like a repo in which nobody commits. Nothing that runs is touched by it.

use std::time::Duration;

use super::Agent;
use crate::reconcile::later;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::{CommitInfo, Reason, Refusal, Timestamp, format_duration};

impl Agent {
    /// After a look that has reached the repo: says once that its newest commit has become too old.
    pub(super) fn judge_age(&mut self, now: Timestamp) {
        // There may be a newer one, which could not be taken over.
        if self.source.refusal.is_some() {
            return;
        }
        let waits = self.source.waits.as_ref().map(|waits| &waits.commit);
        let Some(head) = waits.or(self.desired.as_ref().map(|desired| &desired.commit)) else { return };
        let old = too_old(self.config.repo.trust.max_age, head, now);
        if let Some(refusal) = old.as_ref().filter(|_| self.source.old.is_none()) {
            let text = format!("{}; everything stays as it is", refusal.message);
            self.tell(Some(Message::new(Kind::SourceOld, text).because(refusal).at(&head.id)));
        }
        self.source.old = old;
    }
}

fn too_old(most: Option<Duration>, head: &CommitInfo, now: Timestamp) -> Option<Refusal> {
    let most = most.filter(|most| now > later(head.committed_at, *most))?;
    let message = format!(
        "the newest commit, {}, is of {:.0}, and repo.max_age is {}: nobody has committed since, or an old state of the \
         repo is shown",
        head.id.short(),
        head.committed_at,
        format_duration(most)
    );
    Some(Refusal::new(Reason::RepoOld, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_too_old_after_its_time() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let head = CommitInfo {
            id: "a".repeat(40).parse().unwrap(),
            subject: String::new(),
            author: String::new(),
            committed_at: at(0),
        };
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(too_old(None, &head, at(1_000_000)), None);
        assert_eq!(too_old(hour, &head, at(-10)), None, "a clock that is behind");
        assert_eq!(too_old(hour, &head, at(3600)), None);
        let refusal = too_old(hour, &head, at(3601)).unwrap();
        assert!(refusal.message.contains("repo.max_age is 1h"), "{refusal}");
        // It is the same as long as the commit is: told once, and no change of the status.
        assert_eq!(too_old(hour, &head, at(9999)), Some(refusal));
    }
}
