//! What is unpacked is what was meant, and overlayfs shows the image that all layers make.

use std::fs;
use std::os::unix::fs::MetadataExt;

use gitopsd::types::Reason;
use tar::EntryType;

use super::support::Host;
use super::support::image::{Blob, Layer, With, noise};
use super::support::server::Server;
use super::support::tree::{Overlay, describe, xattrs};

/// vfs_cap_data of cap_net_bind_service=ep, revision 2 (linux/capability.h).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn base() -> Layer {
    Layer::default()
        .entry("./", EntryType::Directory, "", b"", &With { mode: 0o711, mtime: 5, ..With::default() })
        .dir("bin/", 0o755)
        .entry("bin/su", EntryType::Regular, "", b"program", &With { mode: 0o4755, ..With::default() })
        .link("bin/sudo", EntryType::Link, "bin/su")
        .link("bin/sh", EntryType::Symlink, "/bin/su")
        .entry(
            "srv/",
            EntryType::Directory,
            "",
            b"",
            &With { mode: 0o2750, owner: (70_000, 2_000_000), mtime: 1_000_000_000, ..With::default() },
        )
        .file("srv/keep", b"keep")
        .file("srv/gone", b"gone")
        .dir("srv/whole/", 0o700)
        .file("srv/whole/old", b"old")
        .dir("srv/replaced/", 0o700)
        .file("srv/replaced/old", b"old")
        .file("srv/to-dir", b"file")
        .entry("run/queue", EntryType::Fifo, "", b"", &With { mode: 0o666, owner: (3, 4), ..With::default() })
        .entry(
            "bin/ping",
            EntryType::Regular,
            "",
            &noise(1, 70_000),
            &With {
                mode: 0o755,
                pax: &[
                    ("SCHILY.xattr.security.capability", CAPABILITY),
                    ("SCHILY.xattr.user.note", b"a\nb"),
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.security.selinux", b"u:r:t"),
                    ("mtime", b"1234567890.123456789"),
                ],
                ..With::default()
            },
        )
}

fn upper() -> Layer {
    Layer::default()
        .file("srv/.wh.gone", b"")
        .file("srv/new", b"new")
        .file("srv/whole/.wh..wh..opq", b"")
        .file("srv/whole/new", b"new")
        .file("srv/.wh.replaced", b"")
        .file("srv/replaced", b"now a file")
        .file("srv/to-dir/inside", b"x")
}

const BASE: &str = "\
. dir 711 0:0 at 5
./bin dir 755 0:0 at 1700000000
./bin/ping file of 70000 PING links 1 755 0:0 at 1234567890.123456789 security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00 user.note=a\\nb
./bin/sh link to /bin/su 0:0 at 1700000000
./bin/su file of 7 SU links 2 4755 0:0 at 1700000000
./bin/sudo file of 7 SU links 2 4755 0:0 at 1700000000
./run dir 755 0:0 at 0
./run/queue fifo 666 3:4 at 1700000000
./srv dir 2750 70000:2000000 at 1000000000
";

async fn pull(layers: &[Blob]) -> (Server, Host, Vec<std::path::PathBuf>) {
    let server = Server::new();
    server.push("1", layers).await;
    let host = Host::new(&[&server.address()]);
    let (digest, _) = host.pull(&format!("{}/app:1", server.address())).await.unwrap();
    let layers = host.layers(&digest);
    (server, host, layers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_what_its_layer_says() {
    let mut found = Vec::new();
    for blob in [base().gzip(), base().plain()] {
        let (_server, _host, layers) = pull(&[blob]).await;
        let text = describe(&layers[0]);
        let hash = |content: &[u8]| super::support::image::sha256(content)[7..15].to_owned();
        let expected = BASE.replace("PING", &hash(&noise(1, 70_000))).replace("SU", &hash(b"program"));
        let seen: String =
            text.lines().filter(|line| !line.starts_with("./srv/")).map(|line| format!("{line}\n")).collect();
        assert_eq!(seen, expected);
        found.push(text);
    }
    assert_eq!(found[0], found[1], "packed or not, it is the same tree, to the last time");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_make_one_image_in_the_kernel() {
    let (_server, _host, layers) = pull(&[base().gzip(), upper().plain()]).await;
    let overlay = Overlay::mount(&layers);
    let root = overlay.root();
    let read = |path: &str| fs::read_to_string(root.join(path)).map_err(|error| error.kind());
    assert_eq!(read("srv/keep").as_deref(), Ok("keep"));
    assert_eq!(read("srv/new").as_deref(), Ok("new"));
    assert_eq!(read("srv/gone"), Err(std::io::ErrorKind::NotFound), "a whiteout");
    assert_eq!(super::support::names(&root.join("srv/whole")), ["new"], "an opaque directory");
    assert_eq!(read("srv/replaced").as_deref(), Ok("now a file"), "a file over a directory");
    assert_eq!(super::support::names(&root.join("srv/to-dir")), ["inside"], "a directory over a file");
    assert_eq!(super::support::names(&root.join("srv")), ["keep", "new", "replaced", "to-dir", "whole"]);
    assert_eq!(read("bin/sudo").as_deref(), Ok("program"));
    // No attribute of overlay's own shows, and none that the image had smuggled in is on disk.
    assert_eq!(xattrs(&root.join("srv/whole")), vec![]);
    // Directories that the upper layer only implies still are the lower layer's.
    let meta = |path: &str| fs::metadata(root.join(path)).unwrap();
    assert_eq!(
        (meta("srv").mode() & 0o7777, meta("srv").uid(), meta("srv").gid()),
        (0o2750, 70_000, 2_000_000)
    );
    assert_eq!(meta("srv").mtime(), 1_000_000_000);
    assert_eq!((meta(".").mode() & 0o7777, meta(".").mtime()), (0o711, 5));
    assert_eq!(meta("srv/whole").mode() & 0o7777, 0o700);
    assert_eq!(meta("srv/to-dir").mode() & 0o7777, 0o755, "below there is a file, which gives it nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn implied_directories_come_from_the_nearest_layer_that_shows() {
    let private = |path: &'static str| Layer::default().dir(path, 0o700).file(&format!("{path}old"), b"x");
    let hide = Layer::default().file(".wh.a", b"");
    let implies = |number: u8| Layer::default().file(&format!("a/b/{number}"), b"x");
    // Twice implied: the second one takes what the first one took.
    let (_server, _host, layers) =
        pull(&[private("a/b/").gzip(), implies(1).gzip(), implies(2).plain()]).await;
    for layer in &layers {
        assert_eq!(fs::metadata(layer.join("a/b")).unwrap().mode() & 0o7777, 0o700);
    }
    // Hidden between: nothing of it shows through.
    let (_server, _host, layers) = pull(&[private("a/b/").gzip(), hide.gzip(), implies(1).gzip()]).await;
    assert_eq!(fs::metadata(layers[2].join("a/b")).unwrap().mode() & 0o7777, 0o755);
    let overlay = Overlay::mount(&layers);
    assert_eq!(super::support::names(&overlay.root().join("a/b")), ["1"]);
    // Opaque above: as well.
    let opaque = Layer::default().dir("a/", 0o711).file("a/.wh..wh..opq", b"");
    let (_server, _host, layers) = pull(&[private("a/b/").gzip(), opaque.gzip(), implies(1).gzip()]).await;
    assert_eq!(fs::metadata(layers[2].join("a/b")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(layers[2].join("a")).unwrap().mode() & 0o7777, 0o711);
    // A layer that is here already gives it too.
    let server = Server::new();
    server.push("1", &[private("a/b/").gzip()]).await;
    server.push("2", &[private("a/b/").gzip(), implies(1).gzip()]).await;
    let host = Host::new(&[&server.address()]);
    host.pull(&format!("{}/app:1", server.address())).await.unwrap();
    let (digest, _) = host.pull(&format!("{}/app:2", server.address())).await.unwrap();
    assert_eq!(fs::metadata(host.layers(&digest)[1].join("a/b")).unwrap().mode() & 0o7777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attack_changes_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "untouched").unwrap();
    let path: &str = Box::leak(outside.path().to_str().unwrap().to_owned().into_boxed_str());
    let file: &str = Box::leak(format!("{path}/file").into_boxed_str());
    let climb: &str = Box::leak(format!("{}{}", "../".repeat(9), &path[1..]).into_boxed_str());
    let before = describe(outside.path());
    let rows: Vec<(&str, Layer)> = vec![
        ("an absolute path", Layer::default().file(file, b"x")),
        ("dot dot", Layer::default().file(climb, b"x")),
        (
            "through an absolute link",
            Layer::default().link("l", EntryType::Symlink, path).file("l/file", b"x"),
        ),
        (
            "through a relative link",
            Layer::default().link("l", EntryType::Symlink, climb).file("l/file", b"x"),
        ),
        ("over a link", Layer::default().link("l", EntryType::Symlink, file).file("l", b"x")),
        ("a directory over a link", Layer::default().link("l", EntryType::Symlink, path).dir("l/", 0o777)),
        ("a hard link out", Layer::default().link("l", EntryType::Link, file).file("l", b"x")),
        (
            "a whiteout through a link",
            Layer::default().link("l", EntryType::Symlink, path).file("l/.wh.file", b""),
        ),
        (
            "opaque through a link",
            Layer::default().link("l", EntryType::Symlink, path).file("l/.wh..wh..opq", b""),
        ),
        ("links as the root", Layer::default().link("./", EntryType::Symlink, path).file("file", b"x")),
    ];
    for (what, layer) in rows {
        let server = Server::new();
        server.push("1", &[layer.gzip()]).await;
        let host = Host::new(&[&server.address()]);
        match host.pull(&format!("{}/app:1", server.address())).await {
            // It has become a path within the layer, as it would be in a container.
            Ok((digest, _)) => assert!(!describe(&host.layers(&digest)[0]).is_empty()),
            Err(error) => {
                assert_eq!(error.reason, Reason::ImageInvalid, "{what}: {error}");
                assert!(!error.may_pass(), "{what}: {error}");
                host.assert_empty();
            }
        }
        assert_eq!(describe(outside.path()), before, "{what}");
        assert_eq!(super::support::names(host.dir.path()), ["store"], "{what}");
    }
}
