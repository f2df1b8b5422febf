//! Mirrors: where they are, what they may do wrong, and who is asked instead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use gitopsd::config::agent::RegistryConfig;
use gitopsd::types::Reason;

use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Server, free_port};
use super::support::{Host, plain};

fn layer(seed: u64) -> Blob {
    Layer::default().file(&format!("file-{seed}"), &noise(seed, 300_000)).gzip()
}

/// A host that knows mirrors of a registry.
fn host(registry: &str, mirrors: &[String]) -> Host {
    let mirrors = mirrors.iter().map(|url| url.parse().unwrap()).collect();
    Host::with(BTreeMap::from([(registry.to_owned(), RegistryConfig { mirrors, ..plain() })]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_stands_before_the_repository() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    // What a registry with a cache in a part of it does: only what is below that part is there.
    let below = |prefix: &'static str| {
        Proxy::new(&server, move |request, upstream| match request.path.strip_prefix(prefix) {
            Some(rest) => upstream.get(&request.clone().to(&format!("/v2/{rest}"))),
            None => Answer::new(404, b"{}"),
        })
    };
    let down = format!("127.0.0.1:{}", free_port());
    for (mirror, prefix) in
        [("/cache/of", "/v2/cache/of/"), ("/cache/", "/v2/cache/"), ("/x/v2", "/x/v2/"), ("/v2/p", "/v2/p/")]
    {
        let proxy = below(prefix);
        let mirrors = [format!("http://{}{mirror}", proxy.address())];
        let host = host(&down, &mirrors);
        host.pull(&format!("{down}/app:1")).await.unwrap();
        assert!(proxy.requests().iter().all(|request| request.path.starts_with(&format!("{prefix}app/"))));
        assert_eq!(proxy.requests().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_with_another_digest_than_its_bytes_have() {
    let server = Server::new();
    let pushed = server.push("1", &[layer(1)]).await;
    // An answer out of another one's cache: the header of one, the bytes of the other.
    let stale = Proxy::new(&server, |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.ends_with("/manifests/1") {
            answer.headers.retain(|(name, _)| name != "docker-content-digest");
            answer = answer.header("Docker-Content-Digest", &format!("sha256:{}", "a".repeat(64)));
        }
        answer
    });
    let alone = host(&stale.address(), &[]);
    let error = alone.resolve(&format!("{}/app:1", stale.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    assert!(error.may_pass() && error.to_string().contains("sha256:aaaa"), "{error}");
    // As a mirror: the next one is asked.
    let home = Proxy::counting(&server);
    let host = host(&home.address(), &[format!("http://{}", stale.address())]);
    let (found, _) = host.pull(&format!("{}/app:1", home.address())).await.unwrap();
    assert_eq!(found.to_string(), pushed["digest"].as_str().unwrap());
    assert_eq!(home.requests().len(), 3, "the mirror is not asked again at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_has_wrong_comes_from_the_next() {
    let server = Server::new();
    let (blob, other) = (layer(1), layer(2));
    let pushed = server.push("1", &[other.clone(), blob.clone()]).await;
    let home = Proxy::counting(&server);
    let config = pushed["digest"].as_str().unwrap().to_owned();
    // A byte of the layer; more of it; of the configuration; of the manifest, asked for by its digest.
    for (what, part) in [("flipped", blob.digest()), ("longer", blob.digest()), ("flipped", config)] {
        let bad = part.clone();
        let mirror = Proxy::new(&server, move |request, upstream| {
            let mut answer = upstream.get(request);
            if request.path.contains(&bad) {
                match what {
                    "flipped" => {
                        let at = answer.body.len() / 2;
                        answer.body[at] ^= 1;
                    }
                    _ => answer.body.extend_from_slice(&[0; 100]),
                }
            }
            answer
        });
        let host = host(&home.address(), &[format!("http://{}", mirror.address())]);
        let digest = pushed["digest"].as_str().unwrap();
        let reference = format!("{}/app@{digest}", home.address());
        let seen = std::sync::Mutex::new(Vec::new());
        let image = host.resolve(&reference).await.unwrap();
        let progress = |progress: gitopsd::registry::Progress| {
            seen.lock().unwrap().push((progress.bytes, progress.total));
        };
        host.registry.pull(&image, &progress).await.unwrap();
        assert_eq!(std::fs::read(host.layers(&image.digest)[1].join("file-1")).unwrap(), noise(1, 300_000));
        let all = (blob.bytes.len() + other.bytes.len()) as u64;
        assert_eq!(seen.lock().unwrap().last(), Some(&(all, all)), "what came twice counts once");
        assert_eq!(mirror.count(&part), 1, "{what}");
        host.assert_tmp_clean();
    }
    // A registry without mirrors has nobody else.
    let flipping = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&blob.digest()) {
            answer.body[1000] ^= 1;
        }
        answer
    });
    let alone = host(&flipping.address(), &[]);
    let error = alone.pull(&format!("{}/app:1", flipping.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    assert_eq!(flipping.requests().len(), 4, "not tried again at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_failed_is_the_last_resort() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let ill = std::sync::Arc::new(AtomicBool::new(true));
    let now = ill.clone();
    let mirror = Proxy::new(&server, move |request, upstream| match now.load(Ordering::SeqCst) {
        true => Answer::new(500, b"no"),
        false => upstream.get(request),
    });
    let mut home = Server::new();
    home.push("1", &[layer(1)]).await;
    let reference = format!("{}/app:1", home.address());
    let host = host(&home.address(), &[format!("http://{}", mirror.address())]);
    host.resolve(&reference).await.unwrap();
    let asked = mirror.requests().len();
    host.resolve(&reference).await.unwrap();
    assert_eq!(mirror.requests().len(), asked, "it is left out while the registry itself answers");
    // The registry goes; the mirror is well again.
    home.stop();
    ill.store(false, Ordering::SeqCst);
    host.pull(&reference).await.unwrap();
    assert!(mirror.requests().len() >= asked + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_to_log_in_is_no_image() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let portal = Proxy::new(&server, |_, _| {
        Answer::new(200, b"<html>Who are you?</html>").header("Content-Type", "text/html; charset=utf-8")
    });
    let alone = host(&portal.address(), &[]);
    let error = alone.resolve(&format!("{}/app:1", portal.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
    assert!(error.may_pass() && error.to_string().contains("a page of HTML"), "{error}");
    let home = Proxy::counting(&server);
    let host = host(&home.address(), &[format!("http://{}", portal.address())]);
    host.pull(&format!("{}/app:1", home.address())).await.unwrap();
    assert_eq!((portal.requests().len(), home.requests().len()), (2, 3), "it is asked once by each host");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_failed_are_named() {
    let server = Server::new();
    let ill = Proxy::new(&server, |_, _| Answer::new(502, b"out of order"));
    let empty = Proxy::new(&server, |_, _| Answer::new(404, b"{}"));
    let down = format!("127.0.0.1:{}", free_port());
    let mirrors = [format!("http://{}/p", ill.address()), format!("http://{}", empty.address())];
    let error = host(&down, &mirrors).resolve(&format!("{down}/app:1")).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.reason, Reason::RegistryUnreachable, "{text}");
    let first = format!("registry {down}: ");
    let second = format!("mirror {}/p of registry {down} answers 502", ill.address());
    assert!(text.starts_with(&first) && text.contains(&second), "{text}");
    assert!(!text.contains(&empty.address()), "that it does not have it is no fault: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_busy_is_tried_again_where_there_is_nobody_else() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    // The registry itself does not know this host.
    let forbidden = Proxy::new(&server, |_, _| Answer::new(403, b"{}"));
    let times = std::sync::atomic::AtomicUsize::new(0);
    let busy = Proxy::new(&server, move |request, upstream| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::new(503, b"busy"),
        _ => upstream.get(request),
    });
    let host = host(&forbidden.address(), &[format!("http://{}", busy.address())]);
    host.pull(&format!("{}/app:1", forbidden.address())).await.unwrap();
    assert_eq!(busy.requests().len(), 4);
}
