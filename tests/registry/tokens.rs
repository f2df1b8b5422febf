//! Tokens: had by a refresh token, by one request for all that need one, as long as they hold, from whom is allowed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::PullError;
use gitopsd::types::Reason;

use super::support::certificates::Certificates;
use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy, Request};
use super::support::server::Server;
use super::support::{Host, plain};

fn layer(seed: u64) -> Blob {
    Layer::default().file(&format!("file-{seed}"), &noise(seed, 300_000)).gzip()
}

/// What `docker login` leaves where a registry gives identity tokens.
fn logged_in(dir: &Path, address: &str) -> PathBuf {
    let path = dir.join("config.json");
    let entry = serde_json::json!({ "auth": "YWRhOg==", "identitytoken": "se/cret=" });
    std::fs::write(&path, serde_json::json!({ "auths": { address: entry } }).to_string()).unwrap();
    path
}

fn host(address: &str, config: RegistryConfig) -> Host {
    Host::with(BTreeMap::from([(address.to_owned(), config)]))
}

#[track_caller]
fn assert_secret(error: &PullError) {
    let text = format!("{error} {error:?}");
    for secret in ["se/cret", "se%2Fcret", "YWRh"] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn challenge(request: &Request) -> Answer {
    let own = request.header("host").unwrap();
    Answer::challenge(&format!(r#"Bearer realm="http://{own}/token",service="lab""#))
}

/// What is asked with the right token goes on to the registry.
fn guarded(request: &Request, upstream: &super::support::proxy::Upstream, token: &str) -> Answer {
    match request.header("authorization") == Some(&format!("Bearer {token}")) {
        true => upstream.get(&request.clone().without("authorization")),
        false => challenge(request),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_posted() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let proxy = Proxy::new(&server, |request, upstream| match request.path.as_str() {
        "/token" if request.method == "POST" => Answer::new(200, br#"{"access_token":"t","expires_in":300}"#),
        _ => guarded(request, upstream, "t"),
    });
    let dir = tempfile::tempdir().unwrap();
    let config = RegistryConfig { docker_config: Some(logged_in(dir.path(), &proxy.address())), ..plain() };
    host(&proxy.address(), config).pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    let asked: Vec<Request> =
        proxy.requests().into_iter().filter(|request| request.path == "/token").collect();
    let [asked] = asked.as_slice() else { panic!("{asked:?}") };
    let mut fields: Vec<&str> = asked.body.split('&').collect();
    fields.sort_unstable();
    let expected = [
        "client_id=gitopsd",
        "grant_type=refresh%5Ftoken",
        "refresh_token=se%2Fcret%3D",
        "scope=repository%3Aapp%3Apull",
        "service=lab",
    ];
    assert_eq!(fields, expected);
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(asked.header("authorization"), None);
    let others = proxy.requests().into_iter().filter(|request| request.path != "/token");
    assert!(others.into_iter().all(|request| !request.all().contains("cret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_post_is_asked_by_get() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    for status in [404, 405] {
        let proxy = Proxy::new(&server, move |request, upstream| match request.method.as_str() {
            "POST" => Answer::new(status, b"no"),
            // `ada:se/cret=`
            _ if request.path.starts_with("/token?")
                && request.header("authorization") == Some("Basic YWRhOnNlL2NyZXQ9") =>
            {
                Answer::new(200, br#"{"token":"t"}"#)
            }
            _ => guarded(request, upstream, "t"),
        });
        let dir = tempfile::tempdir().unwrap();
        let config =
            RegistryConfig { docker_config: Some(logged_in(dir.path(), &proxy.address())), ..plain() };
        host(&proxy.address(), config).pull(&format!("{}/app:1", proxy.address())).await.unwrap();
        assert_eq!(proxy.count("/token"), 2, "one by POST, one by GET");
    }
    // Any other refusal is the answer.
    for status in [400, 401, 403] {
        let proxy = Proxy::new(&server, move |request, upstream| match request.method.as_str() {
            "POST" => {
                Answer::new(status, br#"{"error":"invalid_grant","error_description":"se/cret= is old"}"#)
            }
            _ => guarded(request, upstream, "t"),
        });
        let dir = tempfile::tempdir().unwrap();
        let file = logged_in(dir.path(), &proxy.address());
        let config = RegistryConfig { docker_config: Some(file.clone()), ..plain() };
        let error =
            host(&proxy.address(), config).pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
        assert_secret(&error);
        assert!(error.to_string().contains("the token service"), "{error}");
        assert_eq!(proxy.count("/token"), 1);
        if status != 400 {
            assert_eq!(error.reason, Reason::Auth);
            assert!(error.to_string().contains(&file.display().to_string()), "whose credentials: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_posted_token_follows_no_redirect() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let thief = Proxy::new(&server, |_, _| Answer::new(200, br#"{"token":"t"}"#));
    for status in [301, 302, 303, 307, 308] {
        let place = format!("http://{}/token", thief.address());
        let proxy = Proxy::new(&server, move |request, upstream| match request.path.starts_with("/token") {
            true => Answer::new(status, b"").header("Location", &place),
            false => guarded(request, upstream, "t"),
        });
        let dir = tempfile::tempdir().unwrap();
        let config =
            RegistryConfig { docker_config: Some(logged_in(dir.path(), &proxy.address())), ..plain() };
        let error =
            host(&proxy.address(), config).pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
        assert_secret(&error);
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    assert_eq!(thief.requests().len(), 0);
}

/// So many come to it, or nobody else does for a while.
#[derive(Default)]
struct Crowd(Mutex<usize>, Condvar);

impl Crowd {
    fn wait(&self, size: usize) {
        let mut here = self.0.lock().unwrap();
        *here += 1;
        self.1.notify_all();
        let _ = self.1.wait_timeout_while(here, Duration::from_secs(20), |here| *here < size).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_beside_each_other_get_one_token() {
    let server = Server::new();
    let blobs: Vec<Blob> = (0..3).map(layer).collect();
    server.push("1", &blobs).await;
    let digests: Vec<String> = blobs.iter().map(Blob::digest).collect();
    let (given, crowd) = (AtomicUsize::new(0), Crowd::default());
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            // Long enough for all to want it.
            std::thread::sleep(Duration::from_millis(200));
            return Answer::new(200, format!(r#"{{"token":"t{number}"}}"#).as_bytes());
        }
        // The first token is not good for layers, and that is told once all three have asked.
        if digests.iter().any(|digest| request.path.contains(digest)) {
            if request.header("authorization") == Some("Bearer t1") {
                crowd.wait(3);
            }
            return guarded(request, upstream, "t2");
        }
        guarded(request, upstream, "t1")
    });
    let reference = format!("{}/app:1", proxy.address());
    host(&proxy.address(), plain()).pull(&reference).await.unwrap();
    assert_eq!(proxy.count("/token"), 2, "one for the documents, one for the three layers");
}

/// One that is never silent and never done: layers have no limit of their own, and all of them wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_trickles_is_asked_for_anew() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, given) = (blob.digest(), AtomicUsize::new(0));
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            let text = format!(r#"{{"token":"t{number}"}}{}"#, " ".repeat(3000));
            let mut answer = Answer::new(200, text.as_bytes());
            // The second one, for the layer, takes five minutes.
            answer.slow = (number == 2).then_some(Duration::from_secs(10));
            return answer;
        }
        guarded(request, upstream, if request.path.contains(&digest) { "t3" } else { "t1" })
    });
    let begun = std::time::Instant::now();
    host(&proxy.address(), plain()).pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(proxy.count("/token"), 3);
    assert!((55..120).contains(&begun.elapsed().as_secs()), "it was given its time, and no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_in_the_middle_of_a_layer() {
    let server = Server::new();
    let blob = layer(1);
    server.push("1", std::slice::from_ref(&blob)).await;
    let (digest, given, parts) = (blob.digest(), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.path.starts_with("/token") {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Answer::new(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#).as_bytes());
        }
        let valid = format!("t{}", given.load(Ordering::SeqCst));
        if !request.path.contains(&digest) {
            return guarded(request, upstream, &valid);
        }
        // Each token is good for a hundred thousand bytes, and once.
        let right = request.header("authorization") == Some(&format!("Bearer {valid}"));
        let unused = valid == format!("t{}", parts.load(Ordering::SeqCst) + 1);
        if !right || !unused {
            return challenge(request);
        }
        parts.fetch_add(1, Ordering::SeqCst);
        Answer { cut: Some(100_000), ..upstream.get(&request.clone().without("authorization")) }
    });
    let host = host(&proxy.address(), plain());
    let (found, pulled) = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
    assert_eq!(std::fs::read(host.layers(&found)[0].join("file-1")).unwrap(), noise(1, 300_000));
    let came = proxy.requests().into_iter().filter(|request| request.is_blob() && request.sent > 2);
    assert_eq!(pulled.bytes, came.map(|request| request.sent as u64).sum::<u64>(), "nothing came twice");
    let ranges: Vec<(Option<String>, Option<String>)> = proxy
        .requests()
        .iter()
        .filter(|request| request.path.contains(&blob.digest()) && request.sent > 2)
        .map(|request| {
            (request.header("authorization").map(str::to_owned), request.header("range").map(str::to_owned))
        })
        .collect();
    let range = |token: &str, from: Option<usize>| {
        (Some(format!("Bearer {token}")), from.map(|from| format!("bytes={from}-")))
    };
    assert_eq!(ranges[..3], [range("t1", None), range("t2", Some(100_000)), range("t3", Some(200_000))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_out_of_a_cache_is_not_used_too_long() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    for (issued, tokens) in [("2026-10-21T07:28:00Z", 1), ("2026-10-21T07:23:05Z", 3)] {
        let given = AtomicUsize::new(0);
        let proxy = Proxy::new(&server, move |request, upstream| {
            if request.path.starts_with("/token") {
                given.fetch_add(1, Ordering::SeqCst);
                let text = format!(r#"{{"token":"t","expires_in":300,"issued_at":"{issued}"}}"#);
                return Answer::new(200, text.as_bytes()).header("Date", "Wed, 21 Oct 2026 07:28:05 GMT");
            }
            guarded(request, upstream, "t")
        });
        let reference = format!("{}/app:1", proxy.address());
        host(&proxy.address(), plain()).pull(&reference).await.unwrap();
        assert_eq!(proxy.count("/token"), tokens, "issued {issued}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_elsewhere_has_to_be_allowed() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let dir = tempfile::tempdir().unwrap();
    let lab = Certificates::new(dir.path(), "tokens", "DNS:localhost", "2");
    let tokens = Proxy::secure(&server, &lab, |request, _| match request.header("authorization") {
        Some("Basic YWRhOnNlL2NyZXQ9") => Answer::new(200, br#"{"token":"t"}"#),
        _ => Answer::new(401, b"{}"),
    });
    let realm = format!("https://localhost:{}/token", tokens.port);
    let proxy = Proxy::new(&server, move |request, upstream| {
        match request.header("authorization") == Some("Bearer t") {
            true => upstream.get(&request.clone().without("authorization")),
            false => Answer::challenge(&format!(r#"Bearer realm="{realm}",service="lab""#)),
        }
    });
    let password = dir.path().join("password");
    std::fs::write(&password, "se/cret=\n").unwrap();
    let config = |realms: &[String]| RegistryConfig {
        username: Some("ada".to_owned()),
        password_file: Some(password.clone()),
        ca_file: Some(lab.ca.clone()),
        realms: realms.to_vec(),
        ..plain()
    };
    let reference = format!("{}/app:1", proxy.address());
    let allowed = format!("localhost:{}", tokens.port);
    for realms in [vec![], vec!["localhost".to_owned()], vec![format!("x{allowed}")]] {
        let error = host(&proxy.address(), config(&realms)).pull(&reference).await.unwrap_err();
        assert_eq!(error.reason, Reason::Auth, "{error}");
        assert!(error.to_string().contains(&format!("realms = [\"{allowed}\"]")), "{error}");
        assert_eq!(tokens.requests().len(), 0);
    }
    host(&proxy.address(), config(std::slice::from_ref(&allowed))).pull(&reference).await.unwrap();
    assert_eq!(tokens.requests().len(), 1);
}
