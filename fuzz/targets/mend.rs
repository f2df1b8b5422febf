//! Right checksums for what a fuzzer makes: it would find few by itself.

/// Goes from header to header as sizes lead, and mends each one's checksum.
pub fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + 512) {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size =
            std::str::from_utf8(&block[124..135]).ok().and_then(|text| usize::from_str_radix(text, 8).ok());
        at += 512 + size.unwrap_or(0).min(1 << 20).next_multiple_of(512);
    }
    bytes
}

/// Whether no value of an extended header holds a newline: each line is as long as it says.
#[allow(dead_code, reason = "only one target asks")]
pub fn is_plain(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + 512) {
        let size =
            std::str::from_utf8(&block[124..135]).ok().and_then(|text| usize::from_str_radix(text, 8).ok());
        let size = size.unwrap_or(0).min(1 << 20);
        let content = bytes.get(at + 512..).unwrap_or_default();
        let mut lines = content[..size.min(content.len())].split_inclusive(|byte| *byte == b'\n');
        let says = |line: &[u8]| -> Option<usize> {
            let end = line.iter().position(|byte| *byte == b' ')?;
            std::str::from_utf8(&line[..end]).ok()?.parse().ok()
        };
        if block[156] == b'x' && !lines.all(|line| says(line) == Some(line.len())) {
            return false;
        }
        at += 512 + size.next_multiple_of(512);
    }
    true
}
