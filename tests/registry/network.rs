//! Networks as they are: bytes that flip, bodies that break off, registries that are not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gitopsd::registry::Disposition;
use gitopsd::types::Reason;

use super::support::Host;
use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Server, free_port};

fn layer(seed: u64) -> Blob {
    Layer::default().file(&format!("file-{seed}"), &noise(seed, 1 << 20)).plain()
}

fn packed(seed: u64) -> Blob {
    Layer::default().file(&format!("file-{seed}"), &noise(seed, 1 << 20)).gzip()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_flips_is_seen_wherever_it_is() {
    let server = Server::new();
    // Of a plain layer: in a header, a name, the content, the end mark. Of a packed one: its header, its middle, its sum.
    let rows: Vec<(Blob, &[f64])> =
        vec![(layer(1), &[0.0001, 0.00001, 0.5, 0.9999]), (packed(1), &[0.0, 0.5, 0.999_999])];
    for (blob, places) in rows {
        let right = layer(2);
        server.push("1", &[right.clone(), blob.clone()]).await;
        for place in places {
            let at = (blob.bytes.len() as f64 * place) as usize;
            let digest = blob.digest();
            let proxy = Proxy::new(&server, move |request, upstream| {
                let mut answer = upstream.get(request);
                if request.path.contains(&digest) {
                    answer.body[at] ^= 1;
                }
                answer
            });
            let host = Host::new(&[&proxy.address()]);
            let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
            assert_eq!(error.reason, Reason::DigestMismatch, "{} at {at}: {error}", blob.media);
            assert!(error.may_pass(), "the next try may get the right ones");
            // The other one may have come before.
            host.assert_nothing_but(&[&right]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_of_documents_are_seen() {
    let server = Server::new();
    let blob = layer(1);
    let pushed = server.push("1", std::slice::from_ref(&blob)).await;
    let digest = pushed["digest"].as_str().unwrap().to_owned();
    // The configuration.
    let spared = blob.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.is_blob() && !request.path.contains(&spared) {
            // Still JSON.
            let at = answer.body.iter().position(|byte| *byte == b'7').unwrap();
            answer.body[at] = b'0';
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    host.assert_empty();
    // A manifest that was asked for by its digest.
    let proxy = Proxy::new(&server, |request, upstream| {
        let mut answer = upstream.get(request);
        if !request.is_blob() {
            answer.body.push(b' ');
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.resolve(&format!("{}/app@{digest}", proxy.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_with_another_diff_id() {
    let server = Server::new();
    let blob = layer(1);
    let lie = Blob { diff_id: layer(2).diff_id, ..blob };
    server.push("1", &[lie]).await;
    let host = Host::new(&[&server.address()]);
    let error = host.pull(&format!("{}/app:1", server.address())).await.unwrap_err();
    assert_eq!((error.reason, error.disposition), (Reason::DigestMismatch, Disposition::Fatal), "{error}");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_where_it_was() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, tries) = (blob.digest(), Arc::new(AtomicUsize::new(0)));
    let counted = tries.clone();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) && counted.fetch_add(1, Ordering::Relaxed) < 2 {
            answer.cut = Some(300_000);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let (found, pulled) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(std::fs::read(host.layers(&found)[0].join("file-1")).unwrap(), noise(1, 1 << 20));
    let asked: Vec<Option<String>> = proxy
        .requests()
        .iter()
        .filter(|request| request.path.contains(&blob.digest()))
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    let expected = [None, Some("bytes=300000-".to_owned()), Some("bytes=600000-".to_owned())];
    assert_eq!(asked, expected);
    assert_eq!(pulled.bytes, proxy.blob_bytes() as u64, "nothing came twice, and all is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_no_ranges_sends_all_again() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, tries) = (blob.digest(), AtomicUsize::new(0));
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(&request.clone().without("range"));
        if request.path.contains(&digest) && tries.fetch_add(1, Ordering::Relaxed) < 1 {
            answer.cut = Some(700_000);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let (found, pulled) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(std::fs::read(host.layers(&found)[0].join("file-1")).unwrap(), noise(1, 1 << 20));
    assert_eq!(pulled.bytes, proxy.blob_bytes() as u64, "what came twice counts twice");
    assert!(pulled.bytes > (700_000 + blob.bytes.len()) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_range_than_was_asked_for_is_not_taken() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, tries) = (blob.digest(), AtomicUsize::new(0));
    let proxy = Proxy::new(&server, move |request, upstream| {
        if !request.path.contains(&digest) {
            return upstream.get(request);
        }
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Answer { cut: Some(500_000), ..upstream.get(request) },
            1 => {
                let whole = upstream.get(&request.clone().without("range"));
                let last = whole.body.len() - 1;
                Answer::new(206, &whole.body).header("Content-Range", &format!("bytes 0-{last}/{}", last + 1))
            }
            _ => upstream.get(request),
        }
    });
    let host = Host::new(&[&proxy.address()]);
    let (found, _) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(std::fs::read(host.layers(&found)[0].join("file-1")).unwrap(), noise(1, 1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_after_the_last_byte_is_no_harm() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let digest = blob.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            // All of it came, and the server had said that there is more.
            let size = answer.body.len();
            answer.body.push(0);
            answer.cut = Some(size);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    let times = proxy.requests().iter().filter(|request| request.path.contains(&blob.digest())).count();
    assert_eq!(times, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bytes_than_the_manifest_says() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let digest = blob.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            answer.body.extend_from_slice(&[0; 5000]);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_always_breaks_off_is_given_up() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", &[blob.clone(), layer(2)]).await;
    let digest = blob.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            answer.cut = Some(10);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert_eq!(
        (error.reason, error.disposition),
        (Reason::RegistryUnreachable, Disposition::Retry),
        "{error}"
    );
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_that_cannot_be_stops_the_others() {
    let server = Server::new();
    // The largest one is unpacked as quickly as the machine can.
    let slow = layer(1);
    let bad = Layer::default().file("file-2", &noise(2, 2 << 20)).plain();
    let lie = Blob { diff_id: layer(3).diff_id, ..bad };
    server.push("1", &[slow.clone(), lie]).await;
    let digest = slow.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if request.path.contains(&digest) {
            (answer.cut, answer.hold) = (Some(1000), true);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let begun = Instant::now();
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    // That one would be given 30 seconds.
    assert!(begun.elapsed() < Duration::from_secs(28), "it does not wait for the one that hangs");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_there() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let address = server.address();
    let host = Host::new(&[&address]);
    let zeros = "0".repeat(64);
    for reference in ["app:2".to_owned(), "none:1".to_owned(), format!("app@sha256:{zeros}")] {
        let error = host.resolve(&format!("{address}/{reference}")).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
        assert!(error.to_string().contains(&reference), "{error}");
    }
    // A layer that was pruned under its manifest.
    let blob = layer(5);
    server.push("5", std::slice::from_ref(&blob)).await;
    let digest = blob.digest();
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.path.contains(&digest) { Answer::new(404, b"{}") } else { upstream.get(request) }
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:5", proxy.address())).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
    host.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down() {
    let address = format!("127.0.0.1:{}", free_port());
    let host = Host::new(&[&address]);
    let error = host.resolve(&format!("{address}/app:1")).await.unwrap_err();
    assert_eq!(
        (error.reason, error.disposition),
        (Reason::RegistryUnreachable, Disposition::Retry),
        "{error}"
    );
    assert!(error.to_string().contains(&address), "{error}");
    // Between the tag and the layers.
    let mut server = Server::new();
    server.push("1", &[layer(1)]).await;
    let host = Host::new(&[&server.address()]);
    let image = host.resolve(&format!("{}/app:1", server.address())).await.unwrap();
    server.stop();
    let error = host.registry.pull(&image, &|_| {}).await.unwrap_err();
    assert_eq!(
        (error.reason, error.disposition),
        (Reason::RegistryUnreachable, Disposition::Retry),
        "{error}"
    );
    host.assert_empty();
    // With errors of its own.
    let server = Server::new();
    for status in [500, 502, 503, 429] {
        let proxy = Proxy::new(&server, move |_, _| Answer::new(status, b"no"));
        let host = Host::new(&[&proxy.address()]);
        let error = host.resolve(&format!("{}/app:1", proxy.address())).await.unwrap_err();
        assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
        assert!(error.may_pass() && error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first_and_are_done_without() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let mirror = Proxy::counting(&server);
    let down = format!("http://127.0.0.1:{}", free_port());
    let main = Proxy::counting(&server);
    let with = |mirror: String| {
        let mut config = super::support::plain();
        config.mirrors = vec![mirror.parse().unwrap()];
        Host::with([(main.address(), config)].into())
    };
    let reference = format!("{}/app:1", main.address());
    with(format!("http://{}", mirror.address())).pull(&reference).await.unwrap();
    assert_eq!((mirror.requests().len(), main.requests().len()), (3, 0));
    with(down).pull(&reference).await.unwrap();
    assert_eq!(main.requests().len(), 3);
}
