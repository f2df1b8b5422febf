//! SHA-256 (FIPS 180-4) of a stream and of a file within it, in one pass.
//!
//! Each byte of a layer counts twice: for the layer's diff-ID and for its file's digest in the listing. Content begins
//! at a block of the tar, so both hashes take in the same blocks of 64 bytes: their schedule is worked out once, and the
//! rounds of one state run while those of the other wait for their turn. With the SHA extensions of x86 that costs little more
//! than one hash. Everywhere else, and off the blocks' boundaries, it is the `sha2` crate, twice.

use sha2::block_api::compress256;

use crate::types::Digest;

/// Bytes of a block.
const BLOCK: usize = 64;

/// FIPS 180-4, 5.3.3.
const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A hash on its way.
#[derive(Clone)]
pub(super) struct Sha256 {
    state: [u32; 8],
    /// The beginning of a block that is not complete.
    rest: [u8; BLOCK],
    filled: usize,
    /// Bytes so far.
    length: u64,
}

impl Sha256 {
    pub fn new() -> Self {
        Self { state: START, rest: [0; BLOCK], filled: 0, length: 0 }
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if self.filled > 0 {
            let count = bytes.len().min(BLOCK - self.filled);
            self.rest[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled < BLOCK {
                return;
            }
            compress256(&mut self.state, &[self.rest]);
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        compress256(&mut self.state, blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// The same bytes for two hashes.
    pub fn update_both(&mut self, other: &mut Self, bytes: &[u8]) {
        let (blocks, mut rest) = bytes.as_chunks::<BLOCK>();
        let aligned = self.filled == 0 && other.filled == 0;
        if !aligned || !compress_both(&mut self.state, &mut other.state, blocks) {
            rest = bytes;
        }
        for hash in [self, other] {
            hash.length = hash.length.wrapping_add((bytes.len() - rest.len()) as u64);
            hash.update(rest);
        }
    }

    /// FIPS 180-4, 5.1.1: a bit, zeros, and the length in bits.
    pub fn finish(mut self) -> Digest {
        let bits = self.length.wrapping_mul(8);
        self.rest[self.filled] = 0x80;
        self.rest[self.filled + 1..].fill(0);
        if self.filled + 1 > BLOCK - 8 {
            compress256(&mut self.state, &[self.rest]);
            self.rest.fill(0);
        }
        self.rest[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, &[self.rest]);
        let mut digest = [0; 32];
        for (part, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *part = word.to_be_bytes();
        }
        Digest::from_sha256(&digest)
    }
}

/// Takes `blocks` into both states, or says that this CPU has no way of its own to.
fn compress_both(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; BLOCK]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("sha") && std::is_x86_feature_detected!("sse4.1") {
        // SAFETY: the CPU has what the function is made for.
        unsafe { x86::compress_both(a, b, blocks) };
        return true;
    }
    let _ = (a, b, blocks);
    false
}

/// Intel's SHA extensions ("New Instructions Supporting the Secure Hash Algorithm on Intel Architecture Processors").
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::BLOCK;

    /// FIPS 180-4, 4.2.2.
    const K: [u32; 64] = [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ];

    /// A state as the instructions have it.
    #[derive(Clone, Copy)]
    struct State {
        abef: __m128i,
        cdgh: __m128i,
    }

    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn words(of: [u32; 4]) -> __m128i {
        let [a, b, c, d] = of.map(u32::cast_signed);
        _mm_set_epi32(d, c, b, a)
    }

    impl State {
        #[inline]
        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn load([a, b, c, d, e, f, g, h]: [u32; 8]) -> Self {
            Self { abef: words([f, e, b, a]), cdgh: words([h, g, d, c]) }
        }

        #[inline]
        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn add(self, other: Self) -> Self {
            let (abef, cdgh) = (_mm_add_epi32(self.abef, other.abef), _mm_add_epi32(self.cdgh, other.cdgh));
            Self { abef, cdgh }
        }

        #[inline]
        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn store(self) -> [u32; 8] {
            let word = |value: i32| value.cast_unsigned();
            let (x, y) = (self.abef, self.cdgh);
            [
                word(_mm_extract_epi32(x, 3)),
                word(_mm_extract_epi32(x, 2)),
                word(_mm_extract_epi32(y, 3)),
                word(_mm_extract_epi32(y, 2)),
                word(_mm_extract_epi32(x, 1)),
                word(_mm_extract_epi32(x, 0)),
                word(_mm_extract_epi32(y, 1)),
                word(_mm_extract_epi32(y, 0)),
            ]
        }

        /// Four rounds, for four words of the schedule with their constants added.
        #[inline]
        #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
        fn rounds(&mut self, words: __m128i) {
            self.cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, words);
            self.abef = _mm_sha256rnds2_epu32(self.abef, self.cdgh, _mm_shuffle_epi32::<0x0e>(words));
        }
    }

    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    pub fn compress_both(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        let (mut x, mut y) = (State::load(*a), State::load(*b));
        for block in blocks {
            let (x_before, y_before) = (x, y);
            let mut schedule = [_mm_setzero_si128(); 4];
            for (word, bytes) in schedule.iter_mut().zip(block.as_chunks::<16>().0) {
                let [p, q, r, s] = std::array::from_fn(|at| {
                    u32::from_be_bytes([
                        bytes[4 * at],
                        bytes[4 * at + 1],
                        bytes[4 * at + 2],
                        bytes[4 * at + 3],
                    ])
                });
                *word = words([p, q, r, s]);
            }
            for (round, k) in K.as_chunks::<4>().0.iter().enumerate() {
                let at = round % 4;
                if round >= 4 {
                    let (next, after, last) =
                        (schedule[(at + 1) % 4], schedule[(at + 2) % 4], schedule[(at + 3) % 4]);
                    let sum = _mm_add_epi32(
                        _mm_sha256msg1_epu32(schedule[at], next),
                        _mm_alignr_epi8::<4>(last, after),
                    );
                    schedule[at] = _mm_sha256msg2_epu32(sum, last);
                }
                let sum = _mm_add_epi32(schedule[at], words(*k));
                x.rounds(sum);
                y.rounds(sum);
            }
            (x, y) = (x.add(x_before), y.add(y_before));
        }
        (*a, *b) = (x.store(), y.store());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;

    fn theirs(bytes: &[u8]) -> Digest {
        Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
    }

    #[test]
    fn every_length_up_to_some_blocks() {
        let bytes: Vec<u8> = (0..300u32).map(|at| (at * 7) as u8).collect();
        for length in 0..bytes.len() {
            let (mut a, mut b) = (Sha256::new(), Sha256::new());
            a.update_both(&mut b, &bytes[..length]);
            assert_eq!(a.length(), length as u64);
            assert_eq!([a.finish(), b.finish()], [theirs(&bytes[..length]), theirs(&bytes[..length])]);
        }
    }

    proptest! {
        /// Parts of a stream, some of which are a file's: both digests are those of the `sha2` crate.
        #[test]
        fn parts_of_any_length(parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), any::<bool>()), 0..12)) {
            let (mut stream, mut file) = (Sha256::new(), Sha256::new());
            let (mut all, mut content) = (Vec::new(), Vec::new());
            for (part, both) in &parts {
                all.extend_from_slice(part);
                if *both {
                    content.extend_from_slice(part);
                    stream.update_both(&mut file, part);
                } else {
                    stream.update(part);
                }
            }
            prop_assert_eq!(stream.finish(), theirs(&all));
            prop_assert_eq!(file.finish(), theirs(&content));
        }

        /// As it is in a tar: whole blocks before, so that both take the short way.
        #[test]
        fn blocks_before_content(before in 0usize..4, content in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut stream, mut file) = (Sha256::new(), Sha256::new());
            let head = vec![b'h'; before * 512];
            stream.update(&head);
            stream.update_both(&mut file, &content);
            prop_assert_eq!(stream.finish(), theirs(&[&head[..], &content[..]].concat()));
            prop_assert_eq!(file.finish(), theirs(&content));
        }
    }
}
