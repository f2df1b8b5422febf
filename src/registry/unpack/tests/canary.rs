//! Something beside the layer that nobody may touch.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::table::Outside;

/// A directory with a file, a directory, a link and attributes, and all that the kernel said of them.
pub struct Canary {
    place: PathBuf,
    before: Vec<String>,
}

impl Canary {
    /// Makes `outside` in a directory.
    pub fn new(base: &Path) -> Self {
        let place = base.join("outside");
        fs::create_dir_all(place.join("dir/deeper")).unwrap();
        fs::write(place.join("secret"), "untouched").unwrap();
        fs::write(place.join("dir/secret"), "untouched").unwrap();
        symlink("secret", place.join("link")).unwrap();
        fs::set_permissions(place.join("secret"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(place.join("dir"), fs::Permissions::from_mode(0o711)).unwrap();
        rustix::fs::setxattr(
            place.join("secret"),
            "user.canary",
            b"untouched",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let before = look(&place);
        Self { place, before }
    }

    /// Where it is, as seen from a directory that is `depth` below the common one.
    pub fn outside(&self, depth: usize) -> Outside {
        Outside {
            relative: format!("{}outside", "../".repeat(depth)),
            absolute: self.place.to_str().unwrap().to_owned(),
        }
    }

    /// It is what it was, to the time of the last change.
    pub fn assert_untouched(&self, case: &str) {
        assert_eq!(look(&self.place), self.before, "{case}: it changed something outside of the layer");
    }
}

/// All that can be seen of a tree. The change time alone would tell of any chmod, chown, link, attribute or write.
fn look(place: &Path) -> Vec<String> {
    let meta = place.symlink_metadata().unwrap();
    let mut xattrs = vec![0; 4096];
    let count = rustix::fs::llistxattr(place, &mut xattrs[..]).unwrap();
    let content = if meta.is_file() { fs::read(place).unwrap() } else { Vec::new() };
    let mut seen = vec![format!(
        "{} {:o} {}:{} nlink {} size {} ino {} mtime {}.{} ctime {}.{} {} {}",
        place.display(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        xattrs[..count].escape_ascii(),
        content.escape_ascii(),
    )];
    if meta.is_dir() {
        let mut inside: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
        inside.sort();
        seen.extend(inside.iter().flat_map(|path| look(path)));
    }
    seen
}
