//! Certificates of this host: shown to whom they are for, and to nobody else.

use std::collections::BTreeMap;

use gitopsd::config::agent::RegistryConfig;
use gitopsd::types::Reason;

use super::support::Host;
use super::support::certificates::Certificates;
use super::support::image::{Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Face, Server};

#[tokio::test(flavor = "multi_thread")]
async fn the_right_one_and_only_where_it_belongs() {
    let server = Server::new();
    server.push("1", &[Layer::default().file("file", &noise(1, 10_000)).gzip()]).await;
    let dir = tempfile::tempdir().unwrap();
    let lab = Certificates::new(dir.path(), "lab", "IP:127.0.0.1", "2");
    let other = Certificates::new(dir.path(), "other", "IP:127.0.0.1", "2");
    let tls = Some((lab.certificate.as_path(), lab.key.as_path()));
    let closed = server.face(&Face { tls, clients_by: Some(&lab.ca), ..Face::default() });
    let trusting = RegistryConfig { ca_file: Some(lab.ca.clone()), ..RegistryConfig::default() };
    let with = |of: &Certificates| RegistryConfig {
        client_cert: Some(of.certificate.clone()),
        client_key: Some(of.key.clone()),
        ..trusting.clone()
    };
    let reference = format!("{}/app:1", closed.address());
    let one = |config: RegistryConfig| Host::with(BTreeMap::from([(closed.address(), config)]));
    one(with(&lab)).pull(&reference).await.unwrap();
    for config in [trusting.clone(), with(&other)] {
        let host = one(config);
        let error = host.pull(&reference).await.unwrap_err();
        assert_eq!(error.reason, Reason::Tls, "{error}");
        assert!(error.to_string().contains("client_cert"), "{error}");
        host.assert_empty();
    }
    // One that leads to it, with its layers, and has this host's certificate itself: it is not shown there.
    let place = format!("https://{}", closed.address());
    let leading = Proxy::secure(&server, &lab, move |request, upstream| match request.is_blob() {
        true => Answer::new(307, b"").header("Location", &format!("{place}{}", request.path)),
        false => upstream.get(request),
    });
    let reference = format!("{}/app:1", leading.address());
    let two = |second: Option<RegistryConfig>| {
        let mut sections = BTreeMap::from([(leading.address(), with(&lab))]);
        sections.extend(second.map(|config| (closed.address(), config)));
        Host::with(sections)
    };
    let error = two(None).pull(&reference).await.unwrap_err();
    assert_eq!(error.reason, Reason::Tls, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("leads to {}", closed.address())), "{text}");
    // With a section of its own it is.
    two(Some(with(&lab))).pull(&reference).await.unwrap();
    // As a mirror: the registry's certificate is not the mirror's.
    let home = Proxy::secure(&server, &lab, |request, upstream| upstream.get(request));
    let mirrors = vec![format!("https://{}", closed.address()).parse().unwrap()];
    let mirrored = RegistryConfig { mirrors, ..with(&lab) };
    let reference = format!("{}/app:1", home.address());
    Host::with(BTreeMap::from([(home.address(), mirrored.clone())])).pull(&reference).await.unwrap();
    assert_eq!(home.requests().len(), 3, "the mirror would not have it");
    let both = BTreeMap::from([(home.address(), mirrored), (closed.address(), with(&lab))]);
    Host::with(both).pull(&reference).await.unwrap();
    assert_eq!(home.requests().len(), 3, "the mirror has all");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_lies_elsewhere_does_not_get_it() {
    let server = Server::new();
    let dir = tempfile::tempdir().unwrap();
    let lab = Certificates::new(dir.path(), "lab", "IP:127.0.0.1", "2");
    let elsewhere = Proxy::secure(&server, &lab, |_, _| Answer::new(404, b""));
    let place = format!("https://{}/app.tar", elsewhere.address());
    let leading = Proxy::secure(&server, &lab, move |_, _| Answer::new(302, b"").header("Location", &place));
    let config = RegistryConfig { ca_file: Some(lab.ca.clone()), ..RegistryConfig::default() };
    let certified = RegistryConfig {
        client_cert: Some(lab.certificate.clone()),
        client_key: Some(lab.key.clone()),
        ..config.clone()
    };
    for (config, asked) in [(config, true), (certified, false)] {
        let host = Host::with(BTreeMap::from([(leading.address(), config)]));
        let before = elsewhere.requests().len();
        let error = host.resolve(&format!("https://{}/app.tar", leading.address())).await.unwrap_err();
        assert_eq!(elsewhere.requests().len() > before, asked, "{error}");
        assert_eq!(error.to_string().contains("client_cert"), !asked, "{error}");
    }
}
