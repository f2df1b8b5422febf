//! Images that share a layer, on bases that say otherwise of the directories which it only implies.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gitopsd::config::agent::{ImagesConfig, MinFree};
use gitopsd::registry::{Depth, Pressure, Remedy};
use gitopsd::types::{Digest, PinnedImage, Timestamp};
use tar::EntryType;

use super::support::Host;
use super::support::image::{Blob, Layer, With, noise};
use super::support::proxy::Proxy;
use super::support::server::Server;
use super::support::tree::{Overlay, describe};

fn base(seed: u64) -> Blob {
    let pax: &[(&str, &[u8])] = if seed == 2 { &[("SCHILY.xattr.user.color", b"blue")] } else { &[] };
    let (mode, owner) = if seed == 2 { (0o700, (1000, 1001)) } else { (0o755, (0, 0)) };
    let with = With { mode, owner, mtime: 1_600_000_000 + seed, pax };
    Layer::default()
        .entry("app/", EntryType::Directory, "", b"", &with)
        .file("app/base", b"base")
        .file("file", &noise(seed, 50_000))
        .gzip()
}

/// No word of `app/`.
fn shared() -> Blob {
    Layer::default().file("app/x", b"x").file("app/deep/y", b"y").gzip()
}

struct World {
    server: Server,
    proxy: Proxy,
    host: Host,
    images: [PinnedImage; 2],
    /// What a container sees of each on a host that knows no other.
    truth: [String; 2],
    shared: Digest,
}

async fn world() -> World {
    let server = Server::new();
    for seed in [1, 2] {
        server.push(&seed.to_string(), &[base(seed), shared()]).await;
    }
    let proxy = Proxy::counting(&server);
    let host = Host::new(&[&proxy.address()]);
    let (mut images, mut truth) = (Vec::new(), Vec::new());
    for seed in [1, 2] {
        let alone = Host::new(&[&server.address()]);
        let (digest, _) = alone.pull(&format!("{}/app:{seed}", server.address())).await.unwrap();
        assert_eq!(alone.layers(&digest).len(), 2);
        truth.push(seen(&alone, &digest));
        images.push(host.resolve(&format!("{}/app:{seed}", proxy.address())).await.unwrap());
        let pulled = host.registry.pull(images.last().unwrap(), &|_| {}).await.unwrap();
        assert_eq!((pulled.layers_total, pulled.layers_reused), (2, usize::from(seed == 2)));
    }
    let shared = shared().diff_id.parse().unwrap();
    World {
        server,
        proxy,
        host,
        images: images.try_into().unwrap(),
        truth: truth.try_into().unwrap(),
        shared,
    }
}

fn seen(host: &Host, image: &Digest) -> String {
    describe(&Overlay::mount(&host.layers(image)).root())
}

impl World {
    fn dirs(&self, number: usize) -> PathBuf {
        self.host.dir.path().join("store/images").join(format!("{}.dirs", self.images[number].digest.hex()))
    }

    #[track_caller]
    fn assert_right(&self, what: &str) {
        for (image, truth) in self.images.iter().zip(&self.truth) {
            assert_eq!(&seen(&self.host, &image.digest), truth, "{what}");
        }
        let report = self.host.store.check(Depth::Full, &mut |_| {}).unwrap();
        assert!(report.is_sound() && report.strays.is_empty(), "{what}: {report:#?}");
        self.host.assert_tmp_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_layer_looks_as_each_image_has_it() {
    let world = world().await;
    assert!(
        world.truth[1].contains("./app dir 700 1000:1001 at 1600000002 user.color=blue"),
        "{}",
        world.truth[1]
    );
    world.assert_right("both are here");
    assert!(!world.dirs(0).exists() && world.dirs(1).is_dir());
    // Here, it is complete, and says how many layers it has.
    let pulled = world.host.registry.pull(&world.images[1], &|_| {}).await.unwrap();
    assert_eq!((pulled.bytes, pulled.layers_total, pulled.layers_reused), (0, 2, 2));
    let usage = world.host.store.usage().unwrap();
    assert!(usage.images.iter().all(|image| image.layers.len() == 2 && image.missing.is_empty()));
    // The second goes with what is its own.
    let config = ImagesConfig { keep: Duration::ZERO, keep_count: 0, min_free: MinFree::Bytes(0) };
    let needed = [world.images[0].digest.clone()].into();
    let now = Timestamp::from_second(4_000_000_000).unwrap();
    let doomed = world.host.store.collect(&config, &needed, Pressure::Everything, now, false).unwrap();
    let gone = doomed.finish();
    assert_eq!(gone.images.iter().map(|gone| &gone.digest).collect::<Vec<_>>(), [&world.images[1].digest]);
    let after = world.host.store.usage().unwrap();
    assert_eq!(usage.total - after.total, gone.freed);
    assert!(!world.dirs(1).exists() && world.host.store.image(&world.images[1].digest).is_none());
    assert_eq!(seen(&world.host, &world.images[0].digest), world.truth[0]);
}

/// What is done to an image's directories, and what is said of it.
type Row = (&'static str, fn(&Path), &'static str);

const ROWS: &[Row] = &[
    (
        "a mode",
        |d| fs::set_permissions(d.join("app"), Permissions::from_mode(0o777)).unwrap(),
        "its directory /app has mode 0777, and should have 0700",
    ),
    (
        "an owner",
        |d| std::os::unix::fs::chown(d.join("app"), Some(7), None).unwrap(),
        "its directory /app belongs to 7:1001, and should to 1000:1001",
    ),
    (
        "a time",
        |d| {
            fs::File::open(d)
                .unwrap()
                .set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(3))
                .unwrap()
        },
        "its directory / says it was changed at 3.000000000, and should say 0.000000000",
    ),
    (
        "an attribute",
        |d| rustix::fs::removexattr(d.join("app"), "user.color").unwrap(),
        "its directory /app has other extended attributes than it should",
    ),
    ("a directory", |d| fs::remove_dir(d.join("app/deep")).unwrap(), "its directory /app"),
    ("a file", |d| fs::write(d.join("app/deep/z"), "").unwrap(), "its directory /app/deep"),
    ("all of them", |d| fs::remove_dir_all(d).unwrap(), "its own directories are not here"),
];

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_mended_without_a_pull() {
    let mut world = world().await;
    let image = world.images[1].digest.clone();
    let requests = world.proxy.requests().len();
    for (name, act, expected) in ROWS {
        act(&world.dirs(1));
        for depth in [Depth::Quick, Depth::Full] {
            let report = world.host.store.check(depth, &mut |_| {}).unwrap();
            let damaged: Vec<_> =
                report.damaged_images().map(|image| (&image.image, image.trouble.as_deref())).collect();
            assert!(
                matches!(damaged[..], [(damaged, Some(told))] if *damaged == image && told.starts_with(expected)),
                "{name}: {damaged:?}"
            );
        }
        let repaired = world.host.registry.repair(vec![], vec![image.clone()], &[], &|_| {}).await;
        assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{name}: {repaired:?}");
        world.assert_right(name);
    }
    // A container may run on those that were in the place.
    assert!(world.host.store.put_aside().iter().any(|aside| aside.layer == image));
    // A service that needs it has it again in the same way.
    fs::remove_dir_all(world.dirs(1)).unwrap();
    assert!(world.host.store.image(&image).is_none());
    world.server.stop();
    let pulled = world.host.registry.pull(&world.images[1], &|_| {}).await.unwrap();
    assert_eq!((pulled.bytes, pulled.layers_reused), (0, 2));
    world.assert_right("pulled");
    assert_eq!(world.proxy.requests().len(), requests, "nobody was asked");
}

/// The layer is unpacked anew for the other image: now it is the first one's directories that look otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_comes_back_for_one_image_changes_no_other() {
    let world = world().await;
    world.host.store.quarantine(&world.shared).unwrap();
    fs::remove_dir_all(world.dirs(1)).unwrap();
    world.host.registry.pull(&world.images[1], &|_| {}).await.unwrap();
    assert!(world.dirs(0).is_dir());
    world.assert_right("pulled again");
    let file = world.host.dir.path().join("store/layers").join(world.shared.hex()).join("fs/app/x");
    fs::write(&file, "y").unwrap();
    let repaired = world.host.registry.repair(vec![world.shared.clone()], vec![], &[], &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
    world.assert_right("repaired");
}

/// What an older version kept of a layer says nothing of what it implies; nor is a damaged layer a word on an image.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_known_counts() {
    let world = world().await;
    let folder = world.host.dir.path().join("store/layers").join(world.shared.hex());
    fs::set_permissions(folder.join("fs/app"), Permissions::from_mode(0o777)).unwrap();
    let report = world.host.store.check(Depth::Quick, &mut |_| {}).unwrap();
    assert_eq!((report.damaged_layers().count(), report.damaged_images().count()), (1, 0), "{report:#?}");
    fs::set_permissions(folder.join("fs/app"), Permissions::from_mode(0o755)).unwrap();
    world.assert_right("as it was");
    let record: serde_json::Value =
        gitopsd::state::atomic::read(&folder.join("layer.json")).unwrap().unwrap();
    assert_eq!(record["implied"], serde_json::json!([["", false], ["app", false], ["app/deep", false]]));
    let mut old = record.clone();
    old.as_object_mut().unwrap().remove("implied");
    gitopsd::state::atomic::write_plain(
        &folder.join("layer.json"),
        &gitopsd::state::atomic::encode(&folder, &old).unwrap(),
    )
    .unwrap();
    for file in fs::read_dir(world.dirs(1).parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().contains(world.images[1].digest.hex()) {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
    world.host.registry.pull(&world.images[1], &|_| {}).await.unwrap();
    assert_eq!(world.host.layers(&world.images[1].digest).len(), 2, "as before");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_no_directories_without_an_image() {
    let machine = super::command::Machine::new();
    for seed in [1, 2] {
        machine.server.push(&seed.to_string(), &[base(seed), shared()]).await;
    }
    machine.configure("[images]\nkeep = \"0s\"\nkeep_count = 1\nmin_free = \"0%\"\n");
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    let images = machine.path("state/store/images");
    let dirs = || super::support::names(&images).iter().filter(|name| name.ends_with(".dirs")).count();
    machine.killed_at("pull::after_dirs", &["pull", &machine.image("2")]);
    assert_eq!((dirs(), machine.say(&["fsck", "--full"]).0), (1, 0));
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    assert_eq!(dirs(), 0, "wiped at the start");
    assert_eq!(machine.say(&["pull", &machine.image("2")]).0, 0);
    assert_eq!((dirs(), machine.say(&["fsck", "--full"]).0), (1, 0));
    // Of the two the second goes.
    let path = super::support::names(&images).into_iter().find(|name| name.ends_with(".dirs")).unwrap();
    let path = images.join(path).with_extension("json");
    let mut record = gitopsd::state::atomic::read::<serde_json::Value>(&path).unwrap().unwrap();
    record["pulled_at"] = "2020-01-02T03:04:05Z".into();
    gitopsd::state::atomic::write(&path, &record).unwrap();
    machine.killed_at("gc::before_dirs", &["gc"]);
    let (_, found) = machine.json(&["images"]);
    assert_eq!(found[0]["images"].as_array().unwrap().len(), 1);
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
    assert_eq!(machine.say(&["gc"]).0, 0);
    assert_eq!((dirs(), machine.say(&["fsck", "--full"]).0), (0, 0));
}
