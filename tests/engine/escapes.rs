//! Ways out of a container that were known once. Each fails here without its guard.
//!
//! Where the guard is the library's and cannot be taken away, the library's fault is brought back: builds for tests read
//! words from the file `weak` of the state directory, see `shim/weak.rs`. Such a test has three parts: as it is, the
//! way leads nowhere; with the fault, our own last look refuses to execute anything; with the fault and without the
//! look (nor AppArmor, where the kernel has it) the way leads out, and the test sees it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::Duration;

use gitopsd::engine::{ContainerRequest, Engine};
use gitopsd::types::Options;

use crate::containers::Rig;

/// Breaks what the words name.
#[cfg(feature = "failpoints")]
fn weaken(rig: &Rig, words: &str) {
    fs::create_dir_all(rig.path("state")).unwrap();
    fs::write(rig.path("state/weak"), words).unwrap();
}

/// With the fault `word` the last look refuses with `message`, and without the look the container says `sign`.
#[cfg(feature = "failpoints")]
fn shows_with_the_fault(rig: &Rig, request: &ContainerRequest, word: &str, message: &str, sign: &str) {
    weaken(rig, word);
    let refusal = rig.engine.start(request).unwrap_err().to_refusal();
    assert_eq!(refusal.reason, gitopsd::types::Reason::StartFailed);
    assert!(refusal.message.contains(message), "{word}: {refusal}");
    assert!(rig.engine.log_tail(&request.id, 99).is_empty(), "{word}: something was executed");
    weaken(rig, &format!("{word} unlooked"));
    let (_, log) = rig.run(request);
    assert!(log.iter().any(|line| line == sign), "{word}: the way did not lead out: {log:?}");
    weaken(rig, "");
    rig.engine.remove(&request.id).unwrap();
}

#[cfg(not(feature = "failpoints"))]
fn shows_with_the_fault(_: &Rig, _: &ContainerRequest, _: &str, _: &str, _: &str) {}

/// CVE-2019-5736: the image's command is a link to `/proc/self/exe`, so that the host's binary is executed inside, where
/// it can be opened. The write asks to truncate, as the kernel looks at the mount first then. What holds is that it is on a file system that is only read; that it is being executed
/// (ETXTBSY) holds only as long as something runs.
#[test]
fn the_hosts_binary_cannot_be_written_to() {
    let rig = Rig::new();
    let request = executes_the_host(&rig);
    rig.start(&request);
    let script = "busybox readlink /proc/1/exe; { echo x > /proc/1/exe; } 2>&1; echo done";
    let command = ["sh".into(), "-c".into(), script.into()];
    let output = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap().output;
    assert!(output.contains("gitopsd") && output.contains("Read-only file system"), "{output}");
    // The helper that executes commands seals itself as the shim does.
    let command = ["/command".into(), "--config".into(), "/never".into(), "status".into()];
    std::thread::scope(|scope| {
        scope.spawn(|| rig.engine.exec(&request.id, &command, Duration::from_secs(3)));
        let script = "while :; do for p in /proc/[0-9]*; do
               case $p,$(busybox readlink $p/exe 2>/dev/null) in
                 /proc/1,*) ;;
                 *gitopsd) { echo x > $p/exe; } 2>&1; exit ;;
               esac
             done; done";
        let looking = ["sh".into(), "-c".into(), script.into()];
        let output = rig.engine.exec(&request.id, &looking, Duration::from_secs(60)).unwrap().output;
        assert!(output.contains("Read-only file system"), "{output}");
    });
}

/// The same without the read-only mount: only that it is being executed holds then, and no longer than that.
#[test]
#[cfg(feature = "failpoints")]
fn without_the_mount_the_write_is_refused_for_another_reason() {
    let rig = Rig::new();
    let request = executes_the_host(&rig);
    let program = rig.path("gitopsd");
    crate::containers::copy_program(env!("CARGO_BIN_EXE_gitopsd"), &program);
    fs::write(rig.path("gitopsd.unsealed"), "").unwrap();
    let engine = crate::containers::engine_with(rig.dir.path(), &rig.instance, &program);
    engine.start(&request).unwrap();
    let command = ["sh".into(), "-c".into(), "{ echo x > /proc/1/exe; } 2>&1".into()];
    let output = engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap().output;
    assert!(output.contains("Text file busy"), "{output}");
}

/// An image whose command is the host's own program, and waits for ever.
fn executes_the_host(rig: &Rig) -> ContainerRequest {
    symlink("/proc/self/exe", rig.path("layer/command")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(rig.path("layer/never")).status();
    assert!(made.unwrap().success());
    // What it is linked with, so that it runs.
    let linked = std::process::Command::new("ldd").arg(env!("CARGO_BIN_EXE_gitopsd")).output().unwrap();
    for library in
        String::from_utf8(linked.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
    {
        let place = rig.path(&format!("layer{library}"));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
    let mut request = rig.script("shop.1", "");
    // Waits for ever for somebody to write its configuration.
    request.spec.command = Some(["/command", "--config", "/never", "status"].map(str::to_owned).into());
    request
}

/// What stays of the shim as the first process with `init = true` is nobody's to open.
#[test]
fn the_first_process_cannot_be_opened() {
    let rig = Rig::new();
    let mut request = rig.script(
        "shop.1",
        "(exec 3</proc/1/exe) 2>/dev/null && echo OPENED; ls /proc/1/fd 2>/dev/null; echo done",
    );
    request.spec.options = Options { init: Some(true), ..Options::default() };
    // Its standard descriptors, and nothing of the shim's.
    assert_eq!(rig.run(&request).1, ["0", "1", "2", "done"]);
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime on a directory of the host.
#[test]
fn no_descriptor_of_the_host_is_a_working_directory() {
    let rig = Rig::new();
    for number in 3..12 {
        let mut request = rig.script("shop.1", "pwd; ls -l /proc/self/cwd");
        request.spec.working_dir = Some(format!("/proc/self/fd/{number}"));
        let result = rig.engine.start(&request);
        if result.is_ok() {
            rig.wait_exit(&request.id);
            let log = rig.engine.log_tail(&request.id, 9).join("\n");
            assert!(!log.contains("(unreachable)") && !log.contains("/proc/self/fd"), "fd {number}: {log}");
        }
        rig.engine.remove(&request.id).unwrap();
    }
    // By a link in the image, and for a command that is executed later.
    symlink("/proc/self/fd/7", rig.path("layer/leak")).unwrap();
    let mut request = rig.script("shop.1", "ls /proc/self/cwd/; pwd; ls -l /proc/self/fd");
    request.spec.working_dir = Some("/leak".into());
    assert!(rig.engine.start(&request).is_err(), "a link to a descriptor was followed");
    rig.engine.remove(&request.id).unwrap();
    let request = rig.script("shop.2", "sleep 100");
    rig.start(&request);
    let command = ["sh".into(), "-c".into(), "ls -l /proc/self/fd 2>/dev/null | grep -c -e '-> /'".into()];
    let output = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap();
    // Standard input is /dev/null; `ls` has its directory open.
    assert!(output.output.trim().parse::<u32>().is_ok_and(|count| count <= 2), "{}", output.output);
}

/// The same with a runtime that follows the descriptor: what is reached from there is the host.
#[test]
fn a_working_directory_on_the_host_is_seen_and_nothing_is_executed() {
    let rig = Rig::new();
    fs::write(rig.path("secret"), "of the host").unwrap();
    let script = format!("cd {} 2>/dev/null; echo in; cat .{}", "/", rig.path("secret").display());
    // Relative paths alone lead there: a `cd` would leave it.
    let script = script.replace("cd / 2>/dev/null; ", "");
    let request = rig.script("shop.1", &format!("{script} 2>/dev/null; echo; echo done"));
    assert_eq!(rig.run(&request).1, ["in", "", "done"]);
    rig.engine.remove(&request.id).unwrap();
    let request = ContainerRequest { id: "shop.2".parse().unwrap(), ..request };
    let message = "the working directory is not in the container";
    shows_with_the_fault(&rig, &request, "directory", message, "of the host");
    // And for a command that is executed later.
    #[cfg(feature = "failpoints")]
    {
        let request = rig.script("shop.3", "sleep 100");
        rig.start(&request);
        let command = ["sh".into(), "-c".into(), format!("cat .{}", rig.path("secret").display())];
        weaken(&rig, "directory");
        let error = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap_err();
        assert!(error.to_refusal().message.contains(message), "{}", error.to_refusal());
        weaken(&rig, "directory unlooked");
        let output = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap().output;
        assert_eq!(output, "of the host");
    }
}

/// CVE-2025-31133 and CVE-2025-52881: /dev/null of the image is a link, and what is masked is mounted from there; a
/// write for the process goes elsewhere because /proc is not /proc.
#[test]
fn masks_do_not_follow_what_the_image_says_of_dev_and_proc() {
    let rig = Rig::new();
    for dir in ["dev", "proc", "sys"] {
        fs::create_dir_all(rig.path(&format!("layer/{dir}"))).unwrap();
    }
    symlink("/proc/sysrq-trigger", rig.path("layer/dev/null")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", rig.path("layer/dev/console")).unwrap();
    let (_, log) = rig.run(&rig.script(
        "shop.1",
        "stat -c '%F %t:%T' /dev/null; head -c 1 /proc/kcore 2>/dev/null | wc -c; head -c 1 /proc/keys 2>/dev/null | wc -c
         echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo WROTE; echo done",
    ));
    assert_eq!(log, ["character special file 1:3", "0", "0", "done"]);
    // /proc as a link, or as a link to another place in the image: refused or harmless, but never mounted elsewhere.
    fs::remove_dir(rig.path("layer/proc")).unwrap();
    fs::create_dir_all(rig.path("layer/elsewhere")).unwrap();
    symlink("/elsewhere", rig.path("layer/proc")).unwrap();
    let request = rig.script(
        "shop.2",
        "test -e /elsewhere/self && echo ELSEWHERE; echo x > /elsewhere/sysrq-trigger && echo WROTE",
    );
    if rig.engine.start(&request).is_ok() {
        rig.wait_exit(&request.id);
        let log = rig.engine.log_tail(&request.id, 9);
        assert!(!log.iter().any(|line| line == "WROTE"), "{log:?}");
    }
}

/// CVE-2025-31133: masks and read-only paths that did not come about.
#[test]
fn what_is_not_masked_is_seen_and_nothing_is_executed() {
    let rig = Rig::new();
    // Opened, and nothing written: what stands there is the host's.
    let script = "head -c 1 /proc/interrupts | wc -c
        ( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo WRITABLE; echo done";
    assert_eq!(rig.run(&rig.script("shop.1", script)).1, ["0", "done"]);
    let request = rig.script("shop.2", script);
    shows_with_the_fault(&rig, &request, "unmasked", "it shows the host's kernel", "WRITABLE");
    // One who is allowed all sees all: there is nothing to look for.
    let mut request = rig.script("shop.3", script);
    request.spec.options.privileged = Some(true);
    assert!(rig.run(&request).1.contains(&"WRITABLE".to_owned()));
}

/// CVE-2025-52881: `/proc` is not the kernel's, so that what the runtime writes there to shut the container in (labels,
/// kernel parameters) goes to a file of the image.
#[test]
fn a_false_proc_is_seen_and_nothing_is_executed() {
    let rig = Rig::new();
    let parameter = "proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::create_dir_all(rig.path("layer/proc/sys/net/ipv4")).unwrap();
    fs::write(rig.path(&format!("layer/{parameter}")), "of the image").unwrap();
    for dir in ["self", "self/fd", "thread-self", "1"] {
        fs::create_dir_all(rig.path(&format!("layer/proc/{dir}"))).unwrap();
    }
    let script = format!("test -e /proc/version || echo FALSE; busybox tail -c 99 /{parameter}; echo done");
    let (_, log) = rig.run(&rig.script("shop.1", &script));
    assert_eq!(log, ["0", "done"]);
    let request = rig.script("shop.2", &script);
    shows_with_the_fault(&rig, &request, "false-proc", "/proc is not as it has to be", "FALSE");
}

/// CVE-2025-52565: /dev/console is mounted from a terminal before anything is masked. There is none to mount.
#[test]
fn no_console_is_mounted_from_outside() {
    let rig = Rig::new();
    let (_, log) = rig.run(
        &rig.script("shop.1", "grep -c ' /dev/console ' /proc/mounts; test -t 0 && echo TTY; echo done"),
    );
    assert_eq!(log, ["0", "done"]);
    // Another file there, as where the race was won: it is the host's, and the container can write to it.
    let script = "head -c 10 /dev/console 2>/dev/null; echo; echo done";
    let request = rig.script("shop.2", script);
    shows_with_the_fault(&rig, &request, "console", "/dev/console is not as it has to be", "{\"format\":");
}

/// The device hole: on cgroup v2 the runtime has no filter of devices, so that what can be made can be read.
#[test]
fn devices_of_the_host_cannot_be_made_nor_used() {
    let rig = Rig::new();
    let script = "for n in '8 0' '253 0' '254 0' '259 0' '7 0'; do
           mknod /made b $n 2>/dev/null && echo MADE && head -c 1 /made >/dev/null 2>&1 && echo READ
           mknod /tmp/made b $n 2>/dev/null && echo MADE; busybox rm -f /made /tmp/made
         done
         head -c 1 /from-image >/dev/null 2>&1 && echo READ OF THE IMAGE
         echo done";
    // A device in the image's own files: `nodev` is what holds.
    let made =
        std::process::Command::new("mknod").arg(rig.path("layer/from-image")).args(["c", "1", "5"]).status();
    assert!(made.unwrap().success());
    let (_, log) = rig.run(&rig.script("shop.1", script));
    assert_eq!(log, ["done"]);
    // With CAP_MKNOD, which the host has to grant, `nodev` holds still; on cgroup v1 its rules hold too.
    let mut request = rig.script("shop.2", script);
    request.spec.options.cap_add = Some(vec!["CAP_MKNOD".into()]);
    let (_, log) = rig.run(&request);
    assert!(!log.iter().any(|line| line.starts_with("READ")), "{log:?}");
    // Without `nodev`: a device that every container may use is used through the image's own.
    #[cfg(feature = "failpoints")]
    {
        weaken(&rig, "devices");
        let (_, log) = rig.run(&rig.script("shop.3", script));
        assert_eq!(log, ["READ OF THE IMAGE", "done"]);
    }
}

/// Mode and owner of the host's null device, which go back to what they were.
struct Null((u32, u32, u32));

impl Null {
    fn look() -> (u32, u32, u32) {
        let found = fs::metadata("/dev/null").unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        let (mode, uid, gid) = self.0;
        let _ = std::os::unix::fs::chown("/dev/null", Some(uid), Some(gid));
        let _ = fs::set_permissions("/dev/null", fs::Permissions::from_mode(mode));
    }
}

/// containers/crun#1845 and opencontainers/runc#3674: where what a container or a command reads is the host's null device, its root
/// can change that, and some runtimes give it to the container's user: `tests/engine/runtimes.rs` runs it with them, too.
#[test]
fn the_hosts_null_device_is_nobodys_to_change() {
    let rig = Rig::new();
    let before = Null(Null::look());
    // It would harm nobody on the host.
    let script = "busybox chmod 777 /proc/self/fd/0; busybox chown 0:4711 /proc/self/fd/0
        stat -L -c '%t:%T %a %g' /proc/self/fd/0; cat";
    let command = ["sh", "-c", script].map(str::to_owned);
    for (id, user) in [("root.1", None), ("app.1", Some("app"))] {
        let mut request = rig.script(id, &format!("{script}; echo up; exec sleep 1000"));
        request.spec.user = user.map(str::to_owned);
        rig.start(&request);
        rig.wait_log(&request.id, "up");
        let done = rig.engine.exec(&request.id, &command, Duration::from_secs(60)).unwrap().output;
        let person = rig.command(&["exec", request.id.service.as_str(), "--", "sh", "-c", script]);
        let person = { person }.output().unwrap();
        if user.is_none() {
            let changed = "1:3 777 4711\n";
            assert_eq!(rig.engine.log_tail(&request.id, 9), [changed.trim_end(), "up"]);
            assert_eq!(
                [done.as_str(), &String::from_utf8_lossy(&person.stdout)],
                [changed; 2],
                "it was changed"
            );
        }
        assert_eq!(Null::look(), before.0, "of the host, after a container of {user:?}");
    }
    #[cfg(feature = "failpoints")]
    if std::env::var_os("GITOPSD_TEST_RUNTIME").is_none() {
        weaken(&rig, "input");
        rig.engine.exec(&"root.1".parse().unwrap(), &command, Duration::from_secs(60)).unwrap();
        assert_eq!(Null::look(), (0o777, 0, 4711), "the way did not lead out");
    }
}
