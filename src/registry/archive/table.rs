//! The table of contents of an uncompressed tar: headers are read, contents are jumped over.

use std::collections::BTreeMap;

use super::place::Place;
use crate::registry::PullError;
use crate::registry::unpack::{Error, Kind, first_entry};
use crate::types::Reason;

/// An image has some hundred entries at most.
const MAX_ENTRIES: usize = 10_000;

/// First read at a place where a header is.
const WINDOW: u64 = 16 << 10;

/// Reads grow up to this where headers follow each other closely.
const LARGEST: u64 = 4 << 20;

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Bytes from an offset.
    File { offset: u64, size: u64 },
    /// Another path, as old `docker save` has it for layers that are the same.
    Link(String),
}

/// The entries of an image archive; `None` = it is none, but a root file system.
pub(super) async fn read(place: &Place) -> Result<Option<BTreeMap<String, Found>>, PullError> {
    let refuse = |why: String| PullError::fatal(Reason::ImageInvalid, format!("{}: {why}", place.name()));
    let size = place.version.size;
    let mut entries = BTreeMap::new();
    let (mut window, mut begins, mut length) = (Vec::new(), 0u64, WINDOW);
    let mut at = 0u64;
    while at < size {
        let inside =
            usize::try_from(at - begins).ok().and_then(|from| window.get(from..)).unwrap_or_default();
        let whole = begins + window.len() as u64 == size;
        let (entry, header) = match first_entry(inside) {
            Ok(Some(found)) => found,
            Ok(None) if !inside.is_empty() => break,
            // The window ends within the headers, or before them.
            Ok(None) | Err(Error::Broken(_)) if !whole => {
                let near = at < begins + window.len() as u64 + WINDOW && !window.is_empty();
                length = if near { (length * 4).min(LARGEST) } else { WINDOW };
                if near && at == begins && window.len() as u64 >= LARGEST {
                    return Err(refuse("headers that do not end".to_owned()));
                }
                begins = at;
                window = place.bytes(at, length.min(size - at)).await?;
                continue;
            }
            Ok(None) => break,
            Err(Error::Refused(why)) => return Err(refuse(why)),
            Err(Error::Broken(error) | Error::Disk(_, error)) => return Err(refuse(error.to_string())),
        };
        let offset = at + header as u64;
        at = offset
            .checked_add(entry.size)
            .and_then(|end| end.checked_next_multiple_of(512))
            .ok_or_else(|| refuse("a size beyond all".to_owned()))?;
        let path = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        if !belongs_to_an_image(&path) {
            return Ok(None);
        }
        let found = match entry.kind {
            Kind::Directory => continue,
            Kind::File => Found::File { offset, size: entry.size },
            Kind::Symlink => Found::Link(beside(&path, &String::from_utf8_lossy(&entry.link))),
            Kind::Link => {
                Found::Link(String::from_utf8_lossy(&entry.link).trim_start_matches("./").to_owned())
            }
            Kind::Fifo | Kind::Device => return Err(refuse(format!("{path} is no file"))),
        };
        if entries.insert(path.clone(), found).is_some() {
            return Err(refuse(format!("{path} is there twice, which readers take differently")));
        }
        if entries.len() > MAX_ENTRIES {
            return Err(refuse(format!("more than {MAX_ENTRIES} entries")));
        }
    }
    let is_image = entries.contains_key("index.json") || entries.contains_key("manifest.json");
    Ok(is_image.then_some(entries))
}

/// Bytes of a file of the archive, links followed.
pub(super) fn locate(entries: &BTreeMap<String, Found>, path: &str) -> Option<(u64, u64)> {
    let mut path = path.trim_start_matches("./");
    for _ in 0..8 {
        match entries.get(path)? {
            Found::File { offset, size } => return Some((*offset, *size)),
            Found::Link(to) => path = to,
        }
    }
    None
}

/// Names that image archives have (OCI image-layout.md; moby's image/tarexport; containers/image's docker archive).
fn belongs_to_an_image(path: &str) -> bool {
    let is_id = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match path.trim_end_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        ["" | "." | "oci-layout" | "index.json" | "manifest.json" | "repositories" | "blobs"] => true,
        ["blobs", "sha256"] => true,
        ["blobs", "sha256", id] => is_id(id),
        [name] => is_id(name.strip_suffix(".json").or_else(|| name.strip_suffix(".tar")).unwrap_or(name)),
        [id, "VERSION" | "json" | "layer.tar"] => is_id(id),
        _ => false,
    }
}

/// Where a symbolic link leads to, from the directory it is in.
fn beside(path: &str, link: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}
