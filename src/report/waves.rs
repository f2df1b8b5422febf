//! How the hosts of waves stand to a commit, by what they said in git: for those that wait, and for those who look on.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::config::agent::HostIdentity;
use crate::config::repo::{self, RepoFiles};
use crate::config::without_agent;
use crate::git::Evidence;
use crate::reconcile::arrival::Arrival;
use crate::reconcile::waves::{Member, Stand};
use crate::types::{CommitId, Declared, HostName, Reason, Refusal, ServiceName, Timestamp, Wave, place};

/// What a commit changes on which hosts, compared with another: worked out once a host.
#[derive(Debug, Default)]
pub struct Concerns {
    of: Option<(Option<CommitId>, CommitId)>,
    known: BTreeMap<(HostName, Vec<String>), bool>,
}

/// A commit and what it holds.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// Which.
    pub commit: &'a CommitId,
    /// Its files.
    pub files: &'a RepoFiles,
}

impl Concerns {
    /// Whether `next` wants something else of a host than `now` does; without a `now`, whether it wants anything.
    pub fn concerns(
        &mut self,
        host: &HostName,
        labels: &[String],
        now: Option<At<'_>>,
        next: At<'_>,
    ) -> bool {
        let of = (now.map(|now| now.commit.clone()), next.commit.clone());
        if self.of.as_ref() != Some(&of) {
            (self.of, self.known) = (Some(of), BTreeMap::new());
        }
        let key = (host.clone(), labels.to_vec());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let wanted = declared(next.files, host, labels);
        let concerned = match now {
            Some(now) => declared(now.files, host, labels) != wanted,
            None => !wanted.is_empty(),
        };
        self.known.insert(key, concerned);
        concerned
    }

    /// The hosts of the waves of `next`, as they stand to it: those that said something, that have a file of their own,
    /// or that a wave names in full. `now` is what the host runs that asks: where nothing differs for a host, its word
    /// does not count.
    pub fn members(
        &mut self,
        now: Option<At<'_>>,
        next: At<'_>,
        waves: &[Wave],
        said: &[Evidence],
    ) -> Vec<Member> {
        let mut hosts: BTreeSet<HostName> = repo::hosts(next.files);
        hosts.extend(waves.iter().flat_map(Wave::named));
        hosts.extend(said.iter().map(|evidence| evidence.host.clone()));
        let mut members = Vec::new();
        for host in hosts {
            let word = said.iter().find(|evidence| evidence.host == host);
            let own = word.map_or(&[][..], Evidence::labels);
            let mut labels = own.to_vec();
            labels.extend(repo::labels(next.files, &host));
            let wave = place(waves, &host, &labels);
            if wave == waves.len() {
                continue;
            }
            let stand = match self.concerns(&host, own, now, next) {
                true => stand(word),
                false => Stand::Unconcerned,
            };
            members.push(Member { host, wave, stand });
        }
        members
    }
}

fn stand(word: Option<&Evidence>) -> Stand {
    let on = word.and_then(|word| word.on.as_ref());
    let before = word.and_then(|word| word.before.as_ref());
    match (on, before) {
        (Some(on), _) => on.trouble().map_or(Stand::Healthy(on.since), Stand::Failed),
        (None, Some(before)) => Stand::Waiting(match before.trouble() {
            Some(_) => format!("failed at {}, and has said nothing since", before.commit.short()),
            None => format!("is at {}", before.commit.short()),
        }),
        (None, None) => Stand::Waiting("has never said how it is".to_owned()),
    }
}

/// What a commit wants of a host, as far as others can tell.
fn declared(
    files: &RepoFiles,
    host: &HostName,
    labels: &[String],
) -> BTreeMap<ServiceName, Result<Declared, Refusal>> {
    let (_, policy) = without_agent();
    let identity = HostIdentity { name: host.clone(), labels: labels.to_vec() };
    repo::read(files, &identity, &policy).services
}

/// One wave, for people.
#[derive(Debug, Serialize)]
pub struct WaveInFleet {
    /// Counted from 1.
    pub wave: usize,
    /// Its hosts.
    pub hosts: Vec<HostInWave>,
}

/// One host of a wave.
#[derive(Debug, Serialize)]
pub struct HostInWave {
    /// Its name.
    pub host: HostName,
    /// `healthy`, `failed`, `waiting`, or `unconcerned`.
    pub state: &'static str,
    /// Since when it is well.
    pub since: Option<Timestamp>,
    /// Why it is not.
    pub reason: Option<Reason>,
    /// The same for people, or what is known of one that has not said.
    pub message: Option<String>,
}

/// The waves and their hosts, in order.
pub fn shown(waves: &[Wave], members: &[Member]) -> Vec<WaveInFleet> {
    let one = |member: &Member| {
        let (state, since, reason, message) = match &member.stand {
            Stand::Unconcerned => ("unconcerned", None, None, None),
            Stand::Healthy(since) => ("healthy", Some(*since), None, None),
            Stand::Failed(refusal) => ("failed", None, Some(refusal.reason), Some(refusal.message.clone())),
            Stand::Waiting(why) => ("waiting", None, None, Some(why.clone())),
        };
        HostInWave { host: member.host.clone(), state, since, reason, message }
    };
    let of = |number| members.iter().filter(move |member| member.wave == number).map(one).collect();
    (0..waves.len()).map(|number| WaveInFleet { wave: number + 1, hosts: of(number) }).collect()
}

/// The last word of a host, of all that it said.
pub fn last(arrivals: &[Arrival]) -> Option<&Arrival> {
    arrivals.iter().max_by_key(|arrival| arrival.since)
}
