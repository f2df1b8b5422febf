//! What of the host's disks, of the config repo and of the host's secrets a container sees.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Digest, Invalid};

/// A named volume, or a directory or file of the host, in the container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// What is mounted.
    pub source: VolumeSource,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// A path inside the named volume that is mounted instead of the whole; relative, goes down only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<PathBuf>,
    /// Whether a new named volume begins empty rather than as what the image has at its place.
    #[serde(default, skip_serializing_if = "is_false")]
    pub nocopy: bool,
    /// Whether a directory of the host is made where it is not there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub create_host_path: bool,
}

/// Where the content of a volume lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// A directory that the agent keeps for this service under its state directory.
    Named(String),
    /// A directory or file of the host.
    Bind(PathBuf),
}

impl VolumeMount {
    /// A mount of the whole of `source`, with nothing said beside.
    pub fn new(source: VolumeSource, target: impl Into<PathBuf>, read_only: bool) -> Self {
        Self {
            source,
            target: target.into(),
            read_only,
            subpath: None,
            nocopy: false,
            create_host_path: false,
        }
    }
}

/// A file of the config repo in the container, which may only read it. Its content is kept beside, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// SHA-256 of its content: another content is another spec.
    pub content: Digest,
    /// Length of its content in bytes.
    pub size: u64,
    /// Who owns it; `None` = the user that the container runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group; `None` = that of the user that the container runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Permission bits, at most 0o777.
    pub mode: u32,
}

/// A secret of the host in the container, which may only read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    /// What the host calls it.
    pub source: String,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Its content; `None` as the repo declares it: that is for the host to say. See `reconcile::secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<SecretContent>,
    /// Who owns it; `None` = the user that the container runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group; `None` = that of the user that the container runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Permission bits, at most 0o555.
    pub mode: u32,
}

/// One content of a secret, by a name that tells nothing of it to who has not the key of its host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretContent {
    /// HMAC-SHA256 of it, with a key that stays in the state directory: a plain digest of a short secret is soon guessed.
    pub keyed: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Whether a volume or file may be mounted at a place in a container.
///
/// # Errors
/// It is not a plain absolute path below `/`, or belongs to the kernel (runtime-spec config-linux.md, "Default
/// Filesystems").
pub fn check_target(target: &Path) -> Result<(), Invalid> {
    let mut parts = target.components();
    let plain = parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)));
    if target == Path::new("/") {
        return Err(Invalid::new("/ is the container's own root"));
    }
    if !plain || target.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Invalid::new(format!("{} is not a plain absolute path below /", target.display())));
    }
    if ["/proc", "/sys", "/dev"].iter().any(|kernel| target.starts_with(kernel)) {
        return Err(Invalid::new(format!("{} belongs to the kernel", target.display())));
    }
    Ok(())
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_out_of_the_kernels_places() {
        for good in ["/data", "/var/lib/shop", "/procedure", "/etc/app.conf"] {
            assert!(check_target(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["", "/", "relative", "/proc/sys", "/sys", "/dev/shm", "/a/../proc", "/a\0b"] {
            assert!(check_target(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_without_config_files_is_written_as_ever() {
        let image: crate::types::ImageRef = "r.io/shop:1".parse().unwrap();
        let spec = crate::types::ServiceSpec::new(image);
        let written = serde_json::to_string(&spec).unwrap();
        assert!(!written.contains("configs") && !written.contains("secrets"), "{written}");
        assert_eq!(serde_json::from_str::<crate::types::Declared>(&written).unwrap(), spec);
    }

    /// Records of versions that knew less are read, and what says nothing new is written as they wrote it.
    #[test]
    fn a_plain_volume_is_written_as_ever() {
        let old = r#"{"source":{"named":"data"},"target":"/data","read_only":false}"#;
        let volume: VolumeMount = serde_json::from_str(old).unwrap();
        assert_eq!(volume, VolumeMount::new(VolumeSource::Named("data".to_owned()), "/data", false));
        assert_eq!(serde_json::to_string(&volume).unwrap(), old);
    }
}
