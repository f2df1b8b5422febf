//! What has to be true after each swap, and of all requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::lab::wait_for;
use super::clients::Told;
use super::faults::{FLUSH, Hit};
use super::host::{Host, Serving, Window};

/// One fault of a swap: milliseconds after the commit, its name, what came of it.
pub type Done = (u128, &'static str, Hit);

/// A request that began just before a window, or on the edge of what two threads call now.
const EDGE: Duration = Duration::from_millis(50);
/// Rules that somebody flushed while there was no agent are back within this, and a service whose candidate died under
/// traffic serves again.
const GAP: Duration = Duration::from_secs(5);
/// Rules that somebody took from an agent that does not own them are back within this …
const RESTORED: Duration = Duration::from_millis(100);
/// … and what two processors with all of this on them take to ask and to be answered.
const SLACK: Duration = Duration::from_millis(150);

/// Waits for the end of a swap and judges it; says how it ended.
pub fn settled(host: &Host, before: &Serving, commit: &str, done: &[Done]) -> String {
    let lab = &host.lab;
    // 1: a failed deploy, which is judged below.
    let code = lab.run(&["sync", "--wait"]).status.code();
    assert!(matches!(code, Some(0 | 1)), "sync --wait: {code:?}");
    let after = wait_for(&format!("rest; {}", lab.agent_log()), || {
        let service = lab.service("web");
        let rests = service["rollout"].is_null() && service["health"] == "healthy";
        (rests && host.generations().len() == 1).then(|| host.serving())
    });
    let mut commits = vec![commit];
    commits.extend(done.iter().filter_map(|(.., hit)| match hit {
        Hit::Commit(commit) => Some(commit.as_str()),
        _ => None,
    }));
    let newest = commits.last().unwrap();
    let history = lab.history();
    let of = |commit: &str| -> Vec<String> {
        let mine =
            history.iter().filter(|receipt| receipt["commit"] == commit && receipt["result"] != "restarted");
        mine.map(|receipt| format!("{} {}", receipt["result"], receipt["reason"]).replace('"', "")).collect()
    };
    let killed = done.iter().any(|(_, name, hit)| *name == "green" && *hit != Hit::Missed);
    let shot = done.iter().any(|(_, name, hit)| *name == "shim" && *hit != Hit::Missed);
    let mut ends = Vec::new();
    for each in &commits {
        let receipts = of(each);
        let end = match receipts.as_slice() {
            [one] => one.as_str(),
            // Looked at only when the next one was there.
            [] if each != newest => "never begun",
            _ => panic!("{each} ended in {receipts:?}, after {done:?}\n{}", lab.agent_log()),
        };
        let explained = match end {
            "deployed null" => true,
            "never begun" | "failed superseded" => each != newest,
            // Killed before or after the switch.
            "failed exited" | "rolled-back exited" => killed,
            // Its shim was killed while it made the container.
            "failed start-failed" => shot,
            _ => false,
        };
        assert!(explained, "{each} ended in {end}, after {done:?}\n{}", lab.agent_log());
        ends.push(end.replace(" null", ""));
    }
    if ends.last().unwrap() == "deployed" {
        let receipt = history.iter().rev().find(|receipt| receipt["commit"] == **newest).unwrap();
        assert_eq!(receipt["to"]["generation"], after.generation, "{receipt}");
        assert_eq!(receipt["to"]["image"], after.image.as_str(), "{receipt}");
    } else if commits.len() == 1 {
        assert_eq!(
            (&after.image, after.generation),
            (&before.image, before.generation),
            "the old one serves"
        );
    }
    left_over(host, after.generation);
    ends.join(", ")
}

/// Nothing but what serves has left anything on the host.
fn left_over(host: &Host, generation: u64) {
    let id = format!("web.{generation}");
    let traces: BTreeSet<String> = host.lab.traces();
    // The shims' own group stays as long as the instance does.
    let left: Vec<&String> =
        traces.iter().filter(|trace| *trace != "cgroup shims" && !trace.contains(&id)).collect();
    assert!(left.is_empty(), "{left:?} is left over; {id} is what should be there");
    let rules = host.rules();
    let targets = rules.split("dnat ip to ").skip(1).map(|to| to.split([':', ' ', '\n']).next().unwrap());
    assert_eq!(targets.collect::<BTreeSet<_>>().len(), 1, "traffic goes to one place: {rules}");
    assert!(host.leads_to(generation), "{generation}: {rules}");
    let links = links();
    assert_eq!(links.len(), 1, "{links:?}");
}

/// The host's ends of the containers' links.
fn links() -> BTreeSet<String> {
    let output =
        std::process::Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}

/// Faults and what came of them, in a line.
pub fn told(done: &[Done]) -> String {
    let words = done.iter().map(|(at, name, hit)| match hit {
        Hit::Missed => format!("{name}@{at} missed"),
        Hit::Done(what) => format!("{name}@{at} {what}").trim_end().to_owned(),
        Hit::Commit(_) => format!("{name}@{at}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// No request failed but where nothing could have answered it.
pub fn requests(reports: &[Told], windows: &[Window]) {
    let mut lost = Vec::new();
    let mut why = BTreeMap::<&str, usize>::new();
    for Told { name, begun, report } in reports {
        let excuse = |(from, to): (Duration, Duration)| {
            let (from, to) = (*begun + from, *begun + to);
            windows.iter().find(|window| from <= window.until + EDGE && to + EDGE >= window.since)
        };
        let failed = report.failed_at.iter();
        let (within, without): (Vec<_>, Vec<_>) =
            failed.partition(|(from, to, _)| match excuse((*from, *to)) {
                Some(window) => {
                    *why.entry(window.why).or_default() += 1;
                    true
                }
                None => false,
            });
        println!(
            "  {name}: {} requests, {} failed while nothing could answer, {} else; {} asked again; p50 {:.2?}, p99 {:.2?}",
            report.requests(),
            within.len(),
            without.len(),
            report.retries,
            report.percentile(50),
            report.percentile(99)
        );
        lost.extend(
            without
                .into_iter()
                .map(|(from, to, failure)| format!("{name}: {failure:?} at {from:.3?} to {to:.3?}")),
        );
        assert!(report.requests() > 0);
    }
    println!("  failed while nothing could answer, after: {why:?}");
    assert!(lost.is_empty(), "{} requests were lost: {lost:#?}", lost.len());
}

/// How long what answered was gone, each time.
pub fn gaps(windows: &[Window]) {
    let mut by_name = BTreeMap::<&str, Vec<Duration>>::new();
    for window in windows {
        by_name.entry(window.why).or_default().push(window.until - window.since);
    }
    for (name, mut gaps) in by_name {
        gaps.sort_unstable();
        println!("  {name}, {} times: answers after {gaps:.0?}", gaps.len());
        let limit = if name == FLUSH { RESTORED + SLACK } else { GAP };
        assert!(gaps.last().unwrap() < &limit, "{name}: {gaps:?}");
    }
}
