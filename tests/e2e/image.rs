//! Small real images: busybox's httpd, one layer for the programs, one for the page.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How an image behaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// Serves, and /healthz is there.
    Good,
    /// Serves, but /healthz is not there.
    Sick,
    /// Ends at once with code 3.
    Exits,
    /// Serves and is healthy for four seconds, then loses /healthz.
    Decays,
    /// Serves, and has a HEALTHCHECK that passes.
    Checked,
    /// Serves, and has a HEALTHCHECK that does not.
    CheckedSick,
    /// Serves, and has many files where a volume begins with them.
    Seeded,
}

/// Writes an OCI layout with one image, and gives its folder.
pub fn build(dir: &Path, version: &str, kind: Kind) -> PathBuf {
    build_with(dir, version, kind, 0)
}

/// The same, with so many bytes more that do not get smaller.
pub fn build_with(dir: &Path, version: &str, kind: Kind, more: usize) -> PathBuf {
    let layout = dir.join(format!("image-{version}"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let base = layer(&blobs, &base_layer());
    let page = layer(&blobs, &page_layer(version, kind, more));
    let serve = match kind {
        Kind::Exits => "echo no luck >&2; exit 3".to_owned(),
        Kind::Decays => {
            "(sleep 4; rm /www/healthz) & trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait".to_owned()
        }
        Kind::Good | Kind::Sick | Kind::Checked | Kind::CheckedSick | Kind::Seeded => {
            "trap 'exit 0' TERM; echo serving; httpd -f -p 8080 -h /www & wait".to_owned()
        }
    };
    let answer = match kind {
        Kind::Checked => Some("exit 0"),
        Kind::CheckedSick => Some("echo the image says no; exit 1"),
        _ => None,
    };
    // Nanoseconds.
    let check = answer.map(|answer| json!({ "Test": ["CMD-SHELL", answer], "Interval": 200_000_000, "Timeout": 5_000_000_000_u64 }));
    finish(&layout, &[base, page], &["/bin/sh", "-c", &serve], check);
    layout
}

/// The same of one static program, which finds its version in the file `/version`.
pub fn build_program(dir: &Path, version: &str, program: &Path, command: &[&str]) -> PathBuf {
    let layout = dir.join(format!("image-{version}"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "app", tar::EntryType::Regular, 0o755, &fs::read(program).unwrap());
    let base = layer(&blobs, &tar.into_inner().unwrap());
    let mut tar = tar::Builder::new(Vec::new());
    entry(&mut tar, "version", tar::EntryType::Regular, 0o644, version.as_bytes());
    let page = layer(&blobs, &tar.into_inner().unwrap());
    finish(&layout, &[base, page], command, None);
    layout
}

/// Writes what makes layers an image.
fn finish(layout: &Path, layers: &[Layer], command: &[&str], check: Option<Value>) {
    let blobs = layout.join("blobs/sha256");
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let descriptors: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor).collect();
    let mut config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if let Some(check) = check {
        config["config"]["Healthcheck"] = check;
    }
    let config = blob(&blobs, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1 },
        "layers": descriptors,
    });
    let manifest = blob(&blobs, manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.0, "size": manifest.1,
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Pushes a layout's image.
pub fn push(layout: &Path, reference: &str) {
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{reference}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}

struct Layer {
    diff_id: String,
    descriptor: Value,
}

fn layer(blobs: &Path, tar: &[u8]) -> Layer {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(tar).unwrap();
    let (digest, size) = blob(blobs, &gzip.finish().unwrap());
    let media = "application/vnd.oci.image.layer.v1.tar+gzip";
    Layer { diff_id: sha256(tar), descriptor: json!({ "mediaType": media, "digest": digest, "size": size }) }
}

fn blob(blobs: &Path, bytes: &[u8]) -> (String, usize) {
    let digest = sha256(bytes);
    fs::write(blobs.join(&digest["sha256:".len()..]), bytes).unwrap();
    (digest, bytes.len())
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn base_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for folder in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "www/", "data/"] {
        entry(&mut tar, folder, tar::EntryType::Directory, 0o755, &[]);
    }
    entry(&mut tar, "bin/busybox", tar::EntryType::Regular, 0o755, &fs::read("/bin/busybox").unwrap());
    for applet in
        ["sh", "httpd", "sleep", "cat", "ls", "id", "rm", "wget", "hostname", "touch", "ip", "nslookup"]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    entry(&mut tar, "etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0::/:/bin/sh\n");
    tar.into_inner().unwrap()
}

fn page_layer(version: &str, kind: Kind, more: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    if more > 0 {
        let mut state = Sha256::digest(version);
        let mut noise = Vec::with_capacity(more + state.len());
        while noise.len() < more {
            noise.extend_from_slice(&state);
            state = Sha256::digest(state);
        }
        entry(&mut tar, "www/more", tar::EntryType::Regular, 0o644, &noise);
    }
    let page = format!("version {version}\n");
    entry(&mut tar, "www/index.html", tar::EntryType::Regular, 0o644, page.as_bytes());
    if kind == Kind::Seeded {
        (0..100).for_each(|number| {
            entry(&mut tar, &format!("data/{number}"), tar::EntryType::Regular, 0o644, b"seed");
        });
    }
    if kind != Kind::Sick {
        entry(&mut tar, "www/healthz", tar::EntryType::Regular, 0o644, b"ok\n");
    }
    tar.into_inner().unwrap()
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, content).unwrap();
}
