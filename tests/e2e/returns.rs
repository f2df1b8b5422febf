//! The way back from a version that falls sick: whoever is connected to it moves at once, however long its program takes to
//! end.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gitopsd::agent::clock::now;
use gitopsd::types::Timestamp;

use super::drains::{held, told};
use super::image::Kind;
use super::lab::{Lab, wait_for, web};
use super::load::{Load, get};
use super::replicas::{containers, kill};

/// How long the sick one goes on after its stop signal: until it is killed.
const GRACE: Duration = Duration::from_secs(30);
/// Much less than that, and enough for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(20);

/// Has version 2 take over, which hears no stop signal and is watched for long; gives a connection to it that asks nothing.
fn taken_over(lab: &Lab, port: u16) -> TcpStream {
    let v2 = lab.image("2", Kind::Good);
    let deaf = "command = [\"/bin/sh\", \"-c\", 'trap \"\" TERM; httpd -f -p 8080 -h /www']";
    let grace = format!("stop_grace_period = \"{}s\"", GRACE.as_secs());
    let file = web(&v2, port, deaf).replace("stop_grace_period = \"2s\"", &grace);
    lab.deploy("web", &file.replace("bake = \"500ms\"", "bake = \"10m\""), "web 2");
    let second = || get(port, "/").ok().filter(|answer| answer == "version 2\n");
    wait_for(&format!("the switch; {}", lab.agent_log()), second);
    let stream = held(port);
    // What was begun between two answers of one version leads to that one, too.
    assert!(second().is_some(), "{}", lab.agent_log());
    stream
}

/// Has the health check of version 2 fail from now on. Its page is still there.
fn fall_sick(lab: &Lab) {
    lab.ok(&["exec", "web", "--generation", "2", "--", "/bin/rm", "/www/healthz"]);
}

/// Waits for the end of a connection, in one way or the other, and not for the time limit of its socket.
fn end_of(stream: &mut TcpStream) -> Duration {
    let since = Instant::now();
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Ok(_) => panic!("an answer to nothing"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    since.elapsed()
}

/// The sick one is killed rather than waited for; what is told of it then.
fn end_the_sick(lab: &Lab) {
    let is_there = containers(lab).iter().any(|name| name == "web.2");
    assert!(is_there, "it had ended by itself: {}", lab.agent_log());
    kill(lab, "web.2");
    let last = lab.wait_receipt("rolled-back");
    assert_eq!(last["reason"], "unhealthy", "{last}");
    assert_eq!(lab.service("web")["generation"], 1);
}

#[test]
fn who_is_connected_to_a_version_that_falls_sick_moves_at_once() {
    let (lab, port) = Lab::serving();
    let mut stream = taken_over(&lab, port);
    fall_sick(&lab);
    end_of(&mut stream);
    let over = now();
    // The first try, and no later one: nothing leads to the sick one by then.
    let answer = get(port, "/").unwrap();
    let answered = now();
    assert_eq!(answer, "version 1\n");
    let told = told(&lab, "rolling-back");
    let given_up: Timestamp = told[0]["at"].as_str().unwrap().parse().unwrap();
    let after = |time: Timestamp| Duration::try_from(time.duration_since(given_up)).unwrap_or_default();
    let (over, answered) = (after(over), after(answered));
    println!("given up: connection over after {over:.1?}, answered by version 1 after {answered:.1?}");
    assert!(over < SOON, "{over:?}; {}", lab.agent_log());
    end_the_sick(&lab);
}

/// Each half alone: what an agent does when it leads clients back, and what the next one does that finds them led back.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn an_agent_that_ends_on_the_way_back_leaves_nobody_with_the_sick_version() {
    for point in ["return::effect", "discard::begin"] {
        let (mut lab, port) = Lab::serving();
        lab.kill_agent();
        lab.start_agent_with(&[("FAILPOINTS", &format!("{point}=return"))]);
        lab.wait_agent();
        let mut stream = taken_over(&lab, port);
        fall_sick(&lab);
        wait_for("the agent's end", || lab.agent_ended().then_some(()));
        assert_eq!(get(port, "/").unwrap(), "version 1\n", "{point}");
        let is_first_half = point == "discard::begin";
        if !is_first_half {
            stream.set_nonblocking(true).unwrap();
            let early = stream.read(&mut [0; 1]).unwrap_err();
            assert_eq!(early.kind(), ErrorKind::WouldBlock, "{point} is too late to say anything");
            stream.set_nonblocking(false).unwrap();
            lab.start_agent();
        }
        let took = end_of(&mut stream);
        assert!(took < SOON, "{point}: {took:?}; {}", lab.agent_log());
        if is_first_half {
            lab.start_agent();
        }
        lab.wait_agent();
        end_the_sick(&lab);
    }
}

/// What is meant is written down first, which takes its time; who ends meanwhile gets no client.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
fn nobody_is_led_to_a_version_that_ends_just_before_the_switch() {
    let (mut lab, port) = Lab::serving();
    lab.kill_agent();
    lab.start_agent_with(&[("FAILPOINTS", "switch::before=sleep(1500)")]);
    lab.wait_agent();
    let v2 = lab.image("2", Kind::Good);
    lab.deploy("web", &web(&v2, port, ""), "web 2");
    wait_for("the switch", || lab.agent_log().contains("web: switch 2").then_some(()));
    kill(&lab, "web.2");
    let over = AtomicBool::new(false);
    let (last, answers) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut answers = Vec::new();
            let since = Instant::now();
            while !over.load(Ordering::Relaxed) && since.elapsed() < Duration::from_secs(30) {
                answers.push(get(port, "/").map_err(|error| error.to_string()));
                std::thread::sleep(Duration::from_millis(2));
            }
            answers
        });
        let last = lab.wait_receipt("failed");
        over.store(true, Ordering::Relaxed);
        (last, asked.join().unwrap())
    });
    assert_eq!(last["reason"], "exited", "{last}");
    let others: Vec<_> = answers.iter().filter(|answer| *answer != &Ok("version 1\n".to_owned())).collect();
    assert!(others.is_empty() && answers.len() > 50, "{others:?} of {}", answers.len());
}

/// Whoever asks between its end and the way back waits for a second, and is not refused.
#[test]
fn a_version_that_dies_while_it_is_watched_refuses_nobody() {
    let (lab, port) = Lab::serving();
    drop(taken_over(&lab, port));
    let load = Load::begin(port, 400);
    std::thread::sleep(Duration::from_millis(200));
    kill(&lab, "web.2");
    let last = lab.wait_receipt("rolled-back");
    assert_eq!(last["reason"], "exited", "{last}");
    assert_eq!(get(port, "/").unwrap(), "version 1\n");
    nobody_is_refused(load);
}

/// The same of one that is alone, and is started again: also after a boot, which makes networks anew.
#[test]
fn a_service_that_is_started_again_refuses_nobody() {
    let (mut lab, port) = Lab::serving();
    lab.kill_agent();
    lab.cut_power();
    lab.start_agent();
    lab.wait_agent();
    wait_for("it to be well again", || (lab.service("web")["health"] == "healthy").then_some(()));
    let load = Load::begin(port, 400);
    std::thread::sleep(Duration::from_millis(500));
    kill(&lab, "web.1");
    let last = lab.wait_receipt("restarted");
    assert_eq!(last["reason"], "exited", "{last}");
    nobody_is_refused(load);
}

fn nobody_is_refused(load: Load) {
    let slowest = load.end_without_refusal().slowest;
    assert!(slowest >= Duration::from_millis(900), "nobody had to wait: {slowest:?}");
}
