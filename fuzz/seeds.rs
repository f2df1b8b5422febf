//! Writes what the fuzzers of archives begin with: every archive of the attack table, and one of GNU tar's of each
//! format. The first argument is the directory.

#[path = "../src/registry/unpack/tests"]
mod shared {
    #[allow(dead_code)]
    pub mod forge;
    #[allow(dead_code)]
    pub mod table;
}

// Counters of coverage are in this program too: their functions have to come from somewhere.
use libfuzzer_sys as _;
use shared::table::{Outside, all};

fn main() {
    let to = std::path::PathBuf::from(std::env::args_os().nth(1).expect("a directory"));
    let outside = Outside { relative: "../outside".to_owned(), absolute: "/outside".to_owned() };
    let mut number = 0;
    let mut write = |bytes: &[u8]| {
        // Long ones only make it slow.
        if bytes.len() <= 64 << 10 {
            number += 1;
            std::fs::write(to.join(format!("seed-{number:03}")), bytes).expect("a seed");
        }
    };
    for (_, rows) in all() {
        for row in rows {
            write(&(row.archive)(&outside));
        }
    }
    for archive in images() {
        write(&archive);
    }
    for format in ["gnu", "pax", "ustar", "v7", "oldgnu"] {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        let output = std::process::Command::new("tar")
            .args(["--format", format, "-cf", "-", "-C"])
            .arg(from)
            .args(["challenge", "reference"])
            .output();
        write(&output.expect("tar").stdout);
    }
}

/// An image as `docker save` writes it, before and after it took to the OCI's layout.
fn images() -> [Vec<u8>; 2] {
    use shared::forge::tar;
    let id = |digit: &str| digit.repeat(64);
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#, id("a"));
    let layer = tar().file("a", b"x").end();
    let saved =
        format!(r#"[{{"Config":"{0}.json","RepoTags":["app:1"],"Layers":["{0}/layer.tar"]}}]"#, id("b"));
    let old = tar()
        .named(format!("{}/layer.tar", id("b")), &layer)
        .named(format!("{}.json", id("b")), config)
        .file("manifest.json", saved)
        .end();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{}","size":9}}]}}"#, id("c"));
    let new = tar()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .dir("blobs/sha256/")
        .named(format!("blobs/sha256/{}", id("c")), b"{\"x\":1}\n")
        .file("index.json", index)
        .end();
    [old, new]
}
