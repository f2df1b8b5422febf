//! Archives in a registry's place.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use gitopsd::config::agent::S3Config;
use gitopsd::types::{Digest, ImageRef, PinnedImage, Reason};

use super::make::{gzip, oci, rewrite, small};
use super::support::image::{INDEX, Layer, architecture, noise};
use super::support::server::Server;
use super::{host, host_at, host_of, support};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[tokio::test(flavor = "multi_thread")]
async fn archives_stand_in_for_a_registry() {
    let host = host(S3Config::default());
    let url = host.put("shop-1.2.tar", &oci(&small(), GZIP, gzip));
    let template = url.replace("1.2", "{tag}");
    let missing = format!("file://{}/none-{{digest}}.tar", host.dir.path().display());
    let fallback = [missing, template];
    let reference: ImageRef = "127.0.0.1:1/shop:1.2".parse().unwrap();
    let digest = host.registry.resolve_or(&reference, &fallback).await.unwrap();
    let pinned = PinnedImage { reference: reference.clone(), digest };
    host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(host.file(&pinned.digest, "etc/app").as_deref(), Some(&b"app"[..]));
    // Another image is not taken, whatever its name says.
    let other = PinnedImage { reference, digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap() };
    let error = host.registry.pull_or(&other, &fallback, &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, Reason::RegistryUnreachable, "{error}");
    assert!(error.to_string().contains("the fallback"), "{error}");
    host.assert_nothing_unfinished();
}

/// An archive may have others to stand in for it as well.
#[tokio::test(flavor = "multi_thread")]
async fn archives_stand_in_for_an_archive() {
    let host = host(S3Config::default());
    let there = host.put("there.tar", &oci(&small(), GZIP, gzip));
    let reference: ImageRef = there.replace("there", "gone").parse().unwrap();
    let fallback = ["s3://images/{tag}.tar".to_owned(), there];
    let digest = host.registry.resolve_or(&reference, &fallback).await.unwrap();
    let pinned = PinnedImage { reference, digest };
    host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(host.file(&pinned.digest, "etc/app").as_deref(), Some(&b"app"[..]));
}

/// What a tag makes of a template is checked like any address.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_leads_nowhere_else() {
    let host = host(S3Config::default());
    host.put("shop.tar", &oci(&small(), GZIP, gzip));
    std::fs::create_dir(host.dir.path().join("allowed")).unwrap();
    let dir = host.dir.path().display();
    let reference: ImageRef = "127.0.0.1:1/shop:e".parse().unwrap();
    for bad in [
        format!("file://{dir}/allowed/%2{{tag}}%2{{tag}}/shop.tar"),
        format!("file://{dir}/allowed/../shop.tar"),
        "https://{tag}.org/shop.tar".to_owned(),
    ] {
        let error = host.registry.resolve_or(&reference, std::slice::from_ref(&bad)).await.unwrap_err();
        let told = format!("fallback {bad}: ");
        assert!(error.to_string().contains(&told), "{bad}: {error}");
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let pinned = PinnedImage { reference: reference.clone(), digest };
        let error = host.registry.pull_or(&pinned, &[bad], &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains(&told), "{error}");
    }
}

/// What `gitopsd lock` writes of an image for several platforms is the digest of its index: an archive that has the index
/// stands in, on a host that never saw the registry.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_the_index_stands_in_for_what_is_pinned_by_it() {
    let mut server = Server::new();
    let ours = server.push("ours", &[Layer::default().file("etc/app", b"ours").gzip()]).await;
    let theirs = server.push("theirs", &[Layer::default().file("etc/app", b"theirs").gzip()]).await;
    let of = |manifest: &serde_json::Value, architecture: &str| {
        let mut entry = manifest.clone();
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let entries = [of(&theirs, "s390x"), of(&ours, architecture())];
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let index = server.push_manifest("1", INDEX, &index).await;
    let host = host_of(S3Config::default(), BTreeMap::from([(server.address(), support::plain())]));
    let copy = |name: &str, all: &[&str]| {
        let archive = host.dir.path().join(name);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--preserve-digests"])
            .args(all)
            .arg(format!("docker://{}/app:1", server.address()))
            .arg(format!("oci-archive:{}", archive.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        format!("file://{}", archive.display())
    };
    let (all, one) = (copy("all.tar", &["--all"]), copy("one.tar", &[]));
    // Who calls another index by that name does not have it.
    let digest = index["digest"].as_str().unwrap().to_owned();
    let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let forged = std::fs::read(all.trim_start_matches("file://")).unwrap();
    let forged = host.put("forged.tar", &rewrite(&forged, &path, |text| text.replace("s390x", "s390y")));
    server.stop();
    let reference: ImageRef = format!("{}/app:1@{digest}", server.address()).parse().unwrap();
    for (archive, why) in
        [(one, "whose configuration is not known here"), (forged, "does not have its digest")]
    {
        let fallback = [archive];
        let pinned = PinnedImage {
            digest: host.registry.resolve_or(&reference, &fallback).await.unwrap(),
            reference: reference.clone(),
        };
        let error = host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let fallback = [all];
    let digest = host.registry.resolve_or(&reference, &fallback).await.unwrap();
    let pinned = PinnedImage { reference, digest };
    host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(host.file(&pinned.digest, "etc/app").as_deref(), Some(&b"ours"[..]));
    host.assert_nothing_unfinished();
}

/// Also an archive without it, once the registry has said what the index holds for this host.
#[tokio::test(flavor = "multi_thread")]
async fn docker_save_stands_in_for_what_is_pinned_by_an_index() {
    let mut server = Server::new();
    let mut entry = server.push("1", &[Layer::default().file("etc/app", b"app").gzip()]).await;
    entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture() });
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let index = server.push_manifest("all", INDEX, &index).await;
    let registries = BTreeMap::from([(server.address(), support::plain())]);
    let before = host_of(S3Config::default(), registries.clone());
    let fallback = [docker_save(&server, before.dir.path())];
    let digest = index["digest"].as_str().unwrap();
    let reference: ImageRef = format!("{}/app:all@{digest}", server.address()).parse().unwrap();
    before.registry.resolve_or(&reference, &fallback).await.unwrap();
    server.stop();
    let super::Host { dir, store, registry } = before;
    drop((store, registry));
    let after = host_at(dir, S3Config::default(), registries);
    let digest = after.registry.resolve_or(&reference, &fallback).await.unwrap();
    let pinned = PinnedImage { reference, digest };
    after.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(after.file(&pinned.digest, "etc/app").as_deref(), Some(&b"app"[..]));
}

/// Saves `app:1` as `docker save` does; gives the archive's address.
fn docker_save(server: &Server, dir: &Path) -> String {
    let archive = dir.join("app.tar");
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{}/app:1", server.address()))
        .arg(format!("docker-archive:{}", archive.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("file://{}", archive.display())
}

/// `docker save` keeps no manifest, so an archive of it is known by its configuration: also by an agent that was
/// started after the tag was looked up.
#[tokio::test(flavor = "multi_thread")]
async fn docker_save_stands_in_after_a_restart() {
    let mut server = Server::new();
    server.push("1", &[Layer::default().file("etc/app", &noise(1, 10_000)).gzip()]).await;
    let registries = BTreeMap::from([(server.address(), support::plain())]);
    let before = host_of(S3Config::default(), registries.clone());
    let fallback = [docker_save(&server, before.dir.path())];
    let reference: ImageRef = format!("{}/app:1", server.address()).parse().unwrap();
    let digest = before.registry.resolve_or(&reference, &fallback).await.unwrap();
    let pinned = PinnedImage { reference, digest };
    server.stop();
    let super::Host { dir, store, registry } = before;
    drop((store, registry));
    let after = host_at(dir, S3Config::default(), registries.clone());
    after.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(after.file(&pinned.digest, "etc/app"), Some(noise(1, 10_000)));
    // And of an image that was here: by its record, without that note.
    let state = after.dir.path().join("state/store");
    for folder in ["configs", "layers"] {
        std::fs::remove_dir_all(state.join(folder)).unwrap();
    }
    let super::Host { dir, store, registry } = after;
    drop((store, registry));
    let again = host_at(dir, S3Config::default(), registries);
    assert!(again.store.image(&pinned.digest).is_none());
    again.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(again.file(&pinned.digest, "etc/app"), Some(noise(1, 10_000)));
    // Without any of it, nothing says that they are one: that is told.
    std::fs::remove_dir_all(again.dir.path().join("state")).unwrap();
    let super::Host { dir, store, registry } = again;
    drop((store, registry));
    let bare = host_at(dir, S3Config::default(), BTreeMap::new());
    let error = bare.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("whose configuration is not known here"), "{error}");
}
