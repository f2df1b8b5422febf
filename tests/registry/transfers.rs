//! Ways in which a layer can come: in pieces, without a length, packed once more, slowly.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gitopsd::types::Reason;

use super::support::Host;
use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::Server;

const SIZE: usize = 900_000;

fn layer() -> Blob {
    Layer::default().file("file", &noise(1, SIZE)).plain()
}

/// A registry whose layer comes as `change` makes it; it is told which time it is.
async fn serve(change: impl Fn(usize, Answer) -> Answer + Send + Sync + 'static) -> (Server, Proxy, Blob) {
    let server = Server::new();
    let blob = layer();
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, times) = (blob.digest(), AtomicUsize::new(0));
    let proxy = Proxy::new(&server, move |request, upstream| {
        let answer = upstream.get(request);
        match request.path.contains(&digest) {
            true => change(times.fetch_add(1, Ordering::SeqCst), answer),
            false => answer,
        }
    });
    (server, proxy, blob)
}

/// Pulls it, and checks what came.
async fn pull(proxy: &Proxy) -> gitopsd::registry::Pulled {
    let host = Host::new(&[&proxy.address()]);
    let (found, pulled) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(std::fs::read(host.layers(&found)[0].join("file")).unwrap(), noise(1, SIZE));
    pulled
}

async fn fails(proxy: &Proxy) -> gitopsd::registry::PullError {
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    host.assert_empty();
    error
}

fn ranges(proxy: &Proxy, blob: &Blob) -> Vec<Option<String>> {
    let requests = proxy.requests().into_iter().filter(|request| request.path.contains(&blob.digest()));
    requests.map(|request| request.header("range").map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_at_each_third() {
    let third = layer().bytes.len() / 3;
    for chunked in [false, true] {
        let (_server, proxy, blob) = serve(move |time, mut answer| {
            answer.chunked = chunked;
            answer.cut = (time < 2).then_some(third);
            answer
        })
        .await;
        let pulled = pull(&proxy).await;
        let from = |byte: usize| Some(format!("bytes={byte}-"));
        assert_eq!(ranges(&proxy, &blob), [None, from(third), from(2 * third)], "chunked: {chunked}");
        assert_eq!(pulled.bytes, proxy.blob_bytes() as u64, "nothing came twice");
    }
    // At its very beginning, after a byte, before the last one, and at its end.
    for cut in [0, 1, third * 3 - 1, third * 3] {
        let (_server, proxy, _) = serve(move |time, mut answer| {
            answer.cut = (time == 0).then_some(cut);
            answer
        })
        .await;
        pull(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_length() {
    let (_server, proxy, _) = serve(|_, answer| Answer { chunked: true, ..answer }).await;
    pull(&proxy).await;
    // One that ends too soon, and says that it is whole; the rest is asked for.
    let (_server, proxy, blob) = serve(|time, mut answer| {
        answer.chunked = true;
        if time == 0 {
            answer.body.truncate(1000);
        }
        answer
    })
    .await;
    pull(&proxy).await;
    assert_eq!(ranges(&proxy, &blob), [None, Some("bytes=1000-".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_once_more() {
    let packed = |answer: &Answer| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&answer.body).unwrap();
        gzip.finish().unwrap()
    };
    // A proxy on the way that packs what nobody asked it to.
    for (name, value) in [("Content-Encoding", "gzip"), ("Transfer-Encoding", "gzip")] {
        let (_server, proxy, blob) = serve(move |_, mut answer| {
            answer.body = packed(&answer);
            answer.header(name, value)
        })
        .await;
        let error = fails(&proxy).await;
        assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
        if name == "Content-Encoding" {
            assert!(error.to_string().contains("packed once more (gzip)"), "{error}");
        }
        let asked: Vec<_> =
            proxy.requests().into_iter().filter(|r| r.path.contains(&blob.digest())).collect();
        assert!(asked.iter().all(|request| request.header("accept-encoding") == Some("identity")));
    }
    // Stores say of a file that is packed that it is, and send it as it is.
    let (_server, proxy, _) = serve(|_, answer| answer.header("Content-Encoding", "gzip")).await;
    pull(&proxy).await;
    let (_server, proxy, _) = serve(|_, answer| answer.header("Content-Encoding", "identity")).await;
    pull(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_not_those() {
    const CUT: usize = 400_000;
    let size = layer().bytes.len();
    let wrong = [
        Some(format!("bytes 0-{}/{size}", size - 1)),
        Some(format!("bytes {}-{}/{size}", CUT + 1, size - 1)),
        Some(format!("bytes {CUT}-{}/{}", size - 1, size + 1)),
        Some(format!("bytes */{size}")),
        Some("bytes".to_owned()),
        Some(format!("octets {CUT}-{}/{size}", size - 1)),
        None,
    ];
    for header in wrong {
        let text = format!("{header:?}");
        let (_server, proxy, blob) = serve(move |time, mut answer| {
            if time == 1 {
                answer.headers.retain(|(name, _)| name != "content-range");
                if let Some(header) = &header {
                    answer = answer.header("Content-Range", header);
                }
            }
            answer.cut = (time == 0).then_some(CUT);
            answer
        })
        .await;
        pull(&proxy).await;
        let from = Some(format!("bytes={CUT}-"));
        assert_eq!(ranges(&proxy, &blob), [None, from.clone(), from], "{text}");
    }
    // Of which the length of the whole is not said.
    let (_server, proxy, blob) = serve(move |time, mut answer| {
        answer.headers.retain(|(name, _)| name != "content-range");
        if time == 1 {
            answer = answer.header("Content-Range", &format!("bytes {CUT}-{}/*", size - 1));
        }
        answer.cut = (time == 0).then_some(CUT);
        answer
    })
    .await;
    pull(&proxy).await;
    assert_eq!(ranges(&proxy, &blob).len(), 2);
    // There is no such range: the file is another one there.
    let (_server, proxy, _) = serve(move |time, mut answer| {
        answer.cut = (time == 0).then_some(CUT);
        if time > 0 { Answer::new(416, b"{}") } else { answer }
    })
    .await;
    let error = fails(&proxy).await;
    assert!(error.to_string().contains("416"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_is_given_up_for_another_try() {
    // Some 500 bytes a second: never silent, and never done.
    let (_server, proxy, blob) = serve(|time, mut answer| {
        answer.slow = (time == 0).then_some(Duration::from_millis(200));
        answer
    })
    .await;
    let begun = Instant::now();
    pull(&proxy).await;
    assert!(begun.elapsed() > Duration::from_secs(25), "it was given its time");
    let asked = ranges(&proxy, &blob);
    let [None, Some(range)] = asked.as_slice() else { panic!("{asked:?}") };
    let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(from > 1000 && from < 100_000, "what came is kept: {from}");
}
