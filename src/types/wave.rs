//! Waves: groups of hosts that take a commit one after the other.

use std::time::Duration;

use super::HostName;

/// One `[[wave]]` of the repo's own file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// Names of hosts with globs, or labels (`key=value`).
    pub hosts: Vec<String>,
    /// How long the commit has to be well on it before the next wave acts.
    pub wait: Duration,
    /// Hundredths of its hosts that have to be well for that.
    pub min_healthy: u8,
}

impl Wave {
    /// Whether a host of these labels is in it.
    pub fn holds(&self, host: &HostName, labels: &[String]) -> bool {
        self.hosts.iter().any(|entry| match entry.contains('=') {
            true => labels.contains(entry),
            false => glob::Pattern::new(entry).is_ok_and(|pattern| pattern.matches(host.as_str())),
        })
    }

    /// The hosts that it names in full.
    pub fn named(&self) -> impl Iterator<Item = HostName> {
        self.hosts.iter().filter_map(|entry| entry.parse().ok())
    }
}

/// The wave of a host: the first that holds it; after all of them, as `waves.len()`, where none does.
pub fn place(waves: &[Wave], host: &HostName, labels: &[String]) -> usize {
    waves.iter().position(|wave| wave.holds(host, labels)).unwrap_or(waves.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_in_the_first_wave_that_holds_it_or_comes_last() {
        let wave = |hosts: &[&str]| Wave {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            wait: Duration::ZERO,
            min_healthy: 100,
        };
        let waves = [wave(&["canary-1"]), wave(&["web-*", "role=edge"]), wave(&["*-2"])];
        let at = |host: &str, labels: &[&str]| {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            place(&waves, &host.parse().unwrap(), &labels)
        };
        assert_eq!(at("canary-1", &[]), 0);
        assert_eq!(at("web-2", &[]), 1);
        assert_eq!(at("db-1", &["role=edge"]), 1);
        assert_eq!(at("db-2", &["role=db"]), 2);
        assert_eq!(at("db-1", &[]), 3);
        assert_eq!(waves[1].named().count(), 0);
        assert_eq!(waves[0].named().next().unwrap().as_str(), "canary-1");
    }
}
