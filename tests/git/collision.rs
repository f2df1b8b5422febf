//! Two inputs of one SHA-1. No pair of git objects is known; the pair that is known goes through the very function that names
//! objects here, which has to see it for what it is.

use std::ffi::{c_int, c_uchar, c_void};

/// What both begin with: the published pair of 2017, M. Stevens and others, "The first collision for full SHA-1".
const PREFIX: &str = "255044462d312e330a25e2e3cfd30a0a0a312030206f626a0a3c3c2f57696474682032203020522f4865696768742033\
    203020522f547970652034203020522f537562747970652035203020522f46696c7465722036203020522f436f6c6f72\
    53706163652037203020522f4c656e6774682038203020522f42697473506572436f6d706f6e656e7420383e3e0a7374\
    7265616d0affd8fffe00245348412d3120697320646561642121212121852fec092339759c39b1a1c63c4c97e1fffe01";
/// How the one goes on.
const FIRST: &str = "7f46dc93a6b67e013b029aaa1db2560b45ca67d688c7f84b8c4c791fe02b3df614f86db1690901c56b45c1530afedfb7\
    6038e972722fe7ad728f0e4904e046c230570fe9d41398abe12ef5bc942be33542a4802d98b5d70f2a332ec37fac3514\
    e74ddc0f2cc1a874cd0c78305a21566461309789606bd0bf3f98cda8044629a1";
/// How the other one goes on.
const SECOND: &str = "7346dc9166b67e118f029ab621b2560ff9ca67cca8c7f85ba84c79030c2b3de218f86db3a90901d5df45c14f26fedfb3\
    dc38e96ac22fe7bd728f0e45bce046d23c570feb141398bb552ef5a0a82be331fea48037b8b5d71f0e332edf93ac3500\
    eb4ddc0decc1a864790c782c76215660dd309791d06bd0af3f98cda4bc4629b1";

/// libgit2's hash.h, GIT_HASH_ALGORITHM_SHA1.
const SHA1: c_int = 1;

unsafe extern "C" {
    fn git_hash_buf(out: *mut c_uchar, data: *const c_void, len: usize, algorithm: c_int) -> c_int;
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// libgit2's hash of some bytes, as of any object's.
fn hash(data: &[u8]) -> Result<[u8; 20], String> {
    // libgit2 is set up by the first value of it.
    drop(git2::Config::new().unwrap());
    let mut out = [0; 20];
    // SAFETY: it reads `len` bytes and writes the twenty of a SHA-1.
    let code = unsafe { git_hash_buf(out.as_mut_ptr(), data.as_ptr().cast(), data.len(), SHA1) };
    if code == 0 { Ok(out) } else { Err(git2::Error::last_error(code).message().to_owned()) }
}

#[test]
fn an_object_of_a_known_collision_has_no_name() {
    use sha1::{Digest as _, Sha1};
    let (first, second) = (bytes(&(PREFIX.to_owned() + FIRST)), bytes(&(PREFIX.to_owned() + SECOND)));
    assert!(first != second && Sha1::digest(&first) == Sha1::digest(&second), "it is a collision");
    for input in [&first, &second] {
        let error = hash(input).unwrap_err();
        assert!(error.contains("collision"), "{error}");
        // Nor whatever goes on after it.
        assert!(hash(&[input.as_slice(), b"more"].concat()).is_err());
    }
    // Other bytes have theirs.
    let mut other = first;
    other[200] ^= 1;
    assert_eq!(hash(&other).unwrap(), *Sha1::digest(&other));
    assert_eq!(hash(b"blob 0\0").unwrap()[..3], [0xe6, 0x9d, 0xe2]);
}
