//! Who is on which network, and who finds whom by which name: worked out from the records alone.
//!
//! A name leads to a service's own address, which stays for life: which generation answers there is the switch's
//! matter, so a swap changes no name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::record::{Deployed, ServiceRecord, Spec};
use crate::types::{Hosts, Membership, NetworkLink, NetworkMode, NetworkName, ServiceName};

type Records = BTreeMap<ServiceName, ServiceRecord>;
type Links<'a> = Cow<'a, BTreeMap<NetworkName, NetworkLink>>;

/// The address of every generation that may have a container, by the networks it is on.
pub fn membership(records: &Records) -> Membership {
    let mut found = Membership::default();
    for deployed in records.values().flat_map(|record| record.live_generations()) {
        if *deployed.spec.network_mode() != NetworkMode::Bridge {
            continue;
        }
        let links = own_links(&deployed.spec);
        for name in links.keys() {
            found.networks.entry(name.clone()).or_default().extend(deployed.addresses());
        }
        if links.values().all(|link| link.internal) {
            found.internal.extend(deployed.addresses());
        }
    }
    found
}

/// The names of others that a container of `name` with this spec finds; its own is the engine's to write.
pub fn hosts(records: &Records, name: &ServiceName, spec: &Spec) -> Hosts {
    let mut found = Hosts::new();
    let mut add = |name: &str, address: IpAddr| {
        let addresses = found.entry(name.to_owned()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    };
    let own = links(records, spec);
    for (other, record) in records {
        let address = IpAddr::V4(record.service_address);
        let Some(deployed) = shown(record) else { continue };
        if other == name {
            continue;
        }
        let theirs = links(records, &deployed.spec);
        let meets = match (spec.network_mode(), deployed.spec.network_mode()) {
            (NetworkMode::None, _) | (_, NetworkMode::None) => false,
            // The host reaches every container, and every container the host.
            (NetworkMode::Host, _) | (_, NetworkMode::Host) => true,
            _ => theirs.keys().any(|network| own.contains_key(network)),
        };
        if !meets {
            continue;
        }
        add(other.as_str(), address);
        // The aliases of a network that it shares are those of whose it is.
        if deployed.spec.joins().is_some() {
            continue;
        }
        let all = *spec.network_mode() == NetworkMode::Host;
        for (_, link) in theirs.iter().filter(|(network, _)| all || own.contains_key(*network)) {
            link.aliases.iter().for_each(|alias| add(alias, address));
        }
    }
    found
}

/// What others go by: the generation that has traffic, or the first one on its way.
fn shown(record: &ServiceRecord) -> Option<&Deployed> {
    record.serving().or(record.rollout.as_ref().map(|rollout| &rollout.to))
}

/// The networks of a spec: its own, or those of the service whose network it shares.
fn links<'a>(records: &'a Records, spec: &'a Spec) -> Links<'a> {
    match spec.network_mode() {
        NetworkMode::Bridge => own_links(spec),
        NetworkMode::None | NetworkMode::Host => Cow::Owned(BTreeMap::new()),
        NetworkMode::Service(host) => match records.get(host).and_then(shown) {
            Some(deployed) if *deployed.spec.network_mode() == NetworkMode::Bridge => {
                own_links(&deployed.spec)
            }
            _ => Cow::Owned(BTreeMap::new()),
        },
    }
}

fn own_links(spec: &Spec) -> Links<'_> {
    match &spec.options.networks {
        Some(links) => Cow::Borrowed(links),
        None => Cow::Owned(BTreeMap::from([(NetworkName::default_one(), NetworkLink::default())])),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::types::{CommitInfo, Generation, ImageRef, PinnedImage, ServiceSpec, Timestamp};

    fn spec(mode: NetworkMode, networks: &[(&str, &[&str], bool)]) -> Spec {
        let reference: ImageRef = "r.io/a:1".parse().unwrap();
        let digest = crate::types::Digest::from_sha256(&[7; 32]);
        let mut spec = ServiceSpec::new(PinnedImage { reference, digest });
        spec.options.network_mode = Some(mode).filter(|mode| *mode != NetworkMode::Bridge);
        let link = |aliases: &[&str], internal| NetworkLink {
            aliases: aliases.iter().map(|text| (*text).to_owned()).collect(),
            internal,
            ipv4_only: false,
        };
        let links = networks
            .iter()
            .map(|(name, aliases, internal)| (name.parse().unwrap(), link(aliases, *internal)));
        spec.options.networks = Some(links.collect()).filter(|_| !networks.is_empty());
        spec
    }

    fn record(number: u8, spec: &Spec) -> ServiceRecord {
        let mut record = ServiceRecord::new(Ipv4Addr::new(10, 98, 200, number));
        record.incumbent = Some(Deployed {
            generation: Generation(1),
            address: Ipv4Addr::new(10, 98, 0, number),
            spec: spec.clone(),
            commit: CommitInfo {
                id: "c".repeat(40).parse().unwrap(),
                subject: String::new(),
                author: String::new(),
                committed_at: Timestamp::UNIX_EPOCH,
            },
            since: Timestamp::UNIX_EPOCH,
            restarts: 0,
            restarted_at: None,
            joined: None,
            last_exit: None,
            ends: 0,
            down: None,
            amending: None,
            untold: None,
            replicas: BTreeMap::new(),
            quota: None,
        });
        record
    }

    fn names(hosts: &Hosts) -> Vec<String> {
        let lines = hosts.iter().flat_map(|(name, all)| all.iter().map(move |at| format!("{name} {at}")));
        lines.collect()
    }

    #[test]
    fn names_are_those_of_shared_networks() {
        let bridge = |networks: &[_]| spec(NetworkMode::Bridge, networks);
        let specs = [
            ("web", bridge(&[("front", &[][..], false), ("back", &["www"], true)])),
            ("db", bridge(&[("back", &["sql", "postgres"], true)])),
            ("cache", bridge(&[("back", &["sql"], true)])),
            ("edge", bridge(&[("front", &["door"], false)])),
            ("lone", bridge(&[])),
            ("side", spec(NetworkMode::Service("db".parse().unwrap()), &[])),
            ("node", spec(NetworkMode::Host, &[])),
            ("job", spec(NetworkMode::None, &[])),
        ];
        let records: Records = specs
            .iter()
            .zip(1..)
            .map(|((name, spec), number)| (name.parse().unwrap(), record(number, spec)))
            .collect();
        let of = |name: &str| {
            let spec = &specs.iter().find(|(known, _)| *known == name).unwrap().1;
            names(&hosts(&records, &name.parse().unwrap(), spec))
        };
        assert_eq!(
            of("web"),
            [
                "cache 10.98.200.3",
                "db 10.98.200.2",
                "door 10.98.200.4",
                "edge 10.98.200.4",
                "node 10.98.200.7",
                "postgres 10.98.200.2",
                "side 10.98.200.6",
                "sql 10.98.200.3",
                "sql 10.98.200.2"
            ]
        );
        assert_eq!(of("edge"), ["node 10.98.200.7", "web 10.98.200.1"]);
        assert_eq!(of("lone"), ["node 10.98.200.7"]);
        assert_eq!(of("job"), Vec::<String>::new());
        assert!(of("side").contains(&"www 10.98.200.1".to_owned()));
        assert!(of("node").contains(&"lone 10.98.200.5".to_owned()));

        let members = membership(&records);
        let on = |name: &str| members.networks[&name.parse().unwrap()].len();
        assert_eq!((on("front"), on("back"), on("default")), (2, 3, 1));
        assert_eq!(members.internal.len(), 2, "only db and cache have no way out: {members:?}");
    }
}
