//! What containers write, however much and whatever it is: what is kept of it, what it costs, and how it is shown.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use gitopsd::engine::Engine;
use gitopsd::types::{ByteSize, LogLimits};

use crate::containers::{Rig, wait_for};

/// Whether the long form of a test is wanted.
fn all() -> bool {
    std::env::var_os("GITOPSD_TEST_ALL").is_some_and(|value| value == "1")
}

fn logs(rig: &Rig, args: &[&str]) -> Vec<u8> {
    let output = rig.command(&[&["logs"], args].concat()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn limits(size: u64, files: u32) -> Option<LogLimits> {
    Some(LogLimits { max_size: Some(ByteSize(size)), max_file: Some(files) })
}

/// Processor time of a process so far, in user and kernel together.
fn processor(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Memory of its own that a process has now, in KiB.
fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// More than a shim needs, in KiB.
const MUCH: u64 = 8 << 10;

fn size_of(dir: &std::path::Path) -> u64 {
    fs::read_dir(dir).unwrap().flatten().map(|entry| entry.metadata().map_or(0, |m| m.len())).sum()
}

#[test]
fn a_flood_harms_nobody() {
    let rig = Rig::new();
    let mut flood = rig.script("flood.1", "yes out & exec yes err >&2");
    flood.spec.options.logging = limits(1 << 20, 2);
    rig.start(&flood);
    let mut calm =
        rig.script("calm.1", "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.05; done");
    calm.spec.options.logging = limits(1 << 20, 2);
    let shim = rig.shim_pid(&flood.id);
    // What it may use at once has been used by then.
    std::thread::sleep(Duration::from_secs(3));
    let (begun, before) = (Instant::now(), processor(shim));
    rig.start(&calm);
    let logs_dir = rig.path("state/logs/flood");
    let (mut largest, mut most) = (0, 0);
    while begun.elapsed() < Duration::from_secs(5) * crate::containers::slow() {
        largest = largest.max(size_of(&logs_dir));
        most = most.max(memory(shim));
        std::thread::sleep(Duration::from_millis(5));
    }
    let share = (processor(shim) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("shim of a flood: {:.0} % of a processor, {most} KiB, {largest} bytes on disk", share * 100.0);
    assert!(share < 0.35, "{share}");
    assert!(most < MUCH, "{most} KiB");
    assert!(largest <= 2 << 20, "{largest} bytes");
    // Its neighbour has all of its lines, and it itself can be reached and stopped.
    assert_eq!(rig.wait_exit(&calm.id).code, Some(0));
    let lines = String::from_utf8(logs(&rig, &["calm"])).unwrap();
    assert_eq!(lines.lines().count(), 40);
    let begun = Instant::now();
    // What is written while it is shown is for those who follow.
    assert_eq!(logs(&rig, &["flood", "-n", "3"]).split(|byte| *byte == b'\n').count(), 4);
    let soon = ["flood", "-f", "-n", "3", "--until", "0s"];
    assert!(logs(&rig, &soon).len() < 1 << 20, "a follower looks up now and then");
    rig.engine.stop(&flood.id, Duration::from_millis(100)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5) * crate::containers::slow(), "{:?}", begun.elapsed());
}

#[test]
fn a_line_without_an_end() {
    let rig = Rig::new();
    let megabytes = if all() { 1024 } else { 96 };
    let script = format!(
        "dd if=/dev/zero bs=1048576 count={megabytes} 2>/dev/null | tr '\\0' x; echo; echo after; sleep 1000"
    );
    let mut request = rig.script("shop.1", &script);
    request.spec.options.logging = limits(2 << 20, 2);
    rig.start(&request);
    let begun = Instant::now();
    let patience = Duration::from_secs(if all() { 300 } else { 60 }) * crate::containers::slow();
    let (shim, mut most) = (rig.shim_pid(&request.id), 0);
    while rig.engine.log_tail(&request.id, 1) != ["after"] {
        most = most.max(memory(shim));
        assert!(begun.elapsed() < patience, "waited in vain for its end");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("a line of {megabytes} MB: {:?}, shim {most} KiB", begun.elapsed());
    assert!(most < MUCH, "{most} KiB");
    assert!(size_of(&rig.path("state/logs/shop")) <= 4 << 20);
    // What is kept of it is one line again; a part of it is enough for those who want the last lines.
    let text = logs(&rig, &["shop", "-n", "all"]);
    assert!(text.len() > 1 << 20 && text.ends_with(b"x\nafter\n"), "{} bytes", text.len());
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 2);
    let text = logs(&rig, &["shop", "-n", "2"]);
    assert!(text.len() < 3 << 20, "{} bytes", text.len());
}

#[test]
fn bytes_of_any_kind_come_back_as_they_were() {
    let rig = Rig::new();
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    fs::write(rig.path("layer/blob"), &bytes).unwrap();
    rig.run(&rig.script("shop.1", "cat /blob"));
    let mut expected = bytes;
    if expected.last() != Some(&b'\n') {
        expected.push(b'\n');
    }
    assert!(logs(&rig, &["shop", "-n", "all"]) == expected);
    let json = logs(&rig, &["shop", "-n", "all", "--json"]);
    for line in String::from_utf8(json).unwrap().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&value["service"], &value["generation"]), (&"shop".into(), &1.into()));
    }
}

#[test]
fn what_was_written_when_and_by_whom() {
    let rig = Rig::new();
    rig.run(&rig.script("shop.1", "echo one; sleep 0.02; echo two >&2"));
    rig.run(&rig.script("shop.2", "echo three"));
    let text = |args: &[&str]| String::from_utf8(logs(&rig, args)).unwrap();
    assert_eq!(text(&["shop"]), "one\ntwo\nthree\n");
    assert_eq!(text(&["shop", "-n", "2"]), "two\nthree\n");
    assert_eq!(text(&["shop", "--generation", "1", "-n", "1"]), "two\n");
    let stamped = text(&["shop", "--timestamps"]);
    let times: Vec<&str> = stamped.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert!(times.iter().all(|at| at.parse::<gitopsd::types::Timestamp>().is_ok()), "{stamped}");
    assert_eq!(text(&["shop", "--since", times[1]]), "two\nthree\n");
    assert_eq!(text(&["shop", "--until", times[1]]), "one\ntwo\n");
    assert_eq!(text(&["shop", "--since", "1h"]), "one\ntwo\nthree\n");
    assert_eq!(text(&["shop", "--until", "1h"]), "");
    // Which generation it is is said beside the lines.
    let output = rig.command(&["logs", "shop"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "-- generation 2 --\n");
    for (args, words) in
        [(&["shop", "--generation", "7"][..], "there are: 1, 2"), (&["shpo"], "did you mean `shop`?")]
    {
        let output = rig.command(&[&["logs"], args].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{output:?}");
    }
    assert_eq!(rig.command(&["logs", "shop", "--since", "tomorrow"]).status().unwrap().code(), Some(64));
}

#[test]
fn followed_over_a_turn_of_files_a_restart_and_a_swap() {
    let rig = Rig::new();
    let script = |from: u32, to: u32| {
        format!("i={from}; while [ $i -lt {to} ]; do echo $i {}; i=$((i+1)); done", "x".repeat(400))
    };
    let mut first = rig.script("shop.1", &(script(0, 300) + "; sleep 0.5; " + &script(300, 700)));
    first.spec.options.logging = limits(128 << 10, 4);
    rig.start(&first);
    rig.wait_log(&first.id, &format!("299 {}", "x".repeat(400)));
    let mut child = rig.command(&["logs", "shop", "-f", "-n", "all"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut numbers = lines.map(|line| line.unwrap().split(' ').next().unwrap().parse::<u32>().unwrap());
    for number in 0..700 {
        assert_eq!(numbers.next(), Some(number));
    }
    rig.wait_exit(&first.id);
    let mut again = rig.script("shop.1", &script(700, 710));
    again.spec.options.logging = limits(128 << 10, 4);
    rig.run(&again);
    let mut next = rig.script("shop.2", &script(710, 720));
    next.spec.options.logging = limits(128 << 10, 4);
    rig.run(&next);
    for number in 700..720 {
        assert_eq!(numbers.next(), Some(number));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a time that a person names")]
fn a_follower_ends_at_the_time_that_was_named() {
    let rig = Rig::new();
    rig.start(&rig.script("shop.1", "while :; do echo tick; sleep 0.1; done"));
    let until = jiff::Timestamp::now() + Duration::from_millis(1500) * crate::containers::slow();
    let mut child = rig
        .command(&["logs", "shop", "-f", "-n", "all", "--timestamps", "--until", &until.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    let status = wait_for("its end", || child.try_wait().unwrap());
    assert!(status.success());
    assert!(lines.len() > 3, "{lines:?}");
    let times = lines.iter().map(|line| line.split(' ').next().unwrap().parse::<jiff::Timestamp>().unwrap());
    assert!(times.max().unwrap() <= until);
}
