//! What reads the bytes of strangers, for the fuzzers in `fuzz/`: the functions themselves, without a network before
//! them. There only with the feature `fuzz`, which no release has.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use super::client::Client;
use super::unpack::reader::{Kind, Reader};
use super::unpack::{self, Error};
use super::{PullError, archive, challenge, docker_config, manifest};
use crate::config::agent::S3Config;
use crate::types::{Reason, SafeUrl};

/// An entry of an archive: its path, kind (as `ls` shows it, `h` for hard links), link and content.
pub type Entry = (Vec<u8>, char, Vec<u8>, Vec<u8>);

/// The entries of an archive, or why there are none.
pub fn tar(bytes: &[u8]) -> Result<Vec<Entry>, PullError> {
    read(bytes).map_err(|error| error.into_pull_error("tar"))
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.content(|part| {
            content.extend_from_slice(part);
            Ok(())
        })?;
        let kind = match entry.kind {
            Kind::File => '-',
            Kind::Link => 'h',
            Kind::Symlink => 'l',
            Kind::Directory => 'd',
            Kind::Fifo => 'p',
            Kind::Device => 'c',
        };
        entries.push((entry.path, kind, entry.link, content));
    }
    Ok(entries)
}

/// The table of contents of an image archive in a file: names, and where their bytes begin and how many they are; `None`
/// where it is none. Nothing is fetched, nothing is unpacked.
pub async fn table(url: &SafeUrl) -> Result<Option<Vec<(String, u64, u64)>>, PullError> {
    // Not used for files.
    static REMOTE: LazyLock<Option<(Client, Arc<archive::S3>)>> = LazyLock::new(|| {
        let client = Client::new(BTreeMap::new()).ok()?;
        Some((client, Arc::new(archive::S3::new(S3Config::default()))))
    });
    let none = || PullError::fatal(Reason::Internal, "no TLS on this host");
    let (client, s3) = REMOTE.as_ref().ok_or_else(none)?;
    archive::table_of(&archive::Place::open(url, client, s3).await?).await
}

/// Unpacks an archive into an empty directory.
pub fn layer(bytes: &[u8], into: &Path) -> Result<(), PullError> {
    let root = File::open(into).map_err(|error| PullError::io("opening the directory", &error))?;
    let unpacked = unpack::unpack(bytes, root.into(), &mut std::io::sink());
    unpacked.map(|_| ()).map_err(|error| error.into_pull_error("layer"))
}

/// Reads a manifest or an index.
pub fn manifest(bytes: &[u8]) -> Result<(), PullError> {
    match manifest::parse("image", bytes)? {
        manifest::Parsed::Index(all) => manifest::choose("image", all).map(|_| ()),
        manifest::Parsed::Image(_) => Ok(()),
    }
}

/// Reads the configuration of an image of that many layers.
pub fn config(bytes: &[u8], layers: usize) -> Result<(), PullError> {
    manifest::parse_config("image", bytes, layers).map(|_| ())
}

/// Reads a challenge; whether a registry at `base` may send its clients to the realm that it names.
pub fn realm(header: &str, base: &reqwest::Url) -> Option<(reqwest::Url, bool)> {
    match challenge::parse(header)? {
        challenge::Challenge::Bearer { realm, .. } => {
            let realm = realm.parse().ok()?;
            let allowed = challenge::realm_is_allowed(&realm, base, &[]);
            Some((realm, allowed))
        }
        challenge::Challenge::Basic => None,
    }
}

/// Looks a registry up in a file that is meant to be Docker's `config.json`: whether it knows of credentials.
pub async fn docker_config(file: &Path, registry: &str) -> Result<bool, PullError> {
    let found = docker_config::look_up(file, registry, "app/of/somebody").await;
    found.map(|found| found.is_some()).map_err(|why| PullError::retry(Reason::Auth, why))
}
