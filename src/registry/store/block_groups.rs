//! Where ext4 puts layers on the disk.

use std::fs::File;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Has ext4 begin each directory made in `folder` in a part of the disk of its own, where there is room and little else:
/// `chattr +T`, the top of a directory hierarchy.
///
/// Without it all layers share their parent's group of inodes. There ext4 looks at every inode that was deleted in the
/// last minutes before it takes one (`recently_deleted` in fs/ext4/ialloc.c), so that a pull after a layer was collected,
/// or after an old release was removed beside it, spends more time on that than on inflating.
///
/// Only a matter of speed: other file systems have no such thing, and are as they are.
pub(super) fn keep_children_apart(folder: &Path) {
    let Ok(opened) = File::open(folder) else { return };
    if let Ok(flags) = ioctl_getflags(&opened)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = ioctl_setflags(&opened, flags | IFlags::TOPDIR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ext4_can_do_it_is_told_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        keep_children_apart(folder.path());
        keep_children_apart(folder.path());
        let opened = File::open(folder.path()).unwrap();
        let on_ext4 = rustix::fs::fstatfs(&opened).unwrap().f_type == 0xef53;
        let told = ioctl_getflags(&opened).is_ok_and(|flags| flags.contains(IFlags::TOPDIR));
        assert_eq!(told, on_ext4, "on ext4: {on_ext4}");
        keep_children_apart(Path::new("/nonexistent"));
    }
}
