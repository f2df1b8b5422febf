//! Random stores: what is protected stays, whatever else is there, and the bytes add up to what du(1) says.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::record::ImageRecord;
use super::*;
use crate::engine::ImageConfig;
use crate::state::atomic;

const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

#[derive(Debug, Clone)]
struct Image {
    layers: BTreeSet<u8>,
    repository: u8,
    /// Days ago.
    pulled: i64,
    used: Option<i64>,
    needed: bool,
}

#[derive(Debug, Clone)]
struct World {
    images: Vec<Image>,
    /// Layers that are there, whether an image has them or not: days ago.
    orphans: Vec<(u8, i64)>,
    pinned: BTreeSet<u8>,
    keep: i64,
    count: usize,
    everything: bool,
    /// A free amount that no disk has.
    greedy: bool,
}

impl World {
    /// Images that are kept for a week, and nothing else.
    fn of(images: Vec<Image>) -> Self {
        let (orphans, pinned) = (Vec::new(), BTreeSet::new());
        Self { images, orphans, pinned, keep: 7, count: 0, everything: false, greedy: false }
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let days = || 0i64..20;
    let image = (
        prop::collection::btree_set(0u8..8, 1..4),
        0u8..3,
        days(),
        prop::option::of(days()),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(layers, repository, pulled, used, needed)| Image {
            layers,
            repository,
            pulled,
            used,
            needed,
        });
    let images = prop::collection::vec(image, 0..7);
    let orphans = prop::collection::vec((8u8..10, days()), 0..3);
    let pinned = prop::collection::btree_set(0u8..10, 0..3);
    (images, orphans, pinned, prop::sample::select(vec![0, 1, 7]), 0usize..4, any::<bool>(), any::<bool>())
        .prop_map(|(images, orphans, pinned, keep, count, everything, greedy)| World {
            images,
            orphans,
            pinned,
            keep,
            count,
            everything,
            greedy,
        })
}

fn digest(kind: u8, number: u8) -> Digest {
    Digest::from_sha256(&[kind, number].repeat(16).try_into().unwrap())
}

fn ago(days: i64) -> Timestamp {
    // A minute off the edge.
    Timestamp::from_second(NOW - days * DAY - 60).unwrap()
}

fn du(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn add_layer(store: &Store, number: u8, days: i64) {
    let path = layer_path(&store.root, &digest(1, number));
    std::fs::create_dir_all(path.join("fs/folder")).unwrap();
    for name in ["fs/a", "fs/folder/b", "listing"] {
        std::fs::write(path.join(name), vec![number; 5000 * (usize::from(number) + 1)]).unwrap();
    }
    // A second name costs nothing more.
    let _ = std::fs::hard_link(path.join("fs/a"), path.join("fs/folder/c"));
    std::fs::File::open(&path).unwrap().set_modified(ago(days).into()).unwrap();
}

fn build(world: &World) -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    for (number, image) in world.images.iter().enumerate() {
        let number = u8::try_from(number).unwrap();
        image.layers.iter().for_each(|layer| add_layer(&store, *layer, image.pulled));
        let reference = format!("r.io/app{}:{number}", image.repository).parse().unwrap();
        let record = ImageRecord {
            digest: digest(2, number),
            diff_ids: image.layers.iter().map(|layer| digest(1, *layer)).collect(),
            config: ImageConfig::default(),
            config_digest: None,
            references: BTreeSet::from([reference]),
            pulled_at: Some(ago(image.pulled)),
            dirs: number % 2 == 1,
        };
        let path = store.image_path(&record.digest);
        if record.dirs {
            std::fs::create_dir_all(store.dirs_path(&record.digest).join("app/deep")).unwrap();
        }
        // Twice: with a former version.
        atomic::write(&path, &record).unwrap();
        atomic::write(&path, &record).unwrap();
        if let Some(days) = image.used {
            let file = std::fs::File::create(path.with_extension("used")).unwrap();
            file.set_modified(ago(days).into()).unwrap();
        }
    }
    for (number, days) in &world.orphans {
        add_layer(&store, *number, *days);
    }
    (dir, store)
}

fn images_of(store: &Store, world: &World) -> Vec<bool> {
    let numbers = 0..u8::try_from(world.images.len()).unwrap();
    numbers.map(|number| store.image(&digest(2, number)).is_some()).collect()
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let (dir, store) = build(world);
    let config = ImagesConfig {
        keep: Duration::from_secs(u64::try_from(world.keep * DAY).unwrap()),
        keep_count: world.count,
        min_free: if world.greedy { MinFree::Bytes(u64::MAX / 2) } else { MinFree::Bytes(0) },
    };
    let pressure = if world.everything { Pressure::Everything } else { Pressure::Configured };
    let numbered = || world.images.iter().zip(0u8..);
    let needed = numbered().filter(|(image, _)| image.needed).map(|(_, number)| digest(2, number)).collect();
    let pinned: Vec<Digest> = world.pinned.iter().map(|layer| digest(1, *layer)).collect();
    let pinned_there: Vec<&Digest> = pinned.iter().filter(|layer| store.has_layer(layer)).collect();
    let pins = store.pin(&pinned);
    let root = dir.path().join("store");
    let now = Timestamp::from_second(NOW).unwrap();
    let collect = |dry_run| store.collect(&config, &needed, pressure, now, dry_run).unwrap().finish();

    let before = du(&root);
    let dry = collect(true);
    prop_assert_eq!(du(&root), before, "a dry run changes nothing");
    let real = collect(false);
    prop_assert_eq!(&dry, &real, "both say the same");
    prop_assert_eq!(before - du(&root), real.freed, "du agrees");
    prop_assert_eq!(real.images.iter().map(|gone| gone.bytes).sum::<u64>() + real.unused_bytes, real.freed);

    let here = images_of(&store, world);
    let short = world.everything || world.greedy;
    for (image, number) in numbered() {
        let last = image.used.map_or(image.pulled, |used| used.min(image.pulled));
        let recent = last < world.keep;
        // Days ago: a use of the same day counts as one after the pull.
        let ahead = image.used.is_none_or(|used| image.pulled < used) && recent;
        let stays = here[usize::from(number)];
        if image.needed || ahead || (recent && !short) {
            prop_assert!(stays, "image {number} is gone: {image:?}");
        } else if short {
            prop_assert!(!stays, "image {number} is still there: {image:?}");
        }
        let record = store.image_record(&digest(2, number)).is_some();
        prop_assert_eq!(record, stays, "an image has all its layers or no record");
        let listed = real.images.iter().any(|gone| gone.digest == digest(2, number));
        prop_assert_eq!(listed, !stays, "what goes is what was said");
    }
    if !short {
        // The newest of each repository stay.
        for repository in 0..3 {
            let of = numbered().filter(|(image, _)| image.repository == repository);
            let kept = of.clone().filter(|(_, number)| here[usize::from(*number)]).count();
            prop_assert!(kept >= world.count.min(of.count()), "repository {repository}");
        }
    }
    for layer in pinned_there {
        prop_assert!(store.has_layer(layer), "a pinned layer is gone");
    }
    drop(pins);
    let left = std::fs::read_dir(root.join("tmp")).unwrap().count();
    prop_assert_eq!(left, 0, "nothing is left in tmp");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_protected_stays_and_bytes_add_up(world in worlds()) {
        check(&world)?;
    }
}

#[test]
fn a_record_that_cannot_be_read_protects_every_layer_without_an_image() {
    let image = |layers: &[u8]| Image {
        layers: layers.iter().copied().collect(),
        repository: 0,
        pulled: 19,
        used: Some(19),
        needed: false,
    };
    let world = World {
        images: vec![image(&[1]), image(&[2])],
        orphans: vec![(9, 19)],
        pinned: BTreeSet::new(),
        keep: 1,
        count: 0,
        everything: true,
        greedy: false,
    };
    let (_dir, store) = build(&world);
    for extension in ["json", "previous.json"] {
        std::fs::write(store.image_path(&digest(2, 0)).with_extension(extension), "garbage").unwrap();
    }
    let config = ImagesConfig { keep: Duration::ZERO, keep_count: 0, min_free: MinFree::Bytes(0) };
    let now = Timestamp::from_second(NOW).unwrap();
    let gone = store.collect(&config, &BTreeSet::new(), Pressure::Everything, now, false).unwrap().finish();
    assert_eq!(gone.images.len(), 1, "{gone:?}");
    assert!(gone.unused.is_empty());
    assert!(store.has_layer(&digest(1, 1)) && store.has_layer(&digest(1, 9)));
    assert!(!store.has_layer(&digest(1, 2)));
}

/// An image that is here is asked for again: it counts as pulled then, and as ahead of its next use.
#[test]
fn a_pull_of_what_is_here_keeps_it() {
    let world = World::of(vec![Image {
        layers: BTreeSet::from([1]),
        repository: 0,
        pulled: 19,
        used: Some(18),
        needed: false,
    }]);
    let (_dir, store) = build(&world);
    let config =
        ImagesConfig { keep: Duration::from_secs(7 * 86_400), keep_count: 0, min_free: MinFree::Bytes(0) };
    let now = super::super::clock::now();
    let collect = |pressure, days: i64| {
        let now = Timestamp::from_second(now.as_second() + days * DAY).unwrap();
        let doomed = store.collect(&config, &BTreeSet::new(), pressure, now, true);
        doomed.unwrap().finish().images.len()
    };
    // By the clock: that is what a pull is noted by.
    let mut record = store.image_record(&digest(2, 0)).unwrap();
    record.pulled_at = Some(Timestamp::from_second(now.as_second() - 19 * DAY).unwrap());
    atomic::write(&store.image_path(&record.digest), &record).unwrap();
    let reference = record.references.pop_first().unwrap();
    // It was used since, also a moment ago.
    store.note_uses(&BTreeSet::from([digest(2, 0)]), Timestamp::from_second(now.as_second() - 9).unwrap());
    assert_eq!(collect(Pressure::Everything, 0), 1, "room is short, and nobody needs it");
    store.note_pull(&digest(2, 0), &reference);
    assert_eq!(collect(Pressure::Everything, 0), 0, "it was pulled since");
    assert_eq!(collect(Pressure::Configured, 6), 0);
    assert_eq!(collect(Pressure::Configured, 8), 1, "eight days after the pull");
    let pulled = store.image_record(&digest(2, 0)).unwrap().pulled_at;
    store.note_pull(&digest(2, 0), &reference);
    assert_eq!(store.image_record(&digest(2, 0)).unwrap().pulled_at, pulled, "nothing new");
    // Used after it, as soon as that may be: no longer ahead.
    let later = Timestamp::from_second(pulled.unwrap().as_second() + 2).unwrap();
    store.note_uses(&BTreeSet::from([digest(2, 0)]), later);
    assert_eq!(collect(Pressure::Everything, 0), 1);
}

/// Pulled a year from now, as it seems, and used by the right clock since.
#[test]
fn what_came_by_a_clock_that_was_ahead_can_go() {
    let image = |number, used| Image {
        layers: BTreeSet::from([number]),
        repository: number,
        pulled: -365,
        used,
        needed: false,
    };
    let world = World::of(vec![image(1, Some(8)), image(2, Some(1)), image(3, None)]);
    let (_dir, store) = build(&world);
    let config =
        ImagesConfig { keep: Duration::from_secs(7 * 86_400), keep_count: 0, min_free: MinFree::Bytes(0) };
    let collect = |pressure| {
        let doomed = store.collect(&config, &BTreeSet::new(), pressure, ago(0), true).unwrap().finish();
        doomed.images.into_iter().map(|gone| gone.digest).collect::<Vec<_>>()
    };
    let [first, second, third] = [0, 1, 2].map(|number| digest(2, number));
    assert_eq!(collect(Pressure::Configured), std::slice::from_ref(&first), "its last use is old");
    assert_eq!(collect(Pressure::Everything), [first, second, third], "room is short");
}

/// A collection that runs beside a pull has removed the image: it does not come back without its layers.
#[test]
fn a_pull_beside_a_collection_writes_nothing_back() {
    let world = World::of(vec![Image {
        layers: BTreeSet::from([1]),
        repository: 0,
        pulled: 19,
        used: None,
        needed: false,
    }]);
    let (_dir, store) = build(&world);
    let image = digest(2, 0);
    let former = store.image_record(&image).unwrap();
    let reference = former.references.first().unwrap().clone();
    let collecting = store.pins.lock().unwrap();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| store.note_pull(&image, &reference));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(store.image_record(&image).as_ref(), Some(&former), "it waits");
        store.forget_image(&image).unwrap();
        drop(collecting);
        assert!(!pull.join().unwrap(), "it is not here");
    });
    assert_eq!(store.image_record(&image), None);
}

#[test]
fn a_use_counts_from_when_it_was_last_seen() {
    let image = Image { layers: BTreeSet::from([1]), repository: 0, pulled: 19, used: None, needed: true };
    let world = World::of(vec![image]);
    let (_dir, store) = build(&world);
    let needed = BTreeSet::from([digest(2, 0), digest(2, 77)]);
    store.note_uses(&needed, ago(8));
    assert_eq!(store.used_at(&digest(2, 0)), Some(ago(8)));
    assert_eq!(store.used_at(&digest(2, 77)), None, "what is not here is not used");
    let config =
        ImagesConfig { keep: Duration::from_secs(7 * 86_400), keep_count: 0, min_free: MinFree::Bytes(0) };
    let collect = |now| {
        let doomed = store.collect(&config, &BTreeSet::new(), Pressure::Configured, now, true);
        doomed.unwrap().finish().images.len()
    };
    assert_eq!(collect(ago(2)), 0, "six days after its last use");
    assert_eq!(collect(ago(0)), 1, "eight days after");
}

#[test]
fn versions_of_an_archive_are_one_repository() {
    let of = |url: &str| versionless(url);
    assert_eq!(of("s3://images-2/shop-1.4.2.tar"), of("s3://images-2/shop-1.10.tar"));
    assert_eq!(of("https://r.test:8443/shop/v2/app_3f2a9c1.tar.zst"), "https://r.test:8443/shop/app/tar/zst");
    assert_eq!(of("file:///srv/2026-11-22/shop.tar"), of("file:///srv/2026-11-21/shop.tar"));
    for other in
        ["s3://images-2/cart-1.4.2.tar", "s3://images-3/shop-1.4.2.tar", "s3://images-2/old/shop-1.tar"]
    {
        assert_ne!(of("s3://images-2/shop-1.4.2.tar"), of(other));
    }
}
