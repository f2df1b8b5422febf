//! What a host says of a whole commit once nothing of it is under way there: hosts of later waves go by it.

use serde::{Deserialize, Serialize};

use crate::types::{CommitId, HostName, Reason, Refusal, ServiceName, Timestamp};

/// What came of a commit on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landed {
    /// Every service is as the commit wants it, and well.
    Healthy,
    /// One is not.
    Failed,
}

/// Tells it from a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tag {
    Arrival,
}

/// One host's word on one commit. A later one of the same commit takes the place of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Stable: the same when it is written a second time.
    pub id: String,
    kind: Tag,
    /// Whose word it is.
    pub host: HostName,
    /// On what.
    pub commit: CommitId,
    /// What came of it.
    pub state: Landed,
    /// The first service that is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when, by this host's clock.
    pub since: Timestamp,
    /// What the host calls itself in its own configuration: nobody else knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Arrival {
    /// A host's word; `trouble`: the first service that is not as it should be, and why.
    pub fn new(
        host: &HostName,
        labels: &[String],
        commit: &CommitId,
        trouble: Option<(&ServiceName, &Refusal)>,
        since: Timestamp,
    ) -> Self {
        let state = if trouble.is_some() { Landed::Failed } else { Landed::Healthy };
        Self {
            id: format!("arrival-{}-{:x}", commit.short(), since.as_microsecond()),
            kind: Tag::Arrival,
            host: host.clone(),
            commit: commit.clone(),
            state,
            service: trouble.map(|(service, _)| service.clone()),
            reason: trouble.map(|(_, refusal)| refusal.reason),
            message: trouble.map(|(_, refusal)| refusal.message.clone()),
            since,
            labels: labels.to_vec(),
        }
    }

    /// Whether it says nothing else than another one does.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let said = |it: &Self| (it.commit.clone(), it.state, it.service.clone(), it.reason);
        said(self) == said(other)
    }

    /// Why the host is not well, in a line; `None`: it is.
    pub fn trouble(&self) -> Option<Refusal> {
        let reason = self.reason.unwrap_or(Reason::Internal);
        let message = self.message.clone().unwrap_or_default();
        let message = match &self.service {
            Some(service) => format!("{service}: {message}"),
            None => message,
        };
        (self.state == Landed::Failed).then(|| Refusal::new(reason, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_from_a_receipt_and_back() {
        let commit: CommitId = "a".repeat(40).parse().unwrap();
        let host: HostName = "web-1".parse().unwrap();
        let (service, refusal) = ("shop".parse().unwrap(), Refusal::new(Reason::Unhealthy, "GET /: 500"));
        let since = Timestamp::from_second(1_700_000_000).unwrap();
        let failed = Arrival::new(&host, &["a=b".to_owned()], &commit, Some((&service, &refusal)), since);
        let text = serde_json::to_string(&failed).unwrap();
        assert!(text.contains(r#""kind":"arrival""#), "{text}");
        assert_eq!(serde_json::from_str::<Arrival>(&text).unwrap(), failed);
        assert_eq!(failed.trouble().unwrap().to_string(), "shop: GET /: 500 (unhealthy)");
        let healthy = Arrival::new(&host, &[], &commit, None, since);
        assert!(healthy.trouble().is_none() && !healthy.says_the_same(&failed));
        let text = text.replace("arrival\"", "receipt\"");
        assert!(serde_json::from_str::<Arrival>(&text).is_err());
    }
}
