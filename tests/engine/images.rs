//! What a container's start reads and makes in an image's tree, which may be anything: `docs/attacks.md` names these.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use gitopsd::engine::{ContainerRequest, Engine as _};
use gitopsd::types::Reason;

use crate::containers::Rig;

/// Memory of a process at its highest, in bytes.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A directory of the host, with a file, that nobody may touch.
fn outside(rig: &Rig) -> PathBuf {
    let place = rig.path("outside");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("passwd"), "root:x:0:0::/root:/bin/sh\napp:x:4711:4711::/:/bin/sh\n").unwrap();
    place
}

#[track_caller]
fn assert_untouched(place: &std::path::Path) {
    let names: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["passwd"], "something was made in {}", place.display());
    assert_eq!(fs::metadata(place.join("passwd")).unwrap().nlink(), 1);
}

fn refused(rig: &Rig, request: &ContainerRequest) -> String {
    let refusal = rig.engine.start(request).unwrap_err().to_refusal();
    assert_eq!(refusal.reason, Reason::StartFailed, "{refusal}");
    refusal.message
}

/// CVE-2024-9676: a user is looked up in what the image's `/etc/passwd` leads to.
#[test]
fn a_user_database_is_the_images_own_file_or_none() {
    let rig = Rig::new();
    let place = outside(&rig);
    let database = rig.path("layer/etc/passwd");
    let mut request = rig.script("shop.1", "id -u");
    request.spec.user = Some("app".into());
    let mknod = |arguments: &[&str]| {
        let made = std::process::Command::new("mknod").arg(&database).args(arguments).status();
        assert!(made.unwrap().success());
    };
    let up = "../".repeat(20);
    let ways: [&dyn Fn(); 5] = [
        &|| symlink(place.join("passwd"), &database).unwrap(),
        &|| symlink(format!("{up}{}", place.join("passwd").display()), &database).unwrap(),
        &|| symlink("/proc/self/root/etc/passwd", &database).unwrap(),
        &|| mknod(&["p"]),
        &|| mknod(&["c", "1", "5"]),
    ];
    for way in ways {
        fs::remove_file(&database).unwrap();
        way();
        let message = refused(&rig, &request);
        assert!(message.contains("is not in the image's /etc/passwd"), "{message}");
        rig.engine.remove(&request.id).unwrap();
    }
    // Within the image a link is as good as a file.
    fs::remove_file(&database).unwrap();
    symlink("/data/passwd", &database).unwrap();
    fs::write(rig.path("layer/data/passwd"), "app:x:77:77::/:/bin/sh\n").unwrap();
    assert_eq!(rig.run(&request).1, ["77"]);
    assert_untouched(&place);
}

/// CVE-2026-47262: all of a file of groups is read into memory.
#[test]
fn a_list_of_groups_without_end_is_not_read() {
    let rig = Rig::new();
    fs::File::options().append(true).open(rig.path("layer/etc/group")).unwrap().set_len(1 << 30).unwrap();
    let mut request = rig.script("shop.1", "id -u; exec sleep 1000");
    request.spec.user = Some("app".into());
    rig.start(&request);
    rig.wait_log(&request.id, "1000");
    let peak = peak(rig.shim_pid(&request.id));
    assert!(peak < 100 << 20, "{peak} bytes of memory");
    rig.engine.remove(&request.id).unwrap();
    request.spec.user = Some("app:logs".into());
    let message = refused(&rig, &request);
    assert!(message.contains("is not in the image's /etc/group"), "{message}");
}

/// CVE-2026-55686: the working directory is made where a link of the image leads to.
#[test]
fn a_working_directory_is_made_in_the_container_or_nowhere() {
    let rig = Rig::new();
    let place = outside(&rig);
    let up = format!("{}{}", "../".repeat(20), place.display());
    symlink(&place, rig.path("layer/absolute")).unwrap();
    symlink(up, rig.path("layer/relative")).unwrap();
    symlink("/proc/self/root", rig.path("layer/magic")).unwrap();
    let ways = ["/absolute", "/absolute/made", "/relative/made"].map(str::to_owned);
    for way in ways.into_iter().chain([format!("/magic{}/made", place.display())]) {
        let mut request = rig.script("shop.1", "ls");
        request.spec.working_dir = Some(way.clone());
        if rig.engine.start(&request).is_ok() {
            rig.wait_exit(&request.id);
            let seen = rig.engine.log_tail(&request.id, 9);
            assert!(!seen.contains(&"passwd".to_owned()), "{way}: {seen:?}");
        }
        rig.engine.remove(&request.id).unwrap();
        assert_untouched(&place);
    }
}

/// CVE-2024-5154: a file that belongs into `/etc` is made where that leads to.
#[test]
fn what_belongs_into_etc_is_put_there_or_nowhere() {
    let rig = Rig::new();
    let place = outside(&rig);
    fs::remove_dir_all(rig.path("layer/etc")).unwrap();
    for target in [place.display().to_string(), format!("{}{}", "../".repeat(20), place.display())] {
        symlink(&target, rig.path("layer/etc")).unwrap();
        let request = rig.script("shop.1", "cat /etc/hostname; ls /etc");
        // In the container it may be there, and of the container.
        if rig.engine.start(&request).is_ok() {
            rig.wait_exit(&request.id);
            let seen = rig.engine.log_tail(&request.id, 9);
            assert!(!seen.contains(&"passwd".to_owned()), "{target}: {seen:?}");
        }
        rig.engine.remove(&request.id).unwrap();
        assert_untouched(&place);
        fs::remove_file(rig.path("layer/etc")).unwrap();
    }
}
