//! The secrets of the host that services ask for: what the repo declares, with the contents that the host has for it now.
//!
//! The repo says which secret goes where, the host's own configuration which file that is. So a spec is whole only here,
//! each round anew: another content is another spec, and a new generation by the same comparison as every other key.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::changes;
use super::record::Spec;
use super::world::{Desired, DesiredService};
use crate::types::{Reason, Refusal, SecretContent, ServiceSpec};

/// Most bytes of all secrets of one service: as of its config files.
const MAX_BYTES: u64 = 4 << 20;

/// The secrets that the host's configuration names and somebody asks for: the content of each, or why it cannot be had.
pub type HostSecrets = BTreeMap<String, Result<SecretContent, Refusal>>;

/// The names that are asked for.
pub fn asked(desired: Option<&Desired>) -> BTreeSet<&str> {
    let services = desired.into_iter().flat_map(|desired| desired.services.values());
    let specs = services.filter_map(|service| match service {
        DesiredService::Run(spec) => Some(spec),
        DesiredService::Resolving | DesiredService::Refused { .. } => None,
    });
    specs.flat_map(|spec| spec.secrets.iter().map(|secret| secret.source.as_str())).collect()
}

/// Puts the contents that the host has into a spec.
///
/// # Errors
/// The host does not grant one of them, or it cannot be had, or all together are too large.
pub fn settle<I>(spec: &mut ServiceSpec<I>, host: &HostSecrets) -> Result<(), Refusal> {
    let mut total = 0u64;
    for secret in &mut spec.secrets {
        let name = &secret.source;
        let content = host.get(name).ok_or_else(|| {
            let message = format!(
                "secret `{name}`: [secrets] of the host's configuration does not name it; it says which file that is: {name} = \"/etc/gitopsd/secrets/{name}\""
            );
            Refusal::new(Reason::Policy, message)
        })?;
        let content = content.as_ref().map_err(Clone::clone)?;
        total = total.saturating_add(content.size);
        secret.content = Some(content.clone());
    }
    if total > MAX_BYTES {
        let message = format!("its secrets are {total} bytes together; all of a service have up to 4 MiB");
        return Err(Refusal::new(Reason::Secret, message));
    }
    Ok(())
}

/// What is wanted, with the contents that the host has; a service whose secrets cannot be had is refused.
pub fn settled<'a>(desired: &'a Desired, host: &HostSecrets) -> Cow<'a, Desired> {
    let mut settled = Cow::Borrowed(desired);
    for (name, service) in &desired.services {
        let DesiredService::Run(spec) = service else { continue };
        if spec.secrets.is_empty() {
            continue;
        }
        let mut spec = spec.clone();
        let service = match settle(&mut spec, host) {
            Ok(()) => DesiredService::Run(spec),
            Err(refusal) => DesiredService::Refused { refusal, retry_at: None },
        };
        settled.to_mut().services.insert(name.clone(), service);
    }
    settled
}

/// Why a candidate is given up before it has traffic: the host has another content of its secrets by now.
pub(super) fn outdated(candidate: &Spec, wanted: Option<&DesiredService>) -> Option<Refusal> {
    let Some(DesiredService::Run(wanted)) = wanted else { return None };
    let changed = changes::of_the_host(candidate, wanted)?;
    Some(Refusal::new(Reason::Superseded, format!("{changed} before it was switched to")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reconcile::record::{Cause, Failure, ServiceRecord};
    use crate::reconcile::step::{Next, Step};
    use crate::reconcile::transition::Addresses;
    use crate::reconcile::world::Observed;
    use crate::reconcile::{plan, transition};
    use crate::types::{CommitInfo, Generation, PinnedImage, Policy, SecretFile, ServiceName, Timestamp};

    fn content(digit: &str, size: u64) -> SecretContent {
        SecretContent { keyed: format!("sha256:{}", digit.repeat(64)).parse().unwrap(), size }
    }

    fn secret(name: &str) -> SecretFile {
        let target = format!("/run/secrets/{name}").into();
        SecretFile { source: name.to_owned(), target, content: None, uid: None, gid: None, mode: 0o444 }
    }

    fn spec(names: &[&str]) -> Spec {
        let mut spec = Spec::new(PinnedImage {
            reference: "r.io/shop:1".parse().unwrap(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
        });
        spec.secrets = names.iter().map(|name| secret(name)).collect();
        spec
    }

    fn desired(services: &[(&str, Spec)]) -> Desired {
        let run = |(name, spec): &(&str, Spec)| {
            (name.parse().unwrap(), DesiredService::Run(Box::new(spec.clone())))
        };
        Desired {
            commit: CommitInfo {
                id: "c".repeat(40).parse().unwrap(),
                subject: String::new(),
                author: String::new(),
                committed_at: Timestamp::UNIX_EPOCH,
            },
            declared_in_repo: services.len(),
            ports: BTreeMap::new(),
            services: services.iter().map(run).collect(),
            removed: BTreeSet::new(),
            window_waived: false,
        }
    }

    fn host(entries: &[(&str, Result<SecretContent, Refusal>)]) -> HostSecrets {
        entries.iter().map(|(name, known)| ((*name).to_owned(), known.clone())).collect()
    }

    fn next(host: HostSecrets, desired: &Desired, record: Option<ServiceRecord>, name: &str) -> Next {
        let name: ServiceName = name.parse().unwrap();
        let records: BTreeMap<_, _> = record.into_iter().map(|record| (name.clone(), record)).collect();
        let seen = Observed { secrets: host, ..Observed::default() };
        let plan = plan(Some(desired), &seen, &records, &Policy::default(), Timestamp::UNIX_EPOCH);
        plan.services[&name].next.clone()
    }

    #[test]
    fn who_asks_for_what_cannot_be_had_is_refused_and_nobody_else() {
        let gone = Refusal::new(Reason::Secret, "secret `gone`: /s/gone is not there");
        let wanted = desired(&[("a", spec(&["ok"])), ("b", spec(&["ok", "gone"])), ("c", spec(&["other"]))]);
        assert_eq!(asked(Some(&wanted)), BTreeSet::from(["gone", "ok", "other"]));
        let host = host(&[("ok", Ok(content("1", 9))), ("gone", Err(gone.clone()))]);
        match next(host.clone(), &wanted, None, "a") {
            Next::Do(Step::Begin { spec, .. }) => {
                assert_eq!(spec.secrets[0].content, Some(content("1", 9)), "it begins with what the host has")
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(next(host.clone(), &wanted, None, "b"), Next::Held { refusal, .. } if refusal == gone)
        );
        match next(host, &wanted, None, "c") {
            Next::Held { refusal, .. } => {
                assert_eq!(refusal.reason, Reason::Policy);
                assert!(refusal.message.contains("[secrets]") && refusal.message.contains("other = "));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_of_a_service_have_a_limit() {
        let half = MAX_BYTES / 2;
        let mut fits = spec(&["a", "b"]);
        assert!(
            settle(&mut fits, &host(&[("a", Ok(content("1", half))), ("b", Ok(content("2", half)))])).is_ok()
        );
        let host = host(&[("a", Ok(content("1", half))), ("b", Ok(content("2", half + 1)))]);
        let refusal = settle(&mut spec(&["a", "b"]), &host).unwrap_err();
        assert!(refusal.reason == Reason::Secret && refusal.message.contains("4194305 bytes"), "{refusal}");
    }

    #[test]
    fn what_asks_for_none_is_taken_as_it_is() {
        let plain = desired(&[("a", spec(&[]))]);
        assert!(matches!(settled(&plain, &HostSecrets::new()), Cow::Borrowed(_)));
    }

    #[test]
    fn another_content_is_said_by_its_name_and_nothing_of_it() {
        let with = |first, second| {
            let mut spec = spec(&["db-password", "token"]);
            let host = host(&[("db-password", Ok(content(first, 8))), ("token", Ok(content(second, 8)))]);
            settle(&mut spec, &host).unwrap();
            spec
        };
        let said = |before: &Spec, after: &Spec| changes::summary(&changes::between(before, after));
        assert_eq!(said(&with("1", "2"), &with("1", "2")), "");
        assert_eq!(said(&with("1", "2"), &with("3", "2")), "new generation: secret `db-password` changed");
        assert_eq!(
            said(&with("1", "2"), &with("3", "4")),
            "new generation: secrets `db-password`, `token` changed"
        );
        let mut moved = with("1", "2");
        moved.secrets[0].target = "/etc/password".into();
        assert_eq!(said(&with("1", "2"), &moved), "new generation: secrets");
        assert_eq!(said(&with("1", "2"), &spec(&[])), "new generation: secrets");
        // That alone is no commit's doing.
        let alone = |after: &Spec| changes::of_the_host(&with("1", "2"), after);
        assert_eq!(alone(&with("1", "3")).unwrap(), "secret `token` changed");
        let mut more = with("1", "3");
        more.command = Some(Vec::new());
        assert_eq!((alone(&more), alone(&moved), alone(&with("1", "2"))), (None, None, None));
    }

    #[test]
    fn a_candidate_with_a_former_content_is_given_up_for_the_next_one() {
        let wanted = desired(&[("a", spec(&["password"]))]);
        let with = |digit| host(&[("password", Ok(content(digit, 3)))]);
        let mut first = spec(&["password"]);
        settle(&mut first, &with("1")).unwrap();
        let begin = Step::Begin {
            generation: Generation(1),
            spec: first.into(),
            commit: wanted.commit.clone().into(),
            cause: Cause::Commit,
        };
        let (service, generation) = ([10, 98, 192, 1].into(), [10, 98, 0, 2].into());
        let addresses = Addresses { service, generation, joined: None };
        let record = transition::begin(None, &begin, addresses, Timestamp::UNIX_EPOCH);
        let next = |digit| next(with(digit), &wanted, record.clone(), "a");
        assert!(matches!(next("1"), Next::Do(Step::Pull(_))), "{:?}", next("1"));
        match next("2") {
            Next::Do(Step::Fail(refusal)) => {
                assert_eq!(refusal.reason, Reason::Superseded);
                assert_eq!(refusal.message, "secret `password` changed before it was switched to");
            }
            other => panic!("{other:?}"),
        }
    }

    /// One attempt a commit, and a content of secrets: a correct password is as good as a commit.
    #[test]
    fn what_failed_with_one_content_is_tried_with_another() {
        let wanted = desired(&[("a", spec(&["password"]))]);
        let mut failed = spec(&["password"]);
        settle(&mut failed, &host(&[("password", Ok(content("1", 3)))])).unwrap();
        let mut record = ServiceRecord::new([10, 98, 192, 1].into());
        record.last_generation = Generation(1);
        record.failure = Some(Failure {
            commit: wanted.commit.clone(),
            generation: Generation(1),
            refusal: Refusal::new(Reason::Exited, "generation 1 exited"),
            at: Timestamp::UNIX_EPOCH,
            secrets: failed.secrets,
        });
        let with = |digit| {
            let host = host(&[("password", Ok(content(digit, 3)))]);
            next(host, &wanted, Some(record.clone()), "a")
        };
        assert!(matches!(with("1"), Next::Held { refusal, .. } if refusal.reason == Reason::Exited));
        assert!(matches!(with("2"), Next::Do(Step::Begin { .. })));
    }
}
