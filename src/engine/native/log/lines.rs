//! From bytes to lines, with a bound on memory: a container may write for ever without a line break.

/// Longest text of one entry; a longer line is cut into parts. Keeps a datagram to the journal well below its limit.
const MAX_LINE: usize = 16 << 10;

/// One entry: a line, or a part of a long one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Without its line break.
    pub text: &'a [u8],
    /// Whether the line ends here.
    pub ends: bool,
}

/// Cuts one stream into lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes, and calls `emit` for each piece that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = bytes.get(..room + 1).unwrap_or(bytes);
            let (text, rest, ends) = match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&bytes[..at], &bytes[at + 1..], true),
                None if bytes.len() <= room => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
                None => (&bytes[..room], &bytes[room..], false),
            };
            if self.pending.is_empty() {
                emit(Piece { text, ends });
            } else {
                self.pending.extend_from_slice(text);
                emit(Piece { text: &self.pending, ends });
                self.pending.clear();
            }
            bytes = rest;
        }
    }

    /// Emits what came after the last line break, at the end of the stream.
    pub fn finish(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        if !self.pending.is_empty() {
            emit(Piece { text: &self.pending, ends: true });
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[Vec<u8>]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |piece| found.push((piece.text.to_vec(), piece.ends)));
            assert!(splitter.pending.len() <= MAX_LINE);
        }
        splitter.finish(|piece| found.push((piece.text.to_vec(), piece.ends)));
        found
    }

    #[test]
    fn lines_over_chunk_borders() {
        let found = split(&[b"one\ntw".to_vec(), b"o\n\nthree".to_vec()]);
        let shown: Vec<_> = found.iter().map(|(text, ends)| (text.as_slice(), *ends)).collect();
        assert_eq!(shown, [(&b"one"[..], true), (b"two", true), (b"", true), (b"three", true)]);
    }

    #[test]
    fn a_long_line_is_cut_and_a_full_one_is_not() {
        let exact = [vec![b'x'; MAX_LINE], vec![b'\n']].concat();
        assert_eq!(split(&[exact]), [(vec![b'x'; MAX_LINE], true)]);
        let found = split(&[vec![b'y'; 2 * MAX_LINE + 5]]);
        assert_eq!(
            found.iter().map(|(t, e)| (t.len(), *e)).collect::<Vec<_>>(),
            [(MAX_LINE, false), (MAX_LINE, false), (5, true)]
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_is_chunked(
            chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n')], 0..3000), 0..30)
        ) {
            let whole = chunks.concat();
            let mut back = Vec::new();
            for (text, ends) in split(&chunks) {
                prop_assert!(text.len() <= MAX_LINE && !text.contains(&b'\n'));
                back.extend(text);
                if ends {
                    back.push(b'\n');
                }
            }
            if !whole.is_empty() && !whole.ends_with(b"\n") {
                back.pop();
            }
            prop_assert_eq!(back, whole);
        }
    }
}
