//! What a container sees of an image is what umoci makes of it: paths, kinds, modes, owners, times, attributes, links,
//! content. The images are real ones, of Debian's packages (`scripts/real-images`).
//!
//! Needs root, overlayfs, and the programs that `scripts/install-deps test` installs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking; clippy knows only the test functions themselves"
)]

#[allow(dead_code, unused_imports, reason = "the registry tests use the rest")]
#[path = "../support/registry/mod.rs"]
mod support;

mod walk;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gitopsd::registry::Depth;
use support::Host;
use support::server::Server;
use support::tree::Overlay;
use walk::Tree;

/// At most this many differences of an image are shown.
const SHOWN: usize = 50;

/// An image that is here twice: in a registry, and in an OCI layout.
struct Image {
    /// `name:tag`
    name: String,
    layout: PathBuf,
    tag: String,
}

/// Runs a program; fails the test when it does. What it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Makes images, or finds them made, and pushes them.
fn images(cache: &Path, server: &Server, names: &[&str]) -> Vec<Image> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/real-images");
    let lines = run(Command::new(script).arg("--push").arg(server.address()).arg(cache).args(names));
    let image = |line: &str| {
        let (name, place) = line.split_once(' ').unwrap();
        let (layout, tag) = place.strip_prefix("oci:").unwrap().rsplit_once(':').unwrap();
        Image { name: name.to_owned(), layout: layout.into(), tag: tag.to_owned() }
    };
    lines.lines().map(image).collect()
}

impl Image {
    /// What a container on this host would see of it, and how many layers that takes.
    async fn pulled(&self, server: &Server) -> (Tree, usize) {
        let host = Host::new(&[&server.address()]);
        let (digest, _) = host.pull(&format!("{}/{}", server.address(), self.name)).await.unwrap();
        // What is listed is what is there, also where something was left out.
        let report = host.store.check(Depth::Full, &mut |_| {}).unwrap();
        assert!(report.is_sound(), "{}: {:?}", self.name, report.damaged_layers().next());
        let layers = host.layers(&digest);
        let overlay = Overlay::mount(&layers);
        (Tree::read(&overlay.root()), layers.len())
    }

    /// What umoci, which knows no zstd, makes of the same layers packed with gzip.
    fn expected(&self) -> Tree {
        let dir = tempfile::Builder::new().prefix("gitopsd-umoci-").tempdir().unwrap();
        let layout = self.layout.with_file_name("gzip");
        let bundle = dir.path().join("bundle");
        let image = format!("{}:{}", layout.display(), self.tag);
        run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
        Tree::read(&bundle.join("rootfs"))
    }
}

/// Compares images one by one; a table of them, and what differs.
async fn compare(cache: &Path, names: &[&str]) {
    let server = Server::new();
    let mut differences = Vec::new();
    println!("| image | layers | entries | bytes | hard-linked | set-id | with attributes | differences |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut expected: Option<(String, Tree)> = None;
    for image in images(cache, &server, names) {
        if expected.as_ref().is_none_or(|(tag, _)| *tag != image.tag) {
            expected = Some((image.tag.clone(), image.expected()));
        }
        let (_, expected) = expected.as_ref().unwrap();
        let (ours, layers) = image.pulled(&server).await;
        let found = ours.differences(expected);
        println!("| {} | {layers} | {} | {} |", image.name, ours.summary(), found.len());
        differences.extend(found.iter().map(|line| format!("{}: {line}", image.name)));
    }
    let count = differences.len();
    differences.truncate(SHOWN);
    assert!(count == 0, "{count} differences, ours before umoci's:\n{}", differences.join("\n"));
}

/// Set-id bits, capabilities, attributes, hard links, whiteouts, opaque directories, long names, odd times.
#[tokio::test(flavor = "multi_thread")]
async fn three_images_of_what_is_installed_here() {
    let cache = tempfile::Builder::new().prefix("gitopsd-images-").tempdir().unwrap();
    compare(cache.path(), &["busybox", "tools", "removals"]).await;
}

/// Everything that `scripts/real-images` makes, where `GITOPSD_TEST_ALL` is set (`make test-all`): minutes, and packages
/// from the network. `REAL_IMAGES` names a directory that keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn thirteen_images() {
    if std::env::var_os("GITOPSD_TEST_ALL").is_none() {
        println!("skipped: GITOPSD_TEST_ALL is not set");
        return;
    }
    let cache = std::env::var_os("REAL_IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-images"), PathBuf::from);
    compare(&cache, &[]).await;
}

/// A comparison that sees nothing would find no difference either.
#[test]
fn every_kind_of_difference_is_seen() {
    walk::self_test();
}
