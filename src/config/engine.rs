//! `[engine]` of the host's own configuration.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::agent::EngineConfig;
use super::port::absolute;
use super::section::Section;

/// One file's part: `None` = it says nothing of it.
#[derive(Debug, Default)]
pub(super) struct EnginePart {
    subnet: Option<(Ipv4Addr, u8)>,
    ipv6: Option<bool>,
    subnet6: Option<Ipv6Addr>,
    runtime: Option<String>,
    subuids: Option<(u32, u32)>,
}

impl EnginePart {
    /// Reads the section.
    pub fn read(engine: &Section<'_, '_>) -> Self {
        let mut part = Self::default();
        match engine.get("kind").and_then(|value| value.get_ref().as_str()) {
            Some("native") => {}
            None if !engine.has("kind") => {}
            _ => engine.findings.error(
                engine.key_span("kind"),
                "`kind` is \"native\": this version has no other engine",
                None,
            ),
        }
        if let Some(text) = engine.string("subnet") {
            part.subnet = subnet(&text);
            if part.subnet.is_none() {
                let message = "`subnet` takes an IPv4 network of /8 to /28, as \"10.98.0.0/16\", with its host bits zero";
                engine.findings.error(engine.key_span("subnet"), message, None);
            }
        }
        part.ipv6 = engine.boolean("ipv6");
        if let Some(text) = engine.string("subnet6") {
            let bits = |address: &Ipv6Addr| address.to_bits() & u128::from(u64::MAX) == 0;
            part.subnet6 = text.strip_suffix("/64").and_then(|text| text.parse().ok()).filter(bits);
            if part.subnet6.is_none() {
                let message = "`subnet6` takes an IPv6 network of /64, as \"fd12:3456:789a:1::/64\"";
                engine.findings.error(engine.key_span("subnet6"), message, None);
            }
        }
        part.runtime = engine.string("runtime");
        if part.runtime.as_deref().is_some_and(|name| !is_runtime(name)) {
            let message = "`runtime` takes \"built-in\", the name of an OCI runtime, as \"crun\" or \"runc\", or its absolute path";
            engine.findings.error(engine.key_span("runtime"), message, None);
        }
        if let Some(text) = engine.string("subuids") {
            part.subuids = subuids(&text);
            if part.subuids.is_none() {
                let message = "`subuids` takes the first number and how many there are, as \"1000000:6553600\": above 65535, and \
                               65536 for each container";
                engine.findings.error(engine.key_span("subuids"), message, None);
            }
        }
        engine.finish(|_| None);
        part
    }

    /// This part, with `over` on top of it.
    pub fn under(self, over: Self) -> Self {
        Self {
            subnet: over.subnet.or(self.subnet),
            ipv6: over.ipv6.or(self.ipv6),
            subnet6: over.subnet6.or(self.subnet6),
            runtime: over.runtime.or(self.runtime),
            subuids: over.subuids.or(self.subuids),
        }
    }

    /// What holds in the end.
    pub fn finish(self) -> EngineConfig {
        EngineConfig {
            subnet: self.subnet.unwrap_or((Ipv4Addr::new(10, 98, 0, 0), 16)),
            ipv6: self.ipv6.unwrap_or(true),
            subnet6: self.subnet6,
            runtime: self.runtime.filter(|name| name != "built-in"),
            subuids: self.subuids,
        }
    }
}

fn is_runtime(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let named = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
    named || absolute(name).is_some()
}

/// As in subuid(5), without the name. Below 65536 are users of the host itself.
fn subuids(text: &str) -> Option<(u32, u32)> {
    let (first, count) = text.split_once(':')?;
    let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
    // The last number means "none": chown(2).
    (first > 65535 && count >= 65536 && first.checked_add(count)? < u32::MAX).then_some((first, count))
}

fn subnet(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let hosts = u32::MAX.checked_shr(prefix.into())?;
    ((8..=28).contains(&prefix) && u32::from(address) & hosts == 0).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_and_numbers_of_users() {
        for name in ["crun", "runc", "built-in", "youki-0.7", "/opt/bin/crun"] {
            assert!(is_runtime(name), "{name}");
        }
        for name in ["", "-x", "../crun", "bin/crun", "/opt/../crun", "a b"] {
            assert!(!is_runtime(name), "{name}");
        }
        assert_eq!(subuids("1000000:655360"), Some((1_000_000, 655_360)));
        assert_eq!(subuids("65536:65536"), Some((65536, 65536)));
        for bad in [
            "",
            "1000000",
            "0:65536",
            "65535:65536",
            "1000000:65535",
            "4294900000:67295",
            "4294967295:65536",
            "a:b",
        ] {
            assert_eq!(subuids(bad), None, "{bad}");
        }
    }
}
