//! Layers, volumes and binds.

use std::fs;
use std::time::Duration;

use gitopsd::engine::{ContainerState, Engine};
use gitopsd::types::{Reason, VolumeMount, VolumeSource};

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
        std::thread::sleep(Duration::from_millis(200));
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
