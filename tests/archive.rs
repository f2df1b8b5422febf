//! Images from archives: every form and packing on disk, and only the missing layers from a real S3 API.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gitopsd::config::agent::{RegistryConfig, S3Config};
use gitopsd::registry::{PullError, Pulled, Registry, Store};
use gitopsd::types::{Digest, ImageRef, PinnedImage, Reason};
use serde_json::json;
use sha2::{Digest as _, Sha256};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Layers, lowest first, and what their configuration is.
struct Image {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
}

fn image(layers: Vec<Vec<u8>>) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    Image { layers, config: config.to_string().into_bytes() }
}

fn small() -> Image {
    image(vec![tar(&[("etc/base", b"base")]), tar(&[("etc/app", b"app"), ("srv/x", &noise(70_000, 3))])])
}

/// As `docker save` wrote it before Docker 25, with a layer that is a link to another one's file.
fn docker_save(image: &Image) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut paths = Vec::new();
    for layer in &image.layers {
        let path = format!("{}/layer.tar", hex(layer));
        files.push((path.clone(), layer.clone()));
        paths.push(path);
    }
    let config = format!("{}.json", hex(&image.config));
    files.push((config.clone(), image.config.clone()));
    let manifest = json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": paths }]);
    files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    tar(&files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect::<Vec<_>>())
}

/// An OCI archive; layers packed as `packed` says.
fn oci(image: &Image, media: &str, packed: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut blobs: Vec<Vec<u8>> = image.layers.iter().map(|layer| packed(layer)).collect();
    let layers: Vec<_> = blobs
        .iter()
        .map(|blob| json!({ "mediaType": media, "digest": format!("sha256:{}", hex(blob)), "size": blob.len() }))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", hex(&image.config)), "size": image.config.len(),
        },
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", hex(&manifest)), "size": manifest.len(),
    }] });
    blobs.extend([image.config.clone(), manifest]);
    let mut files: Vec<(String, Vec<u8>)> =
        blobs.into_iter().map(|blob| (format!("blobs/sha256/{}", hex(&blob)), blob)).collect();
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    tar(&files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect::<Vec<_>>())
}

/// Packs bytes.
type Pack = fn(&[u8]) -> Vec<u8>;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

/// Two streams, one behind the other.
fn twice(pack: Pack, bytes: &[u8]) -> Vec<u8> {
    let (a, b) = bytes.split_at(bytes.len() / 2);
    [pack(a), pack(b)].concat()
}

struct Host {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    registry: Registry,
}

fn host(s3: S3Config) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("state")).unwrap());
    let nowhere = BTreeMap::from([(
        "127.0.0.1:1".to_owned(),
        RegistryConfig { plain_http: true, ..RegistryConfig::default() },
    )]);
    let registry = Registry::new(store.clone(), nowhere)
        .unwrap()
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into())
        .with_s3(s3);
    Host { dir, store, registry }
}

impl Host {
    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    }

    async fn pull(&self, url: &str) -> Result<(Digest, Pulled), PullError> {
        let reference: ImageRef = url.parse().unwrap();
        let digest = self.registry.resolve(&reference).await?;
        let image = PinnedImage { reference, digest: digest.clone() };
        let pulled = self.registry.pull(&image, &|_| {}).await?;
        Ok((digest, pulled))
    }

    /// A file of an image, from its uppermost layer that has it.
    fn file(&self, digest: &Digest, path: &str) -> Option<Vec<u8>> {
        let image = self.store.image(digest).unwrap();
        image.layers.iter().rev().find_map(|layer| std::fs::read(layer.join(path)).ok())
    }

    fn assert_nothing_unfinished(&self) {
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("state/store/tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_in_every_packing() {
    let image = small();
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let forms = [
        ("docker save", docker_save(&image)),
        ("oci", oci(&image, plain, <[u8]>::to_vec)),
        ("oci gzip", oci(&image, "application/vnd.oci.image.layer.v1.tar+gzip", gzip)),
        ("oci zstd", oci(&image, "application/vnd.oci.image.layer.v1.tar+zstd", zstd)),
    ];
    let packings: [(&str, Pack); 7] = [
        ("plain", <[u8]>::to_vec),
        ("gzip", gzip),
        ("two gzip members", |bytes| twice(gzip, bytes)),
        ("two zstd frames", |bytes| twice(zstd, bytes)),
        ("bzip2", bzip2),
        ("two bzip2 streams", |bytes| twice(bzip2, bytes)),
        ("two xz streams", |bytes| twice(xz, bytes)),
    ];
    for (form, archive) in forms {
        let mut identity = None;
        for (packing, pack) in packings {
            let host = host(S3Config::default());
            let (digest, _) = host
                .pull(&host.put("image", &pack(&archive)))
                .await
                .unwrap_or_else(|error| panic!("{form}, {packing}: {error}"));
            assert_eq!(host.file(&digest, "etc/base").as_deref(), Some(&b"base"[..]), "{form}, {packing}");
            assert_eq!(host.file(&digest, "srv/x"), Some(noise(70_000, 3)), "{form}, {packing}");
            assert_eq!(*identity.get_or_insert(digest.clone()), digest, "{form}, {packing}: its identity");
            host.assert_nothing_unfinished();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_system() {
    let root = tar(&[("etc/hostname", b"x"), ("bin/tool", &noise(10_000, 1))]);
    for pack in [<[u8]>::to_vec, gzip as Pack, xz] {
        let host = host(S3Config::default());
        let (digest, _) = host.pull(&host.put("root", &pack(&root))).await.unwrap();
        assert_eq!(host.file(&digest, "bin/tool"), Some(noise(10_000, 1)));
        host.assert_nothing_unfinished();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let image = small();
    let good = docker_save(&image);
    let mut flipped = good.clone();
    let at = flipped.windows(3).position(|part| part == b"app").unwrap();
    flipped[at] ^= 1;
    let config = format!("{}.json", hex(&image.config));
    let two = json!([{ "Config": config, "Layers": [] }, { "Config": config, "Layers": [] }]).to_string();
    let outside = json!([{ "Config": "../../etc/passwd", "Layers": [] }]).to_string();
    let double = [("manifest.json", &b"[]"[..]), ("manifest.json", &b"[]"[..])];
    let rows: Vec<(&str, Vec<u8>, Reason, &str)> = vec![
        ("a flipped bit", flipped, Reason::DigestMismatch, "digest"),
        ("cut off", good[..good.len() / 2].to_vec(), Reason::ImageInvalid, ""),
        ("cut off, packed", gzip(&good)[..20_000].to_vec(), Reason::ImageInvalid, ""),
        ("two images", tar(&[("manifest.json", two.as_bytes())]), Reason::ImageInvalid, "2 images"),
        ("a way out", tar(&[("manifest.json", outside.as_bytes())]), Reason::ImageInvalid, "passwd"),
        ("two tables", tar(&double), Reason::ImageInvalid, "twice"),
        ("no archive", noise(4096, 9), Reason::ImageInvalid, "tar"),
    ];
    for (what, bytes, reason, part) in rows {
        let host = host(S3Config::default());
        let error = host.pull(&host.put("image", &bytes)).await.unwrap_err();
        assert_eq!(error.reason, reason, "{what}: {error}");
        assert!(error.to_string().contains(part), "{what}: {error}");
        host.assert_nothing_unfinished();
    }
    let host = host(S3Config::default());
    let error = host.pull("file:///nonexistent/image.tar").await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_moves_does_not_move_a_host() {
    let host = host(S3Config::default());
    let url = host.put("image", &docker_save(&small()));
    let reference: ImageRef = url.parse().unwrap();
    let digest = host.registry.resolve(&reference).await.unwrap();
    host.put("image", &docker_save(&image(vec![tar(&[("other", b"x")])])));
    let pinned = PinnedImage { reference, digest };
    let error = host.registry.pull(&pinned, &|_| {}).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_stand_in_for_a_registry() {
    let host = host(S3Config::default());
    let archive = oci(&small(), "application/vnd.oci.image.layer.v1.tar+gzip", gzip);
    let url = host.put("shop-1.2.tar", &archive);
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
}

/// moto's server: S3's API, in memory.
struct Moto {
    process: Child,
    port: u16,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn moto() -> Moto {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("moto/bin/moto_server");
    assert!(program.exists(), "{} is not there: `scripts/install-deps test` makes it", program.display());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let moto = Moto { process, port };
    for _ in 0..300 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return moto;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("moto does not listen");
}

/// Bytes that servers send through here.
fn counting_relay(to: u16) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up_from, &mut up_to);
                let _ = up_to.shutdown(std::net::Shutdown::Write);
            });
            let (mut from, mut to, count) = (server, client, count.clone());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    count.fetch_add(length as u64, Ordering::Relaxed);
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, sent)
}

fn put(moto: &Moto, dir: &Path, path: &str, bytes: &[u8]) {
    std::fs::write(dir.join("upload"), bytes).unwrap();
    let url = format!("http://127.0.0.1:{}/{path}", moto.port);
    let status = Command::new("curl")
        .args(["-fsS", "-o", "/dev/null", "-T"])
        .arg(dir.join("upload"))
        .arg(&url)
        .status()
        .unwrap();
    assert!(status.success(), "PUT {path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_archive_in_s3_only_the_missing_layers_are_read() {
    // `make test-all` takes the real size.
    let large = std::env::var_os("GITOPSD_TEST_ALL").is_some();
    let (base, last) = if large { (150 << 20, 8 << 20) } else { (20 << 20, 2 << 20) };
    let moto = moto();
    let (port, sent) = counting_relay(moto.port);
    let host = host(S3Config::default());
    let config = format!(
        "state_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[repo]\nurl = \"{0}/none\"\n[s3]\nendpoint = \"http://127.0.0.1:{port}\"\npath_style = true\n",
        host.dir.path().display()
    );
    std::fs::write(host.dir.path().join("gitopsd.toml"), config).unwrap();
    let pull = |url: &str, key: &str| {
        Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .arg("--config")
            .arg(host.dir.path().join("gitopsd.toml"))
            .args(["pull", url])
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", "no-secret")
            .output()
            .unwrap()
    };
    put(&moto, host.dir.path(), "images", b"");
    let bases: Vec<Vec<u8>> =
        (0..3).map(|number| tar(&[(&*format!("base/{number}"), &noise(base, number + 1))])).collect();
    let version = |number: u64| {
        let mut layers = bases.clone();
        layers.push(tar(&[("app", &noise(last, 100 + number)), ("version", number.to_string().as_bytes())]));
        docker_save(&image(layers))
    };
    let mut transferred = Vec::new();
    for number in 1..=2u64 {
        put(&moto, host.dir.path(), &format!("images/app-{number}.tar"), &version(number));
        sent.store(0, Ordering::Relaxed);
        let output = pull(&format!("s3://images/app-{number}.tar"), "tester");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let here = if number == 1 { "0 of 4 layers were here" } else { "3 of 4 layers were here" };
        assert!(text.contains(here), "{text}");
        transferred.push(sent.load(Ordering::Relaxed));
    }
    println!("first {} bytes, bump {} bytes, its layer {last}", transferred[0], transferred[1]);
    assert!(transferred[0] > 3 * base as u64, "{transferred:?}");
    assert!(transferred[1] < last as u64 + (2 << 20), "{transferred:?}");
    // An archive that is as it was costs one short answer.
    sent.store(0, Ordering::Relaxed);
    assert!(pull("s3://images/app-2.tar", "tester").status.success());
    assert!(sent.load(Ordering::Relaxed) < 4096, "{}", sent.load(Ordering::Relaxed));
    // One that is not there, and one that nobody may have.
    for (url, key, reason) in
        [("s3://images/none.tar", "tester", "image-not-found"), ("s3://images/app-2.tar", "", "(auth)")]
    {
        let output = pull(url, key);
        assert_eq!(output.status.code(), Some(1), "{url}");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{text}");
    }
    // What came is what the archives hold.
    let store = Store::open(&host.dir.path().join("state")).unwrap();
    let layer = format!("sha256:{}", hex(&bases[2])).parse::<Digest>().unwrap();
    let tree = host.dir.path().join("state/store/layers").join(layer.hex()).join("fs/base/2");
    assert_eq!(std::fs::read(tree).unwrap(), noise(base, 3));
    drop(store);
}
