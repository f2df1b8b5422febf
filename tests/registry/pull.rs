//! Pulling: by tag and digest, for this platform, and nothing twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gitopsd::registry::{Disposition, Progress};
use gitopsd::types::Reason;
use serde_json::json;

use super::support::Host;
use super::support::image::{Blob, INDEX, Layer, architecture, noise};
use super::support::proxy::Proxy;
use super::support::server::Server;

/// Before a client takes a silent server for dead.
const PATIENCE: Duration = Duration::from_secs(25);

fn layer(seed: u64) -> Blob {
    Layer::default().dir("data/", 0o755).file(&format!("data/{seed}"), &noise(seed, 100_000)).gzip()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tag_by_digest_and_by_both() {
    let server = Server::new();
    let blobs = [layer(1), layer(2)];
    let descriptor = server.push("1", &blobs).await;
    let digest = descriptor["digest"].as_str().unwrap();
    let address = server.address();
    for reference in ["app:1".to_owned(), format!("app@{digest}"), format!("app:none@{digest}")] {
        let host = Host::new(&[&address]);
        let (found, pulled) = host.pull(&format!("{address}/{reference}")).await.unwrap();
        assert_eq!(found.to_string(), digest, "{reference}");
        assert_eq!((pulled.layers_total, pulled.layers_reused), (2, 0));
        let image = host.store.image(&found).unwrap();
        assert_eq!(image.config.env, ["A=b"]);
        assert_eq!(image.config.cmd, ["/bin/true"]);
        assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7", "/srv"));
        let names: Vec<String> = image
            .layers
            .iter()
            .map(|layer| layer.parent().unwrap().file_name().unwrap().to_string_lossy().into())
            .collect();
        let expected: Vec<&str> = blobs.iter().map(|blob| &blob.diff_id["sha256:".len()..]).collect();
        assert_eq!(names, expected, "lowest first");
        assert!(image.layers[1].join("data/2").is_file());
        host.assert_tmp_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_this_platforms_image() {
    let server = Server::new();
    let entry = |mut descriptor: serde_json::Value, os: &str, architecture: &str| {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let ours = server.push("ours", &[layer(1)]).await;
    let other = server.push("other", &[layer(2)]).await;
    let attestation = server.push("attestation", &[layer(3)]).await;
    let index = |manifests: Vec<serde_json::Value>| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let both = index(vec![
        entry(other.clone(), "linux", "s390x"),
        entry(attestation, "unknown", "unknown"),
        entry(ours.clone(), "linux", architecture()),
    ]);
    let both = server.push_manifest("both", INDEX, &both).await;
    server
        .push_manifest(
            "foreign",
            INDEX,
            &index(vec![entry(other.clone(), "linux", "s390x"), entry(other, "windows", architecture())]),
        )
        .await;
    let address = server.address();
    let host = Host::new(&[&address]);
    let expected = ours["digest"].as_str().unwrap();
    let (found, _) = host.pull(&format!("{address}/app:both")).await.unwrap();
    assert_eq!(found.to_string(), expected);
    assert!(host.layers(&found)[0].join("data/1").is_file());
    // The digest of an index pins it too, and stands for this platform's image.
    let by_digest = format!("{address}/app@{}", both["digest"].as_str().unwrap());
    assert_eq!(host.resolve(&by_digest).await.unwrap().digest.to_string(), expected);
    let error = host.resolve(&format!("{address}/app:foreign")).await.unwrap_err();
    assert_eq!((error.reason, error.disposition), (Reason::ImageUnsupported, Disposition::Fatal));
    let text = error.to_string();
    let machine = format!("linux/{}", architecture());
    assert!(text.contains(&machine) && text.contains("linux/s390x") && text.contains("windows/"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_variants_the_best_that_is_not_above() {
    let server = Server::new();
    let entry = |mut descriptor: serde_json::Value, platform: Option<serde_json::Value>| {
        if let Some(platform) = platform {
            descriptor["platform"] = platform;
        }
        descriptor
    };
    let plain = server.push("plain", &[layer(1)]).await;
    let above = server.push("above", &[layer(2)]).await;
    let base = json!({ "os": "linux", "architecture": architecture() });
    let mut beyond = base.clone();
    // No processor has it.
    beyond["variant"] = json!("v99");
    let attestation = json!({ "os": "unknown", "architecture": "unknown" });
    let rows = [
        ("both", vec![entry(above.clone(), Some(beyond.clone())), entry(plain.clone(), Some(base))], true),
        ("above", vec![entry(above.clone(), Some(beyond.clone()))], false),
        // One that does not say what it is for is judged by its configuration.
        ("unsaid", vec![entry(above.clone(), Some(beyond)), entry(plain.clone(), None)], true),
        ("attested", vec![entry(above, Some(attestation)), entry(plain.clone(), None)], true),
    ];
    let address = server.address();
    for (tag, manifests, found) in rows {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        server.push_manifest(tag, INDEX, &index).await;
        let host = Host::new(&[&address]);
        let result = host.pull(&format!("{address}/app:{tag}")).await;
        match result {
            Ok((digest, _)) => {
                assert!(found && digest.to_string() == plain["digest"].as_str().unwrap(), "{tag}")
            }
            Err(error) => {
                assert!(!found && error.to_string().contains("/v99"), "{tag}: {error}");
                assert_eq!(error.reason, Reason::ImageUnsupported);
            }
        }
    }
    // Without an index, the configuration says it.
    let blob = layer(3);
    let mut config = super::support::image::config(std::slice::from_ref(&blob));
    config["variant"] = json!("v99");
    server.push_with("alone", &[blob], config).await;
    let host = Host::new(&[&address]);
    let error = host.pull(&format!("{address}/app:alone")).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageUnsupported, "{error}");
    assert!(error.to_string().contains("/v99, and this host is linux/"), "{error}");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_another_machine_without_an_index() {
    let server = Server::new();
    let blob = layer(1);
    let mut config = super::support::image::config(std::slice::from_ref(&blob));
    config["architecture"] = json!("s390x");
    server.push_with("1", &[blob], config).await;
    let host = Host::new(&[&server.address()]);
    let error = host.pull(&format!("{}/app:1", server.address())).await.unwrap_err();
    assert_eq!((error.reason, error.disposition), (Reason::ImageUnsupported, Disposition::Fatal), "{error}");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_twice() {
    let server = Server::new();
    let (base, first, second) = (layer(1), layer(2), layer(3));
    server.push("1", &[base.clone(), first.clone()]).await;
    server.push("2", &[base.clone(), second.clone()]).await;
    let proxy = Proxy::counting(&server);
    let address = proxy.address();
    let host = Host::new(&[&address]);
    let seen = Mutex::new(Vec::new());
    let image = host.resolve(&format!("{address}/app:1")).await.unwrap();
    let progress = |progress: Progress| seen.lock().unwrap().push((progress.bytes, progress.total));
    let pulled = host.registry.pull(&image, &progress).await.unwrap();
    let all = (base.bytes.len() + first.bytes.len()) as u64;
    assert_eq!(seen.lock().unwrap().last(), Some(&(all, all)), "progress ends where all is here");
    assert_eq!(pulled.bytes, proxy.blob_bytes() as u64, "what it says is what came over the network");
    assert!(pulled.bytes > all && pulled.bytes < all + 1000, "layers and a configuration");
    // Again: not even a request.
    let requests = proxy.requests().len();
    let pulled = host.registry.pull(&image, &|_| {}).await.unwrap();
    assert_eq!((pulled.bytes, pulled.layers_total, pulled.layers_reused), (0, 2, 2));
    assert_eq!(proxy.requests().len(), requests);
    // A bump of the upper layer fetches only that.
    let before = proxy.blob_bytes();
    let (_, pulled) = host.pull(&format!("{address}/app:2")).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (2, 1));
    assert_eq!(pulled.bytes, (proxy.blob_bytes() - before) as u64);
    assert!(!proxy.requests()[requests..].iter().any(|request| request.path.contains(&base.digest())));
    // A layer that an image has twice is one layer.
    server.push("3", &[second.clone(), base, second]).await;
    let (found, pulled) = host.pull(&format!("{address}/app:3")).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (3, 3));
    assert_eq!(host.layers(&found).len(), 3);
    assert_eq!(host.names("layers").len(), 3);
    // Where nothing is here yet, it comes once and stands for both.
    let host = Host::new(&[&address]);
    let image = host.resolve(&format!("{address}/app:3")).await.unwrap();
    let layers = Mutex::new(Vec::new());
    let progress = |it: Progress| layers.lock().unwrap().push((it.layers_here, it.layers_done, it.layers));
    let pulled = host.registry.pull(&image, &progress).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (3, 0));
    assert_eq!(layers.lock().unwrap().last(), Some(&(0, 3, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_beside_each_other_share_what_they_share() {
    let server = Server::new();
    let blobs: Vec<Blob> = (0..5).map(layer).collect();
    server.push("1", &[blobs[0].clone(), blobs[1].clone(), blobs[2].clone()]).await;
    server.push("2", &[blobs[2].clone(), blobs[0].clone(), blobs[3].clone()]).await;
    server.push("3", &[blobs[3].clone(), blobs[4].clone(), blobs[0].clone()]).await;
    let proxy = Proxy::new(&server, |request, upstream| {
        if request.is_blob() {
            // Long enough for all of them to be under way.
            std::thread::sleep(Duration::from_millis(100));
        }
        upstream.get(request)
    });
    let address = proxy.address();
    let host = Host::new(&[&address]);
    let names = [1, 2, 3].map(|tag| format!("{address}/app:{tag}"));
    let (a, b, c) = tokio::join!(host.pull(&names[0]), host.pull(&names[1]), host.pull(&names[2]));
    for (found, _) in [a.unwrap(), b.unwrap(), c.unwrap()] {
        assert_eq!(host.layers(&found).len(), 3);
    }
    for blob in &blobs {
        let times = proxy.requests().iter().filter(|request| request.path.contains(&blob.digest())).count();
        assert_eq!(times, 1, "each layer comes once");
    }
    host.assert_tmp_clean();
}

/// Counts requests that are under way at the same time. Each of them stays so until as many are as are expected, and then
/// for a moment in which one more would come.
#[derive(Default)]
struct Crowd {
    now: AtomicUsize,
    most: AtomicUsize,
    expected: AtomicUsize,
}

impl Crowd {
    fn expect(&self, count: usize) {
        self.most.store(0, Ordering::SeqCst);
        self.expected.store(count, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn join(&self) {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let begun = Instant::now();
        while self.most() < self.expected.load(Ordering::SeqCst) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Three layers of an image at once; where several images come, one for each and two more. So a slow one delays no other.
#[tokio::test(flavor = "multi_thread")]
async fn so_many_layers_at_once() {
    let server = Server::new();
    let blobs: Vec<Blob> = (0..18).map(layer).collect();
    for (number, layers) in blobs.chunks(6).enumerate() {
        server.push(&number.to_string(), layers).await;
    }
    let crowd = Arc::new(Crowd::default());
    let its_crowd = crowd.clone();
    let digests: Vec<String> = blobs.iter().map(Blob::digest).collect();
    let proxy = Proxy::new(&server, move |request, upstream| {
        if digests.iter().any(|digest| request.path.contains(digest)) {
            its_crowd.join();
        }
        upstream.get(request)
    });
    let address = proxy.address();
    let host = Host::new(&[&address]);
    let names = [0, 1, 2].map(|tag| format!("{address}/app:{tag}"));
    crowd.expect(3);
    host.pull(&names[0]).await.unwrap();
    assert_eq!(crowd.most(), 3, "of one image");
    crowd.expect(4);
    let (a, b) = tokio::join!(host.pull(&names[1]), host.pull(&names[2]));
    a.and(b).unwrap();
    assert_eq!(crowd.most(), 4, "of two");
}

/// However many images come: the first layers of 16, and two more.
#[tokio::test(flavor = "multi_thread")]
async fn so_many_layers_of_many_images_at_once() {
    const IMAGES: u64 = 24;
    let server = Server::new();
    for number in 0..IMAGES {
        server.push(&number.to_string(), &[layer(number)]).await;
    }
    let crowd = Arc::new(Crowd::default());
    crowd.expect(18);
    let its_crowd = crowd.clone();
    let digests: Vec<String> = (0..IMAGES).map(|number| layer(number).digest()).collect();
    let proxy = Proxy::new(&server, move |request, upstream| {
        if digests.iter().any(|digest| request.path.contains(digest)) {
            its_crowd.join();
        }
        upstream.get(request)
    });
    let address = proxy.address();
    let host = Arc::new(Host::new(&[&address]));
    let mut pulls = tokio::task::JoinSet::new();
    for number in 0..IMAGES {
        let (host, name) = (host.clone(), format!("{address}/app:{number}"));
        pulls.spawn(async move { host.pull(&name).await.unwrap() });
    }
    assert_eq!(pulls.join_all().await.len() as u64, IMAGES);
    assert_eq!(crowd.most(), 18);
}

/// An image that is asked for by two comes once, its documents too.
#[tokio::test(flavor = "multi_thread")]
async fn one_image_comes_once() {
    let server = Server::new();
    server.push("1", &[layer(1), layer(2)]).await;
    let proxy = Proxy::new(&server, |request, upstream| {
        std::thread::sleep(Duration::from_millis(50));
        upstream.get(request)
    });
    let host = Host::new(&[&proxy.address()]);
    let image = host.resolve(&format!("{}/app:1", proxy.address())).await.unwrap();
    let pull = || host.registry.pull(&image, &|_| {});
    let (a, b, c) = tokio::join!(pull(), pull(), pull());
    let here: Vec<usize> = [a, b, c].map(|pulled| pulled.unwrap().layers_reused).into();
    assert_eq!(here.iter().filter(|here| **here == 0).count(), 1, "one of them brings it: {here:?}");
    let blobs = proxy.requests().iter().filter(|request| request.is_blob()).count();
    assert_eq!(blobs, 3, "two layers and a configuration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_any_more_leaves_nothing() {
    let server = Server::new();
    let (small, big) = (layer(1), Layer::default().file("big", &noise(1, 3 << 20)).plain());
    server.push("1", &[small.clone(), big.clone()]).await;
    let digest = big.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            (answer.cut, answer.hold) = (Some(2 << 20), true);
        }
        answer
    });
    let address = proxy.address();
    let host = Host::new(&[&address]);
    let image = host.resolve(&format!("{address}/app:1")).await.unwrap();
    {
        let reached = tokio::sync::Notify::new();
        let progress = |progress: Progress| {
            if progress.bytes > 1 << 20 {
                reached.notify_one();
            }
        };
        let pull = host.registry.pull(&image, &progress);
        tokio::select! {
            result = pull => panic!("it cannot have ended: {result:?}"),
            () = reached.notified() => {}
        }
    }
    // On a slow machine the small one may have its name by then.
    host.assert_nothing_but(&[&small]);
}
