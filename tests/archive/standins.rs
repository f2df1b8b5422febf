//! Archives that stand in for a registry which fails on the way, and for layers that are damaged.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use gitopsd::config::agent::S3Config;
use gitopsd::registry::{Known, PullResult, Remedy, Wanted};
use gitopsd::types::{Digest, ImageRef, PinnedImage, Reason};

use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Server, free_port};
use super::{Host, host_of, support};

fn layers() -> Vec<Blob> {
    (1..=2).map(|seed| Layer::default().file(&format!("srv/{seed}"), &noise(seed, 300_000)).gzip()).collect()
}

/// The same image as an archive, with the registry's manifest.
fn archive(server: &Server, host: &Host) -> String {
    let file = host.dir.path().join("app-1.tar");
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--preserve-digests"])
        .arg(format!("docker://{}/app:1", server.address()))
        .arg(format!("oci-archive:{}", file.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("file://{}/app-{{tag}}.tar", host.dir.path().display())
}

/// A registry that has the manifest, and not the layers: each way in which it cannot serve one.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lost_a_layer() {
    type Damage = fn(Answer) -> Answer;
    let ways: [(&str, Damage); 5] = [
        ("gone", |_| Answer::new(404, b"{}")),
        ("ill", |_| Answer::new(500, b"{}")),
        ("refused", |_| Answer::new(403, b"{}")),
        ("short", |answer| Answer { cut: Some(1000), ..answer }),
        ("wrong", |mut answer| {
            answer.body[5000] ^= 1;
            answer
        }),
    ];
    let server = Server::new();
    let blobs = layers();
    server.push("1", &blobs).await;
    let damaged = blobs[1].digest();
    for (name, damage) in ways {
        let digest = damaged.clone();
        let proxy = Proxy::new(&server, move |request, upstream| {
            let answer = upstream.get(request);
            if request.path.contains(&digest) { damage(answer) } else { answer }
        });
        let host = host_of(S3Config::default(), BTreeMap::from([(proxy.address(), support::plain())]));
        let fallback = [archive(&server, &host)];
        let reference: ImageRef = format!("{}/app:1", proxy.address()).parse().unwrap();
        let digest = host.registry.resolve(&reference).await.unwrap();
        let pinned = PinnedImage { reference, digest };
        let error = host.registry.pull(&pinned, &|_| {}).await.unwrap_err();
        host.assert_nothing_unfinished();
        let gone = ["file:///nonexistent/app.tar".to_owned()];
        let both = host.registry.pull_or(&pinned, &gone, &|_| {}).await.unwrap_err();
        assert_eq!(both.reason, error.reason, "{name}: the registry's own trouble is what is told first");
        assert!(both.to_string().contains("file:///nonexistent/app.tar"), "{name}: {both}");
        let pulled = host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
        assert_eq!(host.file(&pinned.digest, "srv/2"), Some(noise(2, 300_000)), "{name}");
        // What came before the trouble may have stayed.
        let least = blobs[1].bytes.len();
        assert!(pulled.bytes >= least as u64, "{name}: {pulled:?}");
        host.assert_nothing_unfinished();
    }
}

/// Where the disk is what fails, the reason says so, whatever the registry's trouble was.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_own_trouble_is_told_as_such() {
    let server = Server::new();
    server.push("1", &layers()).await;
    let proxy = Proxy::new(&server, |request, upstream| match request.is_blob() {
        true => Answer::new(404, b"{}"),
        false => upstream.get(request),
    });
    let host = host_of(S3Config::default(), BTreeMap::from([(proxy.address(), support::plain())]));
    let fallback = [archive(&server, &host)];
    let reference: ImageRef = format!("{}/app:1", proxy.address()).parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    // Nothing can be unfinished there.
    let tmp = host.dir.path().join("state/store/tmp");
    std::fs::remove_dir_all(&tmp).unwrap();
    std::fs::write(&tmp, "").unwrap();
    let pinned = PinnedImage { reference, digest };
    let error = host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, Reason::StorageIo, "{error}");
}

/// What the repo wants is had ahead from where its services have it, too.
#[tokio::test(flavor = "multi_thread")]
async fn ahead_of_a_deploy() {
    let mut server = Server::new();
    server.push("1", &layers()).await;
    let host = host_of(S3Config::default(), BTreeMap::from([(server.address(), support::plain())]));
    let fallback = vec![archive(&server, &host)];
    let reference: ImageRef = format!("{}/app:1", server.address()).parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    server.stop();
    let pinned = PinnedImage { reference, digest };
    let wanted = vec![Wanted::Pinned(pinned.clone(), vec![]), Wanted::Pinned(pinned.clone(), fallback)];
    let results = host.registry.pull_all(wanted, &|_| {}).await;
    let came: Vec<bool> = results.iter().map(|result: &PullResult| result.ok).collect();
    assert_eq!(came, [false, true], "{results:?}");
    assert_eq!(host.file(&pinned.digest, "srv/1"), Some(noise(1, 300_000)));
}

/// A damaged layer comes from the archive where the registry is gone; that layer alone.
#[tokio::test(flavor = "multi_thread")]
async fn repairs() {
    let mut server = Server::new();
    let blobs = layers();
    server.push("1", &blobs).await;
    let host = host_of(S3Config::default(), BTreeMap::from([(server.address(), support::plain())]));
    let fallback = vec![archive(&server, &host)];
    let (digest, _) = host.pull(&format!("{}/app:1", server.address())).await.unwrap();
    server.stop();
    let layer: Digest = blobs[0].diff_id.parse().unwrap();
    let file = host.dir.path().join("state/store/layers").join(layer.hex()).join("fs/srv/1");
    std::fs::write(&file, "damaged").unwrap();
    let image = PinnedImage {
        reference: format!("127.0.0.1:{}/app:1", free_port()).parse().unwrap(),
        digest: digest.clone(),
    };
    let known = [
        Known { image: image.clone(), fallback: vec!["file:///nonexistent/app.tar".to_owned()] },
        Known { image, fallback },
    ];
    let repaired = host.registry.repair(vec![layer], vec![], &known, &|_| {}).await;
    assert_eq!(repaired[0].remedy, Remedy::Rebuilt, "{repaired:?}");
    assert_eq!(repaired[0].pulled_bytes, blobs[0].bytes.len() as u64, "that layer alone");
    assert_eq!(std::fs::read(&file).unwrap(), noise(1, 300_000));
    host.assert_nothing_unfinished();
}

/// Services that name the same archive, which has to be read as a whole, have it read once.
#[tokio::test(flavor = "multi_thread")]
async fn one_archive_comes_once_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = super::server::certificates(dir.path());
    let whole = super::make::gzip(&super::make::docker_save(&super::make::small()));
    let (count, length) = (std::sync::Arc::new(AtomicUsize::new(0)), whole.len() as u64);
    let its = count.clone();
    let server = super::server::Server::secure(&certificates, move |_| {
        its.fetch_add(1, Ordering::Relaxed);
        // Long enough for all of them to be under way.
        std::thread::sleep(std::time::Duration::from_millis(200));
        super::server::Answer::new(200, &whole).header("ETag", "\"1\"")
    });
    let config = gitopsd::config::agent::RegistryConfig {
        ca_file: Some(certificates.ca.clone()),
        ..Default::default()
    };
    let host = host_of(S3Config::default(), BTreeMap::from([(server.address(), config)]));
    let url = server.url("/app.tar.gz");
    let (a, b, c) = tokio::join!(host.pull(&url), host.pull(&url), host.pull(&url));
    let bytes: Vec<u64> = [a, b, c].into_iter().map(|result| result.unwrap().1.bytes).collect();
    assert_eq!(bytes.iter().sum::<u64>(), length, "who comes second finds it here: {bytes:?}");
    // Whoever comes second asks whether it is as it was, and takes none of the answer.
    assert!(count.load(Ordering::Relaxed) <= 3);
}
