//! Archives that are cut off, and archives without end.

use std::fs;
use std::io::Read;
use std::time::Instant;

use super::forge::{head, tar};
use super::table::Seen;
use super::{Error, unpack};

/// Blocks that come again and again, without an archive that is as long.
struct Again {
    block: Vec<u8>,
    times: usize,
    at: usize,
}

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.times == 0 {
            return Ok(0);
        }
        let count = (&self.block[self.at..]).read(buffer)?;
        self.at += count;
        if self.at == self.block.len() {
            (self.at, self.times) = (0, self.times - 1);
        }
        Ok(count)
    }
}

fn stream(block: Vec<u8>, times: usize) -> Result<super::Implied, Error> {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::File::open(dir.path()).unwrap().into();
    let stream = std::io::BufReader::with_capacity(64 << 10, Again { block, times, at: 0 });
    super::super::unpack(stream, root, &mut std::io::sink())
}

#[test]
fn a_million_entries_and_no_more() {
    // A whiteout of the same name: as little work as an entry can be.
    let block = tar().file("d/.wh.a", b"").0;
    let error = stream(block, 1_000_001).unwrap_err();
    assert!(error.into_pull_error("l").to_string().contains("more than 1000000 entries"));
}

#[test]
fn directories_are_remembered_within_bounds() {
    // 32 MiB of paths that have to be kept until the end.
    let deep = "n".repeat(250) + "/";
    let deep = deep.repeat(15);
    let dir = tempfile::tempdir().unwrap();
    let archive =
        (0..9_000).fold(tar(), |tar, n| tar.pax(&[("path", format!("{deep}{n}").as_bytes())]).dir("d")).0;
    let error = unpack(&archive, dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Refused(why) if why.contains("directories whose paths")), "{error:?}");
}

#[test]
fn an_archive_cut_anywhere_is_refused_or_holds_what_came_before() {
    let contents: Vec<Vec<u8>> = [700, 0, 512, 1].map(|length| vec![b'x'; length]).to_vec();
    let mut archive = tar().symlink("l", "f0");
    // Where an archive may end: behind an entry, or within the padding of its content.
    let mut ends = vec![0..=0, archive.0.len()..=archive.0.len()];
    for (number, content) in contents.iter().enumerate() {
        archive = archive.pax(&[("mtime", b"1.5")]).long(b'L', format!("f{number}")).file("short", content);
        let end = archive.0.len();
        ends.push(end - (content.len().next_multiple_of(512) - content.len())..=end);
    }
    let archive = archive.end();
    for cut in 0..archive.len() {
        // Every boundary, and the bytes around it.
        let within = cut % 512;
        if !(2..511).contains(&within) || [187, 188, 189, 256].contains(&within) {
            let dir = tempfile::tempdir().unwrap();
            let result = unpack(&archive[..cut], dir.path());
            let whole = ends.iter().position(|end| end.contains(&cut));
            match (whole, result) {
                (None, Ok(_)) if cut <= archive.len() - 1024 => panic!("cut at {cut}: unpacked"),
                (Some(entries), Ok(_)) => {
                    assert_eq!(Seen(dir.path().to_owned()).names().len(), entries, "cut at {cut}");
                }
                (Some(_), Err(error)) => panic!("cut at {cut}: {error:?}"),
                // Within the mark of the end: as good as its end, or torn.
                (None, _) => {}
            }
        }
    }
}

#[test]
fn every_bit_of_a_header_counts() {
    // Whatever bit is another: it is refused, or makes what it says; never more than one thing, never a panic.
    let good = tar().entry(head(b'0', "a").gnu(), b"x").end();
    // The checksum itself may be written in more ways than one.
    for bit in (0..148 * 8).chain(156 * 8..512 * 8) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&bad, dir.path()).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "bit {bit}: {error:?}");
    }
}

#[test]
fn many_whiteouts_take_their_number_in_time() {
    let time = |count: usize| {
        let archive = (0..count).fold(tar(), |tar, number| match number % 2 {
            0 => tar.file("d/.wh..wh..opq", b""),
            _ => tar.file(format!("d/.wh.{number}"), b""),
        });
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        unpack(&archive.end(), dir.path()).unwrap();
        begun.elapsed()
    };
    time(1000);
    let (few, many) = (time(4000), time(32_000));
    // Eight times as many; were it quadratic, it would be sixty-four.
    assert!(many < few * 32, "{few:?} for 4000, {many:?} for 32000");
}
