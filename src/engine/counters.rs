//! What the kernel counts of TCP in a network namespace.
//!
//! Source: proc_pid_net(5), RFC 4022 (`Tcp:` of `snmp`), linux/snmp.h (`TcpExt:` of `netstat`).

use std::io::{self, Read as _};

use crate::types::Counters;

/// Both files have a few KiB.
const MAX_FILE: u64 = 64 << 10;

/// The counters of the namespace that process `pid` is in.
pub fn counters(pid: i32) -> io::Result<Counters> {
    let read = |name: &str| -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(format!("/proc/{pid}/net/{name}"))?.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    };
    sum(&read("snmp")?, &read("netstat")?).ok_or_else(|| io::Error::other("its TCP counters are not there"))
}

/// A reset is what a client gets where nobody listens, or where the program breaks the connection off; a dropped one got
/// no answer, as nobody took those before it. `AttemptFails` is left out: it is what the program itself cannot reach.
fn sum(snmp: &str, netstat: &str) -> Option<Counters> {
    let tcp = |name| field(snmp, "Tcp:", name);
    Some(Counters {
        opened: tcp("ActiveOpens")?.saturating_add(tcp("PassiveOpens")?),
        failed: tcp("OutRsts")?.saturating_add(field(netstat, "TcpExt:", "ListenDrops")?),
    })
}

/// Of two lines that begin alike, the first holds the names and the second the numbers.
fn field(text: &str, kind: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(kind));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|word| word == name)?;
    numbers.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: MaxConn ActiveOpens PassiveOpens AttemptFails OutRsts InCsumErrors\nTcp: -1 7 5 3 2 0\n";
    const NETSTAT: &str =
        "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 4 6\nIpExt: InNoRoutes\nIpExt: 0\n";

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(sum(SNMP, NETSTAT), Some(Counters { opened: 12, failed: 8 }));
        assert_eq!(sum(SNMP, "TcpExt: SyncookiesSent\nTcpExt: 0\n"), None);
        assert_eq!(sum("Tcp: OutRsts\n", NETSTAT), None, "cut short");
    }

    #[test]
    fn this_kernel_counts_a_refused_connection() {
        let own = std::process::id().cast_signed();
        let before = counters(own).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(std::net::TcpStream::connect(address).is_err());
        assert!(counters(own).unwrap().since(before).failed >= 1);
    }
}
