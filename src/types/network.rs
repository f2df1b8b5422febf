//! How a service is connected: its network mode, and the networks it is a part of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names::validate;
use super::{Invalid, ServiceName, serde_through_str};

/// Whose network a container has: `network_mode` of Compose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkMode {
    /// One of its own, connected to its networks.
    Bridge,
    /// One of its own, with nothing but a loopback interface.
    None,
    /// The host's.
    Host,
    /// That of another service on this host.
    Service(ServiceName),
}

impl NetworkMode {
    /// Whether two containers of one service at once would want the same ports of one network.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Host | Self::Service(_))
    }
}

impl FromStr for NetworkMode {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Ok(match text {
            "bridge" => Self::Bridge,
            "none" => Self::None,
            "host" => Self::Host,
            _ => match text.strip_prefix("service:") {
                Some(name) => Self::Service(name.parse()?),
                None => {
                    return Err(Invalid::new(format!(
                        "`{text}` is not supported by this version, only \"bridge\", \"none\", \"host\", \"service:NAME\""
                    )));
                }
            },
        })
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.pad("bridge"),
            Self::None => f.pad("none"),
            Self::Host => f.pad("host"),
            Self::Service(name) => f.pad(&format!("service:{name}")),
        }
    }
}
serde_through_str!(NetworkMode);

/// The name of a network: services that share one reach each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    /// What services without `networks` are on, as in Compose.
    pub const DEFAULT: &str = "default";

    /// The network of services that name none.
    pub fn default_one() -> Self {
        Self(Self::DEFAULT.to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        validate("network", text, &[]).map(Self)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
serde_through_str!(NetworkName);

/// A service's part in a network. What the repo says of the network itself is copied into it: a change of either is
/// a change of the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkLink {
    /// Further names that others on this network find it by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Whether the network has no way out of the host, nor into it.
    #[serde(skip_serializing_if = "is_false")]
    pub internal: bool,
    /// Whether the network is without IPv6.
    #[serde(skip_serializing_if = "is_false")]
    pub ipv4_only: bool,
}

/// Names and what they stand for, as a container finds them in its `/etc/hosts`. A name that several have stands for
/// all of them.
pub type Hosts = BTreeMap<String, Vec<IpAddr>>;

/// Who is on which network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The addresses of containers by network: those of one reach each other.
    pub networks: BTreeMap<NetworkName, BTreeSet<Ipv4Addr>>,
    /// Those whose networks are all internal: nothing leads out of the host for them, nor into it.
    pub internal: BTreeSet<Ipv4Addr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde hands over")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records of versions without networks are read, and what they say is what is written now.
    #[test]
    fn what_older_versions_wrote_is_the_same_today() {
        let old = r#"{"host_ip":"0.0.0.0","host_port":80,"container_port":8080,"protocol":"tcp"}"#;
        let port: crate::types::PortMapping = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&port).unwrap(), old);
        assert_eq!(serde_json::to_string(&crate::types::Options::default()).unwrap(), "{}");
        let old = r#"{"hostname":"a","expose":[[80,"tcp"]]}"#;
        let options: crate::types::Options = serde_json::from_str(old).unwrap();
        assert_eq!((options.network_mode.clone(), options.networks.clone()), (None, None));
        assert_eq!(serde_json::to_string(&options).unwrap(), old);
    }

    #[test]
    fn modes_have_one_spelling() {
        for text in ["bridge", "none", "host", "service:db"] {
            assert_eq!(text.parse::<NetworkMode>().unwrap().to_string(), text);
        }
        for bad in ["", "Host", "container:x", "service:", "service:A", "ns:/run/x"] {
            assert!(bad.parse::<NetworkMode>().is_err(), "{bad}");
        }
    }
}
