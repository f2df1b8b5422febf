//! Two threads with a bounded number of buffers between them: inflate -> (diff-ID, tar, digest of each file, write).

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags, openat};

use super::{Done, Order, Product, SPOOLED};
use crate::registry::manifest::Packing;
use crate::registry::sha256::Sha256;
use crate::registry::unpack::{self, Error, Implied, Stream};

/// Bytes handed from one thread to the other at a time.
const CHUNK: usize = 256 << 10;

/// Buffers there are: bounds the memory.
const BUFFERS: usize = 8;

/// Largest window of a zstd frame, as a power of two: 128 MiB, what `zstd --long` makes and its decoder takes.
const WINDOW_LOG: u32 = 27;

/// Bytes that an xz decoder may take: `xz -9` needs 65 MiB (xz(1)).
const XZ_MEMORY: u64 = 128 << 20;

/// Unpacked bytes for each packed one; gzip cannot do more than 1,032 (zlib's technical details).
const MOST_RATIO: u64 = 1100;

/// What may come out before the ratio counts.
const ALLOWANCE: u64 = 64 << 20;

/// Unpacks `input` below `root`, and keeps it as it is in `blob`, where there is one. `seal` is called once all threads are
/// there, before the first byte is read.
pub(super) fn run(
    (input, blob): (File, Option<File>),
    order: &Order,
    root: OwnedFd,
    listing: &mut dyn Write,
    seal: impl FnOnce() -> io::Result<()>,
) -> Result<Done, Error> {
    let (packing, most) = (order.packing, order.most);
    let (inflated, to_write) = sync_channel::<Vec<u8>>(BUFFERS);
    let (back, empty) = sync_channel::<Vec<u8>>(BUFFERS);
    for _ in 0..BUFFERS {
        // The receiver is here, and there is room for all.
        let _ = back.send(Vec::new());
    }
    let (go, gone) = sync_channel::<()>(1);
    std::thread::scope(move |scope| {
        let inflating = scope.spawn(move || match gone.recv() {
            Ok(()) => inflate((input, blob), packing, most, &empty, &inflated),
            Err(_) => Err(Error::Broken(io::Error::other("it was not confined"))),
        });
        // The thread waits for a word, or for its sender to be gone.
        let go = go;
        seal().map_err(|error| Error::Disk(format!("confining it: {error}"), error))?;
        let _ = go.send(());
        let mut stream = Inflated { from: to_write, back, part: Vec::new(), at: 0, hash: Sha256::new() };
        let written = match order.product {
            Product::Tree => unpack::unpack(&mut stream, root, listing),
            Product::File => spool(&mut stream, &root).map(|()| Implied::new()),
        };
        let hash = stream.end();
        let inflated = inflating.join().map_err(|_| Error::Broken(io::Error::other("inflating panicked")))?;
        // What broke there also broke the writing: its error says more.
        inflated?;
        let implied = written?;
        Ok(Done { size: hash.length(), diff_id: hash.finish(), implied })
    })
}

/// Keeps the stream as it is.
fn spool(stream: &mut Inflated, root: &OwnedFd) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Disk("writing the archive".to_owned(), error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let opened =
        openat(root, SPOOLED, flags, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
    let mut file = File::from(opened);
    loop {
        let part = stream.fill_buf().map_err(Error::Broken)?;
        if part.is_empty() {
            return Ok(());
        }
        file.write_all(part).map_err(failed)?;
        let count = part.len();
        stream.consume(count);
    }
}

/// The first thread: all of the input, whatever becomes of it, so that whoever hands it over can check it to its end.
fn inflate(
    (input, blob): (File, Option<File>),
    packing: Packing,
    most: u64,
    empty: &Receiver<Vec<u8>>,
    full: &SyncSender<Vec<u8>>,
) -> Result<(), Error> {
    let taken = Cell::new(0);
    let input = Input { inner: input, count: &taken, blob, unkept: None };
    let mut packed = BufReader::with_capacity(CHUNK, input);
    let mut sink = Sink { size: 0, most, taken: &taken, empty, full };
    let copied = match packing {
        Packing::Plain => sink.take(&mut packed),
        Packing::Gzip => sink.take(&mut MultiGzDecoder::new(&mut packed)),
        Packing::Bzip2 => sink.take(&mut bzip2::bufread::MultiBzDecoder::new(&mut packed)),
        Packing::Xz => liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
            .map_err(io::Error::from)
            .and_then(|stream| sink.take(&mut liblzma::bufread::XzDecoder::new_stream(&mut packed, stream))),
        Packing::Zstd => zstd::stream::read::Decoder::with_buffer(&mut packed).and_then(|mut decoder| {
            decoder.window_log_max(WINDOW_LOG)?;
            sink.take(&mut decoder)
        }),
    };
    if copied.is_err() {
        // Nobody will have it.
        packed.get_mut().blob = None;
    }
    let rest = io::copy(&mut packed, &mut io::sink());
    if let Some(error) = packed.get_mut().unkept.take() {
        return Err(Error::Disk("keeping it packed".to_owned(), error));
    }
    rest.and(copied).map_err(Error::Broken)
}

/// Where unpacked bytes go to.
struct Sink<'a> {
    size: u64,
    most: u64,
    /// Packed bytes so far.
    taken: &'a Cell<u64>,
    empty: &'a Receiver<Vec<u8>>,
    full: &'a SyncSender<Vec<u8>>,
}

impl Sink<'_> {
    fn take(&mut self, from: &mut impl Read) -> io::Result<()> {
        // Nobody hands buffers back once a later stage has failed: its error is the one that counts.
        while let Ok(mut buffer) = self.empty.recv() {
            buffer.resize(CHUNK, 0);
            let filled = fill(from, &mut buffer)?;
            if filled == 0 {
                break;
            }
            self.size += filled as u64;
            let most = self.most.min(self.taken.get().saturating_mul(MOST_RATIO).saturating_add(ALLOWANCE));
            if self.size > most {
                return Err(io::Error::other(format!("it unpacks to more than {most} bytes")));
            }
            buffer.truncate(filled);
            if self.full.send(buffer).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// As much as there is and has room.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What comes in: counted, and kept where it is to be.
struct Input<'a> {
    inner: File,
    count: &'a Cell<u64>,
    blob: Option<File>,
    /// Why it could not be kept.
    unkept: Option<io::Error>,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        if let Some(blob) = &mut self.blob
            && let Err(error) = blob.write_all(&buffer[..count])
        {
            (self.blob, self.unkept) = (None, Some(error));
            return Err(io::Error::other("it could not be kept"));
        }
        Ok(count)
    }
}

/// What the second thread reads from, without another copy; hashes what is consumed.
struct Inflated {
    from: Receiver<Vec<u8>>,
    back: SyncSender<Vec<u8>>,
    part: Vec<u8>,
    at: usize,
    hash: Sha256,
}

impl Inflated {
    /// The hash of all that was consumed. Whoever waits for room in here hears that there will be none.
    fn end(self) -> Sha256 {
        self.hash
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.fill_buf()?;
        let count = part.len().min(buffer.len());
        buffer[..count].copy_from_slice(&part[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.part.len() {
            let used = std::mem::take(&mut self.part);
            if used.capacity() > 0 {
                // There is room for all buffers; the first thread may have come to its end.
                let _ = self.back.try_send(used);
            }
            // Closed: that was all.
            (self.part, self.at) = (self.from.recv().unwrap_or_default(), 0);
        }
        Ok(&self.part[self.at..])
    }

    fn consume(&mut self, count: usize) {
        let part = &self.part[self.at..];
        let part = &part[..count.min(part.len())];
        self.hash.update(part);
        self.at += part.len();
    }
}

impl Stream for Inflated {
    fn consume_content(&mut self, count: usize, content: &mut Sha256) {
        let part = &self.part[self.at..];
        let part = &part[..count.min(part.len())];
        self.hash.update_both(content, part);
        self.at += part.len();
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;
    use crate::types::Digest;

    fn order(packing: Packing, most: u64) -> Order {
        let (tree, listing) = ("/nowhere".into(), "/nowhere".into());
        Order { tree, listing, blob: None, packing, product: Product::Tree, most, parent: 0, nice: 0 }
    }

    /// Runs the stages on a packed tar with one file of `size` zeros.
    fn run_on(size: u64, packing: Packing, most: u64) -> (Result<Done, Error>, u64) {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "zeros", io::repeat(0).take(size)).unwrap();
        let tar = tar.into_inner().unwrap();
        let blob = match packing {
            Packing::Plain => tar.clone(),
            Packing::Gzip => {
                // Two members, as `pigz` and concatenation make them.
                let member = |part: &[u8]| {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                    gzip.write_all(part).unwrap();
                    gzip.finish().unwrap()
                };
                let (a, b) = tar.split_at(tar.len() / 3);
                [member(a), member(b)].concat()
            }
            Packing::Bzip2 | Packing::Xz => unreachable!("see tests/archive"),
            Packing::Zstd => {
                let (a, b) = tar.split_at(tar.len() / 3);
                [zstd::encode_all(a, 3).unwrap(), zstd::encode_all(b, 3).unwrap()].concat()
            }
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("blob"), &blob).unwrap();
        std::fs::create_dir(dir.path().join("fs")).unwrap();
        let (input, root) = (File::open(dir.path().join("blob")), File::open(dir.path().join("fs")));
        let kept = File::create(dir.path().join("kept")).unwrap();
        let mut listing = Vec::new();
        let (input, order) = ((input.unwrap(), Some(kept)), order(packing, most));
        let result = run(input, &order, root.unwrap().into(), &mut listing, || Ok(()));
        if let Ok(done) = &result {
            assert!(std::fs::read(dir.path().join("kept")).unwrap() == blob, "{packing:?}: kept as it came");
            assert_eq!(done.diff_id, Digest::from_sha256(&sha2::Sha256::digest(&tar).into()));
            assert_eq!(done.size, tar.len() as u64);
        }
        (result, std::fs::metadata(dir.path().join("fs/zeros")).map_or(0, |file| file.len()))
    }

    #[test]
    fn all_parts_of_a_stream_are_read() {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let (result, written) = run_on(4 << 20, packing, 8 << 20);
            result.unwrap();
            assert_eq!(written, 4 << 20, "{packing:?}");
        }
    }

    #[test]
    fn a_bomb_goes_off_within_its_limit() {
        let (result, written) = run_on(64 << 20, Packing::Gzip, 8 << 20);
        assert!(
            matches!(&result, Err(Error::Broken(error)) if error.to_string() == "it unpacks to more than 8388608 bytes"),
            "{result:?}"
        );
        assert!(written <= 8 << 20, "{written} bytes on disk");
    }

    #[test]
    fn no_layer_is_nearly_all_air() {
        let (result, written) = run_on(256 << 20, Packing::Zstd, 1 << 30);
        assert!(matches!(result, Err(Error::Broken(_))), "{result:?}");
        assert!(written < 128 << 20, "{written} bytes on disk");
    }

    #[test]
    fn nothing_is_read_unconfined() {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        let input = File::open("/dev/zero").unwrap();
        let refuse = || Err(io::Error::other("no"));
        let result = run((input, None), &order(Packing::Plain, 1 << 20), root, &mut Vec::new(), refuse);
        assert!(matches!(result, Err(Error::Disk(..))), "{result:?}");
    }

    #[test]
    fn a_disk_that_is_full_for_what_is_kept_is_told_as_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("blob"), vec![0; 1 << 20]).unwrap();
        std::fs::create_dir(dir.path().join("fs")).unwrap();
        let open = |name: &str| File::open(dir.path().join(name)).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        for packing in [Packing::Plain, Packing::Gzip] {
            let (input, root) = ((open("blob"), Some(full.try_clone().unwrap())), open("fs").into());
            let result = run(input, &order(packing, 2 << 20), root, &mut Vec::new(), || Ok(()));
            let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
            assert!(matches!(&result, Err(Error::Disk(_, error)) if full(error)), "{result:?}");
        }
    }
}
