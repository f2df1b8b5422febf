//! Histories that once showed a fault, of the core or of those who judge it, played again as they are written: proptest's
//! seeds beside them lead to other ones as soon as a strategy changes.

use proptest::test_runner::TestCaseError;

use super::model::Crash;
use super::promises::{self, Judged};
use super::properties::{Event, SERVICES};

const MET: &str = include_str!("../../proptest-regressions/plan.txt");

/// The parts between the commas that are in no parentheses and in no string.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut begin, mut parts) = (0, false, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            '(' | '[' if !quoted => depth += 1,
            ')' | ']' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn string(text: &str) -> &'static str {
    text.trim_matches('"').to_owned().leak()
}

fn crash(text: &str) -> Crash {
    match text {
        "Kill" => Crash::Kill,
        "Reboot" => Crash::Reboot,
        _ => panic!("{text}"),
    }
}

/// An event as `{:?}` writes it.
fn event(text: &str) -> Event {
    let (word, rest) = text.split_once('(').unwrap_or((text, ")"));
    let values = parts(rest.strip_suffix(')').unwrap());
    match (word, values.as_slice()) {
        ("Run", [service, what]) => Event::Run(string(service), string(what).to_owned()),
        ("Break", [service]) => Event::Break(string(service)),
        ("Drop", [service]) => Event::Drop(string(service)),
        ("Meant", [service]) => Event::Meant(string(service)),
        ("Unrelated", []) => Event::Unrelated,
        ("Urgent", []) => Event::Urgent,
        ("Waive", []) => Event::Waive,
        ("Image", [tag, what]) => Event::Image(string(tag).to_owned(), string(what)),
        ("Registry", [up]) => Event::Registry(up.parse().unwrap()),
        ("Traffic", [works]) => Event::Traffic(works.parse().unwrap()),
        ("Memory", ["None"]) => Event::Memory(None),
        ("Memory", [left]) => {
            let left = left.strip_prefix("Some(").unwrap().strip_suffix(')').unwrap();
            Event::Memory(Some(left.parse().unwrap()))
        }
        ("Crash", [how]) => Event::Crash(crash(how)),
        ("CrashAfter", [points, how]) => Event::CrashAfter(points.parse().unwrap(), crash(how)),
        ("Away", [seconds]) => Event::Away(seconds.parse().unwrap()),
        ("Hold", [service, ends]) => Event::Hold(string(service), ends.parse().unwrap()),
        ("Resume", [service]) => Event::Resume(string(service)),
        ("Rollback", [service]) => Event::Rollback(string(service)),
        ("KillContainer", [service]) => Event::KillContainer(string(service)),
        ("KillReplica", [service, index]) => Event::KillReplica(string(service), index.parse().unwrap()),
        ("LoseRoute", [service]) => Event::LoseRoute(string(service)),
        ("LoseImages", []) => Event::LoseImages,
        ("Debris", [service]) => Event::Debris(string(service)),
        ("Clock", [by]) => Event::Clock(by.parse().unwrap()),
        ("Run10ms", [n]) => Event::Run10ms(n.parse().unwrap()),
        ("RunSeconds", [n]) => Event::RunSeconds(n.parse().unwrap()),
        _ => panic!("no such event: {text}"),
    }
}

/// One line: `cc SEED # shrinks to events = […], first = 0`. Says whether each promise that it is about could be asked of it.
fn judge(shrunk: &str) -> bool {
    let values = parts(shrunk);
    let value = |name: &str| values.iter().find_map(|part| part.strip_prefix(name)?.strip_prefix(" = "));
    let list = value("events").unwrap().strip_prefix('[').unwrap().strip_suffix(']').unwrap();
    let events: Vec<Event> = parts(list).into_iter().map(event).collect();
    // What is read is what was written.
    assert_eq!(format!("{events:?}"), format!("[{list}]"));
    let mut asked = true;
    let mut hold = |promise: &str, judged: Judged| match judged {
        Ok(()) => {}
        Err(TestCaseError::Reject(_)) => asked = false,
        Err(TestCaseError::Fail(why)) => panic!("{promise}, after {shrunk}: {why}"),
    };
    hold("converges", promises::converges(&events));
    hold("stays settled", promises::stays_settled(&events));
    hold("an empty repo", promises::keeps_all(&events));
    if let Some(first) = value("first") {
        hold("a removal", promises::removes_nothing(&events, first.parse().unwrap()));
    }
    if let (Some(bad), Some(how)) = (value("bad"), value("how")) {
        let bad = SERVICES.into_iter().find(|service| *service == string(bad)).unwrap();
        hold("a bad one", promises::stops_only(&events, bad, how.parse().unwrap()));
    }
    asked
}

#[test]
fn what_once_failed_holds() {
    let shrunk: Vec<&str> =
        MET.lines().filter_map(|line| Some(line.split_once("# shrinks to ")?.1)).collect();
    let asked = shrunk.iter().filter(|line| judge(line)).count();
    println!("{asked} of {} histories", shrunk.len());
    assert!(asked > 30, "{asked} of {}", shrunk.len());
}
