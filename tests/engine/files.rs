//! Layers, volumes and binds.

use std::fs;

use gitopsd::engine::Engine;
use gitopsd::types::{VolumeMount, VolumeSource};

use crate::containers::{self, Rig};

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
    let named =
        VolumeMount { source: VolumeSource::Named("data".into()), target: "/data".into(), read_only: false };
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
    let tmp =
        VolumeMount { source: VolumeSource::Named("tmp".into()), target: "/tmp".into(), read_only: false };
    next.spec.volumes = vec![named, tmp];
    next.spec.user = Some("app".into());
    let (_, log) = rig.run(&next);
    assert_eq!(log, ["kept", "mine", "1000"]);
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
    fs::remove_file(rig.engine.log_file(&request.id)).unwrap();
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
