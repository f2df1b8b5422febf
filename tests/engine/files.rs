//! Layers, volumes and binds.

use std::fs;
use std::time::Duration;

use gitopsd::engine::{ContainerState, Engine};
use gitopsd::state::{contents, secrets};
use gitopsd::types::{ConfigFile, Reason, SecretFile, VolumeMount, VolumeSource};

use crate::containers::{self, Rig, wait_for};

#[test]
fn volumes_keep_what_is_written_and_read_only_means_it() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("assets/inner")).unwrap();
    fs::write(rig.path("assets/logo"), "logo").unwrap();
    let mut request = rig.script(
        "shop.1",
        "cat /assets/logo; echo
         touch /assets/x 2>/dev/null && echo WROTE
         touch /assets/inner/x 2>/dev/null && echo WROTE
         echo kept > /data/file; echo there > /file-on-host; cat /deep/er/logo",
    );
    let named = VolumeMount::new(VolumeSource::Named("data".into()), "/data", false);
    fs::write(rig.path("one-file"), "").unwrap();
    request.spec.volumes = vec![
        containers::bind(rig.path("assets"), "/deep/er", true),
        named.clone(),
        containers::bind(rig.path("assets"), "/assets", true),
        containers::bind(rig.path("one-file"), "/file-on-host", false),
    ];
    let (exit, log) = rig.run(&request);
    assert_eq!(log, ["logo", "logo"], "{exit}");
    assert_eq!(fs::read_to_string(rig.path("one-file")).unwrap(), "there\n");
    rig.engine.remove(&request.id).unwrap();
    assert_eq!(fs::read_to_string(rig.path("state/volumes/shop/data/file")).unwrap(), "kept\n");

    // The next generation finds the volume again, and its user may write where the image prepared a directory for it.
    std::os::unix::fs::chown(rig.path("layer/tmp"), Some(1000), Some(1001)).unwrap();
    let mut next = rig.script("shop.2", "cat /data/file; touch /tmp/mine && echo mine; id -u");
    let tmp = VolumeMount::new(VolumeSource::Named("tmp".into()), "/tmp", false);
    next.spec.volumes = vec![named, tmp];
    next.spec.user = Some("app".into());
    let (_, log) = rig.run(&next);
    assert_eq!(log, ["kept", "mine", "1000"]);
}

#[test]
fn a_new_volume_begins_with_what_the_image_has_there() {
    let rig = Rig::new();
    let prepared = rig.path("layer/var/lib/shop");
    fs::create_dir_all(prepared.join("inner")).unwrap();
    fs::write(prepared.join("inner/seed"), "seed\n").unwrap();
    fs::hard_link(prepared.join("inner/seed"), prepared.join("same")).unwrap();
    std::os::unix::fs::symlink("inner/seed", prepared.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", prepared.join("out")).unwrap();
    std::os::unix::fs::chown(prepared.join("inner"), Some(1000), Some(1001)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2750);
    fs::set_permissions(prepared.join("inner"), mode).unwrap();
    let volume = VolumeMount::new(VolumeSource::Named("data".into()), "/var/lib/shop", false);
    let script = "cd /var/lib/shop; cat link; stat -c '%a %u:%g' inner; stat -c %h same; busybox readlink out
                  echo changed > inner/seed; rm -f out";
    let mut request = rig.script("shop.1", &script.replace("rm -f", "busybox rm -f"));
    request.spec.volumes = vec![volume.clone()];
    let (_, log) = rig.run(&request);
    assert_eq!(log, ["seed", "2750 1000:1001", "2", "/etc/shadow"]);
    // Once only: what the service made of it stays, whatever the next image has there.
    fs::write(prepared.join("new"), "").unwrap();
    let mut request = rig.script("shop.2", "cd /var/lib/shop; cat same; ls");
    request.spec.volumes = vec![volume];
    assert_eq!(rig.run(&request).1, ["changed", "inner", "link", "same"]);
    assert_eq!(fs::read_dir(rig.path("state/volumes/shop")).unwrap().count(), 1);
}

#[test]
fn a_bind_source_behind_a_link_is_refused() {
    let rig = Rig::new();
    std::os::unix::fs::symlink("/etc", rig.path("innocent")).unwrap();
    let mut request = rig.script("shop.1", "cat /x/passwd");
    request.spec.volumes = vec![containers::bind(rig.path("innocent"), "/x", true)];
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("passes through a symbolic link"), "{message}");
}

fn named(name: &str, target: &str) -> VolumeMount {
    VolumeMount::new(VolumeSource::Named(name.into()), target, false)
}

fn config(rig: &Rig, content: &str, target: &str, mode: u32) -> ConfigFile {
    let digest = contents::put(&rig.path("state"), content.as_bytes()).unwrap();
    let size = content.len() as u64;
    ConfigFile { target: target.into(), content: digest, size, uid: None, gid: None, mode }
}

#[test]
fn config_files_are_seen_with_their_owner_and_mode_and_cannot_be_written() {
    let rig = Rig::new();
    fs::write(rig.path("layer/etc/app.conf"), "of the image").unwrap();
    let script = "cat /etc/app.conf /deep/er/x.conf /data/y.conf; /run.sh
        stat -c '%a %u:%g' /etc/app.conf /deep/er/x.conf /data/y.conf /run.sh
        for f in /etc/app.conf /run.sh; do
          { echo x >> $f; } 2>/dev/null && echo WROTE; busybox rm -f $f 2>/dev/null && echo REMOVED
          busybox chmod 777 $f 2>/dev/null && echo CHANGED
        done
        grep -c ' /etc/app.conf .*[ ,]ro[, ]' /proc/mounts";
    let mut request = rig.script("shop.1", script);
    request.spec.volumes = vec![named("data", "/data")];
    request.spec.configs = vec![
        config(&rig, "one\n", "/etc/app.conf", 0o444),
        ConfigFile { uid: Some(7), gid: Some(8), ..config(&rig, "two\n", "/deep/er/x.conf", 0o444) },
        config(&rig, "three\n", "/data/y.conf", 0o440),
        config(&rig, "#!/bin/sh\necho ran\n", "/run.sh", 0o555),
    ];
    let as_root = ["one", "two", "three", "ran", "444 0:0", "444 7:8", "440 0:0", "555 0:0", "1"];
    assert_eq!(rig.run(&request).1, as_root);
    // Started once more, with the same name: after a crash, or a boot.
    assert_eq!(rig.run(&request).1, [as_root, as_root].concat());
    // The user that it runs as owns them, unless said.
    let mut request = rig.script("shop.2", "id -u; cat /secret.conf; stat -c '%a %u:%g' /secret.conf");
    request.spec.user = Some("app".into());
    request.spec.configs = vec![config(&rig, "mine\n", "/secret.conf", 0o400)];
    assert_eq!(rig.run(&request).1, ["1000", "mine", "400 1000:1001"]);
    // On the host only root sees them, and the container's place holds nothing.
    let mode = |path: &str| {
        let metadata = fs::metadata(rig.path(path)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
    };
    assert_eq!(mode("state/configs"), 0o700);
    assert_eq!(fs::read_dir(rig.path("run/containers/shop.2/configs")).unwrap().count(), 0);
}

#[test]
fn a_content_that_is_gone_or_damaged_is_told_and_nothing_is_started() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "cat /x.conf");
    let file = config(&rig, "whole\n", "/x.conf", 0o444);
    let kept = contents::path(&rig.path("state"), &file.content);
    request.spec.configs = vec![file];
    for damage in ["other\n", "whole\nand more", ""] {
        fs::write(&kept, damage).unwrap();
        let refusal = rig.engine.start(&request).unwrap_err().to_refusal();
        assert_eq!(refusal.reason, Reason::StateInvalid);
        assert!(refusal.message.contains("config file /x.conf"), "{refusal}");
    }
    fs::remove_file(&kept).unwrap();
    let refusal = rig.engine.start(&request).unwrap_err().to_refusal();
    assert!(refusal.message.contains("it is gone"), "{refusal}");
    config(&rig, "whole\n", "/x.conf", 0o444);
    assert_eq!(rig.run(&request).1, ["whole"]);
}

#[test]
fn a_path_inside_a_volume_is_mounted_and_leads_nowhere_else() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("layer/srv/app")).unwrap();
    fs::write(rig.path("layer/srv/app/seed"), "seed\n").unwrap();
    let sub = |path: &str, target: &str| VolumeMount { subpath: Some(path.into()), ..named("data", target) };
    let mut request = rig.script(
        "shop.1",
        "cat /srv/app/seed; echo kept > /srv/app/file; ls /logs; echo l > /logs/l; ls /all",
    );
    request.spec.volumes = vec![sub("app/files", "/srv/app"), sub("logs", "/logs"), named("data", "/all")];
    assert_eq!(rig.run(&request).1, ["seed", "app", "logs"]);
    let volume = rig.path("state/volumes/shop/data");
    assert_eq!(fs::read_to_string(volume.join("app/files/file")).unwrap(), "kept\n");
    assert_eq!(fs::read_to_string(volume.join("logs/l")).unwrap(), "l\n");
    assert_eq!(fs::read_dir(rig.path("state/volumes/shop")).unwrap().count(), 1, "something is left beside");

    // What the container made of it: links out, to the host's files and up.
    fs::create_dir_all(rig.path("outside")).unwrap();
    fs::write(rig.path("outside/secret"), "HOST").unwrap();
    std::os::unix::fs::symlink(rig.path("outside"), volume.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../outside", volume.join("up")).unwrap();
    std::os::unix::fs::symlink("/proc/1/root", volume.join("proc")).unwrap();
    std::os::unix::fs::symlink("/logs", volume.join("inside")).unwrap();
    for (number, path) in ["absolute", "up", "proc", "up/secret", "proc/etc"].iter().enumerate() {
        let mut request = rig.script(
            &format!("shop.{}", number + 2),
            "cat /x/secret /x 2>/dev/null; test -e /x/hostname && echo HOST; echo > /x/new; true",
        );
        request.spec.volumes = vec![sub(path, "/x")];
        match rig.engine.start(&request) {
            Ok(()) => {
                rig.wait_exit(&request.id);
                assert_eq!(rig.engine.log_tail(&request.id, 9), [""; 0], "{path}");
            }
            Err(error) => {
                let message = error.to_refusal().message;
                assert!(message.contains("of named volume `data` cannot be used"), "{path}: {message}");
            }
        }
    }
    assert_eq!(fs::read_dir(rig.path("outside")).unwrap().count(), 1, "it was written to");
    let mut request = rig.script("shop.9", "cat /x/l");
    request.spec.volumes = vec![sub("inside", "/x")];
    assert_eq!(rig.run(&request).1, ["l"], "a link within the volume");
}

/// The agent's patience is made short and the copy slow, by `weak`.
#[test]
fn a_first_fill_takes_as_long_as_it_makes_progress() {
    let rig = Rig::new();
    let prepared = rig.path("layer/var/lib/shop");
    fs::create_dir_all(&prepared).unwrap();
    // Longer than one piece that is copied at once.
    let size = (64 << 20) + 4321;
    let long = fs::File::create(prepared.join("0")).unwrap();
    long.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&long, b"the end", size - 7).unwrap();
    (1..120).for_each(|number| fs::write(prepared.join(number.to_string()), "seed").unwrap());
    fs::create_dir_all(rig.path("state")).unwrap();
    fs::write(rig.path("state/weak"), "slow hurried").unwrap();
    let mut request =
        rig.script("shop.1", "cd /var/lib/shop; stat -c %s 0; tail -c 7 0; echo; cat 119; echo; ls | wc -l");
    request.spec.volumes = vec![named("data", "/var/lib/shop")];

    // One that stands still is given up, and leaves nothing that would be taken for the volume.
    let unfinished = rig.path("state/volumes/shop/.data.new");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("the fill", || unfinished.exists().then_some(()));
            let shim = nix::unistd::Pid::from_raw(rig.shim_pid(&request.id));
            nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
        });
        let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
        assert!(message.contains("its shim did not report within 10 s"), "{message}");
    });
    assert!(!rig.path("state/volumes/shop/data").exists());

    let begun = std::time::Instant::now();
    let (exit, log) = rig.run(&request);
    assert!(begun.elapsed() > Duration::from_secs(11), "it was not slow: {:?}", begun.elapsed());
    assert_eq!(log, [size.to_string().as_str(), "the end", "seed", "120"], "{exit}");
}

#[test]
fn a_volume_without_a_copy_begins_empty() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("layer/var/lib/shop/inner")).unwrap();
    let mut request = rig.script("shop.1", "ls /var/lib/shop | wc -l");
    request.spec.volumes = vec![VolumeMount { nocopy: true, ..named("data", "/var/lib/shop") }];
    assert_eq!(rig.run(&request).1, ["0"]);
}

#[test]
fn a_directory_of_the_host_is_made_where_that_was_asked_for() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "echo there > /x/file");
    let bind = containers::bind(rig.path("new/deep/er"), "/x", false);
    request.spec.volumes = vec![bind.clone()];
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("does not exist on this host"), "{message}");
    request.spec.volumes = vec![VolumeMount { create_host_path: true, ..bind }];
    rig.run(&request);
    assert_eq!(fs::read_to_string(rig.path("new/deep/er/file")).unwrap(), "there\n");
    // Not through a link: it would be made where the policy has no say.
    std::os::unix::fs::symlink(rig.path("new"), rig.path("link")).unwrap();
    let mut request = rig.script("shop.2", "true");
    let bind = containers::bind(rig.path("link/other"), "/x", false);
    request.spec.volumes = vec![VolumeMount { create_host_path: true, ..bind }];
    let message = rig.engine.start(&request).unwrap_err().to_refusal().message;
    assert!(message.contains("passes through a symbolic link"), "{message}");
    assert!(!rig.path("new/other").exists());
}

#[test]
fn the_writable_layer_lasts_as_long_as_the_container_and_no_longer() {
    let rig = Rig::new();
    let request = rig.script("shop.1", "cat /mark 2>/dev/null || echo fresh; echo again > /mark");
    assert_eq!(rig.run(&request).1, ["fresh"]);
    assert_eq!(rig.run(&request).1, ["fresh", "again"], "a restart keeps what was written");
    rig.engine.remove(&request.id).unwrap();
    fs::remove_file(rig.log_file(&request.id)).unwrap();
    assert_eq!(rig.run(&request).1, ["fresh"]);
    assert!(!rig.path("layer/mark").exists(), "the image's own layer was written to");
}

#[test]
fn many_layers_fit() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "cat /which /first; ls / | grep -c '^only-'");
    for number in 0..126 {
        let layer = rig.path(&format!("layers/{}{number:03}", "f".repeat(61)));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("only-{number}")), "").unwrap();
        fs::write(layer.join("which"), format!("{number}\n")).unwrap();
        if number == 0 {
            fs::write(layer.join("first"), "first\n").unwrap();
        }
        request.image.layers.push(layer);
    }
    assert_eq!(rig.run(&request).1, ["125", "first", "126"]);
}

/// A small file system of its own, gone at the end of the test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount_at(path: std::path::PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = Some("size=1m,nr_inodes=1000");
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), options)
            .unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_told_and_stops_no_container() {
    let rig = Rig::new();
    let disk = SmallDisk::mount_at(rig.path("state"));
    let engine = rig.new_agent();
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.01; done";
    let request = rig.script("shop.1", script);
    engine.start(&request).unwrap();
    rig.wait_log(&request.id, "tick 3");
    let filler = disk.0.join("filler");
    let full =
        std::io::copy(&mut std::io::repeat(b'x'), &mut fs::File::create(&filler).unwrap()).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    let error = engine.start(&rig.script("shop.2", script)).unwrap_err();
    assert_eq!(error.reason, Reason::DiskSpace, "{}", error.to_refusal());
    assert!(matches!(rig.state(&request.id), Some(ContainerState::Running { .. })));
    // Its log goes on as soon as there is room, and says what it has missed.
    let length = || fs::metadata(rig.log_file(&request.id)).unwrap().len();
    wait_for("the last block of the log to be full", || {
        let before = length();
        std::thread::sleep(Duration::from_millis(200) * containers::slow());
        (length() == before).then_some(())
    });
    fs::remove_file(&filler).unwrap();
    wait_for("the log to tell of its gap", || {
        let log = engine.log_tail(&request.id, 1000);
        log.iter().any(|line| line.contains("log entries were lost")).then_some(())
    });
    for line in fs::read_to_string(rig.log_file(&request.id)).unwrap().lines() {
        assert!(line.split(' ').nth(2) == Some("F") && line.matches("tick").count() <= 1, "{line}");
    }
    for id in [request.id, "shop.2".parse().unwrap()] {
        engine.remove(&id).unwrap();
    }
}

fn secret(rig: &Rig, content: &str, target: &str, mode: u32) -> SecretFile {
    let content = Some(secrets::put(&rig.path("state"), content.as_bytes()).unwrap());
    SecretFile { source: "password".into(), target: target.into(), content, uid: None, gid: None, mode }
}

#[test]
fn secrets_are_seen_with_their_owner_and_mode_and_lie_in_memory_alone() {
    let rig = Rig::new();
    let script = "cat /run/secrets/password /etc/app/key /config
        stat -c '%a %u:%g' /run/secrets/password /etc/app/key
        for f in /run/secrets/password /etc/app/key; do
          { echo x >> $f; } 2>/dev/null && echo WROTE; busybox rm -f $f 2>/dev/null && echo REMOVED
          busybox chmod 777 $f 2>/dev/null && echo CHANGED
          grep -c \" $f ro.* - tmpfs \" /proc/self/mountinfo
        done
        env | grep hunter || true";
    let mut request = rig.script("shop.1", script);
    // One in memory above it does not hide it.
    request.spec.options.tmpfs =
        Some(vec![gitopsd::types::Tmpfs { target: "/run".into(), options: Vec::new() }]);
    request.spec.configs = vec![config(&rig, "plain\n", "/config", 0o444)];
    request.spec.secrets = vec![
        secret(&rig, "hunter2\n", "/run/secrets/password", 0o444),
        SecretFile { uid: Some(7), gid: Some(8), ..secret(&rig, "hunter3\n", "/etc/app/key", 0o440) },
    ];
    let seen = ["hunter2", "hunter3", "plain", "444 0:0", "440 7:8", "1", "1"];
    assert_eq!(rig.run(&request).1, seen);
    // Started once more, with the same name: after a crash, or a boot.
    assert_eq!(rig.run(&request).1, [seen, seen].concat());
    // The user that it runs as owns them, unless said.
    let mut request =
        rig.script("shop.2", "cat /run/secrets/password; stat -c '%a %u:%g' /run/secrets/password");
    request.spec.user = Some("app".into());
    request.spec.secrets = vec![secret(&rig, "mine\n", "/run/secrets/password", 0o400)];
    assert_eq!(rig.run(&request).1, ["mine", "400 1000:1001"]);
    // Of what a container leaves on the host nothing holds them but what is kept for the next start.
    let found = std::process::Command::new("grep")
        .args(["-rlaE", "hunter[23]|^mine$", "--exclude-dir=logs"])
        .args([rig.path("state"), rig.path("run"), rig.path("layer")])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let kept = rig.path("state/secrets").display().to_string();
    assert_eq!(found.lines().count(), 3, "{found}");
    assert!(found.lines().all(|line| line.starts_with(&kept)), "{found}");
}

#[test]
fn a_secret_that_is_not_kept_any_more_is_told_by_its_name() {
    let rig = Rig::new();
    let mut request = rig.script("shop.1", "cat /run/secrets/password");
    let file = secret(&rig, "hunter2\n", "/run/secrets/password", 0o444);
    let kept = secrets::path(&rig.path("state"), file.content.as_ref().unwrap());
    request.spec.secrets = vec![file.clone()];
    let refused = |request: &gitopsd::engine::ContainerRequest| {
        let refusal = rig.engine.start(request).unwrap_err().to_refusal();
        assert!(refusal.message.contains("secret `password`"), "{refusal}");
        assert!(!refusal.message.contains("hunter"), "{refusal}");
        refusal.reason
    };
    fs::write(&kept, "hunter3\n").unwrap();
    assert_eq!(refused(&request), Reason::StateInvalid);
    fs::remove_file(&kept).unwrap();
    assert_eq!(refused(&request), Reason::StateInvalid);
    // One that nobody has looked for is nobody's to guess.
    request.spec.secrets = vec![SecretFile { content: None, ..file }];
    assert_eq!(refused(&request), Reason::Internal);
}
