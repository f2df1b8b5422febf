//! Layers, unpacked: no panic, and nothing beside the directory changes.
#![no_main]

mod mend;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(base) = tempfile::tempdir() else { return };
    let (layer, canary) = (base.path().join("layer"), base.path().join("outside"));
    fs::create_dir(&layer).expect("a directory");
    fs::create_dir(&canary).expect("a directory");
    fs::write(canary.join("secret"), "untouched").expect("a file");
    let before = look(&canary);
    if let Err(error) = gitopsd::registry::fuzz::layer(&mend::mended(bytes), &layer) {
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
        // Nothing in an archive may look as if the disk were at fault.
        assert!(!error.may_pass(), "{error}");
    }
    assert_eq!(before, look(&canary));
    assert_eq!(fs::read_dir(base.path()).expect("the directory").count(), 2);
});

fn look(canary: &Path) -> Vec<String> {
    let see = |path: &Path| {
        let meta = path.symlink_metadata().expect("the canary");
        format!(
            "{:o} {} {} {} {}.{}",
            meta.mode(),
            meta.uid(),
            meta.nlink(),
            meta.size(),
            meta.ctime(),
            meta.ctime_nsec()
        )
    };
    vec![
        see(canary),
        see(&canary.join("secret")),
        fs::read_to_string(canary.join("secret")).unwrap_or_default(),
    ]
}
