//! Tar archives byte by byte: no library writes what has to be tried here (pax(1), "ustar Interchange Format"; GNU
//! tar's manual, "Basic Tar Format").

/// Where fields of a header begin.
pub const MODE: usize = 100;
pub const UID: usize = 108;
pub const GID: usize = 116;
pub const SIZE: usize = 124;
pub const MTIME: usize = 136;
pub const SUM: usize = 148;
pub const MAGIC: usize = 257;
pub const MAJOR: usize = 329;
pub const MINOR: usize = 337;
pub const PREFIX: usize = 345;

/// The time of everything that is given no other.
pub const THEN: u64 = 1_700_000_000;

const BLOCK: usize = 512;

/// One header, without its checksum until it is in an archive.
#[derive(Clone)]
pub struct Head {
    block: [u8; BLOCK],
    summed: bool,
}

/// A POSIX header of that type flag, as a well-behaved writer writes it.
pub fn head(kind: u8, name: impl AsRef<[u8]>) -> Head {
    let mode = if kind == b'5' { "0000755\0" } else { "0000644\0" };
    let mut head = Head { block: [0; BLOCK], summed: true }
        .put(0, name)
        .put(MODE, mode)
        .put(UID, "0000000\0")
        .put(GID, "0000000\0")
        .put(SIZE, "00000000000\0")
        .put(MTIME, format!("{THEN:011o}\0"))
        .put(MAGIC, "ustar\x0000");
    head.block[156] = kind;
    head
}

impl Head {
    /// Overwrites bytes.
    pub fn put(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.put(157, target)
    }

    pub fn mode(self, mode: u32) -> Self {
        self.put(MODE, format!("{mode:07o}\0"))
    }

    pub fn owner(self, id: u32) -> Self {
        self.put(UID, format!("{id:07o}\0")).put(GID, format!("{id:07o}\0"))
    }

    pub fn size(self, size: u64) -> Self {
        self.put(SIZE, format!("{size:011o}\0"))
    }

    pub fn time(self, seconds: u64) -> Self {
        self.put(MTIME, format!("{seconds:011o}\0"))
    }

    /// As GNU tar marks its own.
    pub fn gnu(self) -> Self {
        self.put(MAGIC, "ustar  \0")
    }

    /// As tar was before it had a mark.
    pub fn v7(self) -> Self {
        self.put(MAGIC, [0; 8])
    }

    /// Leaves the checksum as it was put.
    pub fn unsummed(mut self) -> Self {
        self.summed = false;
        self
    }

    /// The sum of all bytes, its own field taken for blanks.
    pub fn sum(&self) -> u32 {
        let blank = self.clone().put(SUM, "        ");
        blank.block.iter().map(|byte| u32::from(*byte)).sum()
    }

    pub fn block(self) -> [u8; BLOCK] {
        let sum = self.sum();
        if self.summed { self.put(SUM, format!("{sum:06o}\0 ")).block } else { self.block }
    }
}

/// An archive that grows.
#[derive(Clone, Debug, Default)]
pub struct Tar(pub Vec<u8>);

pub fn tar() -> Tar {
    Tar::default()
}

impl Tar {
    /// Bytes as they are.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// A header alone.
    pub fn head(self, head: Head) -> Self {
        self.raw(head.block())
    }

    /// Content, filled up to a block.
    pub fn data(self, bytes: impl AsRef<[u8]>) -> Self {
        let mut tar = self.raw(bytes);
        tar.0.resize(tar.0.len().next_multiple_of(BLOCK), 0);
        tar
    }

    /// A header that says the size of the content behind it.
    pub fn entry(self, head: Head, content: impl AsRef<[u8]>) -> Self {
        let size = content.as_ref().len() as u64;
        self.head(head.size(size)).data(content)
    }

    pub fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(head(b'0', name), content)
    }

    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.head(head(b'5', name))
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref();
        // Where the temporary directory has a long name.
        let tar = if target.len() > 100 { self.pax(&[("linkpath", target)]) } else { self };
        tar.head(head(b'2', name).link(&target[..target.len().min(100)]))
    }

    pub fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref();
        let tar = if target.len() > 100 { self.pax(&[("linkpath", target)]) } else { self };
        tar.head(head(b'1', name).link(&target[..target.len().min(100)]))
    }

    /// A file whose name stands in an extended header.
    pub fn named(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.pax(&[("path", name.as_ref())]).file("short", content)
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.entry(head(b'x', "PaxHeaders/x"), pax(records))
    }

    /// GNU's long name (`L`) or long link (`K`) for the next entry.
    pub fn long(self, kind: u8, name: impl AsRef<[u8]>) -> Self {
        self.entry(head(kind, "././@LongLink").gnu(), [name.as_ref(), b"\0"].concat())
    }

    /// The mark of the end.
    pub fn end(self) -> Vec<u8> {
        self.raw([0; 2 * BLOCK]).0
    }
}

/// `LENGTH KEY=VALUE\n` for each record.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        // A blank, `=` and a newline; and the length's own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length += 1;
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}
