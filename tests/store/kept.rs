//! A host that keeps layers as they came: what that is, what it takes, and what is rebuilt from it without a registry.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use gitopsd::registry::{Depth, Remedy, Repaired};
use gitopsd::types::{Digest, Reason};

use super::command::Machine;
use super::damage::{flip, other, rich};
use super::sizes::du;
use super::support::Host;
use super::support::image::Blob;
use super::support::proxy::Proxy;
use super::support::server::Server;
use super::support::tree::describe;

struct World {
    host: Host,
    server: Server,
    proxy: Proxy,
    layer: Digest,
    blob: Blob,
    image: Digest,
}

async fn world() -> World {
    let server = Server::new();
    let blob = rich(7);
    server.push("1", &[other(1), blob.clone()]).await;
    let proxy = Proxy::counting(&server);
    let mut host = Host::new(&[&proxy.address()]);
    host.registry = host.registry.with_keep_blobs(true);
    let (image, _) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    let layer = blob.diff_id.parse().unwrap();
    World { host, server, proxy, layer, blob, image }
}

impl World {
    fn folder(&self) -> PathBuf {
        self.host.dir.path().join("store/layers").join(self.layer.hex())
    }

    fn kept(&self) -> PathBuf {
        self.folder().join("blob")
    }

    /// What a look finds wrong with the layer.
    fn findings(&self, depth: Depth) -> Vec<String> {
        let report = self.host.store.check(depth, &mut |_| {}).unwrap();
        let damaged = report.damaged_layers().flat_map(|layer| &layer.findings);
        damaged.map(|finding| format!("{} {}", finding.path, finding.what)).collect()
    }

    async fn repair(&self) -> Repaired {
        let mut repaired = self.host.registry.repair(vec![self.layer.clone()], vec![], &[], &|_| {}).await;
        self.host.assert_tmp_clean();
        repaired.remove(0)
    }

    #[track_caller]
    fn assert_whole(&self) {
        assert_eq!(self.findings(Depth::Full), Vec::<String>::new());
        assert!(self.host.store.image(&self.image).is_some());
    }

    #[track_caller]
    fn assert_kept(&self) {
        assert!(fs::read(self.kept()).unwrap() == self.blob.bytes, "as it came");
        assert_eq!(fs::metadata(self.kept()).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_rebuilt_without_a_registry() {
    let mut world = world().await;
    world.assert_kept();
    world.assert_whole();
    let truth = describe(&world.folder().join("fs"));
    world.server.stop();
    for _ in 0..2 {
        let requests = world.proxy.requests().len();
        flip(&world.folder().join("fs/data/large"), 1_234_567);
        assert_eq!(world.findings(Depth::Full).len(), 1);
        let repaired = world.repair().await;
        assert_eq!((repaired.remedy, repaired.pulled_bytes), (Remedy::Rebuilt, 0), "{repaired:?}");
        assert_eq!(world.proxy.requests().len(), requests, "nobody was asked");
        world.assert_whole();
        assert_eq!(describe(&world.folder().join("fs")), truth);
        // It can be done again.
        world.assert_kept();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_damaged_too_is_told_and_pulled() {
    let mut world = world().await;
    let damage = || {
        flip(&world.folder().join("fs/data/large"), 9);
        flip(&world.kept(), 1000);
    };
    damage();
    let repaired = world.repair().await;
    assert_eq!(repaired.remedy, Remedy::Rebuilt, "{repaired:?}");
    assert_eq!(repaired.pulled_bytes, world.blob.bytes.len() as u64);
    world.assert_whole();
    world.assert_kept();
    damage();
    world.server.stop();
    let repaired = world.repair().await;
    assert_eq!(repaired.remedy, Remedy::Quarantined, "{repaired:?}");
    let told = repaired.message.as_deref().unwrap();
    assert_eq!(repaired.reason, Some(Reason::RegistryUnreachable), "{told}");
    let kept =
        format!("layer {} of what this host keeps: the bytes received have digest", world.blob.digest());
    assert!(told.contains(&kept), "{told}");
    assert!(world.host.store.image(&world.image).is_none(), "nothing new runs on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_of_a_sound_layer_is_had_again_or_removed() {
    let mut world = world().await;
    let tree = fs::metadata(world.folder().join("fs")).unwrap().ino();
    let damages: [(&dyn Fn(), &str); 3] = [
        (&|| flip(&world.kept(), 1000), "blob has content "),
        (
            &|| fs::File::options().write(true).open(world.kept()).unwrap().set_len(7).unwrap(),
            "blob has 7 bytes, and had",
        ),
        (&|| fs::write(world.kept(), vec![0; 1 << 20]).unwrap(), "blob has 1048576 bytes, and had"),
    ];
    for (damage, said) in damages {
        let came = world.proxy.blob_bytes();
        damage();
        assert_eq!(world.findings(Depth::Quick), Vec::<String>::new(), "a quick look does not read");
        let found = world.findings(Depth::Full);
        assert!(found.len() == 1 && found[0].starts_with(said), "{found:?}");
        let repaired = world.repair().await;
        assert_eq!(repaired.remedy, Remedy::BlobRebuilt, "{repaired:?}");
        assert_eq!(world.proxy.blob_bytes() - came, world.blob.bytes.len());
        world.assert_whole();
        world.assert_kept();
        // What runs on it has the tree that it had.
        assert_eq!(fs::metadata(world.folder().join("fs")).unwrap().ino(), tree);
        assert_eq!(world.host.store.put_aside(), []);
    }
    flip(&world.kept(), 1000);
    world.server.stop();
    let repaired = world.repair().await;
    assert_eq!(repaired.remedy, Remedy::BlobRemoved, "{repaired:?}");
    assert!(repaired.is_well() && repaired.reason == Some(Reason::RegistryUnreachable), "{repaired:?}");
    assert!(!world.kept().exists());
    world.assert_whole();
    assert_eq!(
        fs::metadata(world.folder().join("fs")).unwrap().ino(),
        tree,
        "and one that is gone is not missed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_keeps_them_no_longer_still_uses_what_it_has() {
    let mut world = world().await;
    world.server.stop();
    world.host.registry = world.host.registry.with_keep_blobs(false);
    let small: Digest = other(1).diff_id.parse().unwrap();
    let kept = world.host.dir.path().join("store/layers").join(small.hex()).join("blob");
    flip(&kept, 1000);
    flip(&world.folder().join("fs/data/large"), 9);
    let repaired = world.host.registry.repair(vec![small, world.layer.clone()], vec![], &[], &|_| {}).await;
    let remedies: Vec<Remedy> = repaired.iter().map(|one| one.remedy).collect();
    assert_eq!(remedies, [Remedy::BlobRemoved, Remedy::Rebuilt], "{repaired:?}");
    assert!(!kept.exists() && !world.kept().exists());
    world.assert_whole();
}

/// What broke off and came in pieces is kept in one.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_resumed_is_kept_whole() {
    let server = Server::new();
    let blob = rich(3);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, times, part) = (blob.digest(), AtomicUsize::new(0), blob.bytes.len() / 3);
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) && times.fetch_add(1, Ordering::SeqCst) < 2 {
            answer.cut = Some(part);
        }
        answer
    });
    let mut host = Host::new(&[&proxy.address()]);
    host.registry = host.registry.with_keep_blobs(true);
    host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    let ranges = proxy.requests().iter().filter(|request| request.header("range").is_some()).count();
    assert_eq!(ranges, 2);
    let layer: Digest = blob.diff_id.parse().unwrap();
    let kept = host.dir.path().join("store/layers").join(layer.hex()).join("blob");
    assert!(fs::read(kept).unwrap() == blob.bytes);
    assert!(host.store.check(Depth::Full, &mut |_| {}).unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_know_of_it() {
    let mut machine = Machine::new();
    machine.configure("[images]\nkeep_blobs = true\nkeep = \"0s\"\nkeep_count = 0\nmin_free = \"0%\"\n");
    let blobs = [other(1), rich(1)];
    machine.server.push("1", &blobs).await;
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    let layers = machine.path("state/store/layers");
    let folder = |blob: &Blob| layers.join(&blob.diff_id["sha256:".len()..]);
    for blob in &blobs {
        assert!(fs::read(folder(blob).join("blob")).unwrap() == blob.bytes);
    }
    let (_, found) = machine.json(&["images"]);
    let (total, packed) =
        (found[0]["unique"].as_u64().unwrap(), blobs.iter().map(|blob| blob.bytes.len()).sum::<usize>());
    let trees: u64 = blobs.iter().map(|blob| du(&folder(blob).join("fs"))).sum();
    assert!(total >= trees + packed as u64, "{total}: {trees} and {packed}");
    machine.server.stop();
    flip(&folder(&blobs[1]).join("fs/data/large"), 77);
    let (code, found) = machine.json(&["fsck", "--full", "--repair"]);
    let repaired = &found[0]["repaired"][0];
    assert_eq!(
        (code, &repaired["remedy"], &repaired["pulled_bytes"]),
        (0, &"rebuilt".into(), &0.into()),
        "{found:?}"
    );
    flip(&folder(&blobs[1]).join("blob"), 77);
    let (code, text) = machine.say(&["fsck", "--full", "--repair"]);
    assert!(code == 0 && text.contains("  blob has content "), "{code} {text}");
    assert!(text.contains("sound; what was kept of it packed was not, and is removed: "), "{text}");
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
}
