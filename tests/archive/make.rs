//! Archives as others write them.

use std::io::{Read, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar of these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
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

/// A tar of a root, and nothing in it.
pub fn only_a_root() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    header.set_cksum();
    builder.append_data(&mut header, "./", &[][..]).unwrap();
    builder.into_inner().unwrap()
}

/// Bytes that do not compress.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
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
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
}

pub fn image(layers: Vec<Vec<u8>>) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    Image { layers, config: config.to_string().into_bytes() }
}

pub fn small() -> Image {
    image(vec![tar(&[("etc/base", b"base")]), tar(&[("etc/app", b"app"), ("srv/x", &noise(70_000, 3))])])
}

/// As `docker save` wrote it before Docker 25.
pub fn docker_save(image: &Image) -> Vec<u8> {
    docker_save_of(&[(image, "app:1")])
}

/// The same into a file, of layers and their digests.
pub fn stream(to: impl Write, layers: &[(&[u8], &str)]) {
    let mut builder = tar::Builder::new(to);
    let diff_ids: Vec<String> = layers.iter().map(|(_, digest)| format!("sha256:{digest}")).collect();
    let config = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let image = Image { layers: Vec::new(), config: config.to_string().into_bytes() };
    let paths: Vec<String> = layers.iter().map(|(_, digest)| format!("{digest}/layer.tar")).collect();
    paths.iter().zip(layers).for_each(|(path, (layer, _))| entry(&mut builder, path, layer));
    documents(&mut builder, &image, &paths);
    builder.into_inner().unwrap().flush().unwrap();
}

/// The same for several, with their names.
pub fn docker_save_of(images: &[(&Image, &str)]) -> Vec<u8> {
    let (mut files, mut manifest) = (Vec::<(String, Vec<u8>)>::new(), Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        if !files.iter().any(|(known, _)| known == path) {
            files.push((path.to_owned(), content.to_vec()));
        }
    };
    for (image, name) in images {
        let config = format!("{}.json", hex(&image.config));
        let paths: Vec<String> =
            image.layers.iter().map(|layer| format!("{}/layer.tar", hex(layer))).collect();
        paths.iter().zip(&image.layers).for_each(|(path, layer)| add(path, layer));
        add(&config, &image.config);
        manifest.push(json!({ "Config": config, "RepoTags": [name], "Layers": paths }));
    }
    add("manifest.json", json!(manifest).to_string().as_bytes());
    tar_of(&files)
}

/// The same, where a layer that is there already is a link to it.
pub fn linked(image: &Image, kind: tar::EntryType) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut paths: Vec<String> = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let path = format!("{}/layer.tar", hex(number.to_string().as_bytes()));
        match image.layers[..number].iter().position(|known| known == layer) {
            None => entry(&mut builder, &path, layer),
            Some(known) => {
                let up = if kind == tar::EntryType::Symlink { "../" } else { "" };
                link(&mut builder, kind, &path, &format!("{up}{}", paths[known]));
            }
        }
        paths.push(path);
    }
    documents(&mut builder, image, &paths);
    builder.into_inner().unwrap()
}

/// The same, with a first layer that is a link to somewhere; `LOOP`: to itself.
pub fn linked_to(image: &Image, target: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let paths: Vec<String> = image.layers.iter().map(|layer| format!("{}/layer.tar", hex(layer))).collect();
    let target = if target == "LOOP" { "layer.tar" } else { target };
    link(&mut builder, tar::EntryType::Symlink, &paths[0], target);
    for (path, layer) in paths.iter().zip(&image.layers).skip(1) {
        entry(&mut builder, path, layer);
    }
    documents(&mut builder, image, &paths);
    builder.into_inner().unwrap()
}

/// As `crane pull` saves it.
pub fn crane(image: &Image) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let config = format!("sha256:{}", hex(&image.config));
    entry(&mut builder, &config, &image.config);
    let mut paths = Vec::new();
    for layer in &image.layers {
        let packed = gzip(layer);
        let path = format!("{}.tar.gz", hex(&packed));
        entry(&mut builder, &path, &packed);
        paths.push(path);
    }
    let manifest = json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": paths }]).to_string();
    entry(&mut builder, "manifest.json", manifest.as_bytes());
    builder.into_inner().unwrap()
}

/// The same archive with a further entry before entry `place`, or at the end.
pub fn insert(archive: &[u8], place: usize, path: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut reader = tar::Archive::new(archive);
    let mut done = false;
    for (number, old) in reader.entries().unwrap().enumerate() {
        let mut old = old.unwrap();
        if number == place {
            entry(&mut builder, path, b"stray");
            done = true;
        }
        let header = old.header().clone();
        builder.append(&header, &mut old).unwrap();
    }
    if !done {
        entry(&mut builder, path, b"stray");
    }
    builder.into_inner().unwrap()
}

/// The same archive with an entry's text changed, whatever its name says of it.
pub fn rewrite(archive: &[u8], path: &str, change: impl Fn(&str) -> String) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut reader = tar::Archive::new(archive);
    let mut found = false;
    for old in reader.entries().unwrap() {
        let mut old = old.unwrap();
        let header = old.header().clone();
        if old.path().unwrap().to_str() == Some(path) {
            found = true;
            let mut text = String::new();
            old.read_to_string(&mut text).unwrap();
            entry(&mut builder, path, change(&text).as_bytes());
        } else {
            builder.append(&header, &mut old).unwrap();
        }
    }
    assert!(found, "there is no {path}");
    builder.into_inner().unwrap()
}

fn documents(builder: &mut tar::Builder<impl Write>, image: &Image, paths: &[String]) {
    let config = format!("{}.json", hex(&image.config));
    entry(builder, &config, &image.config);
    let manifest = json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": paths }]).to_string();
    entry(builder, "manifest.json", manifest.as_bytes());
}

fn entry(builder: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, path, content).unwrap();
}

fn link(builder: &mut tar::Builder<impl Write>, kind: tar::EntryType, path: &str, target: &str) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_path(path).unwrap();
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    builder.append(&header, &[][..]).unwrap();
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    tar(&files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect::<Vec<_>>())
}

/// An OCI archive; layers packed as `packed` says.
pub fn oci(image: &Image, media: &str, packed: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    oci_of(&[(image, "", false)], media, packed)
}

/// The same for several, with their names, and whether they name this machine's platform.
pub fn oci_of(images: &[(&Image, &str, bool)], media: &str, packed: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let (mut blobs, mut manifests) = (Vec::<Vec<u8>>::new(), Vec::new());
    for (image, name, has_platform) in images {
        let layers: Vec<Vec<u8>> = image.layers.iter().map(|layer| packed(layer)).collect();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|blob| json!({ "mediaType": media, "digest": format!("sha256:{}", hex(blob)), "size": blob.len() }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", hex(&image.config)), "size": image.config.len(),
            },
            "layers": descriptors,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", hex(&manifest)), "size": manifest.len(),
        });
        if *has_platform {
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        }
        if !name.is_empty() {
            entry["annotations"] = json!({ "io.containerd.image.name": name });
        }
        manifests.push(entry);
        blobs.extend(layers.into_iter().chain([image.config.clone(), manifest]));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut files = Vec::<(String, Vec<u8>)>::new();
    for blob in blobs {
        let path = format!("blobs/sha256/{}", hex(&blob));
        if !files.iter().any(|(known, _)| *known == path) {
            files.push((path, blob));
        }
    }
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    tar_of(&files)
}

/// Packs bytes.
pub type Pack = fn(&[u8]) -> Vec<u8>;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

/// Two streams, one behind the other.
pub fn twice(pack: Pack, bytes: &[u8]) -> Vec<u8> {
    let (a, b) = bytes.split_at(bytes.len() / 2);
    [pack(a), pack(b)].concat()
}
