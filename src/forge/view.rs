//! What a forge is to show, worked out from the agent's status. Pure.

use serde::{Deserialize, Serialize};

use crate::report::status::{AgentState, ServiceState, ServiceStatus, Status};
use crate::types::{CommitId, Reason, plural};

/// Longest description, in characters: GitHub's limit, the shortest of all (docs.github.com, REST API, "Commit statuses").
const LONGEST: usize = 140;

/// What became of a commit on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is on its way.
    Pending,
    /// Everything runs as it wants.
    Success,
    /// Something does not.
    Failure,
    /// A newer commit came first.
    Superseded,
}

/// What is to be shown at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitStatus {
    /// Where.
    pub commit: CommitId,
    /// In a word.
    pub verdict: Verdict,
    /// What the verdict is about, where it is not about all: `web unhealthy`. A change of it is news.
    pub about: String,
    /// For people.
    pub description: String,
}

/// What was shown last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// Where.
    pub commit: CommitId,
    /// In a word.
    pub verdict: Verdict,
    /// What it was about.
    pub about: String,
    /// How many times something was shown at this commit: forges take so many and no more.
    pub count: u32,
}

impl Shown {
    /// What is remembered once `status` is shown.
    pub fn after(former: Option<&Self>, status: &CommitStatus) -> Self {
        let before = former.filter(|former| former.commit == status.commit).map_or(0, |former| former.count);
        Self {
            commit: status.commit.clone(),
            verdict: status.verdict,
            about: status.about.clone(),
            count: before.saturating_add(1),
        }
    }
}

/// What a status says about its commit; `None` where there is no commit yet, or it has not been looked at.
pub fn of(status: &Status) -> Option<CommitStatus> {
    let revision = status.revision.as_ref()?;
    if status.agent.state == AgentState::Starting {
        return None;
    }
    let with = |verdict, about: String, description: &str| CommitStatus {
        commit: revision.commit.clone(),
        verdict,
        about,
        description: description
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(LONGEST)
            .collect(),
    };
    let first =
        |wanted: &dyn Fn(&ServiceStatus) -> bool| status.services.iter().find(|service| wanted(service));
    // What waits for a window, for another service or for an operator is not lost.
    let waits = |service: &ServiceStatus| {
        matches!(
            service.reason,
            Some(Reason::Window | Reason::Dependency | Reason::VolumeInUse | Reason::Held)
        )
    };
    let failed = |service: &ServiceStatus| {
        let stands = matches!(service.state, ServiceState::Failed | ServiceState::Running);
        stands && service.reason.is_some() && !waits(service)
    };
    if let Some(service) = first(&failed) {
        let reason = service.reason.map(|reason| reason.to_string()).unwrap_or_default();
        let message = service.message.as_deref().unwrap_or("it is not as wanted");
        let text = format!("{}: {message} ({reason})", service.name);
        return Some(with(Verdict::Failure, format!("{} {reason}", service.name), &text));
    }
    if let Some(service) = first(&|service| service.state == ServiceState::Deploying) {
        let image = service.rollout.as_ref().map(|rollout| rollout.image.to_string()).unwrap_or_default();
        return Some(with(
            Verdict::Pending,
            String::new(),
            &format!("{}: {image} is on its way", service.name),
        ));
    }
    if let Some(service) = first(&|service| service.state == ServiceState::Held) {
        let text = format!("{} is held by an operator", service.name);
        return Some(with(Verdict::Pending, format!("{} held", service.name), &text));
    }
    if let Some(service) = first(&waits) {
        let message = service.message.as_deref().unwrap_or("it waits");
        return Some(with(
            Verdict::Pending,
            format!("{} waits", service.name),
            &format!("{}: {message}", service.name),
        ));
    }
    let all_run = status.services.iter().all(|service| service.state == ServiceState::Running);
    // A repo that cannot be reached, or a head that is not believed, says nothing against what runs.
    // Nor does a head that waits for other hosts: this is about the commit in force.
    let newer_waits = status.repo.reason == Some(Reason::Wave);
    let done = status.agent.state == AgentState::InSync
        || (all_run && (status.agent.state != AgentState::Progressing || newer_waits));
    let count = status.services.len();
    Some(match (done, count) {
        (true, 0) => with(Verdict::Success, String::new(), "nothing of it is for this host"),
        (true, _) => {
            let text = plural(count, "service is as wanted", "services are as wanted");
            with(Verdict::Success, String::new(), &text)
        }
        (false, _) => with(Verdict::Pending, String::new(), "on its way"),
    })
}

/// What is to be shown next, after what was shown last; `None`: nothing new. A commit that was on its way when another
/// one came is brought to its end first.
pub fn next(shown: Option<&Shown>, wanted: &CommitStatus) -> Option<CommitStatus> {
    match shown {
        Some(shown) if shown.commit != wanted.commit && shown.verdict == Verdict::Pending => {
            Some(CommitStatus {
                commit: shown.commit.clone(),
                verdict: Verdict::Superseded,
                about: String::new(),
                description: format!("commit {} came before it was done", wanted.commit.short()),
            })
        }
        Some(shown)
            if shown.commit == wanted.commit
                && shown.verdict == wanted.verdict
                && shown.about == wanted.about =>
        {
            None
        }
        _ => Some(wanted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(agent: &str, services: &str) -> Status {
        let commit = "a".repeat(40);
        let text = format!(
            r#"{{"host": "web-1", "agent": {{"version": "0", "pid": 1, "state": "{agent}", "reason": null, "message": null}},
            "repo": {{"url": "/x", "branch": "main", "reached_at": null, "reason": null, "message": null}},
            "revision": {{"commit": "{commit}", "subject": "s", "author": "a", "committed_at": "2026-01-01T00:00:00Z",
              "fetched_at": null, "verified": false}}, "services": [{services}], "outbox": 0}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn service(name: &str, state: &str, reason: &str) -> String {
        format!(
            r#"{{"name": "{name}", "state": "{state}", "image": null, "digest": null, "generation": null, "color": null,
            "commit": null, "author": null, "since": null, "container": null, "ip": null, "ports": [], "health": null,
            "restarts": 0, "rollout": null, "doing": null, "reason": {reason}, "message": {reason}, "retry_at": null}}"#
        )
    }

    fn verdict(agent: &str, services: &[String]) -> (Verdict, String) {
        let shown = of(&status(agent, &services.join(","))).unwrap();
        (shown.verdict, shown.description)
    }

    #[test]
    fn the_verdict_is_that_of_the_services() {
        let (good, away) = (service("a", "running", "null"), service("a", "deploying", "null"));
        let bad = service("b", "failed", "\"unhealthy\"");
        assert_eq!(verdict("in-sync", &[]), (Verdict::Success, "nothing of it is for this host".to_owned()));
        assert_eq!(verdict("in-sync", std::slice::from_ref(&good)).0, Verdict::Success);
        assert_eq!(verdict("stale", std::slice::from_ref(&good)).0, Verdict::Success, "the repo is away");
        assert_eq!(
            verdict("progressing", std::slice::from_ref(&good)).0,
            Verdict::Pending,
            "a tag is looked up"
        );
        assert_eq!(verdict("progressing", &[away.clone(), good]).0, Verdict::Pending);
        assert_eq!(verdict("degraded", &[service("a", "held", "null")]).0, Verdict::Pending);
        assert_eq!(verdict("degraded", &[service("a", "failed", "\"window\"")]).0, Verdict::Pending);
        let (failed, text) = verdict("progressing", &[away, bad]);
        assert_eq!((failed, text.as_str()), (Verdict::Failure, "b: unhealthy (unhealthy)"));
        assert_eq!(verdict("degraded", &[service("a", "running", "\"unhealthy\"")]).0, Verdict::Failure);
        assert_eq!(of(&status("starting", "")), None);
    }

    #[test]
    fn only_news_is_shown_and_every_commit_comes_to_its_end() {
        let status = |commit: char, verdict, about: &str| CommitStatus {
            commit: commit.to_string().repeat(40).parse().unwrap(),
            verdict,
            about: about.to_owned(),
            description: String::new(),
        };
        let mut shown: Option<Shown> = None;
        let mut said = Vec::new();
        for wanted in [
            status('a', Verdict::Pending, ""),
            status('a', Verdict::Pending, ""),
            status('a', Verdict::Success, ""),
            status('a', Verdict::Failure, "web unhealthy"),
            status('a', Verdict::Failure, "db exited"),
            status('b', Verdict::Pending, ""),
            status('c', Verdict::Pending, ""),
            status('c', Verdict::Success, ""),
        ] {
            while let Some(next) = next(shown.as_ref(), &wanted) {
                said.push((next.commit.as_str()[..1].to_owned(), next.verdict));
                shown = Some(Shown::after(shown.as_ref(), &next));
            }
        }
        let expected = [
            ("a", Verdict::Pending),
            ("a", Verdict::Success),
            ("a", Verdict::Failure),
            ("a", Verdict::Failure),
            ("b", Verdict::Pending),
            ("b", Verdict::Superseded),
            ("c", Verdict::Pending),
            ("c", Verdict::Success),
        ];
        assert_eq!(said, expected.map(|(commit, verdict)| (commit.to_owned(), verdict)));
        assert_eq!(shown.unwrap().count, 2);
    }
}
