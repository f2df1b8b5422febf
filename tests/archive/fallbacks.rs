//! Archives in a registry's place.

use std::collections::BTreeMap;
use std::process::Command;

use gitopsd::config::agent::S3Config;
use gitopsd::types::{Digest, ImageRef, PinnedImage, Reason};

use super::make::{gzip, oci, small};
use super::support::image::{Layer, noise};
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

/// `docker save` keeps no manifest, so an archive of it is known by its configuration: also by an agent that was
/// started after the tag was looked up.
#[tokio::test(flavor = "multi_thread")]
async fn docker_save_stands_in_after_a_restart() {
    let mut server = Server::new();
    server.push("1", &[Layer::default().file("etc/app", &noise(1, 10_000)).gzip()]).await;
    let registries = BTreeMap::from([(server.address(), support::plain())]);
    let before = host_of(S3Config::default(), registries.clone());
    let archive = before.dir.path().join("app.tar");
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{}/app:1", server.address()))
        .arg(format!("docker-archive:{}", archive.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fallback = [format!("file://{}", archive.display())];
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
