//! Manifests, indexes and configurations that are not what they should be: each is refused by name.

use gitopsd::registry::Disposition;
use gitopsd::types::Reason;
use serde_json::{Value, json};

use super::support::Host;
use super::support::image::{Blob, Layer, config, manifest, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::Server;

fn layer() -> Blob {
    Layer::default().file("file", &noise(1, 10_000)).gzip()
}

/// A registry that gives `document` for the tag 1.
async fn serve(document: Vec<u8>) -> (Server, Proxy) {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    let proxy = Proxy::new(&server, move |request, upstream| {
        if request.path.ends_with("/manifests/1") {
            Answer::new(200, &document)
        } else {
            upstream.get(request)
        }
    });
    (server, proxy)
}

async fn refusal(what: &str, document: Vec<u8>) -> (Reason, String) {
    let (_server, proxy) = serve(document).await;
    let host = Host::new(&[&proxy.address()]);
    let error = host.pull(&format!("{}/app:1", proxy.address())).await.expect_err(what);
    assert_eq!(error.disposition, Disposition::Fatal, "{what}: {error}");
    host.assert_empty();
    (error.reason, error.to_string())
}

fn good() -> Value {
    manifest(&config(&[layer()]).to_string(), &[layer()])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_good_one_is_good() {
    let (_server, proxy) = serve(good().to_string().into_bytes()).await;
    let host = Host::new(&[&proxy.address()]);
    host.pull(&format!("{}/app:1", proxy.address())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_say_that_it_is_one() {
    let mut document = good();
    document["artifactType"] = json!("application/vnd.oci.image.config.v1+json");
    let (_server, proxy) = serve(document.to_string().into_bytes()).await;
    Host::new(&[&proxy.address()]).pull(&format!("{}/app:1", proxy.address())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_refused() {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut document = good();
        change(&mut document);
        document.to_string().into_bytes()
    };
    let (invalid, unsupported) = (Reason::ImageInvalid, Reason::ImageUnsupported);
    let media =
        |media: &'static str| move |document: &mut Value| document["layers"][0]["mediaType"] = json!(media);
    let twice = good().to_string().replacen('{', r#"{"layers":[],"#, 1);
    let rows: Vec<(&str, Vec<u8>, Reason, &str)> = vec![
        (
            "schema 1",
            json!({ "schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [], "history": [] })
                .to_string()
                .into(),
            unsupported,
            "schema 1",
        ),
        (
            "image and index",
            changed(&|d| d["manifests"] = json!([])),
            invalid,
            "neither an image nor an index",
        ),
        (
            "neither",
            json!({ "schemaVersion": 2 }).to_string().into(),
            invalid,
            "neither an image nor an index",
        ),
        (
            "an image that calls itself an index",
            changed(&|d| d["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
            invalid,
            "index",
        ),
        ("no JSON", b"<html>".to_vec(), invalid, "manifest"),
        ("nothing", Vec::new(), invalid, "manifest"),
        ("a key twice", twice.into_bytes(), invalid, "layers"),
        ("no layers", changed(&|d| d["layers"] = json!([])), invalid, "0 layers"),
        (
            "too many layers",
            changed(&|d| d["layers"] = json!(vec![layer().descriptor(); 129])),
            invalid,
            "129 layers",
        ),
        (
            "a digest that is a path",
            changed(&|d| d["layers"][0]["digest"] = json!("sha256:../../x")),
            invalid,
            "not a digest",
        ),
        (
            "a digest of another kind",
            changed(&|d| d["config"]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
            invalid,
            "not a digest",
        ),
        (
            "upper case",
            changed(&|d| d["config"]["digest"] = json!(format!("sha256:{}", "A".repeat(64)))),
            invalid,
            "not a digest",
        ),
        ("a size below nothing", changed(&|d| d["layers"][0]["size"] = json!(-1)), invalid, "manifest"),
        (
            "a large configuration",
            changed(&|d| d["config"]["size"] = json!(5 << 20)),
            invalid,
            "configuration",
        ),
        ("an unknown kind", changed(&media("application/x-lab")), unsupported, "application/x-lab"),
        ("no kind", changed(&media("")), unsupported, "type"),
        (
            "a foreign layer",
            changed(&media("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")),
            unsupported,
            "outside",
        ),
        (
            "urls",
            changed(&|d| d["layers"][0]["urls"] = json!(["http://169.254.169.254/"])),
            unsupported,
            "outside",
        ),
        (
            "a Helm chart",
            changed(&|d| d["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            unsupported,
            "no container image, but a Helm chart (application/vnd.cncf.helm.config.v1+json)",
        ),
        (
            "a signature, with the configuration of an image",
            changed(&media("application/vnd.dev.cosign.simplesigning.v1+json")),
            unsupported,
            "no container image, but a signature (application/vnd.dev.cosign",
        ),
        (
            "an attestation, with the configuration of an image",
            changed(&media("application/vnd.in-toto+json")),
            unsupported,
            "no container image, but an attestation (application/vnd.in-toto+json)",
        ),
        (
            "an artifact by its type",
            changed(&|d| {
                d["artifactType"] = json!("application/vnd.example.thing.v1");
                d["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
            }),
            unsupported,
            "no container image, but an artifact of type application/vnd.example.thing.v1",
        ),
        (
            "an artifact without layers",
            changed(&|d| {
                d["artifactType"] = json!("application/vnd.example.thing.v1");
                d["layers"] = json!([]);
            }),
            unsupported,
            "application/vnd.example.thing.v1",
        ),
        (
            "an artifact manifest",
            json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": [] })
                .to_string()
                .into(),
            unsupported,
            "no container image",
        ),
        (
            "an empty configuration",
            changed(&|d| d["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")),
            unsupported,
            "application/vnd.oci.empty.v1+json",
        ),
        (
            "an index of charts alone",
            json!({ "schemaVersion": 2, "manifests": [
                { "mediaType": "application/vnd.example", "digest": layer().digest(), "size": 1 }] })
                .to_string()
                .into(),
            unsupported,
            "has no image for linux/",
        ),
        (
            "an index of images that do not say what they are for",
            json!({ "schemaVersion": 2, "manifests": [
                { "digest": layer().digest(), "size": 1 }, { "digest": layer().diff_id, "size": 1 }] })
                .to_string()
                .into(),
            unsupported,
            "has no image for linux/",
        ),
        (
            "an empty index",
            json!({ "schemaVersion": 2, "manifests": [] }).to_string().into(),
            unsupported,
            "linux/",
        ),
    ];
    for (what, document, reason, word) in rows {
        let (found, text) = refusal(what, document).await;
        assert_eq!(found, reason, "{what}: {text}");
        assert!(text.contains(word), "{what}: {text}");
        assert!(text.len() < 600, "{what}: one line, not {}", text.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_document_is_not_taken_in() {
    let mut document = good().to_string().into_bytes();
    document.resize((4 << 20) + 1, b' ');
    let (reason, text) = refusal("huge", document).await;
    assert_eq!(reason, Reason::ImageInvalid);
    assert!(text.contains("4194304"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_in_an_index_ends_somewhere() {
    let server = Server::new();
    server.push("1", &[layer()]).await;
    // It names itself; nobody can make one whose digest is right, so the digest is what stops it.
    let platform = json!({ "os": "linux", "architecture": super::support::image::architecture() });
    let inner = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    let entry = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "platform": platform,
        "digest": super::support::image::sha256(inner.as_bytes()), "size": inner.len(),
    });
    let outer = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let proxy = Proxy::new(&server, move |request, _| {
        let text = if request.path.ends_with("/manifests/1") { &outer } else { &inner };
        Answer::new(200, text.as_bytes())
    });
    let host = Host::new(&[&proxy.address()]);
    let error = host.resolve(&format!("{}/app:1", proxy.address())).await.unwrap_err();
    assert!(!error.may_pass(), "{error}");
    assert!(proxy.requests().len() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_that_are_refused() {
    let blob = layer();
    let rows: Vec<(&str, Value, &str)> = vec![
        (
            "no layers",
            json!({ "rootfs": { "type": "layers", "diff_ids": [] } }),
            "names 0 layers, and the manifest 1",
        ),
        ("a path", json!({ "rootfs": { "diff_ids": ["sha256:../../../etc"] } }), "not a digest"),
        ("none", json!({}), "rootfs"),
        ("a list", json!([]), "configuration"),
    ];
    for (what, document, word) in rows {
        let server = Server::new();
        server.push_with("1", std::slice::from_ref(&blob), document).await;
        let host = Host::new(&[&server.address()]);
        let error = host.pull(&format!("{}/app:1", server.address())).await.unwrap_err();
        assert_eq!(
            (error.reason, error.disposition),
            (Reason::ImageInvalid, Disposition::Fatal),
            "{what}: {error}"
        );
        assert!(error.to_string().contains(word), "{what}: {error}");
        host.assert_empty();
    }
}
