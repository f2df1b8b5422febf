//! Whether a host may act on a commit: by what the hosts of earlier waves say of it. Pure, as the rest of the core.

use crate::types::{HostName, Reason, Refusal, Timestamp, Wave, plural};

use super::later;

/// How a host of an earlier wave stands to a commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Stand {
    /// The commit changes nothing there: it does not count.
    Unconcerned,
    /// It is well on the commit, since then.
    Healthy(Timestamp),
    /// It is not, and why.
    Failed(Refusal),
    /// It has not said yet; what is known of it instead.
    Waiting(String),
}

/// One host.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name.
    pub host: HostName,
    /// Its wave, from 0.
    pub wave: usize,
    /// How it stands.
    pub stand: Stand,
}

/// Whether a host may act.
#[derive(Debug, Clone, PartialEq)]
pub enum Gate {
    /// It may.
    Open,
    /// Not yet.
    Wait {
        /// What is waited for.
        refusal: Refusal,
        /// When that is over by itself.
        until: Option<Timestamp>,
    },
    /// An earlier wave failed: not before a newer commit, or before that wave is well after all.
    Stopped(Refusal),
}

impl Gate {
    /// Why it may not.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Open => None,
            Self::Wait { refusal, .. } | Self::Stopped(refusal) => Some(refusal),
        }
    }
}

/// Whether a host of wave `place` may act on a commit. Every earlier wave has to be well on it for its `wait`; the first
/// that is not is the one that is told. A wave in which the commit changes nothing is passed at once; one without any
/// known host is waited for.
pub fn gate(waves: &[Wave], place: usize, members: &[Member], now: Timestamp) -> Gate {
    for (number, wave) in waves.iter().enumerate().take(place) {
        let own: Vec<&Member> = members.iter().filter(|member| member.wave == number).collect();
        match one(number, wave, &own, now) {
            Gate::Open => {}
            shut => return shut,
        }
    }
    Gate::Open
}

/// The gate behind one wave.
fn one(number: usize, wave: &Wave, members: &[&Member], now: Timestamp) -> Gate {
    let name = number + 1;
    let count = members.iter().filter(|member| member.stand != Stand::Unconcerned).count();
    if members.is_empty() {
        // Its hosts are yet to come, or its patterns are wrong: silence is not health.
        let message = format!("wave {name}: no host of it has ever said how it is");
        return Gate::Wait { refusal: Refusal::new(Reason::Wave, message), until: None };
    }
    let needed = (count * usize::from(wave.min_healthy)).div_ceil(100);
    if needed == 0 {
        return Gate::Open;
    }
    let mut healthy: Vec<Timestamp> = Vec::new();
    let mut failed: Vec<(&HostName, &Refusal)> = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    for member in members {
        match &member.stand {
            Stand::Unconcerned => {}
            Stand::Healthy(since) => healthy.push(*since),
            Stand::Failed(refusal) => failed.push((&member.host, refusal)),
            Stand::Waiting(why) => waiting.push(format!("{} {why}", member.host)),
        }
    }
    let of = plural(count, "host", "hosts");
    if let Some((host, why)) = failed.first().filter(|_| count - failed.len() < needed) {
        let others = match failed.len() {
            1 => String::new(),
            more => format!(", and {}", plural(more - 1, "more host", "more hosts")),
        };
        let message = format!("wave {name} failed on {host}{others}: {} ({})", why.message, why.reason);
        return Gate::Stopped(Refusal::new(Reason::WaveFailed, message));
    }
    let shut = |message: String, until| Gate::Wait { refusal: Refusal::new(Reason::Wave, message), until };
    healthy.sort_unstable();
    let Some(reached) = healthy.get(needed - 1) else {
        let first = waiting.first().cloned().unwrap_or_default();
        let others = match waiting.len() {
            0 | 1 => String::new(),
            more => format!(", and {}", plural(more - 1, "more host", "more hosts")),
        };
        let message =
            format!("wave {name}: {} of {of} healthy, {needed} needed: {first}{others}", healthy.len());
        return shut(message, None);
    };
    let until = later(*reached, wave.wait);
    if !wave.wait.is_zero() && until > now {
        let well = healthy.len();
        return shut(
            format!("wave {name} is healthy ({well} of {of}), and waits until {until:.0}"),
            Some(until),
        );
    }
    Gate::Open
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::time::Duration;

    use super::*;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn wave(wait: u64, min_healthy: u8) -> Wave {
        Wave { hosts: Vec::new(), wait: Duration::from_secs(wait), min_healthy }
    }

    fn member(number: usize, wave: usize, stand: Stand) -> Member {
        Member { host: format!("h-{number}").parse().unwrap(), wave, stand }
    }

    fn failed() -> Stand {
        Stand::Failed(Refusal::new(Reason::Unhealthy, "web: 500"))
    }

    fn said(gate: &Gate) -> String {
        gate.refusal().map_or_else(|| "open".to_owned(), ToString::to_string)
    }

    #[test]
    fn a_wave_waits_for_all_of_the_earlier_ones() {
        let waves = [wave(0, 100), wave(60, 100)];
        let mut members = vec![
            member(1, 0, Stand::Healthy(time(0))),
            member(2, 0, Stand::Waiting("is at 1234".to_owned())),
            member(3, 1, Stand::Unconcerned),
        ];
        assert_eq!(gate(&waves, 0, &members, time(10)), Gate::Open);
        let shut = gate(&waves, 1, &members, time(10));
        assert_eq!(said(&shut), "wave 1: 1 of 2 hosts healthy, 2 needed: h-2 is at 1234 (wave)");
        members[1].stand = Stand::Healthy(time(5));
        assert_eq!(gate(&waves, 1, &members, time(10)), Gate::Open);
        // The second one is not concerned, and its wait is nobody's.
        assert_eq!(gate(&waves, 2, &members, time(10)), Gate::Open);
        members[2].stand = Stand::Healthy(time(8));
        assert!(
            matches!(gate(&waves, 2, &members, time(10)), Gate::Wait { until: Some(at), .. } if at == time(68))
        );
        assert_eq!(gate(&waves, 2, &members, time(68)), Gate::Open);
    }

    #[test]
    fn a_failure_stops_the_rest_unless_enough_can_still_be_well() {
        let members = |stands: [Stand; 4]| -> Vec<Member> {
            stands.into_iter().enumerate().map(|(number, stand)| member(number, 0, stand)).collect()
        };
        let wait = || Stand::Waiting("is silent".to_owned());
        let all = members([failed(), wait(), wait(), wait()]);
        assert_eq!(
            said(&gate(&[wave(0, 100)], 1, &all, time(0))),
            "wave 1 failed on h-0: web: 500 (unhealthy) (wave-failed)"
        );
        assert!(matches!(gate(&[wave(0, 75)], 1, &all, time(0)), Gate::Wait { until: None, .. }));
        let two = members([failed(), failed(), wait(), wait()]);
        assert!(said(&gate(&[wave(0, 75)], 1, &two, time(0))).contains("h-0, and 1 more host: web"));
        assert!(matches!(gate(&[wave(0, 50)], 1, &two, time(0)), Gate::Wait { .. }));
    }

    #[test]
    fn the_wait_begins_when_enough_are_well() {
        let members: Vec<Member> =
            [10, 30, 20].iter().enumerate().map(|(n, at)| member(n, 0, Stand::Healthy(time(*at)))).collect();
        let waves = [wave(100, 60)];
        assert!(
            matches!(gate(&waves, 1, &members, time(119)), Gate::Wait { until: Some(at), .. } if at == time(120))
        );
        assert_eq!(gate(&waves, 1, &members, time(120)), Gate::Open);
        // A clock that is ahead makes the wait longer, never shorter.
        assert!(matches!(gate(&waves, 1, &members, time(5)), Gate::Wait { .. }));
        assert_eq!(gate(&[wave(0, 60)], 1, &members, time(5)), Gate::Open);
    }

    fn stand() -> impl Strategy<Value = Stand> {
        prop_oneof![
            Just(Stand::Unconcerned),
            (0_i64..200).prop_map(|at| Stand::Healthy(time(at))),
            Just(failed()),
            Just(Stand::Waiting("is silent".to_owned())),
        ]
    }

    proptest! {
        /// An open gate means: in each earlier wave enough hosts are well, and have been for long enough.
        #[test]
        fn open_only_behind_waves_that_are_well(
            members in proptest::collection::vec((0_usize..3, stand()), 0..12),
            specs in proptest::collection::vec((0_u64..100, 1_u8..=100), 3),
            place in 0_usize..=3,
            now in 0_i64..300,
        ) {
            let waves: Vec<Wave> = specs.iter().map(|(wait, min)| wave(*wait, *min)).collect();
            let members: Vec<Member> = members
                .into_iter()
                .enumerate()
                .map(|(number, (wave, stand))| member(number, wave, stand))
                .collect();
            let answer = gate(&waves, place, &members, time(now));
            let well = (0..place).all(|number| {
                let own = members.iter().filter(|member| member.wave == number && member.stand != Stand::Unconcerned);
                let (mut all, mut good) = (0, 0);
                for member in own {
                    all += 1;
                    let long = |since: Timestamp| waves[number].wait.is_zero() || later(since, waves[number].wait) <= time(now);
                    good += u64::from(matches!(member.stand, Stand::Healthy(since) if long(since)));
                }
                let known = members.iter().any(|member| member.wave == number);
                known && good * 100 >= all * u64::from(waves[number].min_healthy)
            });
            prop_assert_eq!(answer == Gate::Open, well);
            // Nobody waits for those after it.
            let earlier: Vec<Member> = members.iter().filter(|member| member.wave < place).cloned().collect();
            prop_assert_eq!(&gate(&waves, place, &earlier, time(now)), &answer);
            if let Gate::Wait { until: Some(until), .. } = answer {
                prop_assert!(until > time(now));
            }
        }
    }
}
