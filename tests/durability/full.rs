//! No room: of bytes, of inodes, before a pull and in the middle of one. What else is on the disk does not notice, and
//! the same process goes on when there is room again.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gitopsd::config::agent::ImagesConfig;
use gitopsd::registry::{Depth, Disposition, Pressure, PullError, Registry, Store};
use gitopsd::state::{StateDir, atomic};
use gitopsd::types::{ImageRef, PinnedImage, Reason};

use super::disk::{Disk, EXT4, EXT4_CAREFUL, EXT4_FEW, Memory, alone, fill_up, free};
use super::relay::Relay;
use super::support::image::{Blob, Layer, noise};
use super::support::tree::{Overlay, describe};
use super::support::{names, plain, wait_for};
use super::truth::{Holds, Truth};

/// What comes besides layers: manifest, configuration, headers.
const BESIDES: u64 = 32 << 10;

/// A host that lives on, with `app:1` as what it runs.
struct Host {
    disk: Disk,
    /// The disk's own.
    _memory: Memory,
    state: PathBuf,
    store: Arc<Store>,
    registry: Registry,
    overlay: Option<Overlay>,
    /// What the container sees.
    seen: String,
}

impl Host {
    async fn new(truth: &Truth, kind: super::disk::Kind, size: u64, line: &Relay) -> Self {
        let memory = Memory::new(size + 64);
        let disk = Disk::below(memory.root(), kind, size);
        let state = disk.root().join("state");
        fs::create_dir(&state).unwrap();
        let store = Arc::new(Store::open(&state).unwrap());
        let hosts = [line.address(), truth.server.address()].map(|address| (address, plain()));
        let registry = Registry::new(store.clone(), hosts.into())
            .unwrap()
            .with_program(env!("CARGO_BIN_EXE_gitopsd").into());
        let first = truth.image(&truth.server.address(), "1");
        registry.pull(&first, &|_| {}).await.unwrap();
        let overlay = Overlay::mount(&store.image(&first.digest).unwrap().layers);
        let seen = describe(&overlay.root());
        Self { disk, _memory: memory, state, store, registry, overlay: Some(overlay), seen }
    }

    async fn pull(&self, image: &PinnedImage) -> Result<(), PullError> {
        self.registry.pull(image, &|_| {}).await.map(|_| ())
    }

    /// Bytes and inodes that are free.
    fn room(&self) -> (u64, u64) {
        (free(&self.disk.root()), rustix::fs::statvfs(self.disk.root()).unwrap().f_favail)
    }

    /// The message of a pull that found no room says how much is needed, how much there is and where, and what to do.
    #[track_caller]
    fn assert_full(&self, error: &PullError, parts: &[&str]) {
        println!("{error}");
        assert_eq!((error.reason, error.disposition), (Reason::DiskSpace, Disposition::Retry), "{error}");
        let place = format!("on the file system of {}", self.state.join("store").display());
        for part in parts.iter().copied().chain([&*place, "gitopsd gc"]) {
            assert!(error.to_string().contains(part), "`{part}` is missing in: {error}");
        }
    }

    /// What runs is untouched, and of what failed nothing is left: all the room is there again.
    #[track_caller]
    fn assert_untouched(&self, truth: &Truth, (bytes, inodes): (u64, u64)) {
        let overlay = self.overlay.as_ref().unwrap();
        assert_eq!(describe(&overlay.root()), self.seen, "what the container sees");
        let tmp = self.state.join("store/tmp");
        wait_for("what is unfinished to go", || names(&tmp).is_empty().then_some(()));
        let holds = truth.check(&self.state).unwrap();
        assert_eq!(holds, Holds { layers: [0, 1].into(), images: ["1"].into() });
        let now = self.room();
        assert!(now.0 + (1 << 20) > bytes, "{} bytes are free again, of {bytes}", now.0);
        assert!(now.1 + 4 > inodes, "{} inodes are free again, of {inodes}", now.1);
    }

    /// With room again the same process goes on as if nothing had been, and the container did not notice.
    async fn assert_heals(&self, truth: &Truth, image: &PinnedImage) {
        self.pull(image).await.unwrap();
        let pulled = self.store.image(&image.digest).unwrap();
        // Each of its layers is whole, and can be run on.
        drop(Overlay::mount(&pulled.layers));
        let report = Store::beside(&self.state).check(Depth::Full, &mut |_| {}).unwrap();
        assert!(report.is_sound() && report.images.len() == 2, "{report:?}");
        if truth.image("x.test", "2").digest == image.digest {
            assert_eq!(truth.check(&self.state).unwrap().images.len(), 2);
        }
        assert_eq!(describe(&self.overlay.as_ref().unwrap().root()), self.seen, "what the container sees");
    }
}

/// A layer of files that are half noise and half zeros: it unpacks to twice its size.
fn airy(files: u64) -> Blob {
    let mut layer = Layer::default().dir("./", 0o755).dir("air/", 0o755);
    for number in 0..files {
        let mut content = noise(9000 + number, 512 << 10);
        content.resize(1 << 20, 0);
        layer = layer.file(&format!("air/{number}"), &content);
    }
    layer.gzip()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_fit_is_refused_before_its_first_byte() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 1 << 40);
    let host = Host::new(&truth, EXT4, 96, &line).await;
    let image = truth.image(&line.address(), "2");
    let ballast = fill_up(&host.disk.root(), 3 << 20);
    let room = host.room();
    let error = host.pull(&image).await.unwrap_err();
    host.assert_full(
        &error,
        &["app:2: its missing layers need at least 4.", " (unpacked about 9.", "3.0 MiB are free"],
    );
    assert!(line.sent() < BESIDES, "{} bytes came", line.sent());
    host.assert_untouched(&truth, room);
    fs::remove_file(ballast).unwrap();
    host.assert_heals(&truth, &image).await;
}

/// Most layers take more than twice what they are packed to, and nothing is refused for what others are like.
#[tokio::test(flavor = "multi_thread")]
async fn what_hardly_grows_is_taken_where_it_just_fits() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 1 << 40);
    let host = Host::new(&truth, EXT4, 96, &line).await;
    let layer = Layer::default().dir("./", 0o755).file("noise", &noise(77, 20 << 20)).gzip();
    let image = truth.push(&line.address(), "noise", layer).await;
    // Some 20 MiB, and a fiftieth of the disk for others.
    fill_up(&host.disk.root(), 27 << 20);
    host.assert_heals(&truth, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_on_the_way() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 1 << 40);
    let host = Host::new(&truth, EXT4, 128, &line).await;
    // Hardly anything to fetch, and much to write.
    let mut layer = Layer::default().dir("./", 0o755).dir("zeros/", 0o755);
    for number in 0..30 {
        layer = layer.file(&format!("zeros/{number}"), &vec![0; 2 << 20]);
    }
    let image = truth.push(&line.address(), "zeros", layer.gzip()).await;
    let ballast = fill_up(&host.disk.root(), 30 << 20);
    let room = host.room();
    let error = host.pull(&image).await.unwrap_err();
    host.assert_full(&error, &["the image needs at least ", "30.0 MiB and ", " inodes were free"]);
    host.assert_untouched(&truth, room);
    // As little room as before: it is not even begun.
    let came = line.sent();
    let error = host.pull(&image).await.unwrap_err();
    host.assert_full(&error, &["its missing layers need at least ", "MiB are free"]);
    assert!(line.sent() < came + BESIDES);
    fs::remove_file(ballast).unwrap();
    host.assert_heals(&truth, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inodes_that_run_out_on_the_way() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 1 << 40);
    let host = Host::new(&truth, EXT4_FEW, 128, &line).await;
    let folder = host.disk.root().join("others");
    fs::create_dir(&folder).unwrap();
    let mut number = 0;
    while host.room().1 > 1000 {
        fs::write(folder.join(number.to_string()), b"").unwrap();
        number += 1;
    }
    // One layer alone: beside it a smaller one might be finished first, and would be kept.
    let mut layer = Layer::default().dir("./", 0o755).dir("small/", 0o755);
    for number in 0..2000 {
        layer = layer.file(&format!("small/{number}"), &noise(number, 200));
    }
    let image = truth.push(&line.address(), "small", layer.gzip()).await;
    let room = host.room();
    let error = host.pull(&image).await.unwrap_err();
    host.assert_full(&error, &["the image needs at least ", "1000 inodes were free"]);
    host.assert_untouched(&truth, room);
    let came = line.sent();
    let error = host.pull(&image).await.unwrap_err();
    host.assert_full(&error, &["its missing layers need at least ", "inodes are free, and "]);
    assert!(line.sent() < came + BESIDES);
    fs::remove_dir_all(folder).unwrap();
    host.assert_heals(&truth, &image).await;
}

/// A pull ends before it takes the last of the disk: a container that writes all the while never fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_leaves_room_for_those_who_write() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 10 << 20);
    let host = Host::new(&truth, EXT4, 512, &line).await;
    let image = truth.push(&line.address(), "air", airy(50)).await;
    // Room for what is packed, and not for what it unpacks to.
    let ballast = fill_up(&host.disk.root(), 44 << 20);
    let room = host.room();
    let ended = AtomicBool::new(false);
    let file = host.disk.root().join("container-writes-here");
    let (error, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&file, &ended));
        let error =
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(host.pull(&image)));
        ended.store(true, Ordering::Relaxed);
        (error.unwrap_err(), writer.join().unwrap())
    });
    let parts =
        ["app:air does not fit: ", "are kept for others", "the image needs at least ", "44.0 MiB and "];
    host.assert_full(&error, &parts);
    assert!(written.unwrap() > 10, "it wrote all the while");
    host.assert_untouched(&truth, room);
    fs::remove_file(ballast).unwrap();
    host.assert_heals(&truth, &image).await;
}

/// A few kB at a time into one file, each time to the disk; how often that went well.
fn write_until(path: &Path, ended: &AtomicBool) -> std::io::Result<u32> {
    let mut times = 0;
    while !ended.load(Ordering::Relaxed) {
        write_once(path)?;
        times += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(times)
}

fn write_once(path: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(b"a line")?;
    file.sync_data()
}

/// The last byte and the last inode are gone, also those that only root may take: records are written all the same.
#[tokio::test]
async fn state_is_written_on_a_full_disk() {
    let _alone = alone().await;
    for inodes in [false, true] {
        let memory = Memory::new(160);
        let disk = Disk::below(memory.root(), EXT4_FEW, 96);
        let root = disk.root().join("state");
        let state = StateDir::open(&root).unwrap();
        let (known, new) = (root.join("services/known.json"), root.join("receipts/new.json"));
        atomic::write(&known, &"before").unwrap();
        let ballast = to_the_brim(&disk, inodes);
        let stat = rustix::fs::statvfs(&root).unwrap();
        let left = format!("{} blocks and {} inodes were free", stat.f_bfree, stat.f_ffree);
        atomic::write(&known, &"after").unwrap();
        atomic::write(&new, &"a receipt").unwrap();
        assert_eq!(atomic::read::<String>(&known).unwrap().as_deref(), Some("after"));
        assert_eq!(atomic::read::<String>(&new).unwrap().as_deref(), Some("a receipt"));
        let reserve = root.join("reserve/space");
        assert!(!reserve.exists(), "the reserve was given back: {left}");
        state.refill_reserve();
        assert!(!reserve.exists(), "the last of a disk is not for the reserve");
        fs::remove_dir_all(ballast).unwrap();
        state.refill_reserve();
        assert_eq!(fs::metadata(&reserve).unwrap().len(), 8 << 20);
    }
}

/// Takes the last inode, or the last byte, also those that only root may take. Gives the folder to remove.
fn to_the_brim(disk: &Disk, inodes: bool) -> PathBuf {
    let ballast = disk.root().join("ballast");
    fs::create_dir(&ballast).unwrap();
    if inodes {
        let full = (0..).find_map(|number: u32| fs::write(ballast.join(number.to_string()), b"").err());
        assert!(atomic::is_full(&full.unwrap()));
        return ballast;
    }
    let mut file = fs::File::create(ballast.join("file")).unwrap();
    while file.write_all(&[1; 64 << 10]).is_ok() {}
    file.sync_all().unwrap();
    // The last blocks, one a file: the file system sets some aside, and gives them when it is asked again.
    let mut refused = 0;
    for number in 0.. {
        refused += u32::from(write_once(&ballast.join(number.to_string())).is_err());
        if refused == 20 {
            break;
        }
    }
    ballast
}

/// What makes room needs none: `gitopsd gc` on a disk whose last byte, or last inode, is gone.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_collected_on_a_full_disk() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    for inodes in [false, true] {
        let memory = Memory::new(160);
        let disk = Disk::below(memory.root(), EXT4_FEW, 96);
        let root = disk.root().join("state");
        drop(StateDir::open(&root).unwrap());
        super::puller::pull(&root, &truth.image(&truth.server.address(), "2")).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        let config = host.path().join("gitopsd.toml");
        let own = host.path().display();
        let text = format!(
            "state_dir = \"{}\"\nrun_dir = \"{own}/run\"\n[repo]\nurl = \"{own}/repo.git\"\n\
             [images]\nkeep = \"0s\"\nkeep_count = 0\n",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let _ballast = to_the_brim(&disk, inodes);
        assert!(fs::create_dir(disk.root().join("anything")).is_err(), "it is full");
        let free = || {
            let stat = rustix::fs::statvfs(&root).unwrap();
            (stat.f_bfree * stat.f_frsize, stat.f_ffree)
        };
        let before = free();
        let mut gc = std::process::Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        let output = gc.args(["gc", "--config"]).arg(&config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{said}");
        assert!(output.status.success(), "inodes: {inodes}: {output:?}");
        assert!(said.contains("/app:2 ") && said.contains("1 image: ") && said.contains(" freed"), "{said}");
        let store = root.join("store");
        for folder in ["layers", "images", "tmp"] {
            assert_eq!(names(&store.join(folder)), Vec::<String>::new(), "{folder}");
        }
        // 2,300 files of some 9 MB.
        let after = free();
        assert!(after.0 > before.0 + (5 << 20) && after.1 > before.1 + 2000, "{before:?} {after:?}");
        assert!(root.join("reserve/space").exists(), "it was not needed for that");
    }
}

/// Where there is no room even for a further name, the reserve makes it.
#[tokio::test(flavor = "multi_thread")]
async fn the_reserve_is_for_collections_too() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let memory = Memory::new(160);
    let disk = Disk::below(memory.root(), EXT4_FEW, 96);
    let root = disk.root().join("state");
    drop(StateDir::open(&root).unwrap());
    super::puller::pull(&root, &truth.image(&truth.server.address(), "2")).await.unwrap();
    let store = Store::open(&root).unwrap();
    let ballast = to_the_brim(&disk, false);
    // Further names of one file fill the folder that layers go by, until a name as long as theirs needs another block.
    let (file, tmp) = (ballast.join("file"), root.join("store/tmp"));
    let full = (0..).find_map(|number: u64| fs::hard_link(&file, tmp.join(format!("{number:0>13}"))).err());
    assert!(atomic::is_full(&full.unwrap()));
    let config = ImagesConfig { keep: Duration::ZERO, keep_count: 0, ..ImagesConfig::default() };
    let now = gitopsd::types::Timestamp::from_second(4_000_000_000).unwrap();
    let doomed = store.collect(&config, &BTreeSet::new(), Pressure::Configured, now, false).unwrap();
    assert!(!root.join("reserve/space").exists(), "the reserve was given back");
    let gone = doomed.finish();
    assert!(gone.images.len() == 1 && gone.images[0].layers == 4 && gone.freed > 5 << 20, "{gone:?}");
    assert_eq!(names(&root.join("store/layers")), Vec::<String>::new());
}

/// ext4 finds something wrong with itself, and turns read-only in the middle of a pull.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_on_the_way() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let line = Relay::new(&truth.server, 2 << 20);
    let mut host = Host::new(&truth, EXT4_CAREFUL, 128, &line).await;
    let image = truth.image(&line.address(), "2");
    let tmp = host.state.join("store/tmp");
    let trigger = Path::new("/sys/fs/ext4").join(host.disk.device()).join("trigger_fs_error");
    let broken = std::thread::spawn(move || {
        let half = || {
            names(&tmp)
                .iter()
                .any(|name| fs::read_dir(tmp.join(name).join("fs")).is_ok_and(|folder| folder.count() > 0))
        };
        wait_for("the middle of a layer", || half().then_some(()));
        fs::write(trigger, b"1").unwrap();
    });
    let error = host.pull(&image).await.unwrap_err();
    broken.join().unwrap();
    assert_eq!((error.reason, error.disposition), (Reason::StorageIo, Disposition::Retry), "{error}");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    let overlay = host.overlay.take().unwrap();
    assert_eq!(describe(&overlay.root()), host.seen, "what the container sees");
    // One of the two layers may have been durable before: then it is whole.
    let holds = truth.check(&host.state).unwrap();
    assert_eq!(holds.images, ["1"].into());
    assert!(holds.layers.is_superset(&[0, 1].into()) && holds.layers.len() < 4, "{holds:?}");
    drop(overlay);
    host.disk.repair();
    let ImageRef::Registry(_) = &image.reference else { unreachable!() };
    truth.recover(&host.state, "2", &truth.server.address()).await;
}
