//! Names of images: as people write them, and pinned to the bytes they stood for.

use std::fmt;
use std::str::FromStr;

use super::{Invalid, SafeUrl, archive, serde_through_str};

/// A content address, `sha256:` and 64 lower-case hex digits: the only form accepted, so that it is safe in a path.
///
/// Source: OCI image-spec, descriptor.md, "Digests".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl FromStr for Digest {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Invalid::new(format!(
                "`{}` is not a digest: expected `sha256:` and 64 lower-case hex digits",
                text.chars().take(80).collect::<String>()
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Digest {
    /// The 64 hex digits alone: the form used in file names.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first twelve hex digits, as people quote it.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The digest with these 32 bytes.
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::from("sha256:");
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }
}
serde_through_str!(Digest);

/// An image as a service file names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRef {
    /// `[registry/]name:tag[@sha256:…]`
    Registry(RegistryRef),
    /// `s3://bucket/key`, `https://…` or `file:///…`: an image archive.
    Archive(SafeUrl),
}

/// An image in a registry. At least one of `tag` and `digest` is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryRef {
    /// Host and optional port; `docker.io` where the reference names none.
    pub registry: String,
    /// Path below the registry, as `library/nginx`.
    pub repository: String,
    /// What people bump.
    pub tag: Option<String>,
    /// What they may pin it to.
    pub digest: Option<Digest>,
}

impl FromStr for ImageRef {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once("://") {
            Some((scheme @ ("s3" | "https" | "file"), rest)) => {
                archive::check(scheme, rest)?;
                Ok(Self::Archive(text.parse()?))
            }
            Some((scheme, _)) => Err(Invalid::new(format!(
                "`{scheme}://` is not a source of images: use a registry reference, s3://, https:// or file:///"
            ))),
            None => match kind_of(text) {
                Some(hint) => Err(Invalid::new(format!("`{text}` is not an image reference: {hint}"))),
                None => text.parse().map(Self::Registry),
            },
        }
    }
}

/// What is meant by what looks like an address that is not written as one.
fn kind_of(text: &str) -> Option<String> {
    if text.starts_with('/') {
        return Some(format!("an archive on this host is file://{text}"));
    }
    if ["./", "../", "~/"].iter().any(|begin| text.starts_with(begin)) {
        return Some("an archive on this host is file:///path, from the root".to_owned());
    }
    let scheme = ["s3:/", "https:/", "http:/", "file:/"].iter().any(|begin| text.starts_with(begin));
    scheme.then(|| "an archive is s3://bucket/key, https://host/path or file:///path".to_owned())
}

impl FromStr for RegistryRef {
    type Err = Invalid;

    /// Splits as the distribution project's reference grammar does: the first part is a registry when it holds a dot
    /// or a colon or is `localhost`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::new(format!("`{text}` is not an image reference: {why}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first.to_owned(), path.to_owned())
            }
            Some(_) => ("docker.io".to_owned(), rest.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{rest}")),
        };
        if !is_registry(&registry) {
            return Err(bad("the registry is not host[:port]"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_path_component) {
            return Err(bad("a name takes a-z, 0-9 and single . _ - between them, parted by /"));
        }
        if tag.is_none() && digest.is_none() {
            return Err(bad("it names no tag; write name:tag, so that a commit says what runs"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag takes up to 128 of A-Z, a-z, 0-9, _ . - and does not begin with . or -"));
        }
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

pub(super) fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let host_ok = !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        && !host.starts_with(['.', '-']);
    host_ok && port.is_none_or(is_port)
}

/// Digits alone: Rust also takes a sign, and no URL does.
pub(super) fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Source: OCI distribution-spec, "Pulling manifests", the grammar of `<name>`.
fn is_path_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alnum)
        && part.ends_with(alnum)
        && part.chars().all(|c| alnum(c) || matches!(c, '.' | '_' | '-'))
        && !part.contains("..")
        && !part.contains("___")
}

/// Source: OCI distribution-spec, the grammar of `<reference>` as a tag.
fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl fmt::Display for RegistryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Archive(url) => f.write_str(url.as_str()),
        }
    }
}
serde_through_str!(ImageRef);

/// An image whose bytes are known: what a tag stood for when its commit was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct PinnedImage {
    /// As the service file names it.
    pub reference: ImageRef,
    /// Digest of the image manifest for this host's platform: never of an index.
    pub digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_round_trip() {
        let hex = "0123456789abcdef".repeat(4);
        for (given, shown) in [
            ("registry.local:5000/shop:1.4.2", "registry.local:5000/shop:1.4.2".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("team/app:v1", "docker.io/team/app:v1".to_owned()),
            ("localhost/app:v1", "localhost/app:v1".to_owned()),
            (&format!("r.io/a:1@sha256:{hex}"), format!("r.io/a:1@sha256:{hex}")),
            ("s3://bucket/key.tar", "s3://bucket/key.tar".to_owned()),
        ] {
            assert_eq!(given.parse::<ImageRef>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn bad_references_are_refused() {
        for bad in [
            "",
            "shop",
            "r.io/shop",
            "r.io/Shop:1",
            "r.io/a..b:1",
            "r.io/../x:1",
            "r.io:99999/a:1",
            "r.io:+50/a:1",
            "r.io/a:-1",
            "r.io/a@sha256:../../x",
            "ftp://x/y",
            "r.io//a:1",
            "r.io/a:",
            "http://x/y.tar",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
