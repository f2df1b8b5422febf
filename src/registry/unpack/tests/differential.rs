//! Whatever this reader takes, other readers take for the same: names, kinds, sizes and contents. The `tar` crate is
//! asked about archives by the thousand, GNU tar and Python's `tarfile` about a fixed set.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::reader::{Kind, Reader};
use super::forge::{Head, MAGIC, PREFIX, SIZE, Tar, head, tar};
use super::table;

/// What a reader sees of an entry: its name, kind, link and content.
type Seen = (Vec<u8>, char, Vec<u8>, Vec<u8>);

fn ours(archive: &[u8]) -> Option<Vec<Seen>> {
    let mut reader = Reader::new(archive);
    let mut seen = Vec::new();
    while let Some(entry) = reader.next().ok()? {
        let mut content = Vec::new();
        reader
            .content(|part| {
                content.extend_from_slice(part);
                Ok(())
            })
            .ok()?;
        assert_eq!(content.len() as u64, entry.size);
        let kind = match entry.kind {
            Kind::File => 'f',
            Kind::Link => 'h',
            Kind::Symlink => 'l',
            Kind::Directory => 'd',
            Kind::Fifo => 'p',
            Kind::Device => 'c',
        };
        seen.push((plain(&entry.path), kind, entry.link, content));
    }
    Some(seen)
}

/// A name as all readers print it: slashes at its end say nothing more than the kind does.
fn plain(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(path.len().min(1), |at| at + 1);
    path[..end].to_vec()
}

/// The `tar` crate's view; `None` where it gives up.
fn theirs(archive: &[u8]) -> Option<Vec<Seen>> {
    let mut archive = ::tar::Archive::new(archive);
    let mut seen = Vec::new();
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        let kind = match entry.header().entry_type() {
            kind if kind.is_file() || kind.is_contiguous() => 'f',
            kind if kind.is_hard_link() => 'h',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_dir() => 'd',
            kind if kind.is_fifo() => 'p',
            kind if kind.is_character_special() || kind.is_block_special() => 'c',
            _ => '?',
        };
        let link = entry.link_name_bytes().filter(|_| matches!(kind, 'h' | 'l'));
        let (path, link) =
            (plain(&entry.path_bytes()), link.map(|link| link.into_owned()).unwrap_or_default());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).ok()?;
        seen.push((path, kind, link, content));
    }
    Some(seen)
}

/// One entry with what may stand before it, and bytes of its header that are then others.
fn entry() -> impl Strategy<Value = Tar> {
    let name = prop_oneof![Just("a".to_owned()), Just("d/".to_owned()), "[a-c./]{1,12}", "[a-z]{90,100}"];
    let kind = prop_oneof![
        4 => Just(b'0'), 1 => Just(0u8), 1 => Just(b'1'), 1 => Just(b'2'), 1 => Just(b'5'), 1 => Just(b'6'),
        1 => Just(b'7'), 1 => any::<u8>(),
    ];
    let before = prop::collection::vec(
        prop_oneof![
            "[a-c/]{1,120}".prop_map(|name| tar().long(b'L', name)),
            "[a-c/]{1,120}".prop_map(|name| tar().long(b'K', name)),
            "[a-c/]{0,120}".prop_map(|name| tar().pax(&[("path", name.as_bytes())])),
            (0u32..1200, "[a-c]{1,9}").prop_map(|(size, link)| tar()
                .pax(&[("size", size.to_string().as_bytes()), ("linkpath", link.as_bytes())])),
            "[a-c\n0-9 =]{0,60}".prop_map(|value| tar().pax(&[("SCHILY.xattr.user.a", value.as_bytes())])),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| tar().entry(head(b'x', "x"), bytes)),
        ],
        0..3,
    );
    let change = prop_oneof![
        6 => Just((0usize, Vec::new())),
        1 => prop::collection::vec(any::<u8>(), 1..12).prop_map(|bytes| (SIZE, bytes)),
        // All blank is 0 to GNU tar, to Go and here, and nothing to the crate.
        1 => "[ 0-7]{12}".prop_filter("blank", |text| !text.trim().is_empty()).prop_map(|text| (SIZE, text.into_bytes())),
        1 => prop_oneof![Just("ustar  \0"), Just("\0\0\0\0\0\0\0\0"), Just("ustar\0\0\0")].prop_map(|mark| (MAGIC, mark.into())),
        1 => "[a-c]{1,155}".prop_map(|prefix| (PREFIX, prefix.into_bytes())),
        1 => (0usize..500, any::<u8>()).prop_map(|(at, byte)| (at, vec![byte])),
    ];
    let content = prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..1100);
    (name, kind, before, change, content, any::<bool>(), any::<bool>()).prop_map(
        |(name, kind, before, (at, bytes), content, inside, right)| {
            let content = if matches!(kind, b'1' | b'2' | b'5' | b'6') { Vec::new() } else { content };
            // Something that could be taken for an entry.
            let content = if inside { tar().file("hidden", b"x").0 } else { content };
            let header: Head =
                head(kind, &name).link(if matches!(kind, b'1' | b'2') { "target" } else { "" });
            let header = header.size(if right { content.len() as u64 } else { 0 }).put(at, bytes);
            let all = before.into_iter().fold(tar(), |all, part| all.raw(part.0));
            all.head(header).data(content)
        },
    )
}

/// Asks about many archives; those that are no archive to this reader say nothing.
fn compare(cases: u32, archives: impl Strategy<Value = Vec<u8>>) -> u32 {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let taken = Cell::new(0);
    let result = TestRunner::new(config).run(&archives, |archive| {
        if let Some(ours) = ours(&archive) {
            prop_assert_eq!(Some(ours), theirs(&archive));
            taken.set(taken.get() + 1);
        }
        Ok(())
    });
    assert!(result.is_ok(), "{}", result.unwrap_err());
    taken.get()
}

#[test]
fn what_is_taken_is_what_the_crate_takes() {
    let archives = (prop::collection::vec(entry(), 1..4), any::<bool>()).prop_map(|(entries, ended)| {
        let archive = entries.into_iter().fold(tar(), |all, entry| all.raw(entry.0));
        if ended { archive.end() } else { archive.0 }
    });
    let taken = compare(6000, archives);
    assert!(taken > 300, "only {taken} archives say anything");
}

#[test]
fn bytes_of_any_kind_are_no_panic() {
    compare(1000, prop::collection::vec(any::<u8>(), 0..3000));
}

/// Every archive of the table that the reader takes, and some more.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let outside = table::Outside { relative: "../outside".to_owned(), absolute: "/outside".to_owned() };
    let rows = table::all().into_iter().flat_map(|(_, rows)| rows);
    let mut corpus: Vec<(String, Vec<u8>)> = rows
        .map(|row| (row.name.to_owned(), (row.archive)(&outside)))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    for format in ["gnu", "pax", "ustar", "v7", "oldgnu"] {
        corpus.push((format!("GNU tar, {format}"), written_by_gnu(format)));
    }
    corpus
}

fn written_by_gnu(format: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("d/{}", "n".repeat(if matches!(format, "v7" | "ustar") { 80 } else { 200 }));
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join(&long), vec![b'x'; 1000]).unwrap();
    std::fs::hard_link(dir.path().join(&long), dir.path().join("h")).unwrap();
    std::os::unix::fs::symlink("d", dir.path().join("l")).unwrap();
    let output = Command::new("tar")
        .args(["--format", format, "-cf", "-", "-C"])
        .arg(dir.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

fn ask(program: &str, arguments: &[&str], archive: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let archive = archive.to_vec();
    // It may stop before the end.
    let feeder = std::thread::spawn(move || input.write_all(&archive).is_ok());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.status.success().then_some(output.stdout)
}

/// Lists archives in Python's words: a line for each entry, a line `=` after each archive, `!` where it gives up.
/// Archives come as their length in eight bytes and themselves.
const LIST: &str = "
import sys, tarfile, io
kinds = {tarfile.REGTYPE: 'f', tarfile.AREGTYPE: 'f', tarfile.CONTTYPE: 'f', tarfile.LNKTYPE: 'h',
         tarfile.SYMTYPE: 'l', tarfile.DIRTYPE: 'd', tarfile.FIFOTYPE: 'p', tarfile.CHRTYPE: 'c',
         tarfile.BLKTYPE: 'c'}
raw = lambda text: text.encode('utf-8', 'surrogateescape').hex() or '-'
def lines(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:', errors='surrogateescape', encoding='utf-8') as archive:
        for entry in archive:
            kind = kinds.get(entry.type, '?')
            content = data[entry.offset_data:entry.offset_data + entry.size].hex() if kind == 'f' else ''
            link = raw(entry.linkname.rstrip('/') or '/') if kind in 'hl' else '-'
            yield f\"{raw(entry.name.rstrip('/') or '/')} {kind} {link} {content or '-'}\"
while length := sys.stdin.buffer.read(8):
    data = sys.stdin.buffer.read(int.from_bytes(length, 'little'))
    try:
        found = list(lines(data))
    except (tarfile.TarError, ValueError, OverflowError, MemoryError):
        found = ['!']
    print(*found, '=', sep='\\n')
";

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
}

#[test]
fn what_is_taken_is_what_python_takes() {
    let taken: Vec<_> =
        corpus().into_iter().filter_map(|(name, archive)| Some((name, ours(&archive)?, archive))).collect();
    let framed: Vec<u8> = taken
        .iter()
        .flat_map(|(_, _, archive)| [&(archive.len() as u64).to_le_bytes()[..], archive].concat())
        .collect();
    let output = String::from_utf8(ask("python3", &["-c", LIST], &framed).unwrap()).unwrap();
    let answers: Vec<&str> = output.split_inclusive("=\n").collect();
    assert_eq!(answers.len(), taken.len());
    let mut compared = 0;
    for ((name, ours, _), theirs) in taken.iter().zip(answers) {
        if theirs == "!\n=\n" {
            continue;
        }
        let ours: String = ours
            .iter()
            .map(|(path, kind, link, content)| {
                format!("{} {kind} {} {}\n", hex(path), hex(&plain(link)), hex(content))
            })
            .chain(["=\n".to_owned()])
            .collect();
        assert_eq!(ours, *theirs, "{name}");
        compared += 1;
    }
    assert!(compared > 60, "only {compared} archives were compared");
}

/// What GNU tar unpacks, where it unpacks all: paths, and what is there.
#[test]
fn what_is_taken_is_what_gnu_tar_takes() {
    let mut compared = 0;
    for (name, archive) in corpus() {
        let Some(entries) = ours(&archive) else { continue };
        // The last one of a name counts; links lead elsewhere, and are another test's.
        if entries.iter().any(|(path, ..)| path.starts_with(b"/") || path.windows(2).any(|two| two == b".."))
        {
            continue;
        }
        let Some(output) = ask(
            "tar",
            &["--quoting-style=escape", "--list", "--verbose", "--numeric-owner", "-f", "-"],
            &archive,
        ) else {
            continue;
        };
        let lines = String::from_utf8_lossy(&output).into_owned();
        let theirs: Vec<(char, u64)> = lines
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                (line.chars().next().unwrap_or('?'), fields[2].parse().unwrap_or(0))
            })
            .collect();
        let ours: Vec<(char, u64)> = entries
            .iter()
            .map(|(_, kind, _, content)| (if *kind == 'f' { '-' } else { *kind }, content.len() as u64))
            .collect();
        let theirs: Vec<(char, u64)> = theirs
            .into_iter()
            .map(|(kind, size)| {
                (
                    match kind {
                        'C' => '-',
                        'b' => 'c',
                        kind => kind,
                    },
                    size,
                )
            })
            .collect();
        assert_eq!(ours, theirs, "{name}: {lines}");
        compared += 1;
    }
    assert!(compared > 60, "only {compared} archives were compared");
}

/// Contents as GNU tar unpacks them.
#[test]
fn contents_are_what_gnu_tar_unpacks() {
    let archive = tar()
        .file("a", vec![b'x'; 700])
        .pax(&[("size", b"512")])
        .long(b'L', "b")
        .entry(head(b'0', "short"), vec![7; 512])
        .end();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tar"), &archive).unwrap();
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let status =
        Command::new("tar").arg("-xf").arg(dir.path().join("tar")).arg("-C").arg(&unpacked).status().unwrap();
    assert!(status.success());
    let theirs: BTreeMap<PathBuf, Vec<u8>> = ["a", "b"]
        .iter()
        .map(|name| (Path::new(name).to_owned(), std::fs::read(unpacked.join(name)).unwrap()))
        .collect();
    let ours = ours(&archive).unwrap();
    assert_eq!(ours.len(), theirs.len());
    for (path, _, _, content) in ours {
        let path = PathBuf::from(String::from_utf8(path).unwrap());
        assert_eq!(theirs[&path], content);
    }
}
