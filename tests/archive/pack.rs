//! `gitopsd pack`: the same image from anywhere gives the same bytes, and everybody can read them.

use std::path::Path;
use std::process::{Command, Output};

use gitopsd::config::agent::S3Config;
use serde_json::Value;

use super::host;
use super::make::{docker_save, gzip, hex, image, noise, oci, small, tar, zstd};
use super::server::{Server, file};
use super::support::names;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn pack(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gitopsd")).current_dir(dir).arg("pack").args(args).output().unwrap()
}

#[track_caller]
fn packed(dir: &Path, args: &[&str]) -> Value {
    let output = pack(dir, &[args, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_gives_the_same_bytes_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let base = tar(&[("etc/base", b"base"), ("zeros", &[0; 300_000])]);
    // A layer that is there twice is written once.
    let image = image(vec![base.clone(), tar(&[("etc/app", b"app"), ("srv/x", &noise(70_000, 3))]), base]);
    let inputs = [docker_save(&image), oci(&image, GZIP, gzip), gzip(&docker_save(&image))];
    let mut first = None;
    for (number, input) in inputs.iter().enumerate() {
        std::fs::write(dir.path().join(format!("in-{number}")), input).unwrap();
        let output = format!("out-{number}.tar");
        let told = packed(dir.path(), &[&format!("./in-{number}"), "-o", &output]);
        let bytes = std::fs::read(dir.path().join(&output)).unwrap();
        assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "{number} differs");
        let packed = &told["packed"];
        assert_eq!(told["ok"], true);
        assert_eq!(packed["bytes"], bytes.len());
        assert_eq!(packed["config"], format!("sha256:{}", hex(&image.config)));
        let diff_ids: Vec<_> = packed["layers"].as_array().unwrap().iter().map(|l| &l["diff_id"]).collect();
        let wanted: Vec<_> = image.layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        assert_eq!(diff_ids, wanted.iter().collect::<Vec<_>>());
    }
    let bytes = first.unwrap();
    let entries: Vec<_> = tar::Archive::new(&bytes[..])
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            String::from_utf8_lossy(&entry.path_bytes()).into_owned()
        })
        .collect();
    assert_eq!(entries[..2], ["oci-layout", "index.json"]);
    assert_eq!(entries[3], format!("blobs/sha256/{}", hex(&image.config)));
    assert_eq!(entries.len(), 6);
    assert!(bytes.len() < 100_000, "it is packed: {}", bytes.len());
    // Nothing is left beside it.
    let there = names(dir.path());
    assert_eq!(there, ["in-0", "in-1", "in-2", "out-0.tar", "out-1.tar", "out-2.tar"]);
    // We take it, and of the layers that another archive brought none is read again.
    let host = host(S3Config::default());
    host.pull(&host.put("saved", &docker_save(&image))).await.unwrap();
    let (digest, pulled) = host.pull(&host.put("packed", &bytes)).await.unwrap();
    assert_eq!((pulled.layers_total, pulled.layers_reused), (3, 3));
    let fresh = super::host(S3Config::default());
    let (same, pulled) = fresh.pull(&fresh.put("packed", &bytes)).await.unwrap();
    assert_eq!(
        (same, pulled.layers_reused),
        (digest.clone(), 0),
        "none was here, nor the one that is there twice"
    );
    assert_eq!(fresh.file(&digest, "srv/x"), Some(noise(70_000, 3)));
    // Others do too.
    let skopeo = Command::new("skopeo")
        .args(["inspect", "--raw", "oci-archive:out-0.tar"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(skopeo.status.success(), "{}", String::from_utf8_lossy(&skopeo.stderr));
    assert_eq!(digest.hex(), hex(&skopeo.stdout));
    let skopeo = Command::new("skopeo")
        .args(["inspect", "oci-archive:out-0.tar"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(skopeo.status.success(), "{}", String::from_utf8_lossy(&skopeo.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_packed_packs_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let media = "application/vnd.oci.image.layer.v1.tar+zstd";
    std::fs::write(dir.path().join("in"), oci(&small(), media, zstd)).unwrap();
    packed(dir.path(), &["./in", "-o", "a.tar"]);
    packed(dir.path(), &["./a.tar", "-o", "b.tar"]);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(read("a.tar") == read("b.tar"));
    // A root file system becomes an image of one layer.
    std::fs::write(dir.path().join("root"), tar(&[("etc/hostname", b"x")])).unwrap();
    packed(dir.path(), &["./root", "-o", "root.tar"]);
    let host = host(S3Config::default());
    let (digest, _) = host.pull(&host.put("packed", &read("root.tar"))).await.unwrap();
    assert_eq!(host.file(&digest, "etc/hostname").as_deref(), Some(&b"x"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_registry_with_the_hosts_configuration() {
    let server = super::support::server::Server::new();
    let layer = super::support::image::Layer::default().file("etc/app", &noise(10_000, 1)).gzip();
    server.push("1", &[layer]).await;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[repo]\nurl = \"{0}/none\"\n[registry.\"{1}\"]\nplain_http = true\n",
        dir.path().display(),
        server.address()
    );
    std::fs::write(dir.path().join("gitopsd.toml"), config).unwrap();
    let reference = format!("{}/app:1", server.address());
    let told = packed(dir.path(), &["--config", "gitopsd.toml", &reference, "--output", "app.tar"]);
    assert!(told["packed"]["pulled_bytes"].as_u64().unwrap() > 10_000, "{told}");
    assert!(!dir.path().join("state").exists(), "the host's state is not touched");
    // It stands in for the very image: by its configuration.
    let fallback = [format!("file://{}/app.tar", dir.path().display())];
    let registries = [(server.address(), super::support::plain())].into();
    let host = super::host_of(S3Config::default(), registries);
    let reference = reference.parse().unwrap();
    let digest = host.registry.resolve_or(&reference, &fallback).await.unwrap();
    drop(server);
    let pinned = gitopsd::types::PinnedImage { reference, digest };
    host.registry.pull_or(&pinned, &fallback, &|_| {}).await.unwrap();
    assert_eq!(host.file(&pinned.digest, "etc/app"), Some(noise(10_000, 1)));
}

#[test]
fn what_cannot_be_packed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in"), docker_save(&small())).unwrap();
    std::fs::write(dir.path().join("bad"), &docker_save(&small())[..30_000]).unwrap();
    std::fs::write(dir.path().join("there"), "precious").unwrap();
    for (args, code, part) in [
        (&["./in", "-o", "there"][..], 1, "there is there already"),
        (&["./bad", "-o", "out"], 1, "bad"),
        (&["./missing", "-o", "out"], 1, "missing"),
        (&["file:///nonexistent/a.tar", "-o", "out"], 1, "nonexistent"),
        (&["in", "-o", "out"], 64, "a path begins with / or ./"),
        (&["./in", "-o", "none/out"], 1, "none"),
        (&["./in"], 64, "--output"),
    ] {
        let output = pack(dir.path(), args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(part), "{args:?}: {text}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("there")).unwrap(), "precious");
    assert_eq!(names(dir.path()), ["bad", "in", "there"]);
    packed(dir.path(), &["./in", "-o", "there", "--force"]);
    assert!(std::fs::read(dir.path().join("there")).unwrap().len() > 10_000);
    assert_eq!(names(dir.path()), ["bad", "in", "there"]);
}

/// An interrupt, and a reader that is gone, leave nothing.
#[test]
fn an_interrupt_leaves_nothing() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let archive = docker_save(&image(vec![tar(&[("etc/app", &noise(1 << 20, 1))])]));
        let (asked, stalls) = std::sync::mpsc::channel();
        let server = Server::new(move |request| {
            // Its layer comes half, and then nothing for long.
            let answer = file(request, &archive, "\"1\"");
            if answer.body.len() > 500_000 {
                asked.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_secs(25));
            }
            answer
        });
        let config = format!(
            "state_dir = \"/nonexistent\"\n[repo]\nurl = \"/nonexistent\"\n[s3]\nendpoint = \"{}\"\npath_style = true\n",
            server.url("")
        );
        std::fs::write(dir.path().join("gitopsd.toml"), config).unwrap();
        let packing = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .current_dir(dir.path())
            .args(["--config", "gitopsd.toml", "pack", "s3://images/app.tar", "-o", "out"])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        stalls.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(names(dir.path()).len(), 2, "its work is beside it");
        assert!(Command::new("kill").args([signal, &packing.id().to_string()]).status().unwrap().success());
        let output = packing.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("interrupted"), "{text}");
        assert_eq!(names(dir.path()), ["gitopsd.toml"]);
    }
}
