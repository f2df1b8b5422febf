//! What had traffic at a time, by the receipts of a host.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::reconcile::receipt::Side;
use crate::state::receipts::Receipt;
use crate::types::{CommitId, ServiceName, Timestamp};

/// What a service ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Then {
    /// What had traffic.
    pub serving: Side,
    /// The commit that asked for it; `None`: its receipt is older than those that are kept.
    pub commit: Option<CommitId>,
    /// Since when; `None` as above.
    pub since: Option<Timestamp>,
}

/// Each service that had traffic at `time`; `receipts` are of one host, oldest first.
pub fn at(receipts: &[Receipt], time: Timestamp) -> BTreeMap<ServiceName, Then> {
    let mut then: BTreeMap<ServiceName, Option<Then>> = BTreeMap::new();
    for Receipt { transition, .. } in receipts {
        let name = &transition.service;
        let (side, since) = match transition.switched_at {
            // Under way, and it had the traffic.
            Some(switched) if switched <= time && time < transition.finished_at => {
                (transition.to.as_ref(), switched)
            }
            _ if transition.finished_at <= time => {
                (transition.serving(), transition.switched_at.unwrap_or(transition.finished_at))
            }
            // All of it came later. What it began with is what was there, where nothing earlier says so.
            _ => {
                then.entry(name.clone()).or_insert_with(|| {
                    let serving = transition.from.clone()?;
                    Some(Then { serving, commit: None, since: None })
                });
                continue;
            }
        };
        let goes_on = |known: &Then, side: &Side| known.serving.generation == side.generation;
        let known = then.remove(name).flatten();
        let now = side.map(|side| match known {
            Some(known) if goes_on(&known, side) => known,
            _ => {
                let asked = transition.to.as_ref().is_some_and(|to| to.generation == side.generation);
                Then {
                    serving: side.clone(),
                    commit: asked.then(|| transition.commit.clone()),
                    since: asked.then_some(since),
                }
            }
        });
        then.insert(name.clone(), now);
    }
    then.into_iter().filter_map(|(name, then)| Some((name, then?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::receipt::{ReceiptResult, Transition};
    use crate::types::Generation;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn side(generation: u64) -> Side {
        Side {
            generation: Generation(generation),
            image: format!("r.io/web:{generation}").parse().unwrap(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
        }
    }

    fn receipt(from: u64, to: u64, result: ReceiptResult, switched: Option<i64>, finished: i64) -> Receipt {
        let there = |generation| (generation > 0).then(|| side(generation));
        Receipt {
            id: format!("{finished}"),
            host: "web-1".parse().unwrap(),
            transition: Transition {
                from: there(from),
                to: there(to),
                switched_at: switched.map(time),
                ..Transition::plain(
                    &"web".parse().unwrap(),
                    &format!("{to:040}").parse().unwrap(),
                    result,
                    String::new(),
                    (time(finished - 50), time(finished)),
                )
            },
            agent_version: "0".to_owned(),
            boot_id: "b".to_owned(),
        }
    }

    fn generation(receipts: &[Receipt], seconds: i64) -> Option<(u64, Option<i64>)> {
        let then = at(receipts, time(seconds));
        then.values()
            .next()
            .map(|then| (then.serving.generation.0, then.since.map(|since| since.as_second())))
    }

    #[test]
    fn each_moment_of_a_story() {
        let story = [
            receipt(0, 1, ReceiptResult::Deployed, Some(95), 100),
            receipt(1, 2, ReceiptResult::Failed, None, 200),
            receipt(1, 3, ReceiptResult::RolledBack, Some(270), 300),
            receipt(1, 1, ReceiptResult::Restarted, None, 350),
            receipt(1, 4, ReceiptResult::Deployed, Some(370), 400),
            receipt(4, 0, ReceiptResult::Removed, None, 500),
        ];
        for (seconds, wanted) in [
            (90, None),
            (96, Some((1, Some(95)))),
            (250, Some((1, Some(95)))),
            (280, Some((3, Some(270)))),
            // Back to what was: the moment in which another one had the traffic does not count.
            (320, Some((1, Some(95)))),
            (360, Some((1, Some(95)))),
            (380, Some((4, Some(370)))),
            (450, Some((4, Some(370)))),
            (600, None),
        ] {
            assert_eq!(generation(&story, seconds), wanted, "at {seconds}");
        }
        // The first receipts are no longer kept: what the next one began with is what was there.
        assert_eq!(generation(&story[1..], 120), Some((1, None)));
    }
}
