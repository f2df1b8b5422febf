//! `gitopsd lock`: the digests that tags stand for, written beside them into the files of a checkout.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Failure, args, run, table, write_json};
use crate::config::images_named::{self, NamedImage};
use crate::config::repo;
use crate::registry::Tags;
use crate::types::{Digest, ImageRef, Refusal, RegistryRef, plural};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// The folder that holds gitopsd.toml
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Change nothing; exit 1 where an image has no digest, or its tag stands for another one
    #[arg(long)]
    check: bool,
}

/// What comes of one image.
enum Fate {
    /// It has the digest that its tag stands for.
    Kept,
    /// It had none.
    Locked(Digest),
    /// It had another one.
    Moved(Digest),
    /// It has nothing to be locked by.
    Left(&'static str),
    /// Nobody knows what its tag stands for.
    Failed(Refusal),
}

/// Locks, or checks. Exit 0 all is locked, 1 otherwise.
pub fn lock(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let files = repo::read_dir(&wanted.dir)
        .map_err(|error| Failure::plain(format!("reading {}: {error}", wanted.dir.display())))?;
    if !files.contains_key("gitopsd.toml") {
        return Err(Failure::Failed {
            message: format!("{} has no gitopsd.toml", wanted.dir.display()),
            hint: Some("name the folder that holds it".to_owned()),
        });
    }
    // The credentials and certificates of a host that has an agent; a laptop needs none.
    let registries = match config == Path::new(args::CONFIG) && !config.exists() {
        true => BTreeMap::new(),
        false => run::config(config)?.registries,
    };
    let images = images_named::images(&files);
    let tags = Tags::new(registries).map_err(|error| error.to_refusal())?;
    let fates = look_up(&tags, &images)?;
    let changed = |fate: &Fate| matches!(fate, Fate::Locked(_) | Fate::Moved(_));
    if !wanted.check {
        for file in files.keys() {
            let own = images.iter().zip(&fates).filter(|(image, _)| image.file == *file);
            let places: Vec<(Range<usize>, ImageRef)> =
                own.filter_map(|(image, fate)| Some((image.span.clone(), locked(image, fate)?))).collect();
            if !places.is_empty() {
                rewrite(&wanted.dir.join(file), &files[file], &places)?;
            }
        }
    }
    let failed = fates.iter().filter(|fate| matches!(fate, Fate::Failed(_))).count();
    let changes = fates.iter().filter(|fate| changed(fate)).count();
    if json {
        let rows: Vec<_> = images.iter().zip(&fates).map(|(image, fate)| as_json(image, fate)).collect();
        let body = serde_json::json!({ "images": rows, "changed": changes, "failed": failed, "check": wanted.check });
        write_json(out, &body)?;
    } else {
        let rows: Vec<_> = images
            .iter()
            .zip(&fates)
            .filter(|(_, fate)| !matches!(fate, Fate::Kept))
            .map(|(image, fate)| {
                vec![format!("{}:{}", image.file, image.line), plain(&image.image), said(fate, wanted.check)]
            })
            .collect();
        table::write(out, &rows)?;
        let all = plural(images.len(), "image", "images");
        let verb = if wanted.check { "to be locked" } else { "locked" };
        writeln!(out, "{all}: {changes} {verb}, {failed} unknown")?;
    }
    Ok(u8::from(failed > 0 || (wanted.check && changes > 0)))
}

/// Looks each tag up once.
fn look_up(tags: &Tags, images: &[NamedImage]) -> Result<Vec<Fate>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut known: BTreeMap<String, Result<Digest, Refusal>> = BTreeMap::new();
    let mut fates = Vec::new();
    for named in images {
        let ImageRef::Registry(reference) = &named.image else {
            fates.push(Fate::Left("an archive: it has no place for a digest"));
            continue;
        };
        if reference.tag.is_none() {
            fates.push(Fate::Kept);
            continue;
        }
        let bare = RegistryRef { digest: None, ..reference.clone() };
        let found = known
            .entry(bare.to_string())
            .or_insert_with(|| runtime.block_on(tags.digest(&bare)).map_err(|error| error.to_refusal()));
        fates.push(match (found, &reference.digest) {
            (Err(refusal), _) => Fate::Failed(refusal.clone()),
            (Ok(found), Some(digest)) if found == digest => Fate::Kept,
            (Ok(found), Some(_)) => Fate::Moved(found.clone()),
            (Ok(found), None) => Fate::Locked(found.clone()),
        });
    }
    Ok(fates)
}

fn locked(named: &NamedImage, fate: &Fate) -> Option<ImageRef> {
    match (&named.image, fate) {
        (ImageRef::Registry(reference), Fate::Locked(digest) | Fate::Moved(digest)) => {
            Some(ImageRef::Registry(RegistryRef { digest: Some(digest.clone()), ..reference.clone() }))
        }
        _ => None,
    }
}

/// Puts a file in its own place, with its permissions: whole, or not at all, and not over what was written to it while
/// registries were asked.
fn rewrite(path: &Path, bytes: &[u8], places: &[(Range<usize>, ImageRef)]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::plain(format!("writing {}: {error}", path.display()));
    let text = images_named::replace(&String::from_utf8_lossy(bytes), places);
    let stat = std::fs::symlink_metadata(path).map_err(failed)?;
    if !stat.is_file() || std::fs::read(path).map_err(failed)? != bytes {
        return Err(Failure::Failed {
            message: format!("{} has changed meanwhile, and was left as it is", path.display()),
            hint: Some("run it again".to_owned()),
        });
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".gitopsd-lock");
    let beside = path.with_file_name(name);
    let write = || {
        // What is there is not followed: a checkout may hold a link of that name.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.set_permissions(stat.permissions())?;
        file.write_all(text.as_bytes())?;
        drop(file);
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_file(&beside);
        failed(error)
    })
}

/// Without a digest.
fn plain(image: &ImageRef) -> String {
    match image {
        ImageRef::Registry(reference) => RegistryRef { digest: None, ..reference.clone() }.to_string(),
        ImageRef::Archive(_) => image.to_string(),
    }
}

fn said(fate: &Fate, check: bool) -> String {
    match (fate, check) {
        (Fate::Kept, _) => "locked".to_owned(),
        (Fate::Locked(digest), false) => format!("locked to {digest}"),
        (Fate::Locked(digest), true) => format!("has no digest; it is {digest} now"),
        (Fate::Moved(digest), false) => format!("locked to another image than before: {digest}"),
        (Fate::Moved(digest), true) => format!("its tag stands for another image now: {digest}"),
        (Fate::Left(why), _) => format!("left as it is: {why}"),
        (Fate::Failed(refusal), _) => refusal.to_string(),
    }
}

fn as_json(named: &NamedImage, fate: &Fate) -> serde_json::Value {
    let (state, digest, refusal) = match fate {
        Fate::Kept => ("kept", None, None),
        Fate::Locked(digest) => ("locked", Some(digest), None),
        Fate::Moved(digest) => ("moved", Some(digest), None),
        Fate::Left(_) => ("left", None, None),
        Fate::Failed(refusal) => ("failed", None, Some(refusal)),
    };
    let own = match &named.image {
        ImageRef::Registry(reference) => reference.digest.as_ref(),
        ImageRef::Archive(_) => None,
    };
    serde_json::json!({
        "file": named.file, "line": named.line, "image": plain(&named.image), "state": state, "former": own,
        "digest": digest.or(own), "reason": refusal.map(|it| it.reason), "message": refusal.map(|it| &it.message),
    })
}
