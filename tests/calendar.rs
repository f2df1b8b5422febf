//! Times that come round, beside systemd's own reading of them: the same expressions are taken and refused, and the same
//! times come out, over many zones and the days on which their clocks change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

use std::process::Command;

use gitopsd::agent::clock;
use gitopsd::config::ZoneCache;
use gitopsd::types::{Calendar, Timestamp};
use proptest::test_runner::{RngAlgorithm, TestRng};
use rand_core::Pick as _;

/// The little of a random generator that is needed here.
mod rand_core {
    use proptest::prelude::Rng as _;
    use proptest::test_runner::TestRng;

    pub trait Pick {
        /// A number below `n`.
        fn below(&mut self, n: u64) -> u64;
        /// One of them.
        fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str;
    }

    impl Pick for TestRng {
        fn below(&mut self, n: u64) -> u64 {
            self.next_u64() % n
        }

        fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
            of[usize::try_from(self.below(of.len() as u64)).unwrap()]
        }
    }
}

const ZONES: &[&str] = &[
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "America/St_Johns",
    "Pacific/Apia",
];

/// What systemd says: `None` = it refuses the expression; else the next times, which may be none.
fn systemd(expression: &str, base: Timestamp, count: usize) -> Option<Vec<Timestamp>> {
    let output = Command::new("systemd-analyze")
        .env("TZ", "UTC")
        .args(["calendar", &format!("--iterations={count}")])
        .arg(format!("--base-time={}", base.strftime("%Y-%m-%d %H:%M:%S UTC")))
        .arg(expression)
        .output()
        .unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let times = text.lines().filter_map(|line| {
        let (label, rest) = line.split_once(": ")?;
        let label = label.trim();
        if label != "Next elapse" && !label.starts_with("Iter") {
            return None;
        }
        let (_, time) = rest.strip_suffix(" UTC")?.split_once(' ')?;
        Some(format!("{}Z", time.replace(' ', "T")).parse().unwrap())
    });
    Some(times.collect())
}

fn ours(expression: &str, base: Timestamp, count: usize) -> Option<Vec<Timestamp>> {
    let calendar: Calendar = expression.parse().ok()?;
    let zone = calendar.zone().unwrap_or("UTC").to_owned();
    let zone = ZoneCache::default().get([zone.as_str()]).get(Some(&zone))?;
    let mut times = Vec::new();
    let mut at = base;
    while times.len() < count {
        let Some(next) = calendar.next(at, &zone) else { break };
        assert!(next > at, "{expression}: {next} is not after {at}");
        // systemd shows whole seconds.
        times.push(Timestamp::from_second(next.as_second()).unwrap());
        at = next;
    }
    Some(times)
}

/// Whether an hour that clocks show twice is near: there systemd's answer depends on how it came there.
fn folds(zone: &str, base: Timestamp) -> bool {
    let zone = ZoneCache::default().get([zone]).get(Some(zone)).unwrap();
    let hours = jiff::Span::new().hours(3);
    let before = zone.to_offset(base.checked_sub(hours).unwrap());
    zone.to_offset(base) < before
}

fn list(rng: &mut TestRng, low: u64, high: u64) -> String {
    let one = |rng: &mut TestRng| {
        let first = low + rng.below(high - low + 1);
        match rng.below(8) {
            0 => format!("{first}..{}", (first + rng.below(6)).min(high + 1)),
            1 => format!("{first}/{}", 1 + rng.below(12)),
            2 => format!("{first}..{}/{}", first + rng.below(12), 1 + rng.below(4)),
            3 => format!("{first:02},{}", low + rng.below(high - low + 2)),
            _ => format!("{first:02}"),
        }
    };
    if rng.below(3) == 0 { "*".to_owned() } else { one(rng) }
}

/// An expression, mostly a right one.
fn expression(rng: &mut TestRng) -> String {
    let mut words: Vec<String> = Vec::new();
    let days =
        ["Mon", "Tuesday", "wed", "Thu..Sat", "Mon,Wed..Fri", "Sat,Sun", "Fri..Mon", "Mon-Wed", "sun,"];
    if rng.below(3) == 0 {
        words.push(rng.pick(&days).to_owned());
    }
    match rng.below(8) {
        0 => {
            let special =
                ["daily", "weekly", "monthly", "quarterly", "yearly", "hourly", "minutely", "semi-annually"];
            words.push(rng.pick(&special).to_owned());
        }
        n => {
            let date = match rng.below(6) {
                0 => format!("*-{}-{}", list(rng, 1, 12), list(rng, 1, 31)),
                1 => format!("{}-{}-{}", list(rng, 2026, 2030), list(rng, 1, 12), list(rng, 1, 28)),
                2 => format!("{}~{}", list(rng, 1, 12), list(rng, 1, 28)),
                3 => format!("{}-{}", list(rng, 1, 12), list(rng, 1, 31)),
                _ => String::new(),
            };
            words.push(date);
            words.push(match n {
                1 => String::new(),
                2 => format!("{}:{}:{}", list(rng, 0, 23), list(rng, 0, 59), list(rng, 0, 59)),
                _ => format!("{}:{}", list(rng, 0, 23), list(rng, 0, 59)),
            });
        }
    }
    if rng.below(2) == 0 {
        words.push(rng.pick(ZONES).to_owned());
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn base(rng: &mut TestRng) -> Timestamp {
    // Some at random, some in the days on which clocks change.
    let days =
        ["2026-03-28", "2026-03-08", "2026-04-04", "2026-10-03", "2026-10-24", "2026-10-31", "2026-12-31"];
    let start: Timestamp = format!("{}T00:00:00Z", rng.pick(&days)).parse().unwrap();
    let seconds = if rng.below(3) == 0 { 4 * 365 * 86_400 } else { 2 * 86_400 };
    start.checked_add(jiff::Span::new().seconds(rng.below(seconds).cast_signed())).unwrap()
}

#[test]
fn what_systemd_takes_is_taken_and_means_the_same() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        panic!("systemd-analyze is not here: scripts/install-deps has it")
    };
    assert!(version.status.success());
    let cases: u64 = std::env::var("CALENDAR_CASES").map_or(200, |text| text.parse().unwrap());
    let seed: [u8; 32] = *b"times that come round as systemd";
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let (mut taken, mut wrong) = (0, Vec::new());
    for _ in 0..cases {
        let (text, base) = (expression(&mut rng), base(&mut rng));
        let zone = text.rsplit(' ').next().filter(|word| ZONES.contains(word)).unwrap_or("UTC");
        let (theirs, mut ours) = (systemd(&text, base, 5), ours(&text, base, 5));
        let Some(mut theirs) = theirs else {
            // Of several days from the end of a month it takes fewer, the more there are.
            if ours.is_some() && !(text.contains('~') && text.contains(',')) {
                wrong.push(format!("`{text}` is taken, and systemd refuses it"));
            }
            continue;
        };
        taken += 1;
        // Up to the hour that comes twice.
        let all = [base].into_iter().chain(theirs.iter().copied());
        let clear = all.take_while(|at| !folds(zone, *at)).count();
        theirs.truncate(clear);
        if let Some(ours) = &mut ours {
            ours.truncate(clear);
        }
        if ours.as_ref() != Some(&theirs) {
            wrong.push(format!("`{text}` from {base}:\n  systemd {theirs:?}\n  here    {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(taken > cases / 4, "only {taken} of {cases} expressions were right ones");
}

#[test]
fn times_that_clocks_leave_out_or_show_twice() {
    let next = |text: &str, base: &str| ours(text, base.parse().unwrap(), 1).unwrap()[0].to_string();
    // Clocks in Berlin go from 2:00 to 3:00 on 2026-03-29, and from 3:00 to 2:00 on 2026-10-25.
    assert_eq!(next("02:30 Europe/Berlin", "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
    assert_eq!(next("03:00 Europe/Berlin", "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00Z");
    assert_eq!(next("02:30 Europe/Berlin", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
    assert_eq!(next("02:30 Europe/Berlin", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    assert_eq!(next("*:0/30 Europe/Berlin", "2026-10-25T01:10:00Z"), "2026-10-25T02:00:00Z");
    // A day that Samoa never had.
    assert_eq!(next("*-12-30 12:00 Pacific/Apia", "2011-12-29T00:00:00Z"), "2012-12-29T22:00:00Z");
}

#[test]
fn what_comes_never_is_found_out_soon() {
    let begun = std::time::Instant::now();
    for text in ["*-02-30", "2026-02-29", "2001-01-01", "*-02~30", "Mon 2026-01-01 UTC"] {
        let times = text.parse::<Calendar>().map(|_| ours(text, clock::now(), 1).unwrap());
        assert!(times.is_err() || times.is_ok_and(|times| times.is_empty()), "{text}");
    }
    assert!(ours("*:*:0/0.000001 Europe/Berlin", "2026-10-25T01:10:00Z".parse().unwrap(), 1).is_some());
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn nonsense_is_refused() {
    let long = "Mon,".repeat(1000);
    for text in [
        "",
        " ",
        "Mon..",
        "25:00",
        "12:60",
        "1:2:3:4",
        "*-*-*-*",
        "@1",
        "12:00 Europe/../etc",
        "ö",
        "*:*/0",
        &long,
    ] {
        assert!(text.parse::<Calendar>().is_err(), "{text}");
    }
}
