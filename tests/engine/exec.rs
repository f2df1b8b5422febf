//! `gitopsd exec` with pipes: streams, user, environment, signals, exit codes, and what happens when an end goes away.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use gitopsd::engine::Engine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containers::{Rig, wait_for};

/// An engine with one container, `shop.1`, that only waits.
fn rig() -> Rig {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "exec sleep 1000");
    request.spec.environment.insert("LOG".into(), "info".into());
    rig.start(&request);
    rig
}

fn spawn(rig: &Rig, args: &[&str]) -> Child {
    let mut command = rig.command(&[&["exec"], args].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a command with this to read.
fn exec(rig: &Rig, args: &[&str], input: &[u8]) -> Output {
    let mut child = spawn(rig, args);
    // It need not read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn user_environment_directory_and_input() {
    let rig = rig();
    let script = "echo $(id -u):$(id -g):$(id -G) $LOG $A [$B] $HOME $(pwd); cat; echo oops >&2";
    let args = [
        "-i",
        "-u",
        "app",
        "-e",
        "A=1=2",
        "--env",
        "B",
        "--workdir",
        "/tmp",
        "shop",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut command = rig.command(&[&["exec"], &args[..]].concat());
    let mut child = command
        .env("B", "ours")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(out(&output), "1000:1001:1001 1002 info 1=2 [ours] / /tmp\nhello\n", "{}", err(&output));
    assert_eq!(err(&output), "oops\n");
    // What is not said is the container's; without `-i` there is nothing to read, whatever stands there.
    let output = exec(&rig, &["shop", "--", "sh", "-c", "echo $(id -u) $LOG [$A] $(pwd); cat"], b"secret\n");
    assert_eq!(out(&output), "0 info [] /\n");
    let numbers = exec(&rig, &["-u", "4711:12", "shop", "--", "sh", "-c", "id -u; id -g"], b"");
    assert_eq!(out(&numbers), "4711\n12\n");
    // By name too, although the pipes were made by root.
    let named = exec(&rig, &["-u", "app", "shop", "--", "sh", "-c", "echo named > /dev/stdout"], b"");
    assert_eq!(out(&named), "named\n", "{}", err(&named));
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let rig = rig();
    let code = |args: &[&str]| {
        let output = exec(&rig, args, b"");
        (output.status.code(), err(&output))
    };
    let sh = |script| code(&["shop", "--", "sh", "-c", script]).0;
    assert_eq!(sh("exit 0"), Some(0));
    assert_eq!(sh("exit 7"), Some(7));
    assert_eq!(sh("kill -TERM $$"), Some(143));
    let (missing, said) = code(&["shop", "--", "no-such-program"]);
    assert!(missing == Some(127) && said.contains("`no-such-program` is not in the image"), "{said}");
    for (args, words) in [
        (&["shop", "--", "/etc/passwd"][..], "may not be executed"),
        (&["-u", "nobody-here", "shop", "--", "id"], "user `nobody-here` is not in the image's"),
        (&["-w", "/no/where", "shop", "--", "id"], "directory /no/where is not in the container"),
    ] {
        let (found, said) = code(args);
        assert!(found == Some(126) && said.contains(words), "{args:?}: {found:?} {said}");
    }
    for args in [&["-w", "relative", "shop", "--", "id"][..], &["-e", "=x", "shop", "--", "id"]] {
        assert_eq!(code(args).0, Some(64), "{args:?}");
    }
    assert_eq!(code(&["--generation", "9", "shop", "--", "id"]).0, Some(1));
    // No agent runs, and no container of that name either.
    assert_eq!(code(&["other", "--", "id"]).0, Some(69));
}

#[test]
fn signals_are_passed_on() {
    let rig = rig();
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGUSR1, "USR1")] {
        let script =
            format!("trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = spawn(&rig, &["shop", "--", "sh", "-c", &script]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), format!("got {name}"));
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn much_goes_through_both_ways_and_nothing_is_lost() {
    let rig = rig();
    let input: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = spawn(&rig, &["-i", "shop", "--", "cat"]);
    let mut stdin = child.stdin.take().unwrap();
    let copy = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let mut found = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut found).unwrap();
    writer.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(found == input, "{} of {} bytes", found.len(), input.len());
    // All that was written before the end, also to a reader who comes late.
    let mut child = spawn(&rig, &["shop", "--", "sh", "-c", "seq 1 100000; echo end >&2"]);
    std::thread::sleep(Duration::from_millis(300));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.lines().count(), text.lines().last()), (100_000, Some("100000")));
    assert!(child.wait().unwrap().success());
}

#[test]
fn standard_output_and_error_that_are_one_stay_in_order() {
    let rig = rig();
    let (mut read, write) = std::io::pipe().unwrap();
    let script = "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done";
    let mut command = rig.command(&["exec", "shop", "--", "sh", "-c", script]);
    let mut child = command.stdout(write.try_clone().unwrap()).stderr(write).spawn().unwrap();
    drop(command);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let expected: String = (0..200).map(|n| format!("{n}\n{n}\n")).collect();
    assert_eq!(text, expected);
}

#[test]
fn ends_that_go_away_hold_nobody() {
    let rig = rig();
    // The reader of the output.
    let mut child = spawn(&rig, &["shop", "--", "yes"]);
    let mut first = [0; 2];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let status = wait_for("the end of `yes`", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(141), "as after SIGPIPE: {status}");
    // What the command leaves behind holds its output open.
    let begun = Instant::now();
    let output = exec(&rig, &["shop", "--", "sh", "-c", "sleep 666 & echo left"], b"");
    assert_eq!((out(&output).as_str(), output.status.code()), ("left\n", Some(0)));
    assert!(begun.elapsed() < Duration::from_secs(20) * crate::containers::slow());
    // A command that does not read.
    let output = exec(&rig, &["-i", "shop", "--", "true"], &vec![b'x'; 1 << 20]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_container_ends_meanwhile() {
    let rig = rig();
    let id = "shop.1".parse().unwrap();
    let mut quiet = spawn(&rig, &["shop", "--", "sh", "-c", "echo here; exec sleep 1000"]);
    // One whose output nobody takes, and which somebody tries to stop: it has to be reaped all the same.
    let mut stuck = spawn(&rig, &["shop", "--", "yes"]);
    let mut byte = [0];
    stuck.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    kill(Pid::from_raw(stuck.id() as i32), Signal::SIGTSTP).unwrap();
    let mut quiet_out = BufReader::new(quiet.stdout.take().unwrap());
    let mut line = String::new();
    quiet_out.read_line(&mut line).unwrap();
    let begun = Instant::now();
    rig.engine.stop(&id, Duration::from_millis(100)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8) * crate::containers::slow(), "{:?}", begun.elapsed());
    let status = wait_for("the end of the command", || quiet.try_wait().unwrap());
    assert_eq!((status.code(), status.signal()), (Some(137), None));
    let mut said = String::new();
    quiet.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "gitopsd: the container has ended\n");
    drop(stuck.stdout.take());
    let status = wait_for("the end of the other", || stuck.try_wait().unwrap());
    assert_eq!(status.code(), Some(137));
    let gone = exec(&rig, &["--generation", "1", "shop", "--", "true"], b"");
    assert_eq!(gone.status.code(), Some(1));
    assert!(err(&gone).contains("shop.1 does not run"), "{}", err(&gone));
}

#[test]
fn nothing_of_ours_is_open_in_the_container() {
    let rig = rig();
    let secret = rig.path("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    let target = std::fs::File::create(rig.path("target")).unwrap();
    let script = "for fd in /proc/self/fd/*; do readlink $fd; done; cat";
    let mut command = rig.command(&["exec", "-i", "shop", "--", "sh", "-c", script]);
    let status = command.stdin(std::fs::File::open(&secret).unwrap()).stdout(target).status().unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(rig.path("target")).unwrap();
    let (links, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| *line != "secret");
    assert_eq!(rest, ["secret"]);
    for link in links {
        let fine = ["pipe:[", "/dev/null", "/proc/"].iter().any(|fine| link.starts_with(fine));
        assert!(fine, "{text}");
    }
    assert!(text.matches("pipe:[").count() <= 3, "{text}");
    // What is in the environment of the session is not on anybody's command line.
    let mut child =
        spawn(&rig, &["-e", "TOKEN=verysecret", "shop", "--", "sh", "-c", "echo ready; sleep 1000"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let words = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
    assert!(!String::from_utf8_lossy(&words).contains("verysecret"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}
