//! `blkio_config`: limits of disks.

use std::path::PathBuf;

use super::options::one;
use super::port::absolute;
use super::section::Section;
use crate::types::{Blkio, ByteSize, Invalid};

/// Reads the table. What else stands in it is refused.
pub(super) fn read(section: &Section<'_, '_>) -> Blkio {
    let rates = |key| rates(section, key);
    let found = Blkio {
        weight: section.integer("weight", 10..=1000).and_then(|number| u16::try_from(number).ok()),
        read_bps: rates("device_read_bps"),
        write_bps: rates("device_write_bps"),
        read_iops: rates("device_read_iops"),
        write_iops: rates("device_write_iops"),
    };
    section.unsupported("weight_device", "use `weight`");
    section.finish(|_| None);
    found
}

/// An array of tables with `path` and `rate`.
fn rates(section: &Section<'_, '_>, key: &'static str) -> Vec<(PathBuf, u64)> {
    let Some(value) = section.get(key) else { return Vec::new() };
    let wrong = |span| {
        let hint = format!("{key} = [{{ path = \"/dev/sda\", rate = \"1m\" }}]");
        let message = format!("`{key}` takes an array of tables with `path` and `rate`");
        section.findings.error(span, message, Some(hint));
    };
    let Some(array) = value.get_ref().as_array() else {
        wrong(value.span());
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in array.iter() {
        let Some(table) =
            item.get_ref().as_table().filter(|it| ["path", "rate"].iter().all(|key| it.contains_key(*key)))
        else {
            wrong(item.span());
            continue;
        };
        let entry = Section::new(section.findings, &format!("[{key}]"), table, item.span());
        let (path, rate) = (one(&entry, "path", device), one(&entry, "rate", rate));
        entry.finish(|_| None);
        found.extend(path.zip(rate));
    }
    found
}

fn device(text: &str) -> Result<PathBuf, Invalid> {
    absolute(text).ok_or_else(|| Invalid::new(format!("`{text}` is not an absolute path without `..`")))
}

/// Source: cgroup-v1/blkio-controller.rst: 0 takes a limit away. cgroup v2 takes none.
fn rate(text: &str) -> Result<u64, Invalid> {
    match text.parse::<ByteSize>()? {
        ByteSize(0) => Err(Invalid::new("it is at least 1; for no limit leave the device out".to_owned())),
        ByteSize(rate) => Ok(rate),
    }
}
