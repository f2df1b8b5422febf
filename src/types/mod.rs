//! The nouns: what every other module speaks in.
//!
//! No I/O, no clock, no async, no logging in here (`tests/tidy.rs` enforces it). A value of one of these types has
//! passed its validator: there is one per type, and both [`std::str::FromStr`] and serde go through it.

mod archive;
mod calendar;
mod canary;
mod capability;
mod commit;
mod dependency;
mod health;
mod image;
mod job;
mod mounts;
mod names;
mod network;
mod options;
mod policy;
mod quantity;
mod reason;
mod restart;
mod runtime;
mod service;
mod url;
mod wave;
mod window;

pub use archive::fill_fallback;
pub use calendar::{Calendar, Zones};
pub use canary::{Branch, Canary, Share, ShareBy, WHOLE, seed};
pub use capability::{CAPABILITIES, DEFAULT_CAPABILITIES};
pub use commit::{CommitId, CommitInfo};
pub use dependency::{Condition, Dependency};
pub use health::{
    Counters, GrpcProbe, HealthCheck, HttpMethod, HttpProbe, Notified, Probe, ProbeTls, StatusRange, Times,
};
pub use image::{Digest, ImageRef, PinnedImage, RegistryRef};
pub use job::{Job, Schedule};
pub use mounts::{ConfigFile, SecretContent, SecretFile, VolumeMount, VolumeSource, check_target};
pub use names::{Color, Generation, HostName, InstanceId, ReplicaIndex, ServiceName};
pub use network::{Hosts, Membership, NetworkLink, NetworkMode, NetworkName};
pub use options::{Blkio, DeviceMapping, LogLimits, Options, Tmpfs};
pub use policy::Policy;
pub use quantity::{ByteSize, format_duration, parse_duration, plural};
pub use reason::{Reason, Refusal};
pub use restart::RestartPolicy;
pub use runtime::{ContainerState, Exit, ObservedContainer, Route};
pub use service::{
    Declared, Deploy, DrainSignal, MAX_REPLICAS, PortMapping, Protocol, ServiceSpec, Strategy,
};
pub use url::SafeUrl;
pub use wave::{Wave, place};
pub use window::{Opening, Window};

/// A point in time. Always a parameter: only `agent::clock` may ask what time it is.
pub use jiff::Timestamp;

/// Why a text is not a value of one of these types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// Makes the error from a message that names the offending text.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Implements serde for a newtype through its `FromStr` and `Display`, so that no path skips the validator.
macro_rules! serde_through_str {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_through_str;
