//! Each kind of damage: found where it can be found, nowhere else, and repaired by getting that layer alone.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use gitopsd::registry::{Depth, Known, LayerState, Remedy, Report};
use gitopsd::types::{Digest, Reason};
use nix::sys::stat::{Mode, SFlag, mknod};
use tar::EntryType;

use super::support::Host;
use super::support::image::{Blob, Layer, With, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::Server;
use super::support::tree::describe;

/// One of everything that a layer can hold.
pub fn rich(seed: u64) -> Blob {
    let root = With { mode: 0o755, ..With::default() };
    let tagged = With { pax: &[("SCHILY.xattr.user.color", b"blue")], ..With::default() };
    let program = With { mode: 0o4755, ..With::default() };
    Layer::default()
        .entry("./", EntryType::Directory, "", b"", &root)
        .dir("data/", 0o750)
        .file("data/large", &noise(seed, 3_000_000))
        .file("data/small", b"hello\n")
        .file("data/empty", b"")
        .entry("data/tagged", EntryType::Regular, "", b"tagged", &tagged)
        .entry("data/program", EntryType::Regular, "", b"#!", &program)
        .link("data/second", EntryType::Link, "data/small")
        .link("data/link", EntryType::Symlink, "small")
        .link("data/pipe", EntryType::Fifo, "")
        .file("data/.wh.gone", b"")
        .dir("fresh/", 0o755)
        .file("fresh/.wh..wh..opq", b"")
        .gzip()
}

pub fn other(seed: u64) -> Blob {
    Layer::default().dir("other/", 0o755).file("other/file", &noise(seed, 200_000)).gzip()
}

struct World {
    host: Host,
    proxy: Proxy,
    /// The rich one, in the middle.
    layer: Digest,
    blob: Blob,
    image: Digest,
    _server: Server,
}

async fn world() -> World {
    let server = Server::new();
    let blob = rich(7);
    server.push("1", &[other(1), blob.clone(), other(2)]).await;
    let proxy = Proxy::counting(&server);
    let host = Host::new(&[&proxy.address()]);
    let (image, _) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    let layer = blob.diff_id.parse().unwrap();
    World { host, proxy, layer, blob, image, _server: server }
}

impl World {
    fn folder(&self) -> PathBuf {
        self.host.dir.path().join("store/layers").join(self.layer.hex())
    }

    fn check(&self, depth: Depth) -> Report {
        self.host.store.check(depth, &mut |_| {}).unwrap()
    }
}

/// Writes into a file without a trace in its times.
fn change(path: &Path, act: impl FnOnce(&fs::File)) {
    let before = fs::metadata(path).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    act(&file);
    file.set_modified(before.modified().unwrap()).unwrap();
    file.sync_all().unwrap();
}

pub fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    change(path, |file| {
        let mut byte = [0u8];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    });
}

/// Changes what is in a folder, and gives the folder its time back.
fn within(folder: &Path, act: impl FnOnce()) {
    let before = fs::metadata(folder).unwrap().modified().unwrap();
    act();
    fs::File::open(folder).unwrap().set_modified(before).unwrap();
}

/// What is done to a layer's directory, what is said of it, and whether a quick look sees it.
type Row = (&'static str, fn(&Path), &'static str, bool);

const ROWS: &[Row] = &[
    ("a flipped bit", |l| flip(&l.join("fs/data/large"), 1_234_567), "fs/data/large has content", false),
    (
        "a flipped bit of the last byte",
        |l| flip(&l.join("fs/data/small"), 5),
        "fs/data/small has content",
        false,
    ),
    (
        "a truncated file",
        |l| change(&l.join("fs/data/large"), |file| file.set_len(2_999_999).unwrap()),
        "fs/data/large has 2999999 bytes, and had 3000000",
        true,
    ),
    (
        "a file of nothing, as a power cut leaves it",
        |l| change(&l.join("fs/data/large"), |file| file.set_len(0).unwrap()),
        "fs/data/large has 0 bytes",
        true,
    ),
    (
        "a missing file",
        |l| within(&l.join("fs/data"), || fs::remove_file(l.join("fs/data/tagged")).unwrap()),
        "fs/data/tagged is missing",
        true,
    ),
    (
        "an extra file",
        |l| within(&l.join("fs/data"), || fs::write(l.join("fs/data/evil"), "x").unwrap()),
        "fs/data/evil is no part of the layer",
        true,
    ),
    (
        "an extra file deep in an extra directory",
        |l| {
            within(&l.join("fs"), || {
                fs::create_dir_all(l.join("fs/a/b")).unwrap();
                fs::write(l.join("fs/a/b/c"), "x").unwrap();
            });
        },
        "fs/a/b/c is no part of the layer",
        true,
    ),
    (
        "a mode",
        |l| fs::set_permissions(l.join("fs/data/program"), fs::Permissions::from_mode(0o755)).unwrap(),
        "fs/data/program has mode 0755, and had 4755",
        true,
    ),
    (
        "the mode of a directory",
        |l| fs::set_permissions(l.join("fs/data"), fs::Permissions::from_mode(0o777)).unwrap(),
        "fs/data has mode 0777, and had 0750",
        true,
    ),
    (
        "an owner",
        |l| chown(l.join("fs/data/small"), Some(1), Some(2)).unwrap(),
        "fs/data/small belongs to 1:2, and did to 0:0",
        true,
    ),
    (
        "a time",
        |l| {
            let file = fs::File::open(l.join("fs/data/small")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        },
        "fs/data/small was changed at 1700000000.000000000, and says 0.000000000",
        true,
    ),
    (
        "an attribute's value",
        |l| set_xattr(&l.join("fs/data/tagged"), "user.color", b"red"),
        "fs/data/tagged has other extended attributes",
        false,
    ),
    (
        "a further attribute",
        |l| set_xattr(&l.join("fs/data/small"), "user.color", b"red"),
        "fs/data/small has other extended attributes",
        false,
    ),
    (
        "an opaque mark that is gone",
        |l| rustix::fs::removexattr(l.join("fs/fresh"), "trusted.overlay.opaque").unwrap(),
        "fs/fresh shows what is below it, and did not",
        true,
    ),
    (
        "where a link leads",
        |l| {
            within(&l.join("fs/data"), || {
                fs::remove_file(l.join("fs/data/link")).unwrap();
                symlink("large", l.join("fs/data/link")).unwrap();
            });
        },
        "fs/data/link leads to large, and did to small",
        true,
    ),
    (
        "a hard link that became a copy",
        |l| {
            within(&l.join("fs/data"), || {
                let (from, to) = (l.join("fs/data/small"), l.join("fs/data/second"));
                fs::remove_file(&to).unwrap();
                fs::copy(&from, &to).unwrap();
            });
        },
        "fs/data/second is no longer the same file as data/small",
        true,
    ),
    (
        "another type",
        |l| {
            within(&l.join("fs/data"), || {
                fs::remove_file(l.join("fs/data/pipe")).unwrap();
                fs::write(l.join("fs/data/pipe"), "").unwrap();
            });
        },
        "fs/data/pipe is a file, and was a pipe",
        true,
    ),
    (
        "a device in place of a whiteout",
        |l| {
            within(&l.join("fs/data"), || {
                fs::remove_file(l.join("fs/data/gone")).unwrap();
                let null = nix::sys::stat::makedev(1, 3);
                mknod(&l.join("fs/data/gone"), SFlag::S_IFCHR, Mode::empty(), null).unwrap();
            });
        },
        "fs/data/gone is a device, and was a whiteout",
        true,
    ),
    ("the whole tree", |l| fs::remove_dir_all(l.join("fs")).unwrap(), "fs cannot be opened", true),
    ("the listing", |l| flip(&l.join("listing"), 200), "listing is damaged", true),
    ("no listing", |l| fs::remove_file(l.join("listing")).unwrap(), "listing is missing", true),
    ("the record", |l| flip(&l.join("layer.json"), 150), "layer.json is damaged", true),
    ("no record", |l| fs::remove_file(l.join("layer.json")).unwrap(), "layer.json is missing", true),
    (
        "a file beside",
        |l| fs::write(l.join("x\x1b[31m"), "").unwrap(),
        "x\\x1b[31m is no part of a layer",
        true,
    ),
];

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    rustix::fs::setxattr(path.as_c_str(), name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_found_and_repaired() {
    let world = world().await;
    let truth = describe(&world.folder().join("fs"));
    for depth in [Depth::Quick, Depth::Full] {
        let report = world.check(depth);
        assert!(report.is_sound(), "{depth:?}: {report:#?}");
        assert_eq!((report.layers.len(), report.images.len()), (3, 1));
        assert_eq!(report.strays, Vec::<String>::new());
    }
    for (name, act, expected, quick) in ROWS {
        act(&world.folder());
        for depth in [Depth::Quick, Depth::Full] {
            let report = world.check(depth);
            if depth == Depth::Quick && !quick {
                assert!(report.is_sound(), "{name}: {report:#?}");
                continue;
            }
            let damaged: Vec<_> = report.damaged_layers().collect();
            assert_eq!(damaged.len(), 1, "{name} {depth:?}: {report:#?}");
            assert_eq!((&damaged[0].layer, damaged[0].state), (&world.layer, LayerState::Damaged), "{name}");
            let lines: Vec<String> =
                damaged[0].findings.iter().map(|f| format!("{} {}", f.path, f.what)).collect();
            assert!(lines.iter().any(|line| line.starts_with(expected)), "{name}: {lines:#?}");
        }
        let (requests, bytes) = (world.proxy.requests().len(), world.proxy.blob_bytes());
        let repaired = world.host.registry.repair(vec![world.layer.clone()], vec![], &[], &|_| {}).await;
        assert_eq!(repaired.len(), 1, "{name}");
        assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{name}: {repaired:?}");
        let came = world.proxy.blob_bytes() - bytes;
        assert_eq!(came, world.blob.bytes.len(), "{name}: that layer and nothing else came");
        assert_eq!(repaired[0].pulled_bytes, came as u64, "{name}");
        // Where the layer's own record says what it is, not even a manifest is asked for.
        let asked = world.proxy.requests()[requests..].iter().filter(|request| !request.is_blob()).count();
        assert!(asked == 0 || name.ends_with("record"), "{name}: {asked}");
        assert!(world.check(Depth::Full).is_sound(), "{name}");
        assert_eq!(describe(&world.folder().join("fs")), truth, "{name}");
        assert!(world.host.store.image(&world.image).is_some(), "{name}");
    }
    world.host.assert_tmp_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_again_is_taken_out_of_use() {
    let mut world = world().await;
    flip(&world.folder().join("fs/data/large"), 9);
    world._server.stop();
    let repaired = world.host.registry.repair(vec![world.layer.clone()], vec![], &[], &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Quarantined, "{repaired:?}");
    assert!(repaired[0].reason.is_some() && repaired[0].message.is_some(), "{repaired:?}");
    assert!(world.host.store.image(&world.image).is_none(), "nothing new runs on it");
    let aside = world.host.store.put_aside();
    assert_eq!(aside.iter().map(|aside| &aside.layer).collect::<Vec<_>>(), [&world.layer]);
    // Somebody still runs on it.
    world.host.store.sweep_aside(|_| true);
    assert_eq!(world.host.store.put_aside(), aside);
    world.host.store.sweep_aside(|_| false);
    assert_eq!(world.host.store.put_aside(), []);
    assert_eq!(world.host.names("quarantine"), Vec::<String>::new());
}

/// Two damaged layers of one image, the lower one of which nobody has any more: what is above it is no worse for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_back_without_one_below_it() {
    let server = Server::new();
    // Each says what its own directories are, but for the root.
    let bare = |seed| Layer::default().file(&format!("file-{seed}"), &noise(seed, 100_000)).gzip();
    let (lost, between, upper) = (bare(1), bare(2), bare(3));
    let whole = rich(7);
    server.push("1", &[lost.clone(), between, upper.clone(), whole.clone()]).await;
    // The root of the one in the middle is as the layer below it says, which is the lost one.
    server.push("2", &[lost.clone(), upper.clone()]).await;
    let digest = lost.digest();
    let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let its = gone.clone();
    let proxy = Proxy::new(&server, move |request, upstream| {
        match request.path.contains(&digest) && its.load(std::sync::atomic::Ordering::Relaxed) {
            true => Answer::new(404, b"{}"),
            false => upstream.get(request),
        }
    });
    let host = Host::new(&[&proxy.address()]);
    let ids: Vec<Digest> = [&lost, &upper, &whole].iter().map(|blob| blob.diff_id.parse().unwrap()).collect();
    let tree = |id: &Digest| host.dir.path().join("store/layers").join(id.hex()).join("fs");
    let repair = async || {
        gone.store(true, std::sync::atomic::Ordering::Relaxed);
        let repaired = host.registry.repair(ids.clone(), vec![], &[], &|_| {}).await;
        gone.store(false, std::sync::atomic::Ordering::Relaxed);
        host.assert_tmp_clean();
        repaired
    };
    let damage = || {
        flip(&tree(&ids[0]).join("file-1"), 9);
        flip(&tree(&ids[1]).join("file-3"), 9);
        flip(&tree(&ids[2]).join("data/large"), 9);
    };
    // Each of these has one directly below it that is here.
    let (first, _) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    damage();
    let repaired = repair().await;
    let remedies: Vec<Remedy> = repaired.iter().map(|one| one.remedy).collect();
    assert_eq!(remedies, [Remedy::Quarantined, Remedy::Rebuilt, Remedy::Rebuilt], "{repaired:#?}");
    assert_eq!(repaired[0].reason, Some(Reason::ImageNotFound));
    let (_, pulled) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (4, 3), "the lost one alone comes");
    // Where nothing is left that says what its root is, that is the reason, and not the disk.
    host.pull(&format!("{}/app:2", proxy.address())).await.unwrap();
    fs::remove_file(host.dir.path().join("store/images").join(format!("{}.json", first.hex()))).unwrap();
    let _ =
        fs::remove_file(host.dir.path().join("store/images").join(format!("{}.previous.json", first.hex())));
    flip(&tree(&ids[0]).join("file-1"), 9);
    flip(&tree(&ids[1]).join("file-3"), 9);
    let repaired = repair().await;
    assert_eq!(repaired[1].digest, ids[1], "{repaired:#?}");
    assert_eq!((repaired[1].remedy, repaired[1].reason), (Remedy::Quarantined, Some(Reason::LayerMissing)));
    let told = repaired[1].message.as_deref().unwrap();
    assert!(told.contains(&format!("needs layer {} below it", ids[0])), "{told}");
    // What was put aside is not believed by the next pull.
    let (second, pulled) = host.pull(&format!("{}/app:2", proxy.address())).await.unwrap();
    assert_eq!(pulled.layers_reused, 0);
    assert!(host.store.check(Depth::Full, &mut |_| {}).unwrap().is_sound());
    assert!(host.store.image(&second).is_some());
}

/// The layer is put together for an image that has all which is below it, wherever else it is in.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_back_for_the_image_that_is_whole() {
    let server = Server::new();
    let (lost, here, shared) = (other(1), other(2), other(3));
    server.push("1", &[lost.clone(), shared.clone()]).await;
    server.push("2", &[here, shared.clone()]).await;
    let host = Host::new(&[&server.address()]);
    let mut images = Vec::new();
    for tag in ["1", "2"] {
        images.push(host.pull(&format!("{}/app:{tag}", server.address())).await.unwrap().0);
    }
    host.store.quarantine(&lost.diff_id.parse().unwrap()).unwrap();
    let layer: Digest = shared.diff_id.parse().unwrap();
    let tree = host.dir.path().join("store/layers").join(layer.hex()).join("fs");
    flip(&tree.join("other/file"), 9);
    let repaired = host.registry.repair(vec![layer], vec![], &[], &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
    let whole = images.iter().filter(|image| host.store.image(image).is_some());
    assert_eq!(whole.collect::<Vec<_>>(), [&images[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_record_comes_back() {
    let world = world().await;
    let record = world.host.dir.path().join("store/images").join(format!("{}.json", world.image.hex()));
    let known = world.host.resolve(&format!("{}/app:1", world.proxy.address())).await.unwrap();
    flip(&record, 100);
    let report = world.check(Depth::Quick);
    let damaged: Vec<_> = report.damaged_images().map(|image| image.image.clone()).collect();
    assert_eq!(damaged, std::slice::from_ref(&world.image), "{report:#?}");
    assert!(world.host.store.image(&world.image).is_none());
    let bytes = world.proxy.blob_bytes();
    let repaired = world
        .host
        .registry
        .repair(vec![], damaged, &[Known { image: known, fallback: vec![] }], &|_| {})
        .await;
    assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
    assert!(world.proxy.blob_bytes() - bytes < 1000, "only a configuration came");
    assert!(world.check(Depth::Full).is_sound());
    assert!(world.host.store.image(&world.image).is_some());
    // Nobody knows a name for it: it goes, and its layers stay for whoever pulls it again.
    for name in ["", ".previous"] {
        let path = record.with_file_name(format!("{}{name}.json", world.image.hex()));
        let _ = fs::write(path, "garbage");
    }
    let repaired = world.host.registry.repair(vec![], vec![world.image.clone()], &[], &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Removed, "{repaired:?}");
    let report = world.check(Depth::Full);
    assert!(report.is_sound() && report.images.is_empty() && report.layers.len() == 3, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_version_without_listings() {
    let world = world().await;
    for name in ["listing", "layer.json"] {
        fs::remove_file(world.folder().join(name)).unwrap();
    }
    let report = world.check(Depth::Quick);
    let states: Vec<_> = report.damaged_layers().map(|layer| (&layer.layer, layer.state)).collect();
    assert_eq!(states, [(&world.layer, LayerState::Unlisted)]);
    let repaired = world.host.registry.repair(vec![world.layer.clone()], vec![], &[], &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
    assert!(world.check(Depth::Full).is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_none_of_the_stores_is_told_and_left_alone() {
    let world = world().await;
    let layers = world.host.dir.path().join("store/layers");
    fs::create_dir(layers.join("lost+found")).unwrap();
    fs::write(layers.parent().unwrap().join("images/notes.txt"), "x").unwrap();
    let report = world.check(Depth::Quick);
    assert!(report.is_sound());
    assert_eq!(report.strays, ["layers/lost+found", "images/notes.txt"]);
    // A store that is opened again has no trouble with them.
    let again = gitopsd::registry::Store::open(world.host.dir.path()).unwrap();
    assert!(again.image(&world.image).is_some());
    assert!(layers.join("lost+found").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_about_to_end_does_not_keep_a_store_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let tmp = dir.path().join("store/tmp/0/fs");
    fs::create_dir_all(&tmp).unwrap();
    let busy = std::thread::spawn(move || {
        // As long as it can: it ends when its directory is gone.
        let begun = std::time::Instant::now();
        for number in 0u64.. {
            if begun.elapsed() > std::time::Duration::from_millis(500) {
                return number;
            }
            let _ = fs::write(tmp.join(number.to_string()), "");
            let _ = fs::create_dir_all(&tmp);
        }
        0
    });
    gitopsd::registry::Store::open(dir.path()).unwrap();
    assert!(busy.join().unwrap() > 0);
}
