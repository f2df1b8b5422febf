//! Archives behind https and S3's API: servers of every kind of manners, and archives that change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gitopsd::config::agent::{RegistryConfig, S3Config};
use gitopsd::registry::{PullError, Pulled};
use gitopsd::types::{Digest, ImageRef, PinnedImage, Reason};

use super::make::{docker_save, gzip, image, noise, oci, small, tar};
use super::server::{Answer, Certificates, Request, Server, certificates, file};
use super::{Host, host_of};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

struct World {
    _dir: tempfile::TempDir,
    certificates: Certificates,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    World { certificates: certificates(dir.path()), _dir: dir }
}

impl World {
    fn server(&self, rule: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Server, Host) {
        let server = Server::secure(&self.certificates, rule);
        let config =
            RegistryConfig { ca_file: Some(self.certificates.ca.clone()), ..RegistryConfig::default() };
        let host = host_of(S3Config::default(), BTreeMap::from([(server.address(), config)]));
        (server, host)
    }

    /// Pulls what a server of these manners has.
    async fn pull(
        &self,
        rule: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> (Server, Host, Result<(Digest, Pulled), PullError>) {
        let (server, host) = self.server(rule);
        let result = host.pull(&server.url("/app.tar")).await;
        host.assert_nothing_unfinished();
        (server, host, result)
    }
}

#[track_caller]
fn assert_small(host: &Host, digest: &Digest) {
    assert_eq!(host.file(digest, "etc/base").as_deref(), Some(&b"base"[..]));
    assert_eq!(host.file(digest, "srv/x"), Some(noise(70_000, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn https_by_an_authority_of_ones_own() {
    let world = world();
    let archive = docker_save(&small());
    let whole = archive.clone();
    let (server, host, result) = world.pull(move |request| file(request, &whole, "\"1\"")).await;
    let (digest, pulled) = result.unwrap();
    assert_small(&host, &digest);
    let of_one =
        |request: &Request| request.range() == Some((0, 0)) || request.header("if-match") == Some("\"1\"");
    assert!(server.log().iter().all(of_one), "{:?}", server.log());
    assert!(
        pulled.bytes as usize > 70_000 && pulled.bytes as usize <= archive.len() + 512,
        "{}",
        pulled.bytes
    );
    // Nobody else's word is taken.
    let error = super::host(S3Config::default()).pull(&server.url("/app.tar")).await.unwrap_err();
    assert_eq!(error.reason, Reason::Tls, "{error}");
    assert!(error.to_string().contains("ca_file in [registry.\"127.0.0.1:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_behind_an_authority_of_ones_own() {
    let world = world();
    let archive = docker_save(&small());
    let server = Server::secure(&world.certificates, move |request| file(request, &archive, "\"1\""));
    let endpoint = Some(server.url("").parse().unwrap());
    let config = S3Config { endpoint, path_style: true, ..S3Config::default() };
    let error = super::host(config.clone()).pull("s3://images/app.tar").await.unwrap_err();
    assert_eq!(error.reason, Reason::Tls, "{error}");
    assert!(error.to_string().contains("ca_file in [s3]"), "{error}");
    let trusting = S3Config { ca_file: Some(world.certificates.ca.clone()), ..config.clone() };
    let host = super::host(trusting);
    let (digest, _) = host.pull("s3://images/app.tar").await.unwrap();
    assert_small(&host, &digest);
    assert!(server.log().iter().all(|request| request.path.starts_with("/images/app.tar")));
    let missing = S3Config { ca_file: Some("/nonexistent/ca.pem".into()), ..config };
    let error = super::host(missing).pull("s3://images/app.tar").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}

/// A server that knows no ranges sends all of it with each answer: it is taken once.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_ranges_is_read_once() {
    let world = world();
    for archive in [docker_save(&small()), oci(&small(), GZIP, gzip), gzip(&docker_save(&small()))] {
        let whole = archive.clone();
        let (server, host) = world.server(move |_| Answer::new(200, &whole).header("ETag", "\"1\""));
        let url = server.url("/app.tar");
        let (digest, pulled) = host.pull(&url).await.unwrap();
        assert_small(&host, &digest);
        assert_eq!((server.log().len(), server.sent()), (1, archive.len() as u64));
        assert_eq!(pulled.bytes, archive.len() as u64, "what came is told, once");
        assert_eq!((pulled.layers_total, pulled.layers_reused), (2, 0));
        // As it was: nothing of it is taken.
        let (_, again) = host.pull(&url).await.unwrap();
        assert_eq!(again.bytes, 0);
        assert_eq!((again.layers_total, again.layers_reused), (2, 2));
        assert_eq!(server.log().len(), 2);
        host.assert_nothing_unfinished();
    }
}

/// The same where the connection breaks: what came is not asked for again in vain.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_ranges_breaks_off_and_goes_on() {
    let world = world();
    let archive = docker_save(&small());
    let (server, host, result) = world
        .pull(move |request| {
            let cut = (request.number == 1).then_some(50_000);
            Answer { cut, ..Answer::new(200, &archive).header("ETag", "\"1\"") }
        })
        .await;
    assert_small(&host, &result.unwrap().0);
    assert_eq!(server.log().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_well_is_asked_again() {
    let world = world();
    let archive = docker_save(&small());
    let (server, host, result) = world
        .pull(move |request| match request.number {
            1 => Answer::new(503, b"").header("Retry-After", "0"),
            2 => Answer { cut: Some(0), ..Answer::new(200, b"none of it") },
            // Later ones break in the midst of a layer.
            number if number % 4 == 0 => {
                let whole = file(request, &archive, "\"1\"");
                Answer { cut: Some(whole.body.len() / 2), ..whole }
            }
            _ => file(request, &archive, "\"1\""),
        })
        .await;
    assert_small(&host, &result.unwrap().0);
    assert!(server.log().len() > 5);
    // One that stays so is given up, and may be well later.
    let (server, _, result) = world.pull(|_| Answer::new(503, b"")).await;
    let error = result.unwrap_err();
    assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
    assert!(error.may_pass() && error.to_string().contains("503"), "{error}");
    assert_eq!(server.log().len(), 4);
}

/// Some 500 bytes a second, never silent and never done: what is read as a whole goes on where it was, and a small part
/// is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_is_given_up_for_another_try() {
    let world = world();
    let plain =
        docker_save(&image(vec![tar(&[("etc/base", b"base")]), tar(&[("srv/x", &noise(70_000, 3))])]));
    let trickle = |archive: Vec<u8>, least: usize| {
        let done = AtomicUsize::new(0);
        let rule = move |request: &Request| {
            let mut answer = file(request, &archive, "\"1\"");
            // The first one of more than a few bytes.
            if answer.body.len() >= least && done.fetch_add(1, Ordering::Relaxed) == 0 {
                answer.slow = Some(Duration::from_millis(200));
            }
            answer
        };
        let begun = Instant::now();
        let pull = world.pull(rule);
        async move {
            let (server, host, result) = pull.await;
            let (digest, _) = result.unwrap();
            assert_eq!(host.file(&digest, "srv/x"), Some(noise(70_000, 3)));
            assert!(begun.elapsed() > Duration::from_secs(25), "it was given its time");
            server
                .log()
                .iter()
                .filter_map(Request::range)
                .filter(|(from, to)| to - from >= least)
                .collect::<Vec<_>>()
        }
    };
    // The table of contents comes by parts of 16 KiB and more.
    let (whole, parts) = tokio::join!(trickle(gzip(&plain), 1000), trickle(plain.clone(), 1000));
    let [(0, last), (from, end)] = whole[..] else { panic!("{whole:?}") };
    assert!(from > 1000 && from < 100_000 && end == last, "what came is kept: {from}");
    assert_eq!(parts[0], parts[1], "{parts:?}");
}

/// A part that is another than was asked for is nobody's bytes.
#[tokio::test(flavor = "multi_thread")]
async fn parts_are_what_was_asked_for() {
    let world = world();
    let archive = Arc::new(docker_save(&small()));
    type Wrong = fn(&Request, &[u8], Answer) -> Answer;
    let rows: [(&str, Wrong, &str); 5] = [
        (
            "shifted",
            |request, whole, _| {
                let (first, last) = request.range().unwrap();
                let body = &whole[first + 1..=last + 1];
                Answer::new(206, body)
                    .header("Content-Range", format!("bytes {}-{}/{}", first + 1, last + 1, whole.len()))
            },
            "sends others",
        ),
        (
            "shorter",
            |request, whole, _| {
                let (first, last) = request.range().unwrap();
                Answer::new(206, &whole[first..last])
                    .header("Content-Range", format!("bytes {first}-{}/{}", last - 1, whole.len()))
            },
            "sends others",
        ),
        (
            "without a word on it",
            |request, whole, _| {
                let (first, last) = request.range().unwrap();
                Answer::new(206, &whole[first..=last])
            },
            "sends others",
        ),
        (
            "of something longer",
            |request, whole, _| {
                let (first, last) = request.range().unwrap();
                Answer::new(206, &whole[first..=last])
                    .header("Content-Range", format!("bytes {first}-{last}/{}", whole.len() + 1))
            },
            "was changed while it was read",
        ),
        (
            "beyond the end",
            |_, whole, _| Answer::new(416, b"").header("Content-Range", format!("bytes */{}", whole.len())),
            "was changed while it was read",
        ),
    ];
    for (what, wrong, part) in rows {
        let whole = archive.clone();
        // The first answer is a good one: each look begins with it.
        let (_, _, result) = world
            .pull(move |request| match request.range() {
                Some((0, 0)) => file(request, &whole, "\"1\""),
                _ => wrong(request, &whole, Answer::default()).header("ETag", "\"1\""),
            })
            .await;
        let error = result.unwrap_err();
        assert!(error.may_pass() && error.to_string().contains(part), "{what}: {error}");
    }
    for (what, answer, part) in [
        ("no length", Answer::new(206, b"x").header("Content-Range", "bytes 0-0/*"), "how long"),
        ("another first byte", Answer::new(206, b"x").header("Content-Range", "bytes 1-1/9"), "how long"),
        ("nothing", Answer::new(416, b"").header("Content-Range", "bytes */0"), "is empty"),
        ("nothing, and no ranges", Answer::new(200, b""), "is empty"),
        ("gone", Answer::new(410, b""), "is not there"),
    ] {
        let (_, _, result) = world.pull(move |_| answer.clone()).await;
        let error = result.unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains(part), "{what}: {error}");
    }
}

/// A bigger image, so that its layers are not read together with its table.
fn version(number: u64) -> Vec<u8> {
    docker_save(&image(vec![
        tar(&[("etc/base", &noise(300_000, 1))]),
        tar(&[("etc/app", &noise(300_000, 10 + number)), ("etc/version", number.to_string().as_bytes())]),
    ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_changes_while_its_table_is_read() {
    let world = world();
    let (first, second) = (version(1), version(2));
    // 1: the first byte. 2: how it is packed. 3: its first headers. Then it is another one.
    let (server, host, result) = world
        .pull(move |request| match request.number {
            1..=3 => file(request, &first, "\"1\""),
            _ => file(request, &second, "\"2\""),
        })
        .await;
    let (digest, _) = result.unwrap();
    assert_eq!(host.file(&digest, "etc/version").as_deref(), Some(&b"2"[..]), "all of it is of one version");
    assert!(server.log().iter().any(|request| request.header("if-match") == Some("\"1\"")));
    // One that does not come to rest is given up.
    let count = AtomicUsize::new(0);
    let (server, _, result) = world
        .pull(move |request| {
            let number = count.fetch_add(1, Ordering::Relaxed) / 3;
            file(request, &version(number as u64 % 2), &format!("\"{number}\""))
        })
        .await;
    let error = result.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    assert!(error.may_pass() && error.to_string().contains("changed again"), "{error}");
    assert!(server.log().len() < 12, "{}", server.log().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_changes_while_its_layers_are_read() {
    let world = world();
    // Written anew with the same content, as uploads of the same build are; and with another image.
    for (number, fine) in [(1, true), (2, false)] {
        let (before, after) = (version(1), version(number));
        let (server, host) = world.server(move |request| match request.number {
            // A pull begins with the fifth or so: whoever asks for a layer finds a new version.
            _ if request.range().is_some_and(|(first, last)| {
                last - first > 250_000 && request.header("if-match") == Some("\"1\"")
            }) =>
            {
                Answer::new(412, b"")
            }
            _ if request.header("if-match") == Some("\"1\"") || request.number == 1 => {
                file(request, &before, "\"1\"")
            }
            _ => file(request, &after, "\"2\""),
        });
        let reference: ImageRef = server.url("/app.tar").parse().unwrap();
        let digest = host.registry.resolve(&reference).await.unwrap();
        let result = host.registry.pull(&PinnedImage { reference, digest: digest.clone() }, &|_| {}).await;
        if fine {
            result.unwrap();
            assert_eq!(host.file(&digest, "etc/version").as_deref(), Some(&b"1"[..]));
        } else {
            let error = result.unwrap_err();
            assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
            assert!(error.to_string().contains("a new commit takes the new one"), "{error}");
        }
        host.assert_nothing_unfinished();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read() {
    let host = super::host(S3Config::default());
    let large = |number| docker_save(&image(vec![tar(&[("etc/app", &noise(24 << 20, number))])]));
    let url = host.put("app.tar", &large(1));
    let reference: ImageRef = url.parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    let pinned = PinnedImage { reference, digest };
    // In place, once the first bytes of a layer have come.
    let path = url.strip_prefix("file://").unwrap().to_owned();
    let (done, second) = (AtomicUsize::new(0), large(2));
    let change = |_| {
        if done.fetch_add(1, Ordering::Relaxed) == 0 {
            std::fs::write(&path, &second).unwrap();
        }
    };
    let error = host.registry.pull(&pinned, &change).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    assert!(error.to_string().contains("was changed while it was read"), "{error}");
    host.assert_nothing_unfinished();
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_archives_tell_how_far_they_are() {
    let world = world();
    let archive = gzip(&docker_save(&image(vec![tar(&[("etc/app", &noise(3 << 20, 1))])])));
    let whole = archive.clone();
    let (server, host) = world.server(move |request| file(request, &whole, "\"1\""));
    let reference: ImageRef = server.url("/app.tar.gz").parse().unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let tell = |progress: gitopsd::registry::Progress| seen.lock().unwrap().push(progress);
    let digest = host.registry.resolve_telling(&reference, &[], &tell).await.unwrap();
    let seen = seen.into_inner().unwrap();
    let spooling: Vec<_> = seen.iter().filter(|progress| progress.layers == 0).collect();
    assert!(spooling.len() > 5, "{}", spooling.len());
    assert!(spooling.iter().all(|progress| progress.total == archive.len() as u64));
    assert!(spooling.windows(2).all(|pair| pair[0].bytes < pair[1].bytes));
    assert_eq!(seen.last().unwrap().layers_done, 1);
    let pulled = host.registry.pull(&PinnedImage { reference, digest }, &|_| {}).await.unwrap();
    let read = archive.len() as u64..archive.len() as u64 + 64;
    assert!(read.contains(&pulled.bytes), "{} of {}", pulled.bytes, archive.len());
}
