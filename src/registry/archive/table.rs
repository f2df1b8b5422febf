//! The table of contents of an uncompressed tar: headers are read, contents are jumped over. What it is, an image
//! archive or a root file system, its names tell.

use std::collections::BTreeMap;

use super::place::Place;
use crate::registry::PullError;
use crate::registry::unpack::{Entry, Error, Kind, first_entry};
use crate::types::Reason;

/// An image has some hundred entries at most.
const MAX_ENTRIES: usize = 10_000;

/// Longest name and longest target of a link (path_resolution(7)): they are held in memory, and headers may have a
/// mebibyte each.
const MAX_NAME: usize = 4096;

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

/// How much of it is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Look {
    /// Up to the first entry that no image archive has: where it has to be read as a whole then anyway.
    Short,
    /// To the end, so that nothing is taken for a root file system that holds an image archive's table.
    Whole,
}

/// What an archive turned out to be.
#[derive(Debug, PartialEq)]
pub(super) enum Table {
    /// An image archive, with its entries.
    Image(BTreeMap<String, Found>),
    /// Something else: a root file system.
    Other,
}

/// What was seen that only image archives have.
#[derive(Default)]
struct Marks {
    layout: bool,
    /// `index.json` or `manifest.json`.
    document: bool,
    /// A blob, layer or configuration by its digest.
    blob: bool,
}

impl Marks {
    /// Whether there is no doubt: a root file system may well have a `manifest.json`, but no digests beside it.
    fn are_clear(&self) -> bool {
        self.layout || (self.document && self.blob)
    }
}

/// Reads it.
pub(super) async fn read(place: &Place, look: Look) -> Result<Table, PullError> {
    let refuse = |why: String| PullError::fatal(Reason::ImageInvalid, format!("{}: {why}", place.name()));
    let size = place.version.size;
    let (mut entries, mut marks, mut stray) = (BTreeMap::new(), Marks::default(), None);
    let mut is_empty = true;
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
            Err(Error::Refused(why)) if at == 0 => {
                return Err(refuse(format!("it is no tar archive: {why}")));
            }
            Err(Error::Refused(why)) => return Err(refuse(why)),
            Err(Error::Broken(_)) if at == 0 => {
                return Err(refuse(format!("it is no tar archive: it has only {size} bytes")));
            }
            Err(Error::Broken(_)) => {
                return Err(refuse(format!("it is cut short within the header at byte {at}")));
            }
            Err(Error::Disk(_, error)) => return Err(refuse(error.to_string())),
        };
        let offset = at + header as u64;
        if let Some(missing) =
            entry.size.checked_sub(size.saturating_sub(offset)).filter(|missing| *missing > 0)
        {
            return Err(refuse(format!("it is cut short: {missing} bytes of {} are missing", entry.shown())));
        }
        at = offset
            .checked_add(entry.size)
            .and_then(|end| end.checked_next_multiple_of(512))
            .ok_or_else(|| refuse("a size beyond all".to_owned()))?;
        let path = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        is_empty &= matches!(path.as_str(), "" | "." | "/");
        match role(&path, entry.kind) {
            Role::Layout => marks.layout = true,
            Role::Document => marks.document = true,
            Role::Blob => marks.blob = true,
            Role::Minor => {}
            Role::None => {
                stray.get_or_insert_with(|| entry.shown());
            }
        }
        if let Some(stray) = &stray {
            if marks.are_clear() {
                let why = format!("it is an image archive with `{stray}` in it, which does not belong there");
                return Err(refuse(why));
            }
            if look == Look::Short {
                return Ok(Table::Other);
            }
            continue;
        }
        let Some(found) = found(&entry, &path, offset).map_err(refuse)? else { continue };
        if entries.insert(path.clone(), found).is_some() {
            return Err(refuse(format!("{path} is there twice, which readers take differently")));
        }
        if entries.len() > MAX_ENTRIES {
            return Err(refuse(format!("more than {MAX_ENTRIES} entries")));
        }
    }
    if is_empty {
        return Err(refuse("it holds nothing".to_owned()));
    }
    let is_image = stray.is_none() && (marks.layout || marks.document || marks.blob);
    Ok(if is_image { Table::Image(entries) } else { Table::Other })
}

/// What an entry of an image archive leads to; directories lead nowhere.
fn found(entry: &Entry, path: &str, offset: u64) -> Result<Option<Found>, String> {
    if entry.path.len() > MAX_NAME || entry.link.len() > MAX_NAME {
        return Err(format!("{}: a name or a link of more than {MAX_NAME} bytes", entry.shown()));
    }
    let link = || String::from_utf8_lossy(&entry.link).into_owned();
    match entry.kind {
        Kind::Directory => Ok(None),
        Kind::File => Ok(Some(Found::File { offset, size: entry.size })),
        Kind::Symlink => Ok(Some(Found::Link(beside(path, &link())))),
        Kind::Link => Ok(Some(Found::Link(link().trim_start_matches("./").to_owned()))),
        Kind::Fifo | Kind::Device => Err(format!("{path} is no file")),
    }
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

/// What a name is for in an image archive.
enum Role {
    Layout,
    Document,
    Blob,
    /// It belongs there, and elsewhere too.
    Minor,
    /// It does not belong there.
    None,
}

/// By the names that image archives have (OCI image-layout.md; moby's image/tarexport; containers/image's docker
/// archive; go-containerregistry's and jib's tarballs).
fn role(path: &str, kind: Kind) -> Role {
    match path.trim_end_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        ["oci-layout"] => Role::Layout,
        ["index.json" | "manifest.json"] => Role::Document,
        ["" | "." | "repositories" | "config.json" | "blobs"] | ["blobs", "sha256"] => Role::Minor,
        ["blobs", "sha256", id] if is_id(id) => Role::Blob,
        // The directory of a layer.
        [id] if is_id(id) && kind == Kind::Directory => Role::Minor,
        [name] if id_of(name).is_some() => Role::Blob,
        [id, "layer.tar"] if is_id(id) => Role::Blob,
        [id, "VERSION" | "json"] if is_id(id) => Role::Minor,
        _ => Role::None,
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The digest in a file's name: `<id>`, `sha256:<id>`, `<id>.json`, `<id>.tar`, `<id>.tar.gz`.
pub(super) fn id_of(name: &str) -> Option<&str> {
    let name = name.strip_prefix("sha256:").unwrap_or(name);
    let id = [".json", ".tar", ".tar.gz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    Some(id).filter(|id| is_id(id))
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
