//! Ways out of a container that were known once. Each fails here without its guard.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use gitopsd::engine::Engine;
use gitopsd::types::Options;

use crate::containers::Rig;

/// CVE-2019-5736: the image's command is a link to `/proc/self/exe`, so that the host's binary is executed inside, where
/// it can be opened. The write asks to truncate, as the kernel looks at the mount first then. What holds is that it is on a file system that is only read; that it is being executed
/// (ETXTBSY) holds only as long as something runs.
#[test]
fn the_hosts_binary_cannot_be_written_to() {
    let rig = Rig::new();
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
    rig.start(&request);
    let script = "busybox readlink /proc/1/exe; { echo x > /proc/1/exe; } 2>&1; echo done";
    let command = ["sh".into(), "-c".into(), script.into()];
    let output = rig.engine.exec(&request.id, &command, Duration::from_secs(20)).unwrap().output;
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
        let output = rig.engine.exec(&request.id, &looking, Duration::from_secs(20)).unwrap().output;
        assert!(output.contains("Read-only file system"), "{output}");
    });
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
    let output = rig.engine.exec(&request.id, &command, Duration::from_secs(20)).unwrap();
    // Standard input is /dev/null; `ls` has its directory open.
    assert!(output.output.trim().parse::<u32>().is_ok_and(|count| count <= 2), "{}", output.output);
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

/// CVE-2025-52565: /dev/console is mounted from a terminal before anything is masked. There is none to mount.
#[test]
fn no_console_is_mounted_from_outside() {
    let rig = Rig::new();
    let (_, log) = rig.run(
        &rig.script("shop.1", "grep -c ' /dev/console ' /proc/mounts; test -t 0 && echo TTY; echo done"),
    );
    assert_eq!(log, ["0", "done"]);
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
}
