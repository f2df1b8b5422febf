//! `volumes`, in Compose's short and long syntax. What is not done is refused by name.

use std::path::{Component, Path, PathBuf};

use toml::de::DeValue;

use super::configs::mode;
use super::port::absolute;
use super::section::{Section, Value};
use crate::types::{ByteSize, Invalid, Tmpfs, VolumeMount, VolumeSource, check_target};

/// Named volumes and binds, and the file systems in memory that the long syntax may ask for among them.
pub(super) fn volumes(section: &Section<'_, '_>) -> Option<(Vec<VolumeMount>, Vec<Tmpfs>)> {
    let value = section.get("volumes")?;
    let findings = section.findings;
    let Some(array) = value.get_ref().as_array() else {
        findings.error(value.span(), "`volumes` takes an array of strings and tables", None);
        return None;
    };
    let (mut volumes, mut memory) = (Vec::new(), Vec::new());
    let mut targets: Vec<PathBuf> = Vec::new();
    for item in array.iter() {
        let target = match item.get_ref() {
            DeValue::String(text) => match short(text) {
                Ok(volume) => {
                    volumes.push(volume);
                    volumes.last().map(|volume| volume.target.clone())
                }
                Err(error) => {
                    findings.error(item.span(), format!("`volumes`: {error}"), None);
                    None
                }
            },
            DeValue::Table(table) => {
                let entry = Section::new(findings, "[volumes]", table, item.span());
                match long(&entry, item) {
                    Some(Mounted::Volume(volume)) => {
                        let target = volume.target.clone();
                        volumes.push(volume);
                        Some(target)
                    }
                    Some(Mounted::Memory(tmpfs)) => {
                        let target = tmpfs.target.clone();
                        memory.push(tmpfs);
                        Some(target)
                    }
                    None => None,
                }
            }
            _ => {
                findings.error(item.span(), "`volumes` takes strings and tables", None);
                None
            }
        };
        let Some(target) = target else { continue };
        if targets.contains(&target) {
            let message = format!("`volumes`: two of them go to {}", target.display());
            findings.error(item.span(), message, None);
        }
        targets.push(target);
    }
    Some((volumes, memory))
}

fn target(text: &str) -> Result<PathBuf, Invalid> {
    let target = absolute(text)
        .ok_or_else(|| Invalid::new(format!("the target `{text}` is not an absolute path without `..`")))?;
    check_target(&target)?;
    Ok(target)
}

/// Source: Compose Specification, "Short syntax" of volumes.
fn short(text: &str) -> Result<VolumeMount, Invalid> {
    let bad = |why: &str| Invalid::new(format!("`{text}` is not a volume: {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, options) = match parts.as_slice() {
        [to] if to.starts_with('/') => {
            return Err(bad("a volume without a name is not supported by this version; write name:/target"));
        }
        [from, to] => (*from, *to, "rw"),
        [from, to, options] => (*from, *to, *options),
        _ => return Err(bad("write source:target or source:target:ro")),
    };
    let to = target(to).map_err(|error| bad(&error.to_string()))?;
    let from = source(from).map_err(|why| bad(&why))?;
    let mut volume = VolumeMount::new(from, to, false);
    let (mut access, mut propagation) = (0, 0);
    for option in options.split(',') {
        match option {
            "ro" | "rw" => {
                access += 1;
                volume.read_only = option == "ro";
            }
            "nocopy" if matches!(volume.source, VolumeSource::Named(_)) => volume.nocopy = true,
            "nocopy" => return Err(bad("`nocopy` is for named volumes")),
            // So in any case.
            "private" | "rprivate" if matches!(volume.source, VolumeSource::Bind(_)) => propagation += 1,
            "z" | "Z" => return Err(bad("SELinux labels (`z`, `Z`) are not supported by this version")),
            "shared" | "rshared" | "slave" | "rslave" => {
                return Err(bad(&format!("propagation `{option}` is not supported by this version")));
            }
            other => return Err(bad(&format!("`{other}` is none of ro, rw and nocopy"))),
        }
    }
    if access > 1 || propagation > 1 {
        return Err(bad("its options contradict each other"));
    }
    Ok(volume)
}

fn source(text: &str) -> Result<VolumeSource, String> {
    if text.starts_with('/') {
        let path = absolute(text).ok_or("the source is an absolute path without `..`")?;
        return Ok(VolumeSource::Bind(path));
    }
    if text.starts_with(['.', '~']) {
        return Err("a directory of the host is named by its absolute path".to_owned());
    }
    name(text).map(VolumeSource::Named)
}

fn name(text: &str) -> Result<String, String> {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if !first || !rest || text.len() > 63 {
        return Err("a volume's name takes letters, digits, `_`, `-` and `.`".to_owned());
    }
    Ok(text.to_owned())
}

enum Mounted {
    Volume(VolumeMount),
    Memory(Tmpfs),
}

/// Source: Compose Specification, "Long syntax" of volumes.
fn long(entry: &Section<'_, '_>, item: Value<'_, '_>) -> Option<Mounted> {
    let findings = entry.findings;
    let error = |message: String| findings.error(item.span(), format!("`volumes`: {message}"), None);
    let kind = entry.get("type").and_then(|value| value.get_ref().as_str());
    let (from, to) = (entry.string("source"), entry.string("target"));
    let read_only = entry.boolean("read_only").unwrap_or(false);
    entry.unsupported("consistency", "it does nothing on Linux");
    entry.unsupported("image", "name a volume, or a directory of the host");
    // Keys of another type are refused, not ignored.
    let options = |key: &'static str| {
        let table = entry.table(key)?;
        if kind.is_some_and(|kind| kind != key) {
            let message = format!("`{key}` belongs to a volume of type \"{key}\"");
            findings.error(entry.key_span(key), message, None);
        }
        Some(table)
    };
    let (bind, volume, tmpfs) = (options("bind"), options("volume"), options("tmpfs"));
    entry.finish(|_| None);
    let create_host_path = bind.is_some_and(|bind| read_bind(&bind));
    let (nocopy, subpath) = volume.map(|volume| read_volume(&volume)).unwrap_or_default();
    let memory = tmpfs.map(|tmpfs| read_tmpfs(&tmpfs)).unwrap_or_default();
    let to = match to.as_deref().map(target) {
        Some(Ok(target)) => target,
        Some(Err(why)) => {
            error(why.to_string());
            return None;
        }
        None => {
            if !entry.has("target") {
                error("`target` is missing".to_owned());
            }
            return None;
        }
    };
    let from = match (kind, from.as_deref()) {
        (Some("tmpfs"), None) => {
            let mut options = memory;
            options.extend(read_only.then(|| "ro".to_owned()));
            return Some(Mounted::Memory(Tmpfs { target: to, options }));
        }
        (Some("tmpfs"), Some(_)) => Err("a tmpfs has no `source`".to_owned()),
        (Some("volume"), None) => {
            Err("a volume without a name is not supported by this version; give it a `source`".to_owned())
        }
        (Some("bind"), None) => Err("`source` is missing".to_owned()),
        (Some("volume"), Some(text)) => name(text).map(VolumeSource::Named),
        (Some("bind"), Some(text)) => match absolute(text) {
            Some(path) => Ok(VolumeSource::Bind(path)),
            None => Err("the source is an absolute path of the host without `..`".to_owned()),
        },
        (Some(other), _) => Err(format!("type `{other}` is not supported, only volume, bind and tmpfs")),
        (None, _) => Err("`type` is \"volume\", \"bind\" or \"tmpfs\"".to_owned()),
    };
    match from {
        Ok(source) => Some(Mounted::Volume(VolumeMount {
            subpath,
            nocopy,
            create_host_path,
            ..VolumeMount::new(source, to, read_only)
        })),
        Err(why) => {
            error(why);
            None
        }
    }
}

fn read_bind(bind: &Section<'_, '_>) -> bool {
    let create = bind.boolean("create_host_path").unwrap_or(false);
    one_of(bind, "propagation", &["private", "rprivate"]);
    // What lies below is mounted too, and is only read where the volume is.
    one_of(bind, "recursive", &["enabled"]);
    bind.unsupported("selinux", "SELinux labels are not set");
    bind.finish(|_| None);
    create
}

fn read_volume(volume: &Section<'_, '_>) -> (bool, Option<PathBuf>) {
    let nocopy = volume.boolean("nocopy").unwrap_or(false);
    let subpath = volume.string("subpath").and_then(|text| {
        let path = Path::new(&text);
        let down = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        if !down || path.as_os_str().is_empty() || text.contains('\0') {
            let message = "`subpath` takes a path inside the volume, without `..`";
            volume.findings.error(volume.key_span("subpath"), message, None);
            return None;
        }
        Some(path)
    });
    volume.unsupported("labels", "volumes have none");
    volume.finish(|_| None);
    (nocopy, subpath)
}

/// As options of the key `tmpfs`.
fn read_tmpfs(tmpfs: &Section<'_, '_>) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(value) = tmpfs.get("size") {
        let size = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            DeValue::String(text) => text.parse::<ByteSize>().ok().map(|size| size.0),
            _ => None,
        };
        match size.filter(|size| *size > 0) {
            Some(size) => options.push(format!("size={size}")),
            None => tmpfs.findings.error(value.span(), "`size` takes a size, as \"64m\"", None),
        }
    }
    options.extend(mode(tmpfs, "mode").map(|mode| format!("mode={mode:o}")));
    tmpfs.finish(|_| None);
    options
}

fn one_of(section: &Section<'_, '_>, key: &'static str, known: &[&str]) {
    let Some(value) = section.get(key) else { return };
    let text = value.get_ref().as_str().unwrap_or_default();
    if !known.contains(&text) {
        let known: Vec<String> = known.iter().map(|known| format!("\"{known}\"")).collect();
        let message =
            format!("`{key}`: `{text}` is not supported by this version, only {}", known.join(", "));
        section.findings.error(value.span(), message, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_syntax() {
        assert!(matches!(short("data:/var/lib/shop").unwrap().source, VolumeSource::Named(_)));
        assert!(short("/srv/assets:/assets:ro").unwrap().read_only);
        assert!(!short("/srv/assets:/assets:rw,rprivate").unwrap().read_only);
        let volume = short("data:/x:nocopy,ro").unwrap();
        assert!(volume.nocopy && volume.read_only);
        for bad in [
            "",
            "data",
            "/data",
            "data:rel",
            "/srv/../etc:/x",
            "./x:/x",
            "a/b:/x",
            "data:/x:z",
            "data:/x:ro,Z",
            "data:/",
            "data:/proc/x",
            "data:/dev/shm",
            "..:/x",
            "data:/x:ro,rw",
            "data:/x:",
            "data:/x:rprivate",
            "/srv:/x:nocopy",
            "/srv:/x:rslave",
            "/srv:/x:cached",
            "data:/x:ro:rw",
        ] {
            assert!(short(bad).is_err(), "{bad}");
        }
    }
}
