//! What a registry can do wrong, which a real one cannot be made to show: broken bodies, ignored ranges, wrong bytes.
//! Pulls from a real registry are in `tests/e2e`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use flate2::{Compression, write::GzEncoder};
use gitopsd::config::agent::RegistryConfig;
use gitopsd::registry::{Disposition, PullError, Pulled, Registry, Store};
use gitopsd::types::{ImageRef, PinnedImage, Reason};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What the registry does wrong with a layer.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The first answer ends in the middle.
    BreaksOff,
    /// The same, and Range is ignored afterwards.
    IgnoresRange,
    /// A bit is another one.
    Flips,
    /// More than the manifest says.
    TooLong,
    /// Every answer is an error.
    Unavailable,
}

/// Each request: its path, and the range that was asked for.
type Requests = Arc<Mutex<Vec<(String, Option<u64>)>>>;

struct Fake {
    port: u16,
    requests: Requests,
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image of one layer: a file of bytes that do not compress.
fn documents(diff_id: Option<&str>) -> BTreeMap<String, Vec<u8>> {
    let mut content = Vec::new();
    let mut state = 1u64;
    while content.len() < 3 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        content.extend_from_slice(&state.to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content.as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).unwrap();
    let layer = gzip.finish().unwrap();
    let right = sha256(&tar);
    let config =
        json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id.unwrap_or(&right)] } }).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "digest": sha256(config.as_bytes()), "size": config.len() },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(&layer), "size": layer.len(),
        }],
    });
    let manifest = manifest.to_string();
    BTreeMap::from([
        ("/v2/app/manifests/1".to_owned(), manifest.clone().into_bytes()),
        (format!("/v2/app/manifests/{}", sha256(manifest.as_bytes())), manifest.into_bytes()),
        (format!("/v2/app/blobs/{}", sha256(config.as_bytes())), config.into_bytes()),
        (format!("/v2/app/blobs/{}", sha256(&layer)), layer),
    ])
}

impl Fake {
    fn begin(fault: Fault, documents: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Requests::default();
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (documents, seen) = (documents.clone(), seen.clone());
                std::thread::spawn(move || {
                    // A client that goes away is one of the cases.
                    let _ = serve(stream.unwrap(), fault, &documents, &seen);
                });
            }
        });
        Self { port, requests }
    }

    fn layer_requests(&self) -> Vec<Option<u64>> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(path, _)| path.contains("LAYER")).map(|(_, range)| *range).collect()
    }
}

fn serve(
    stream: TcpStream,
    fault: Fault,
    documents: &BTreeMap<String, Vec<u8>>,
    seen: &Mutex<Vec<(String, Option<u64>)>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut to = stream;
    while let Some(Ok(first)) = lines.next() {
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("range: bytes=") {
                range = rest.trim_end_matches('-').parse::<u64>().ok();
            }
            if line.is_empty() {
                break;
            }
        }
        let Some(body) = documents.get(&path) else {
            write!(to, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let is_layer = body.len() > 100_000;
        let shown = if is_layer { format!("LAYER {path}") } else { path };
        let tries = seen.lock().unwrap().iter().filter(|(known, _)| *known == shown).count();
        seen.lock().unwrap().push((shown, range));
        if fault == Fault::Unavailable {
            write!(to, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let mut body = body.clone();
        if is_layer {
            match fault {
                Fault::Flips => body[200_000] ^= 1,
                Fault::TooLong => body.push(0),
                _ => {}
            }
        }
        let total = body.len();
        let from =
            range.filter(|_| fault != Fault::IgnoresRange).map_or(0, |from| usize::try_from(from).unwrap());
        let part = &body[from..];
        match from {
            0 => write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")?,
            from => write!(
                to,
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{total}\r\n\r\n",
                part.len(),
                total - 1
            )?,
        }
        if is_layer && tries == 0 && matches!(fault, Fault::BreaksOff | Fault::IgnoresRange) {
            to.write_all(&part[..total / 2])?;
            return Ok(());
        }
        to.write_all(part)?;
    }
    Ok(())
}

async fn pull(fake: &Fake, state: &Path) -> Result<Pulled, PullError> {
    let store = Arc::new(Store::open(state)?);
    let host = format!("127.0.0.1:{}", fake.port);
    let config = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
    let registry = Registry::new(store.clone(), BTreeMap::from([(host.clone(), config)]))?
        .with_program(env!("CARGO_BIN_EXE_gitopsd").into());
    let reference: ImageRef = format!("{host}/app:1").parse().unwrap();
    let digest = registry.resolve(&reference).await?;
    let image = PinnedImage { reference, digest };
    let pulled = registry.pull(&image, &|_| {}).await?;
    assert!(store.image(&image.digest).is_some());
    Ok(pulled)
}

/// Nothing has a final name, and nothing unfinished is left.
fn assert_clean(state: &Path) {
    for folder in ["layers", "images", "tmp"] {
        let found: Vec<_> = std::fs::read_dir(state.join("store").join(folder)).unwrap().flatten().collect();
        assert!(found.is_empty(), "{folder}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_broke() {
    for fault in [Fault::BreaksOff, Fault::IgnoresRange] {
        let state = tempfile::tempdir().unwrap();
        let fake = Fake::begin(fault, documents(None));
        pull(&fake, state.path()).await.unwrap();
        let ranges = fake.layer_requests();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!(ranges[0], None);
        assert!(ranges[1].is_some_and(|from| from > 1 << 20), "a range is asked for: {ranges:?}");
        // What is here is not fetched again.
        let again = pull(&fake, state.path()).await.unwrap();
        assert_eq!((again.bytes, again.layers_reused), (0, 1));
        assert_eq!(fake.layer_requests().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_used() {
    for fault in [Fault::Flips, Fault::TooLong] {
        let state = tempfile::tempdir().unwrap();
        let fake = Fake::begin(fault, documents(None));
        let error = pull(&fake, state.path()).await.unwrap_err();
        assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
        assert_clean(state.path());
    }
    // The bytes are those of the manifest, and their content is not that of the configuration.
    let state = tempfile::tempdir().unwrap();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let fake = Fake::begin(Fault::None, documents(Some(&wrong)));
    let error = pull(&fake, state.path()).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch, "{error}");
    assert_clean(state.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_told_from_what_will_not() {
    let state = tempfile::tempdir().unwrap();
    let fake = Fake::begin(Fault::Unavailable, documents(None));
    let error = pull(&fake, state.path()).await.unwrap_err();
    assert_eq!(
        (error.reason, error.disposition),
        (Reason::RegistryUnreachable, Disposition::Retry),
        "{error}"
    );
    let fake = Fake::begin(Fault::None, BTreeMap::new());
    let error = pull(&fake, state.path()).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
    // Schema 1, an index without this platform, a foreign layer: refused by name.
    for (manifest, part) in [
        (json!({ "schemaVersion": 1 }), "schema 1"),
        (
            json!({ "schemaVersion": 2, "manifests": [{ "digest": sha256(b"x"), "size": 1, "platform": { "os": "linux", "architecture": "s390x" } }] }),
            "linux/s390x",
        ),
        (
            json!({ "schemaVersion": 2, "config": { "digest": sha256(b"x"), "size": 1 }, "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+lzma", "digest": sha256(b"y"), "size": 1 }] }),
            "tar+lzma",
        ),
    ] {
        let documents =
            BTreeMap::from([("/v2/app/manifests/1".to_owned(), manifest.to_string().into_bytes())]);
        let error = pull(&Fake::begin(Fault::None, documents), state.path()).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageUnsupported, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
