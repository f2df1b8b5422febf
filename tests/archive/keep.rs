//! Room for archives, and what is kept of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use gitopsd::config::agent::{ImagesConfig, MinFree, S3Config};
use gitopsd::registry::{Depth, Pressure, Remedy};
use gitopsd::types::{Digest, Reason, Timestamp};

use super::make::{docker_save, gzip, hex, image, noise, oci, small, tar};
use super::support::names;
use super::{host, host_at};

#[expect(clippy::disallowed_methods, reason = "files get times by it")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A small file system.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success());
        Self(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_fit_is_refused_before_it_is_read() {
    let disk = Disk::new(24);
    let outside = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = outside.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    };
    let host = host_at(
        tempfile::tempdir_in(disk.0.path()).unwrap(),
        S3Config::default(),
        std::collections::BTreeMap::new(),
    );
    // Not even packed.
    let url = put("big.tar.gz", &gzip(&docker_save(&image(vec![tar(&[("x", &noise(40 << 20, 1))])]))));
    let error = host.pull(&url).await.unwrap_err();
    assert_eq!(error.reason, Reason::DiskSpace, "{error}");
    for part in ["big.tar.gz: it is read as a whole, which needs at least 4", "MiB are free", "gitopsd gc"] {
        assert!(error.to_string().contains(part), "`{part}`: {error}");
    }
    // Packed it would fit.
    let url = put("airy.tar.gz", &gzip(&docker_save(&image(vec![tar(&[("x", &vec![0; 60 << 20])])]))));
    let error = host.pull(&url).await.unwrap_err();
    assert_eq!(error.reason, Reason::DiskSpace, "{error}");
    assert!(error.to_string().contains("gitopsd gc"), "{error}");
    host.assert_nothing_unfinished();
    // That it did not is remembered: it is not begun again in as little room.
    let again = host.pull(&url).await.unwrap_err();
    assert!(again.to_string().contains("it is read as a whole, which needs at least"), "{again}");
    let url = put("fine.tar.gz", &gzip(&docker_save(&small())));
    host.pull(&url).await.unwrap();
}

/// A host that keeps layers as they come takes room for both, and says so before it begins.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_packed_needs_room_too() {
    let disk = Disk::new(24);
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("app.tar");
    std::fs::write(&path, docker_save(&image(vec![tar(&[("x", &noise(13 << 20, 1))])]))).unwrap();
    let url = format!("file://{}", path.display());
    let mut host = host_at(
        tempfile::tempdir_in(disk.0.path()).unwrap(),
        S3Config::default(),
        std::collections::BTreeMap::new(),
    );
    host.registry = host.registry.with_keep_blobs(true);
    let error = host.pull(&url).await.unwrap_err();
    assert_eq!(error.reason, Reason::DiskSpace, "{error}");
    assert!(error.to_string().contains("its missing layers need at least 26.0 MiB"), "{error}");
    host.assert_nothing_unfinished();
    host.registry = host.registry.with_keep_blobs(false);
    host.pull(&url).await.unwrap();
}

/// What is kept of an archive's layer is what is in there, packed or not, and a damaged one is rebuilt without the archive.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_archives_are_kept_as_they_are_in_there() {
    let image = small();
    let packed: fn(&[u8]) -> Vec<u8> = gzip;
    let media = "application/vnd.oci.image.layer.v1.tar+gzip";
    let root = tar(&[("etc/app", b"app"), ("srv/x", &noise(70_000, 3))]);
    for (archive, layer, kept) in [
        (docker_save(&image), &image.layers[1], image.layers[1].clone()),
        (gzip(&docker_save(&image)), &image.layers[1], image.layers[1].clone()),
        (oci(&image, media, packed), &image.layers[1], packed(&image.layers[1])),
        // Of what is read as a whole, once it is inflated.
        (gzip(&root), &root, root.clone()),
    ] {
        let mut host = host(S3Config::default());
        host.registry = host.registry.with_keep_blobs(true);
        let url = host.put("app.tar", &archive);
        let (digest, _) = host.pull(&url).await.unwrap();
        let id: Digest = format!("sha256:{}", hex(layer)).parse().unwrap();
        let folder = host.dir.path().join("state/store/layers").join(id.hex());
        assert!(std::fs::read(folder.join("blob")).unwrap() == kept);
        assert!(host.store.check(Depth::Full, &mut |_| {}).unwrap().is_sound());
        std::fs::remove_file(url.strip_prefix("file://").unwrap()).unwrap();
        std::fs::write(folder.join("fs/srv/x"), "damaged").unwrap();
        let repaired = host.registry.repair(vec![id], vec![], &[], &|_| {}).await;
        assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
        assert_eq!(host.file(&digest, "srv/x"), Some(noise(70_000, 3)));
        assert!(host.store.check(Depth::Full, &mut |_| {}).unwrap().is_sound());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_of_archives_goes_with_them() {
    let host = host(S3Config::default());
    let (kept, looked_at, new) = (host.put("kept.tar", &docker_save(&small())), "looked.tar", "new.tar");
    let (digest, _) = host.pull(&kept).await.unwrap();
    for (number, name) in [(1, looked_at), (2, new)] {
        let archive = docker_save(&image(vec![tar(&[("x", &noise(1000, number))])]));
        let reference = host.put(name, &archive).parse().unwrap();
        host.registry.resolve(&reference).await.unwrap();
    }
    let folder = host.dir.path().join("state/store/archives");
    let notes = || names(&folder).into_iter().filter(|name| !name.contains(".previous")).collect::<Vec<_>>();
    assert_eq!(notes().len(), 3);
    let age = |url: &str, days: u64| {
        let path = folder.join(format!("{}.json", hex(url.as_bytes())));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(now() - Duration::from_secs(days * 86400)).unwrap();
        path
    };
    let url = |name: &str| format!("file://{}", host.dir.path().join(name).display());
    let (own, old) = (age(&url("kept.tar"), 400), age(&url(looked_at), 400));
    let config =
        ImagesConfig { keep: Duration::from_secs(86400), keep_count: 1, min_free: MinFree::Bytes(0) };
    let needed = BTreeSet::from([digest]);
    let today = Timestamp::try_from(now()).unwrap();
    let collect = |dry_run| {
        host.store.collect(&config, &needed, Pressure::Configured, today, dry_run).unwrap().finish();
    };
    collect(true);
    assert_eq!(notes().len(), 3, "only looked at");
    collect(false);
    assert!(!Path::new(&old).exists() && own.exists(), "{:?}", notes());
    assert_eq!(notes().len(), 2);
    // One that is looked at again is young again.
    let young = age(&url(new), 400);
    host.registry.resolve(&url(new).parse().unwrap()).await.unwrap();
    collect(false);
    assert!(young.exists());
    // Once nothing needs the image, its note goes too: a collection later at most.
    let nothing = BTreeSet::new();
    let later = Timestamp::try_from(now() + Duration::from_secs(10 * 86400)).unwrap();
    let all = ImagesConfig { keep_count: 0, ..config };
    for _ in 0..2 {
        host.store.collect(&all, &nothing, Pressure::Configured, later, false).unwrap().finish();
    }
    assert_eq!(names(&folder), Vec::<String>::new());
}
