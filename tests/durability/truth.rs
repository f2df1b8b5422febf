//! What is right: the trees that GNU tar makes of the layers, and the check of a store against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use gitopsd::registry::{Depth, Store};
use gitopsd::types::{ImageRef, PinnedImage};
use serde_json::Value;
use tar::EntryType;

use super::support::image::{Blob, Layer, noise};
use super::support::names;
use super::support::server::Server;
use super::support::tree::describe;

/// Images of one registry: `app:1` has the first two layers, `app:2` all four.
pub struct Truth {
    pub server: Server,
    pub blobs: Vec<Blob>,
    images: BTreeMap<&'static str, Value>,
    trees: Vec<String>,
}

/// What a store holds under final names: layers by their number, images by their tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    pub layers: BTreeSet<usize>,
    pub images: BTreeSet<&'static str>,
}

/// The layers of each image.
const IMAGES: [(&str, &[usize]); 2] = [("1", &[0, 1]), ("2", &[0, 1, 2, 3])];

impl Truth {
    pub async fn new() -> Self {
        // Links, modes and a tree in the lowest; many small files; few large ones; some of both.
        // What is in a directory follows it: GNU tar minds, where times of directories are concerned.
        let mut first = Layer::default().dir("./", 0o755).dir("etc/", 0o711);
        first = first.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n");
        first = first.link("etc/shadow", EntryType::Symlink, "passwd").dir("usr/", 0o755);
        first = first.file("usr/empty", b"").link("usr/passwd", EntryType::Link, "etc/passwd");
        first = first.file("usr/lib", &noise(1, 700_000));
        let mut small = Layer::default().dir("./", 0o755).dir("small/", 0o750);
        for folder in 0..20 {
            small = small.dir(&format!("small/{folder}/"), 0o755);
            for number in 0..100 {
                let content = noise(folder * 100 + number, 200 + 17 * usize::try_from(number).unwrap());
                small = small.file(&format!("small/{folder}/{number}"), &content);
            }
        }
        let mut large = Layer::default().dir("./", 0o755).dir("large/", 0o755);
        for number in 0..3 {
            large = large.file(&format!("large/{number}"), &noise(5000 + number, 2 << 20));
        }
        let mut last = Layer::default().dir("./", 0o755).dir("app/", 0o700);
        for number in 0..200 {
            let length = 10 + 97 * usize::try_from(number).unwrap();
            last = last.file(&format!("app/{number}"), &noise(6000 + number, length));
        }
        let layers = [first, large, small, last];
        let trees = layers.iter().map(|layer| unpacked(&layer.tar())).collect();
        let blobs: Vec<Blob> = layers.iter().map(Layer::gzip).collect();
        let server = Server::new();
        let first = server.push("1", &blobs[..2]).await;
        let second = server.push("2", &blobs).await;
        Self { server, blobs, images: [("1", first), ("2", second)].into(), trees }
    }

    /// An image by its tag, by way of an address that leads to the registry.
    pub fn image(&self, address: &str, tag: &str) -> PinnedImage {
        let reference: ImageRef = format!("{address}/app:{tag}").parse().unwrap();
        let digest = self.images[tag]["digest"].as_str().unwrap().parse().unwrap();
        PinnedImage { reference, digest }
    }

    /// Pushes a further image on top of the layers of `app:1`.
    pub async fn push(&self, address: &str, tag: &str, top: Blob) -> PinnedImage {
        let layers = [self.blobs[0].clone(), self.blobs[1].clone(), top];
        let pushed = self.server.push(tag, &layers).await;
        let reference: ImageRef = format!("{address}/app:{tag}").parse().unwrap();
        PinnedImage { reference, digest: pushed["digest"].as_str().unwrap().parse().unwrap() }
    }

    /// Bytes of layers in the registry.
    pub fn packed(&self, layers: &[usize]) -> u64 {
        layers.iter().map(|number| self.blobs[*number].bytes.len() as u64).sum()
    }

    /// Looks at all that has a final name. An error names what is not right, and what `gitopsd fsck` says of it: what is
    /// wrong here it has to find, too, and it finds nothing else wrong.
    ///
    /// Opens no store: that would wipe what a crash left.
    pub fn check(&self, state: &Path) -> Result<Holds, String> {
        let store = state.join("store");
        let (mut holds, mut wrong) = (Holds::default(), Vec::new());
        for name in names(&store.join("layers")) {
            let number = self.blobs.iter().position(|blob| blob.diff_id.ends_with(&name));
            let Some(number) = number else {
                wrong.push(format!("{name} is no layer of these images"));
                continue;
            };
            holds.layers.insert(number);
            let tree = &self.trees[number];
            // A tree that cannot be read is as wrong as one that reads differently.
            let fs = store.join("layers").join(name).join("fs");
            let here = std::panic::catch_unwind(|| describe(&fs)).unwrap_or_default();
            if here != *tree {
                wrong.push(format!("layer {number}: {}", difference(tree, &here)));
            }
        }
        let records = names(&store.join("images"));
        for (tag, layers) in IMAGES {
            let record = format!("{}.json", self.image("x.test", tag).digest.hex());
            if records.contains(&record) {
                holds.images.insert(tag);
                if !layers.iter().all(|layer| holds.layers.contains(layer)) {
                    wrong.push(format!(
                        "app:{tag} is recorded, and of its layers only {:?} are here",
                        holds.layers
                    ));
                }
            }
        }
        let said = self.fsck(state, &holds);
        match (wrong.is_empty(), said) {
            (true, None) => Ok(holds),
            // Of records and listings it knows more.
            (true, Some(said)) => Err(format!("fsck alone: {said}")),
            (false, Some(said)) => Err(format!("{}\nfsck: {said}", wrong.join("\n"))),
            (false, None) => panic!("fsck calls this sound: {}", wrong.join("\n")),
        }
    }

    /// What `gitopsd fsck` finds wrong; that it looks at the layers and images that are here goes without saying.
    fn fsck(&self, state: &Path, holds: &Holds) -> Option<String> {
        let report = Store::beside(state).check(Depth::Full, &mut |_| {}).unwrap();
        let layers: BTreeSet<usize> = report
            .layers
            .iter()
            .filter_map(|report| self.blobs.iter().position(|blob| blob.diff_id == report.layer.to_string()))
            .collect();
        assert_eq!(layers, holds.layers, "the layers that fsck sees: {report:?}");
        let images = |tag: &&str| {
            let digest = self.image("x.test", tag).digest;
            report.images.iter().any(|report| report.image == digest)
        };
        let images: BTreeSet<&str> = IMAGES.iter().map(|(tag, _)| *tag).filter(images).collect();
        assert_eq!(images, holds.images, "the images that fsck sees: {report:?}");
        let layers =
            report.damaged_layers().map(|layer| format!("{} {:?}", layer.layer, layer.findings.first()));
        let images = report.damaged_images().map(|image| format!("{} {:?}", image.image, image.trouble));
        let said: Vec<String> = layers.chain(images).chain(report.strays.iter().cloned()).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// The next start after a crash: nothing unfinished is left, what is recorded is complete, and a pull from `address`
    /// makes the image whole. Gives the bytes of layers that were missing.
    pub async fn recover(&self, state: &Path, tag: &str, address: &str) -> u64 {
        let before = self.check(state).unwrap();
        let store = Store::open(state).unwrap();
        assert_eq!(names(&state.join("store/tmp")), Vec::<String>::new(), "what is unfinished is wiped");
        for tag in &before.images {
            assert!(store.image(&self.image(address, tag).digest).is_some(), "app:{tag} is recorded");
        }
        drop(store);
        let image = self.image(address, tag);
        let pulled = super::puller::pull(state, &image).await.unwrap();
        let (_, layers) = IMAGES.iter().find(|(known, _)| *known == tag).unwrap();
        let missing: Vec<usize> =
            layers.iter().copied().filter(|layer| !before.layers.contains(layer)).collect();
        assert_eq!(pulled.layers_total - pulled.layers_reused, missing.len(), "what is complete is reused");
        let after = self.check(state).unwrap();
        assert!(after.layers.is_superset(&layers.iter().copied().collect()), "{after:?}");
        assert!(Store::open(state).unwrap().image(&image.digest).is_some(), "app:{tag} is complete");
        assert_eq!(names(&state.join("store/tmp")), Vec::<String>::new());
        self.packed(&missing)
    }
}

/// GNU tar's idea of an archive.
fn unpacked(tar: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new("tar")
        .args(["--extract", "--numeric-owner", "--same-owner", "--preserve-permissions", "--directory"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), tar).unwrap();
    assert!(process.wait().unwrap().success());
    describe(dir.path())
}

/// How much differs, and the first of it.
fn difference(expected: &str, here: &str) -> String {
    let here: BTreeSet<&str> = here.lines().collect();
    let missing: Vec<&str> = expected.lines().filter(|line| !here.contains(line)).collect();
    let all = expected.lines().count();
    format!(
        "{} of {all} entries are not as they should be, first `{}`",
        missing.len(),
        missing.first().unwrap_or(&"")
    )
}
