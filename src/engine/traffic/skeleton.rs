//! The fixed part of our own nftables table (nft(8)), and who may reach whom. Pure: one transaction's text.
//!
//! Run again on a table that is in use it changes nothing that a packet could notice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::handover::MOVING;
use super::listing::{self, Table};
use super::netlink::objects::Chain;
use super::netlink::would_make;
use crate::engine::native::net::names::{Names, Subnet, Subnet6};
use crate::types::Membership;

/// What a table is made for.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Names of its objects.
    pub names: Names,
    /// Containers and services.
    pub subnet: Subnet,
    /// Containers, where they have IPv6.
    pub subnet6: Option<Subnet6>,
}

/// The sets that say who is on which network, by their names in the table.
pub type Sets = BTreeMap<String, BTreeSet<IpAddr>>;

/// Those whose networks are all internal.
const INTERNAL: &str = "internal";

/// How the set of a network is called: for IPv4, for IPv6.
const NETWORK: [&str; 2] = ["net-", "net6-"];

/// Whether a set says who is on a network.
pub fn is_member_set(name: &str) -> bool {
    [INTERNAL, "internal6"].contains(&name) || NETWORK.iter().any(|prefix| name.starts_with(prefix))
}

impl Frame {
    /// The sets that `members` make.
    pub fn sets(&self, members: &Membership) -> Sets {
        let mut sets = Sets::new();
        let mut add = |name: [String; 2], addresses: &BTreeSet<std::net::Ipv4Addr>| {
            let [four, six] = name;
            sets.insert(four, addresses.iter().map(|address| IpAddr::V4(*address)).collect());
            if let Some(subnet6) = self.subnet6 {
                sets.insert(six, addresses.iter().map(|address| subnet6.of(*address).into()).collect());
            }
        };
        add([INTERNAL.to_owned(), format!("{INTERNAL}6")], &members.internal);
        for (network, addresses) in &members.networks {
            add(NETWORK.map(|prefix| format!("{prefix}{network}")), addresses);
        }
        sets
    }

    /// Everything but the services. `sets` = `None`: nobody has said who is on which network, and all reach all.
    pub fn script(&self, now: &Table, sets: Option<&Sets>) -> String {
        let mut text = self.fixed();
        if let Some(sets) = sets {
            self.members(&mut text, now, sets);
        }
        self.between(&mut text, sets);
        for name in now.sets.keys().filter(|name| sets.is_some_and(|sets| !sets.contains_key(*name))) {
            text.push_str(&format!("delete set inet {} {name}\n", self.names.table));
        }
        text
    }

    /// What has to change of a table for `sets`; empty = nothing. `known`: its fixed part was looked at already, and has
    /// not changed since.
    pub fn change(&self, now: &Table, sets: &Sets, known: bool) -> String {
        let mut text = String::new();
        if !now.sets.keys().eq(sets.keys()) || !(known || self.is_whole(now, Some(sets))) {
            return self.script(now, Some(sets));
        }
        self.members(&mut text, now, sets);
        text
    }

    /// Whether each chain of the fixed part has its rules, and no others: else somebody has changed them.
    fn is_whole(&self, now: &Table, sets: Option<&Sets>) -> bool {
        let table = &self.names.table;
        // Text that cannot be compiled cannot be written either, and that says so.
        let Some(made) = would_make(&self.script(&Table::default(), sets)) else { return false };
        let wanted = listing::fixed(&made, table);
        let is_there = |chain: &Chain| {
            now.chains.contains(&chain.name)
                && now.bases.get(&chain.name) == chain.base.as_ref()
                && now.rules.get(&chain.name) == wanted.get(&chain.name)
        };
        !now.is_dormant && made.chains.iter().all(is_there)
    }

    /// Makes the sets, and moves what differs: members that stay are not touched, as a lookup may miss one that is
    /// being replaced.
    fn members(&self, text: &mut String, now: &Table, sets: &Sets) {
        let table = &self.names.table;
        let none = BTreeSet::new();
        for (name, members) in sets {
            let there = now.sets.get(name);
            if there.is_none() {
                let kind = if is_six(name) { "ipv6_addr" } else { "ipv4_addr" };
                text.push_str(&format!("add set inet {table} {name} {{ type {kind} ; }}\n"));
            }
            let there = there.unwrap_or(&none);
            for (verb, list) in [("add", members - there), ("delete", there - members)] {
                if !list.is_empty() {
                    let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                    let list = list.join(", ");
                    text.push_str(&format!("{verb} element inet {table} {name} {{ {list} }}\n"));
                }
            }
        }
    }

    fn fixed(&self) -> String {
        let Names { table: t, bridge, veth_prefix: veth, .. } = &self.names;
        let (subnet, gateway) = (self.subnet, self.subnet.gateway());
        // `"gd…*"` is any container of this instance. What leads to the bridge has no container behind it; but in the
        // output hook a packet still shows the interface it had before its DNAT, so those are let through there.
        let mut text = format!(
            r#"add table inet {t}
add map inet {t} services {{ type ipv4_addr : verdict ; }}
add map inet {t} anywhere {{ type inet_proto . inet_service : verdict ; }}
add map inet {t} anywhere6 {{ type inet_proto . inet_service : verdict ; }}
add map inet {t} at {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map inet {t} at6 {{ type ipv6_addr . inet_proto . inet_service : verdict ; }}
add set inet {t} hairpin {{ type ipv4_addr . ipv4_addr ; }}
add set inet {t} hairpin6 {{ type ipv6_addr . ipv6_addr ; }}
add chain inet {t} {MOVING}
add chain inet {t} published
add chain inet {t} between
add chain inet {t} nat-pre {{ type nat hook prerouting priority -105 ; policy accept ; }}
add chain inet {t} nat-out {{ type nat hook output priority -105 ; policy accept ; }}
add chain inet {t} nat-post {{ type nat hook postrouting priority 95 ; policy accept ; }}
add chain inet {t} guard {{ type filter hook prerouting priority -300 ; policy accept ; }}
add chain inet {t} filter-forward {{ type filter hook forward priority -5 ; policy accept ; }}
add chain inet {t} filter-out {{ type filter hook output priority -5 ; policy accept ; }}
flush chain inet {t} {MOVING}
flush chain inet {t} published
flush chain inet {t} between
flush chain inet {t} nat-pre
flush chain inet {t} nat-out
flush chain inet {t} nat-post
flush chain inet {t} guard
flush chain inet {t} filter-forward
flush chain inet {t} filter-out
add rule inet {t} published ip daddr . meta l4proto . th dport vmap @at
add rule inet {t} published meta nfproto ipv4 fib daddr type local meta l4proto . th dport vmap @anywhere
add rule inet {t} nat-pre iifname "{veth}*" ip daddr vmap @services
add rule inet {t} nat-pre jump published
add rule inet {t} nat-out ip daddr vmap @services
add rule inet {t} nat-out jump published
add rule inet {t} nat-post oifname "{veth}*" ip saddr 127.0.0.0/8 snat ip to {gateway}
add rule inet {t} nat-post ip saddr . ip daddr @hairpin snat ip to {gateway}
add rule inet {t} nat-post iifname "{veth}*" oifname != "{veth}*" oifname != "{bridge}" ip saddr {subnet} masquerade
add rule inet {t} guard iifname "{veth}*" ip daddr 127.0.0.0/8 drop
add rule inet {t} filter-forward oifname "{veth}*" ct state invalid drop
add rule inet {t} filter-forward iifname "{veth}*" ct state invalid drop
add rule inet {t} filter-forward oifname "{bridge}" meta l4proto tcp reject with tcp reset
add rule inet {t} filter-forward oifname "{bridge}" reject
add rule inet {t} filter-forward iifname "{veth}*" oifname "{veth}*" jump between
add rule inet {t} filter-forward oifname "{veth}*" iifname != "{veth}*" ct state new ct status & dnat != dnat drop
add rule inet {t} filter-out oifname "{bridge}" ct status & dnat == dnat accept
add rule inet {t} filter-out oifname "{bridge}" meta l4proto tcp reject with tcp reset
add rule inet {t} filter-out oifname "{bridge}" reject
"#
        );
        if let Some(subnet6) = self.subnet6 {
            // What is sent to ::1 cannot be led off the host: clients get a reset, and fall back to 127.0.0.1.
            let gateway = subnet6.of(gateway);
            text.push_str(&format!(
                r#"add rule inet {t} published ip6 daddr . meta l4proto . th dport vmap @at6
add rule inet {t} published ip6 daddr != ::1 fib daddr type local meta l4proto . th dport vmap @anywhere
add rule inet {t} published ip6 daddr != ::1 fib daddr type local meta l4proto . th dport vmap @anywhere6
add rule inet {t} nat-post ip6 saddr . ip6 daddr @hairpin6 snat ip6 to {gateway}
add rule inet {t} nat-post iifname "{veth}*" oifname != "{veth}*" oifname != "{bridge}" ip6 saddr {subnet6} masquerade
add rule inet {t} guard iifname "{veth}*" ip6 saddr != fe80::/10 ip6 saddr != :: fib saddr . iif oif missing drop
add rule inet {t} filter-out oifname "{veth}*" icmpv6 type nd-redirect drop
"#
            ));
        }
        text.push_str(&format!("add rule inet {t} published jump {MOVING}\n"));
        text
    }

    /// Who may reach whom, from container to container and out of the host.
    fn between(&self, text: &mut String, sets: Option<&Sets>) {
        let Names { table: t, veth_prefix: veth, .. } = &self.names;
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        let Some(sets) = sets else { return line(format!("add rule inet {t} between accept")) };
        let family = |name: &str| if is_six(name) { "ip6" } else { "ip" };
        line(format!("add rule inet {t} between ct state established,related accept"));
        for name in sets.keys().filter(|name| !name.starts_with(INTERNAL)) {
            let ip = family(name);
            line(format!("add rule inet {t} between {ip} saddr @{name} {ip} daddr @{name} accept"));
        }
        for name in sets.keys().filter(|name| name.starts_with(INTERNAL)) {
            let ip = family(name);
            for end in ["saddr", "daddr"] {
                line(format!("add rule inet {t} between {ip} {end} @{name} reject"));
            }
            line(format!(
                "add rule inet {t} filter-forward iifname \"{veth}*\" oifname != \"{veth}*\" {ip} saddr @{name} reject"
            ));
            line(format!(
                "add rule inet {t} filter-forward oifname \"{veth}*\" iifname != \"{veth}*\" {ip} daddr @{name} drop"
            ));
        }
        // A published port is open to whoever reaches the host, by any address of the host.
        let (subnet, gateway) = (self.subnet, self.subnet.gateway());
        line(format!(
            "add rule inet {t} between ct status & dnat == dnat ct original ip daddr != {subnet} accept"
        ));
        line(format!(
            "add rule inet {t} between ct status & dnat == dnat ct original ip daddr {gateway} accept"
        ));
        if self.subnet6.is_some() {
            // No service has an address of its own in IPv6.
            line(format!("add rule inet {t} between meta nfproto ipv6 ct status & dnat == dnat accept"));
        }
        line(format!("add rule inet {t} between meta l4proto tcp reject with tcp reset"));
        line(format!("add rule inet {t} between reject"));
    }
}

fn is_six(name: &str) -> bool {
    name.starts_with(NETWORK[1]) || name == "internal6"
}
