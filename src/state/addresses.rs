//! Addresses out of the instance's subnet: three quarters for containers, the last quarter for services.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Hands addresses out in turn, so that one that was just given back is not used again soon: a late packet of its
/// former user must not reach a stranger.
#[derive(Debug)]
pub struct Pool {
    containers: std::ops::Range<u32>,
    services: std::ops::Range<u32>,
    gateway: Ipv4Addr,
    cursor: u32,
}

impl Pool {
    /// The pool of a subnet. The first address is the network's, the second the bridge's, the last the broadcast's.
    pub fn new((network, prefix): (Ipv4Addr, u8)) -> Self {
        let size = 1u64.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
        let first = u32::from(network) & u32::try_from(u64::from(u32::MAX) + 1 - size).unwrap_or(0);
        let end = first.saturating_add(u32::try_from(size.saturating_sub(1)).unwrap_or(u32::MAX));
        let split = end.saturating_sub(u32::try_from(size / 4).unwrap_or(0));
        let start = first.saturating_add(2);
        Self {
            containers: start..split.max(start),
            services: split.max(start)..end,
            gateway: first.saturating_add(1).into(),
            cursor: start,
        }
    }

    /// The host's own address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// An address for a container that is in nobody's use; `None` when there is none left.
    pub fn container(&mut self, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        // After a restart of the agent: go on behind the highest in use.
        if let Some(highest) =
            used.iter().map(|a| u32::from(*a)).filter(|a| self.containers.contains(a)).max()
        {
            self.cursor = self.cursor.max(highest.saturating_add(1));
        }
        let found = (self.cursor..self.containers.end)
            .chain(self.containers.start..self.cursor.min(self.containers.end))
            .map(Ipv4Addr::from)
            .find(|address| !used.contains(address))?;
        self.cursor = u32::from(found).saturating_add(1);
        if self.cursor >= self.containers.end {
            self.cursor = self.containers.start;
        }
        Some(found)
    }

    /// How many addresses are left for containers, counted up to `most`.
    pub fn left(&self, used: &BTreeSet<Ipv4Addr>, most: usize) -> usize {
        let free = self.containers.clone().map(Ipv4Addr::from).filter(|address| !used.contains(address));
        free.take(most).count()
    }

    /// How many addresses there are, in use or not: for containers, and for services.
    pub fn sizes(&self) -> (usize, usize) {
        (self.containers.len(), self.services.len())
    }

    /// An address for a service; `None` when there is none left.
    pub fn service(&self, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        self.services.clone().map(Ipv4Addr::from).find(|address| !used.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_not_reused_at_once() {
        let mut pool = Pool::new((Ipv4Addr::new(10, 98, 0, 0), 24));
        let first = pool.container(&BTreeSet::new()).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 98, 0, 2));
        assert_eq!(pool.container(&BTreeSet::new()).unwrap(), Ipv4Addr::new(10, 98, 0, 3));
        assert_eq!(pool.service(&BTreeSet::new()).unwrap(), Ipv4Addr::new(10, 98, 0, 191));
    }

    #[test]
    fn a_full_pool_says_so_and_wraps() {
        let mut pool = Pool::new((Ipv4Addr::new(10, 0, 0, 0), 28));
        let mut used = BTreeSet::new();
        while let Some(address) = pool.container(&used) {
            assert!(used.insert(address));
        }
        assert_eq!(used.len(), 9);
        assert_eq!(pool.sizes(), (9, 4));
        let freed = *used.iter().next().unwrap();
        used.remove(&freed);
        assert_eq!(pool.container(&used), Some(freed));
    }
}
