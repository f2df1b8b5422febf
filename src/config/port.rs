//! `[address:]host:container[/protocol]`, in Compose's short syntax, and paths.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

use crate::types::{Invalid, PortMapping, Protocol};

/// Most ports of one range.
const MAX_RANGE: u16 = 1024;

/// Reads a port, or a range of them.
pub(super) fn port(text: &str) -> Result<Vec<PortMapping>, Invalid> {
    let bad = |why: &str| Invalid::new(format!("`{text}` is not a port: {why}"));
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((_, other)) => return Err(bad(&format!("protocol `{other}` is neither tcp nor udp"))),
        None => (text, Protocol::Tcp),
    };
    let (six, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((address, rest)) => (Some(address), rest),
        None => (None, rest),
    };
    let parts: Vec<&str> = rest.split(':').collect();
    let (address, host, container) = match parts.as_slice() {
        [host, container] if six.is_some() => (six.unwrap_or_default(), *host, *container),
        [host, container] => ("0.0.0.0", *host, *container),
        [address, host, container] if six.is_none() => (*address, *host, *container),
        // A port that nobody wrote down is found by nobody, and differs from host to host.
        [_] => {
            return Err(bad(
                "it needs the host's port too, as \"8080:80\"; services of this host reach each other without",
            ));
        }
        _ => return Err(bad("write host:container, as \"80:8080\"")),
    };
    let host_ip: IpAddr = address.parse().map_err(|_| bad(&format!("`{address}` is not an IP address")))?;
    if host_ip == IpAddr::V6(Ipv6Addr::LOCALHOST) {
        return Err(bad("what is sent to ::1 cannot leave it for a container; publish on 127.0.0.1"));
    }
    if six.is_some() != host_ip.is_ipv6() {
        return Err(bad("an IPv6 address stands in brackets, any other one does not"));
    }
    let (host, container) = (range(host)?, range(container)?);
    if host.clone().count() != container.clone().count() {
        return Err(bad("both ranges have to be of one length"));
    }
    let pairs = host.zip(container);
    Ok(pairs
        .map(|(host_port, container_port)| PortMapping { host_ip, host_port, container_port, protocol })
        .collect())
}

/// `80` or `8000-8010`.
pub(super) fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, Invalid> {
    let bad = |why: &str| Invalid::new(format!("`{text}` is not a port: {why}"));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) =
        number(low).zip(number(high)).ok_or_else(|| bad("a port is a number from 1 to 65535"))?;
    // Each port is a rule of its own in the kernel.
    if low > high || high - low >= MAX_RANGE {
        return Err(bad("a range goes up, and has at most 1024 ports"));
    }
    Ok(low..=high)
}

/// A path as it is written, if it is absolute and goes down only.
pub(super) fn absolute(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let fine = path.is_absolute()
        && !text.contains('\0')
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Rebuilt from its parts: no doubled or trailing slashes.
    fine.then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(port("80:8080").unwrap()[0].to_string(), "0.0.0.0:80->8080/tcp");
        assert_eq!(port("127.0.0.1:9000:9000").unwrap()[0].to_string(), "127.0.0.1:9000->9000/tcp");
        assert_eq!(port("53:53/udp").unwrap()[0].to_string(), "0.0.0.0:53->53/udp");
        let range = port("127.0.0.1:8000-8002:9000-9002/udp").unwrap();
        let texts: Vec<String> = range.iter().map(ToString::to_string).collect();
        let expected = [0, 1, 2].map(|n| format!("127.0.0.1:800{n}->900{n}/udp"));
        assert_eq!(texts, expected);
        for bad in [
            "",
            "80",
            "0:80",
            "80:70000",
            "80-90:80-91",
            "90-80:90-80",
            "1-65535:1-65535",
            "[::1]:80:80",
            "80:80/sctp",
            "x:80:80",
            "1:2:3:4",
        ] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
