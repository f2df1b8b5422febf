//! What is said when there is no image to be had: what it was, and what to do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gitopsd::config::agent::RegistryConfig;
use gitopsd::types::Reason;

use super::support::certificates::Certificates;
use super::support::image::{Blob, Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Face, Server};
use super::support::{Host, plain};

fn layer(seed: u64) -> Blob {
    Layer::default().file(&format!("file-{seed}"), &noise(seed, 300_000)).gzip()
}

fn host(address: &str, config: RegistryConfig) -> Host {
    Host::with(BTreeMap::from([(address.to_owned(), config)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_tls_says_what_to_do() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let dir = tempfile::tempdir().unwrap();
    let good = Certificates::new(dir.path(), "good", "IP:127.0.0.1", "2");
    let other = Certificates::new(dir.path(), "other", "IP:127.0.0.2", "2");
    let expired = Certificates::new(dir.path(), "expired", "IP:127.0.0.1", "-1");
    let face = |of: &Certificates, clients: bool| {
        let clients_by = clients.then_some(good.ca.as_path());
        server.face(&Face { tls: Some((&of.certificate, &of.key)), clients_by, ..Face::default() })
    };
    // The authority's own certificate, shown by a server.
    let own = Certificates {
        certificate: good.ca.clone(),
        key: dir.path().join("good-ca.key"),
        ca: good.ca.clone(),
    };
    let by = |of: &Certificates| RegistryConfig { ca_file: Some(of.ca.clone()), ..RegistryConfig::default() };
    let mine = |of: &Certificates| RegistryConfig {
        client_cert: Some(of.certificate.clone()),
        client_key: Some(of.key.clone()),
        ..by(&good)
    };
    let rows = [
        ("no authority", face(&good, false), RegistryConfig::default(), "ca_file in [registry.\"ADDRESS\"]"),
        ("another authority", face(&good, false), by(&other), "ca_file in [registry.\"ADDRESS\"]"),
        ("another name", face(&other, false), by(&other), "is for another name"),
        ("an old one", face(&expired, false), by(&expired), "has expired"),
        ("an authority's own", face(&own, false), by(&good), "ca_file in [registry.\"ADDRESS\"]"),
        (
            "http, and https is spoken",
            face(&good, false),
            plain(),
            "take plain_http out of [registry.\"ADDRESS\"]",
        ),
        (
            "no certificate of this host",
            face(&good, true),
            by(&good),
            "set client_cert and client_key in [registry.\"ADDRESS\"]",
        ),
        ("another one", face(&good, true), mine(&other), "client_cert of [registry.\"ADDRESS\"]"),
    ];
    for (what, server, config, hint) in rows {
        let error = host(&server.address(), config)
            .resolve(&format!("{}/app:1", server.address()))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert_eq!(error.reason, Reason::Tls, "{what}: {text}");
        assert!(error.may_pass(), "{what}: somebody may correct it");
        assert!(text.contains(&hint.replace("ADDRESS", &server.address())), "{what}: {text}");
        assert!(text.starts_with(&format!("registry {}", server.address())), "{what}: {text}");
    }
    // https, and http is spoken.
    let error = host(&server.address(), RegistryConfig::default())
        .resolve(&format!("{}/app:1", server.address()))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::Tls, "{error}");
    assert!(
        error.to_string().contains(&format!("plain_http = true in [registry.\"{}\"]", server.address())),
        "{error}"
    );
    // What is no http at all, but TLS of a server that says nothing in it to those who do not.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = silent.accept() {
            use std::io::{Read, Write};
            let mut asked = [0; 100];
            let _ = stream.read(&mut asked);
            // A fatal alert, as openssl sends it (RFC 8446 section 6).
            let _ = stream.write_all(&[21, 3, 1, 0, 2, 2, 70]);
            if asked.starts_with(b"GET /end") {
                break;
            }
        }
    });
    let error = host(&address, plain()).resolve(&format!("{address}/app:1")).await.unwrap_err();
    assert!(error.to_string().contains("does it speak https"), "{error}");
    use std::io::Write;
    std::net::TcpStream::connect(&address).unwrap().write_all(b"GET /end").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_say_what_to_do() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let ada = RegistryConfig { username: Some("ada".to_owned()), password_file: Some(password), ..plain() };
    let basic = "Basic realm=\"lab\"";
    let rows: Vec<(Answer, Reason, [&str; 2], [&str; 2])> = vec![
        (
            Answer::challenge(basic),
            Reason::Auth,
            ["asks for a password: set username and password_file in [registry.", "docker login"],
            ["does not let this host have", "the credentials are those of password_file in [registry."],
        ),
        (
            Answer::new(403, br#"{"errors":[{"code":"DENIED","message":"secret c2VjcmV0"}]}"#),
            Reason::Auth,
            ["no credentials for it are known: set username", "(DENIED: secret c2VjcmV0)"],
            ["no credentials", "docker login"],
        ),
        (
            Answer::new(404, br#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
            Reason::ImageNotFound,
            ["(NAME_UNKNOWN)", "one that is private may be hidden"],
            ["has no", ""],
        ),
        (
            Answer::new(429, b"slow down").header("Retry-After", "0"),
            Reason::RegistryUnreachable,
            [
                "answers 429",
                "(slow down); it limits how often it is asked: log in, or set mirrors; tried 4 times in ",
            ],
            ["answers 429", "mirrors"],
        ),
        (
            Answer::new(503, b"<html>down</html>"),
            Reason::RegistryUnreachable,
            [
                "answers 503",
                "(with a page of HTML or XML: is it a registry?); its own log says why; tried 4 times in ",
            ],
            ["answers 503", "log"],
        ),
        (Answer::new(400, b"{}"), Reason::RegistryUnreachable, ["answers 400", ""], ["answers 400", ""]),
        (Answer::new(304, b""), Reason::RegistryUnreachable, ["304", "leads nowhere"], ["304", ""]),
    ];
    for (answer, reason, alone, known) in rows {
        let status = answer.status;
        let proxy = Proxy::new(&server, move |_, _| answer.clone());
        for (config, words) in [(plain(), alone), (ada.clone(), known)] {
            let error = host(&proxy.address(), config)
                .resolve(&format!("{}/app:1", proxy.address()))
                .await
                .unwrap_err();
            let text = error.to_string();
            assert_eq!(error.reason, reason, "{text}");
            for word in words {
                assert!(text.contains(word), "{status}: {word} is missing in: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_repeats_of_a_secret_is_not_shown() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let config =
        RegistryConfig { username: Some("ada".to_owned()), password_file: Some(password), ..plain() };
    // It shows what it was sent, as debugging pages do.
    let proxy = Proxy::new(&server, |request, _| match request.header("authorization") {
        None => Answer::challenge("Basic realm=\"lab\""),
        Some(sent) => {
            let text = serde_json::json!({ "errors": [{ "code": "DENIED", "message": format!("you sent {sent}") }] });
            Answer::new(403, text.to_string().as_bytes())
        }
    });
    let error =
        host(&proxy.address(), config).resolve(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("YWRh") && !text.contains("secret") && !text.contains("you sent"), "{text}");
    assert!(
        proxy
            .requests()
            .iter()
            .any(|request| request.header("authorization") == Some("Basic YWRhOnNlY3JldA=="))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_without_end_are_told_shortly() {
    let server = Server::new();
    let long = vec![b'x'; 3 << 20];
    let pages: Vec<(Answer, &str)> = vec![
        (Answer::new(403, &long), "too long"),
        (Answer::new(403, &[0, 159, 146, 150]), "4 bytes that are no text"),
        (Answer::new(403, "<!DOCTYPE html>".repeat(1000).as_bytes()), "HTML"),
        (Answer { hold: true, cut: Some(3), ..Answer::new(403, b"for ever and ever") }, "does not end"),
        (
            Answer { slow: Some(Duration::from_millis(900)), ..Answer::new(403, &[b'y'; 5000]) },
            "does not end",
        ),
    ];
    for (page, word) in pages {
        let proxy = Proxy::new(&server, move |_, _| page.clone());
        let begun = Instant::now();
        let error =
            Host::new(&[&proxy.address()]).resolve(&format!("{}/app:1", proxy.address())).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(word) && text.len() < 500, "{text}");
        assert_eq!(error.reason, Reason::Auth);
        // Those that do not end would be waited for for 30 seconds and more.
        assert!(begun.elapsed() < Duration::from_secs(28), "{word}: it is not waited for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_to_wait_is_waited_for() {
    let server = Server::new();
    server.push("1", &[layer(1)]).await;
    let in_two_seconds =
        [("Date", "Wed, 21 Oct 2026 07:28:00 GMT"), ("Retry-After", "Wed, 21 Oct 2026 07:28:02 GMT")];
    for headers in [vec![("Retry-After", "2")], in_two_seconds.to_vec()] {
        let times = AtomicUsize::new(0);
        let proxy = Proxy::new(&server, move |request, upstream| {
            if times.fetch_add(1, Ordering::SeqCst) > 0 {
                return upstream.get(request);
            }
            headers.iter().fold(Answer::new(429, b"{}"), |answer, (name, value)| answer.header(name, value))
        });
        let begun = Instant::now();
        Host::new(&[&proxy.address()]).resolve(&format!("{}/app:1", proxy.address())).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(proxy.requests().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_pull_has_one_budget() {
    let server = Server::new();
    let blobs: Vec<Blob> = (0..12).map(layer).collect();
    server.push("1", &blobs).await;
    let digests: Vec<String> = blobs.iter().map(Blob::digest).collect();
    // Each layer breaks off twice before it comes: too often for all of them together.
    let times: Vec<AtomicUsize> = digests.iter().map(|_| AtomicUsize::new(0)).collect();
    let counted = digests.clone();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let mut answer = upstream.get(request);
        if let Some(at) = counted.iter().position(|digest| request.path.contains(digest))
            && times[at].fetch_add(1, Ordering::SeqCst) < 2
        {
            answer.cut = Some(10);
        }
        answer
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.reason, Reason::RegistryUnreachable, "{text}");
    assert!(text.contains("all 20 further tries of this pull are used up"), "{text}");
    let asked: usize = digests.iter().map(|digest| proxy.count(digest)).sum();
    assert!((20..=32).contains(&asked), "{asked} requests");
    // Of the layers that came, those may have their names below which none is missing.
    assert_eq!(host.names("images"), Vec::<String>::new());
    host.assert_tmp_clean();
    // One that never comes says how often it was tried.
    let digest = digests[0].clone();
    let proxy = Proxy::new(&server, move |request, upstream| {
        let answer = upstream.get(request);
        if request.path.contains(&digest) { Answer { cut: Some(10), ..answer } } else { answer }
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert!(error.to_string().contains("tried 4 times in "), "{error}");
    assert!(!error.to_string().contains("used up"), "{error}");
}
