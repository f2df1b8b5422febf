//! What becomes of a pull's finished layers while others are missing: a pull that takes long, or fails, keeps them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gitopsd::config::agent::{ImagesConfig, MinFree};
use gitopsd::registry::{Collection, Depth, Pressure, Progress};
use gitopsd::types::{ImageRef, PinnedImage, Reason};

use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::Server;
use super::support::tree::describe;
use super::support::{Host, wait_for};

fn layer(seed: u64) -> Blob {
    Layer::default().dir("data/", 0o755).file(&format!("data/{seed}"), &noise(seed, 100_000)).gzip()
}

/// Of what no image has.
fn collect(host: &Host, pressure: Pressure, min_free: u64, dry_run: bool) -> Collection {
    let config = ImagesConfig { min_free: MinFree::Bytes(min_free), ..ImagesConfig::default() };
    host.store
        .collect(&config, &BTreeSet::new(), pressure, gitopsd::agent::clock::now(), dry_run)
        .unwrap()
        .finish()
}

/// The top of one image does not come: that is nobody's trouble who needs only what is below it.
#[tokio::test(flavor = "multi_thread")]
async fn images_on_one_base_wait_for_no_others_top() {
    let server = Server::new();
    let base = layer(1);
    let tops = [layer(11), layer(12), layer(13)];
    for (number, top) in (1..).zip(&tops) {
        server.push(&number.to_string(), &[base.clone(), top.clone()]).await;
    }
    let (held, digest) = (Arc::new(AtomicBool::new(false)), tops[0].digest());
    let its_held = held.clone();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            (answer.cut, answer.hold) = (Some(1000), true);
            its_held.store(true, Ordering::SeqCst);
        }
        answer
    });
    let address = proxy.address();
    let host = Arc::new(Host::new(&[&address, &server.address()]));
    let first = {
        let (host, name) = (host.clone(), format!("{address}/app:1"));
        tokio::spawn(async move { host.pull(&name).await })
    };
    tokio::task::block_in_place(|| {
        wait_for("the first one's top", || held.load(Ordering::SeqCst).then_some(()));
    });
    let names = [2, 3].map(|tag| format!("{address}/app:{tag}"));
    let others = async { tokio::join!(host.pull(&names[0]), host.pull(&names[1])) };
    let (second, third) = tokio::time::timeout(Duration::from_secs(120), others).await.expect("in time");
    for (found, pulled) in [second.unwrap(), third.unwrap()] {
        assert_eq!(host.layers(&found).len(), 2);
        assert_eq!((pulled.layers_total, pulled.layers_reused), (2, 1), "the base is the first one's");
    }
    assert!(!first.is_finished());
    assert_eq!(proxy.count(&base.digest()), 1, "it came once");
    // Whoever gives up leaves no half of the top, and the base.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    host.assert_tmp_clean();
    let (_, pulled) = host.pull(&format!("{}/app:1", server.address())).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (2, 1));
}

/// Serves four layers, the last of which is not there; each of the others is, by the time that is said: whoever pulls tells
/// `unpacked` of them.
async fn three_of_four(server: &Server) -> (Vec<Blob>, Proxy, impl Fn(Progress) + Send + Sync) {
    let blobs: Vec<Blob> = (1..=4).map(layer).collect();
    server.push("1", &blobs).await;
    let (digest, done) = (blobs[3].digest(), Arc::new(AtomicBool::new(false)));
    let its_done = done.clone();
    let proxy = Proxy::new(server, move |request, upstream| {
        if request.path.contains(&digest) {
            wait_for("the other three", || its_done.load(Ordering::SeqCst).then_some(()));
            return Answer::new(404, b"{}");
        }
        upstream.get(request)
    });
    let unpacked = move |progress: Progress| {
        done.fetch_or(progress.layers_done >= 3, Ordering::SeqCst);
    };
    (blobs, proxy, unpacked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_leaves_what_is_finished_to_the_next() {
    let server = Server::new();
    let (blobs, proxy, unpacked) = three_of_four(&server).await;
    let host = Host::new(&[&proxy.address(), &server.address()]);
    let image = host.resolve(&format!("{}/app:1", proxy.address())).await.unwrap();
    let error = host.registry.pull(&image, &unpacked).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
    host.assert_tmp_clean();
    assert_eq!(host.names("images"), Vec::<String>::new());
    let mut finished: Vec<&str> = blobs[..3].iter().map(|blob| &blob.diff_id["sha256:".len()..]).collect();
    finished.sort_unstable();
    assert_eq!(host.names("layers"), finished);
    // They are layers as any others, and stay for a while though no image has them.
    let report = host.store.check(Depth::Full, &mut |_| {}).unwrap();
    assert!(report.is_sound() && report.layers.len() == 3 && report.strays.is_empty(), "{report:?}");
    assert_eq!(collect(&host, Pressure::Configured, 0, false).unused, []);
    for (pressure, min_free) in [(Pressure::Everything, 0), (Pressure::Configured, u64::MAX)] {
        assert_eq!(collect(&host, pressure, min_free, true).unused.len(), 3, "unless room is short");
    }
    // The next one fetches the rest alone.
    let line = Proxy::counting(&server);
    let host = Host { registry: registry_of(&host, &line), ..host };
    let (found, pulled) = host.pull(&format!("{}/app:1", line.address())).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (4, 3));
    assert_eq!(pulled.bytes, line.blob_bytes() as u64);
    assert!(line.blob_bytes() < blobs[3].bytes.len() + 1000, "{} bytes came", line.blob_bytes());
    // And all of them are what they are on a host where nothing went wrong.
    let other = Host::new(&[&server.address()]);
    let (same, _) = other.pull(&format!("{}/app:1", server.address())).await.unwrap();
    for (here, there) in host.layers(&found).iter().zip(other.layers(&same)) {
        assert_eq!(describe(here), describe(&there));
    }
    host.assert_tmp_clean();
}

/// The same store, and another registry.
fn registry_of(host: &Host, proxy: &Proxy) -> gitopsd::registry::Registry {
    gitopsd::registry::Registry::new(host.store.clone(), [(proxy.address(), super::support::plain())].into())
        .unwrap()
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into())
}

/// One pull, two places: what came from the first one was not here before.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_fallback_finds_done_was_not_here_before() {
    let server = Server::new();
    let (_, proxy, unpacked) = three_of_four(&server).await;
    let host = Host::new(&[&proxy.address(), &server.address()]);
    let from: ImageRef = format!("{}/app:1", server.address()).parse().unwrap();
    let archive = host.dir.path().join("image.tar");
    host.registry.pack(&from, Path::new(&archive), &|_| {}).await.unwrap();
    let reference: ImageRef = format!("{}/app:1", proxy.address()).parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    let image = PinnedImage { reference, digest };
    let pulled = host.registry.pull_or(&image, &[format!("file://{}", archive.display())], &unpacked).await;
    let pulled = pulled.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (4, 0));
    assert!(pulled.bytes >= proxy.blob_bytes() as u64 && proxy.blob_bytes() > 300_000, "{pulled:?}");
    assert_eq!(host.layers(&image.digest).len(), 4);
    host.assert_tmp_clean();
}
