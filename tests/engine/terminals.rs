//! `gitopsd exec` with a terminal: a real one on this side, and the one that the container gets.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gitopsd::engine::Engine;
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use rustix::termios::tcsetwinsize;

use crate::containers::{Rig, patience, wait_for};

/// A person at a terminal, who runs a program in it.
struct Seat {
    master: File,
    slave: OwnedFd,
    child: Child,
    seen: String,
}

impl Seat {
    fn take(rig: &Rig, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        rustix::io::ioctl_fionbio(&pty.master, true).unwrap();
        let program = rig.command(&[&["exec"], args].concat());
        // In a session of its own, with this as its terminal: so that it hears of a new size, and of keys.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "vt220");
        let child = command.spawn().unwrap();
        Self { master: pty.master.into(), slave: pty.slave, child, seen: String::new() }
    }

    fn read(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.master.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    #[track_caller]
    fn wait(&mut self, text: &str) {
        let end = std::time::Instant::now() + patience();
        while !self.seen.contains(text) {
            assert!(std::time::Instant::now() < end, "waited in vain for {text:?} in {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
            self.read();
        }
        let at = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..at);
    }

    fn say(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn wait_end(&mut self) -> Option<i32> {
        wait_for("the end of it", || {
            self.read();
            self.child.try_wait().unwrap()
        })
        .code()
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON)
    }
}

fn rig() -> Rig {
    let rig = Rig::new();
    rig.start(&rig.script("shop.1", "exec sleep 1000"));
    rig
}

#[test]
fn a_shell_at_a_terminal() {
    let rig = rig();
    // Neither -i nor -t: it sees that somebody sits there.
    let mut seat = Seat::take(&rig, &["shop", "--", "sh"]);
    seat.say("echo $((6*7)) $TERM; stty size; tty\r");
    seat.wait("42 vt220\r\n");
    seat.wait("33 101\r\n");
    seat.wait("/dev/pts/0\r\n");
    assert!(!seat.echoes(), "keys are for the container's terminal, not for ours");
    // Keys that are signals: to what runs in front, which is not the shell.
    seat.say("sleep 1000\r");
    wait_for("`sleep` to run", || {
        let command = ["sh", "-c", "ps | grep -c '[s]leep 1000'"].map(str::to_owned);
        let output = rig.engine.exec(&"shop.1".parse().unwrap(), &command, Duration::from_secs(60)).unwrap();
        (output.output == "2\n").then_some(())
    });
    seat.say("\x03");
    seat.say("echo after=$?\r");
    seat.wait("after=130");
    seat.say("exit 5\r");
    assert_eq!(seat.wait_end(), Some(5));
    assert!(seat.echoes(), "our terminal is as it was");
}

#[test]
fn a_new_size_is_passed_on() {
    let rig = rig();
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut seat = Seat::take(&rig, &["shop", "--", "sh", "-c", script]);
    seat.wait("ready\r\n");
    let size = rustix::termios::Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&seat.slave, size).unwrap();
    seat.wait("50 200\r\n");
    seat.say("\x03");
    assert_eq!(seat.wait_end(), Some(130));
}

#[test]
fn a_terminal_belongs_to_its_user() {
    let rig = rig();
    for (first, service) in [(&["-u", "app"][..], "shop"), (&[], "locked")] {
        if service == "locked" {
            // Without the right to give files away: another process has to.
            let mut request = rig.script("locked.1", "exec sleep 1000");
            request.spec.user = Some("app".into());
            request.spec.options.cap_drop = Some(vec!["ALL".into()]);
            rig.start(&request);
        }
        let script = "sleep 0.2; echo by name > $(tty) && stty size < $(tty); id -u; ls -l /proc/self/fd | grep -c '>'";
        let args = [first, &[service, "--", "sh", "-c", script]].concat();
        let mut seat = Seat::take(&rig, &args);
        seat.wait("by name\r\n33 101\r\n1000\r\n");
        // Its three streams; the directory that it looks at is closed by then.
        seat.wait("3\r\n");
        assert_eq!(seat.wait_end(), Some(0));
    }
    // What the runtime made for the way of the terminal is gone.
    let left: Vec<_> = walk(&rig.path("run/containers"));
    assert!(!left.iter().any(|name| name.contains("console-") || name.contains("tenant-tty")), "{left:?}");
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

#[test]
fn a_terminal_for_a_script() {
    let rig = rig();
    // Ours is none, and what we write into it has an end.
    let mut command = rig.command(&["exec", "-it", "shop", "--", "sh", "-c", "stty size; cat; tty"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("24 80\r\n") || text.starts_with("hello\r\n24 80\r\n"), "{text:?}");
    assert!(text.ends_with("hello\r\n/dev/pts/0\r\n"), "{text:?}");
    assert_eq!(output.status.code(), Some(0));
    // The reader of it goes away: what runs hears that its line is cut.
    let script = "trap 'touch /tmp/cut; exit 9' HUP; while :; do echo on; sleep 0.05; done";
    let mut command = rig.command(&["exec", "-t", "shop", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut byte).unwrap();
    drop(stdout);
    let status = wait_for("the end of it", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(9));
    assert!(rig.path("state/containers/shop.1/upper/tmp/cut").exists());
}

#[test]
fn the_container_ends_under_a_terminal() {
    let rig = rig();
    let mut seat = Seat::take(&rig, &["shop", "--", "sh"]);
    seat.say("echo h''ere\r");
    seat.wait("here\r\n");
    rig.engine.stop(&"shop.1".parse().unwrap(), Duration::from_millis(100)).unwrap();
    assert_eq!(seat.wait_end(), Some(137));
    assert!(seat.echoes());
    seat.read();
    assert!(seat.seen.contains("the container has ended"), "{:?}", seat.seen);
}
