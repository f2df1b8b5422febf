//! Where the files of a repo name images: for `gitopsd lock`, which writes digests there and leaves all else as it is.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::repo_files::RepoFiles;
use crate::types::ImageRef;

/// An `image = "…"` in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// The file, relative to the folder of `gitopsd.toml`.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The bytes of the value in the file, its quotes included.
    pub span: Range<usize>,
    /// What it says.
    pub image: ImageRef,
}

/// All of them, in the order of files and lines: those of services, of defaults, and of hosts. What cannot be read is
/// left out: `gitopsd check` tells of it.
pub fn images(files: &RepoFiles) -> Vec<NamedImage> {
    let mut found = Vec::new();
    for (file, bytes) in files.iter() {
        let (Ok(text), true) = (std::str::from_utf8(bytes), file.ends_with(".toml")) else { continue };
        let Ok(table) = DeTable::parse(text) else { continue };
        let top = table.get_ref();
        let mut take = |table: &DeTable<'_>| found.extend(named(file, text, table));
        if file == "gitopsd.toml" {
            top.get("defaults").and_then(inner).into_iter().for_each(&mut take);
        } else if file.starts_with("services/") {
            take(top);
        } else if file.starts_with("hosts/") {
            let services = top.get("services").and_then(inner);
            services.into_iter().flat_map(|all| all.values()).filter_map(inner).for_each(&mut take);
        }
    }
    found.sort_by(|a, b| (&a.file, a.span.start).cmp(&(&b.file, b.span.start)));
    found
}

fn inner<'t, 'a>(value: &'t Spanned<DeValue<'a>>) -> Option<&'t DeTable<'a>> {
    value.get_ref().as_table()
}

fn named(file: &str, text: &str, table: &DeTable<'_>) -> Option<NamedImage> {
    let value = table.get("image")?;
    let image = value.get_ref().as_str()?.parse().ok()?;
    let span = value.span();
    let line = text.get(..span.start)?.matches('\n').count() + 1;
    Some(NamedImage { file: file.to_owned(), line, span, image })
}

/// The text with other images at these places; the rest of it, comments and all, is as it was.
pub fn replace(text: &str, images: &[(Range<usize>, ImageRef)]) -> String {
    let mut places: Vec<_> = images.iter().collect();
    places.sort_by_key(|(span, _)| span.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (span, image) in places {
        let Some(before) = text.get(at..span.start) else { continue };
        out.push_str(before);
        // No image has a quote, a backslash or a control character in it.
        let single = text.as_bytes().get(span.start) == Some(&b'\'');
        let quote = if single { '\'' } else { '"' };
        out.push(quote);
        out.push_str(&written(text.get(span.clone()).unwrap_or_default(), image));
        out.push(quote);
        at = span.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

/// The image as it was written, with the digest behind it: names stay as short as they were.
fn written(former: &str, image: &ImageRef) -> String {
    let former = former.trim_matches(['"', '\'']).trim();
    let name = former.split('@').next().unwrap_or_default();
    match image {
        ImageRef::Registry(reference) => match &reference.digest {
            Some(digest) => format!("{name}@{digest}"),
            None => name.to_owned(),
        },
        ImageRef::Archive(url) => url.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_and_nothing_else_is_touched() {
        let hex = "ab".repeat(32);
        let shop = "# the shop\nimage   = \"shop:1\"   # bump me\n[deploy]\n# not this\nbake = '1s'\n";
        let host =
            "[services.shop]\nimage = 'r.io/shop:2'\n[services]\nweb = { image = \"web:1\", cpus = 1 }\n";
        let top = "format = 1\r\n[defaults]\r\nimage = \"base:1\"\r\n";
        let files: RepoFiles = [
            ("services/shop.toml".to_owned(), shop.as_bytes().to_vec()),
            ("services/broken.toml".to_owned(), b"image = \"x:1\n".to_vec()),
            (
                "hosts/a.toml".to_owned(),
                host.replace("[services]\nweb", "[services.web]\nenv_file = []\n# web").into_bytes(),
            ),
            ("gitopsd.toml".to_owned(), top.as_bytes().to_vec()),
        ]
        .into();
        let found = images(&files);
        let places: Vec<_> =
            found.iter().map(|it| (it.file.as_str(), it.line, it.image.to_string())).collect();
        assert_eq!(
            places,
            [
                ("gitopsd.toml", 3, "docker.io/library/base:1".to_owned()),
                ("hosts/a.toml", 2, "r.io/shop:2".to_owned()),
                ("services/shop.toml", 2, "docker.io/library/shop:1".to_owned()),
            ]
        );
        let pinned = |image: &ImageRef| match image.clone() {
            ImageRef::Registry(mut reference) => {
                reference.digest = Some(format!("sha256:{hex}").parse().unwrap());
                ImageRef::Registry(reference)
            }
            other => other,
        };
        let locked = replace(shop, &[(found[2].span.clone(), pinned(&found[2].image))]);
        assert_eq!(locked, shop.replace("shop:1\"", &format!("shop:1@sha256:{hex}\"")));
        let again = replace(top, &[(found[0].span.clone(), pinned(&found[0].image))]);
        assert_eq!(again, top.replace("base:1\"", &format!("base:1@sha256:{hex}\"")));
    }
}
