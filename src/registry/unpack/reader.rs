//! A tar stream, strictly: what readers of tar take differently is refused, so that nobody can show one thing to a
//! scanner and another to this host (pax(1), "ustar Interchange Format" and "pax Extended Header"; GNU tar's manual,
//! "Basic Tar Format"; CVE-2025-62518).

use std::io::{self, BufRead};

use super::fields::{number, octal, signed, text};
use super::pax::{self, Pax};
use super::{Error, refuse};
use crate::registry::sha256::Sha256;
use crate::types::Digest;

const BLOCK: usize = 512;

/// Most bytes of headers before one entry: long names and extended attributes are held in memory.
const MAX_HEADERS: u64 = 1 << 20;

/// Largest number that a size field of 11 octal digits takes: above it writers have to say it otherwise.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an entry before it.
    Link,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// One entry, all its headers taken together.
#[derive(Debug)]
pub struct Entry {
    /// As the archive says it.
    pub path: Vec<u8>,
    /// Target of a link, never empty; empty for what is no link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content.
    pub size: u64,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, all that the archive names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for messages.
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).flat_map(char::escape_debug).collect()
}

/// Reads entries, one after the other.
pub struct Reader<R> {
    inner: R,
    /// Content of the entry that was not read yet.
    left: u64,
    /// Zeros between the content's end and the next block.
    padding: u64,
}

impl<R: Stream> Reader<R> {
    /// Begins at the first header.
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end, after which nothing but zeros was found.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_content()?;
        let mut pax: Option<Pax> = None;
        let (mut long_path, mut long_link) = (None, None);
        let mut allowance = MAX_HEADERS;
        loop {
            let Some(block) = self.block()? else {
                return if pax.is_some() || long_path.is_some() || long_link.is_some() {
                    refuse("a header that nothing follows")
                } else {
                    Ok(None)
                };
            };
            let header = Header::read(&block)?;
            match header.kind {
                b'x' | b'L' | b'K' if !header.is_marked() => {
                    return refuse("an extended header without a mark, which readers take differently");
                }
                b'x' if pax.is_some() => {
                    return refuse("two PAX headers for one entry, which readers take differently");
                }
                b'x' => pax = Some(pax::parse(&self.small(header.size, &mut allowance)?)?),
                b'L' | b'K' => {
                    let mut name = self.small(header.size, &mut allowance)?;
                    if name.pop_if(|last| *last == 0).is_none() || name.is_empty() || name.contains(&0) {
                        return refuse("a long name that does not end where it should");
                    }
                    let slot = if header.kind == b'L' { &mut long_path } else { &mut long_link };
                    if slot.replace(name).is_some() {
                        return refuse("two long names for one entry, which readers take differently");
                    }
                }
                b'g' => return refuse("a global header, which readers take differently"),
                _ => {
                    let entry = header.entry(pax.unwrap_or_default(), long_path, long_link)?;
                    self.left = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Hands the rest of the entry's content to `take`, part by part, and gives its digest.
    pub fn content(&mut self, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<Digest, Error> {
        let mut hash = Sha256::new();
        while let Some(part) = self.part()? {
            take(part)?;
            let count = part.len();
            self.inner.consume_content(count, &mut hash);
            self.left -= count as u64;
        }
        Ok(hash.finish())
    }

    /// What is there of the entry's content.
    fn part(&mut self) -> Result<Option<&[u8]>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let part = fill(&mut self.inner)?;
        if part.is_empty() {
            return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(part.len());
        Ok(Some(&part[..count]))
    }

    /// Passes over what is left of an entry. The stream may end within the last padding: some writers do not finish their
    /// archives (umoci insert), the content is all there, and readers that take such an archive take it the same way.
    fn skip_content(&mut self) -> Result<(), Error> {
        while let Some(part) = self.part()? {
            let count = part.len();
            self.inner.consume(count);
            self.left -= count as u64;
        }
        while self.padding > 0 {
            let here = fill(&mut self.inner)?.len();
            // At most a block less one byte.
            let count = here.min(self.padding as usize);
            if count == 0 {
                break;
            }
            self.inner.consume(count);
            self.padding -= count as u64;
        }
        self.padding = 0;
        Ok(())
    }

    /// The next block that is not the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0u8; BLOCK];
        // Archives without an end mark are common enough: every reader takes them the same way.
        if fill(&mut self.inner)?.is_empty() {
            return Ok(None);
        }
        self.inner.read_exact(&mut block).map_err(Error::Broken)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        self.only_zeros()?;
        Ok(None)
    }

    /// Some readers stop at the first block of zeros, some at the second, some go on behind: so nothing may be there.
    fn only_zeros(&mut self) -> Result<(), Error> {
        loop {
            let part = fill(&mut self.inner)?;
            if part.is_empty() {
                return Ok(());
            }
            if part.iter().any(|byte| *byte != 0) {
                return refuse("data behind the archive's end, which readers take differently");
            }
            let count = part.len();
            self.inner.consume(count);
        }
    }

    /// The content of a header that is itself a header.
    fn small(&mut self, size: u64, allowance: &mut u64) -> Result<Vec<u8>, Error> {
        let whole = size.saturating_add(padding(size));
        let Some(left) = allowance.checked_sub(whole) else {
            return refuse(format!("headers of more than {MAX_HEADERS} bytes before an entry"));
        };
        *allowance = left;
        // Bounded by the allowance.
        let mut bytes = vec![0; whole as usize];
        self.inner.read_exact(&mut bytes).map_err(Error::Broken)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }
}

/// What a tar is read from.
pub(in crate::registry) trait Stream: BufRead {
    /// Consumes bytes that are content, and adds them to its hash. A stream that hashes what passes does both at once.
    fn consume_content(&mut self, count: usize, content: &mut Sha256) {
        // What is consumed was seen before.
        content.update(self.fill_buf().ok().and_then(|part| part.get(..count)).unwrap_or_default());
        self.consume(count);
    }
}

impl Stream for &[u8] {}

impl<S: Stream> Stream for &mut S {
    fn consume_content(&mut self, count: usize, content: &mut Sha256) {
        (**self).consume_content(count, content);
    }
}

#[cfg(test)]
impl<R: io::Read> Stream for io::BufReader<R> {}

fn fill(inner: &mut impl BufRead) -> Result<&[u8], Error> {
    // Twice, as the borrow checker does not let go of a buffer that is returned on one way only.
    while let Err(error) = inner.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(Error::Broken(error));
        }
    }
    inner.fill_buf().map_err(Error::Broken)
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The fields of one block.
struct Header<'a> {
    block: &'a [u8; BLOCK],
    kind: u8,
    size: u64,
    magic: Magic,
}

/// Which tar wrote it.
#[derive(PartialEq)]
enum Magic {
    Posix,
    Gnu,
    /// Before there were any.
    V7,
}

impl<'a> Header<'a> {
    fn read(block: &'a [u8; BLOCK]) -> Result<Self, Error> {
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let stored = &block[148..156];
        let own: u64 = stored.iter().map(|byte| u64::from(*byte)).sum();
        if octal(stored) != Some(sum - own + 8 * u64::from(b' ')) {
            return refuse("not a tar header: its checksum does not match");
        }
        let magic = match &block[257..265] {
            b"ustar\x0000" => Magic::Posix,
            b"ustar  \0" => Magic::Gnu,
            // Some writers leave the version out.
            other if other.starts_with(b"ustar\0") => Magic::Posix,
            _ => Magic::V7,
        };
        let Some(size) = number(&block[124..136]) else { return refuse("a size that is no number") };
        Ok(Self { block, kind: block[156], size, magic })
    }

    /// The name; in POSIX archives of two parts.
    fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        match text(&self.block[345..500]) {
            prefix if self.magic == Magic::Posix && !prefix.is_empty() => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    /// Whether it bears POSIX's mark or GNU's, version and all: without one some readers take any header for a file's.
    fn is_marked(&self) -> bool {
        matches!(&self.block[257..265], b"ustar\x0000" | b"ustar  \0")
    }

    /// Python reads a second part of the name whatever the mark, Go also behind GNU's, libarchive behind any `ustar`,
    /// some only behind a version; star's is shorter.
    fn is_named_twice(&self) -> bool {
        let prefix = &self.block[345..500];
        let posix = self.block[257..265] == *b"ustar\x0000";
        let star = self.block[508..] == *b"tar\0" && text(prefix).len() > 130;
        (!posix || star) && prefix.iter().any(|byte| *byte != 0)
    }

    fn entry(
        &self,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Error> {
        let (path, one) = last_word(pax.path, long_path, || self.path());
        let (link, other) = last_word(pax.link, long_link, || text(&self.block[157..257]).to_vec());
        let name = shown(&path);
        if !(one && other) {
            return refuse(format!("{name}: its headers name two of its names"));
        }
        if path.is_empty() || path.contains(&0) {
            return refuse(format!("`{name}`: a name that is none"));
        }
        let kind = match self.kind {
            b'0' | b'7' | 0 => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'3' | b'4' => Kind::Device,
            b'S' => return refuse(format!("{name}: a sparse file")),
            other => return refuse(format!("{name}: an entry of kind `{}`", other.escape_ascii())),
        };
        if self.is_named_twice() {
            return refuse(format!("{name}: a second part of its name, which readers take differently"));
        }
        // The header's own number is good for nothing only where it has no room for the truth.
        if pax.size.is_some_and(|size| size != self.size && size <= MAX_OCTAL_SIZE) {
            return refuse(format!("{name}: its headers name two of `size`"));
        }
        let size = pax.size.unwrap_or(self.size);
        if size > 0 && kind != Kind::File {
            return refuse(format!("{name}: {kind:?} with content, which readers take differently"));
        }
        if kind == Kind::File && path.ends_with(b"/") {
            return refuse(format!("{name}: a file, or a directory: readers differ"));
        }
        let is_link = matches!(kind, Kind::Link | Kind::Symlink);
        if is_link && (link.is_empty() || link.contains(&0)) {
            return refuse(format!("{name}: a link to nothing"));
        }
        let field = |range: std::ops::Range<usize>| number(&self.block[range]);
        // The highest number means "leave it as it is" to chown(2).
        let id = |value: Option<u64>| match value.map(u32::try_from) {
            Some(Ok(value)) if value != u32::MAX => Ok(value),
            _ => refuse(format!("{name}: an owner or group that is no number")),
        };
        let Some(mode) = field(100..108) else { return refuse(format!("{name}: a mode that is no number")) };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => match signed(&self.block[136..148]) {
                Some(seconds) => (seconds, 0),
                None => return refuse(format!("{name}: a time that is no number")),
            },
        };
        Ok(Entry {
            uid: id(pax.uid.or_else(|| field(108..116)))?,
            gid: id(pax.gid.or_else(|| field(116..124)))?,
            // Twelve bits; some writers put the file type above them.
            mode: (mode & 0o7777) as u32,
            link: if is_link { link } else { Vec::new() },
            xattrs: pax.xattrs,
            path,
            kind,
            size,
            mtime,
        })
    }
}

/// The name that counts, and whether the headers agree on it.
fn last_word(
    pax: Option<Vec<u8>>,
    long: Option<Vec<u8>>,
    short: impl FnOnce() -> Vec<u8>,
) -> (Vec<u8>, bool) {
    match (pax, long) {
        (Some(pax), Some(long)) => {
            let agree = pax == long;
            (pax, agree)
        }
        (Some(name), None) | (None, Some(name)) => (name, true),
        (None, None) => (short(), true),
    }
}
