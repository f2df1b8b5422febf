//! What pulls beside each other have in common: nothing comes twice, and only so much at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, Notify, OwnedMutexGuard, Semaphore, SemaphorePermit};

use crate::types::Digest;

/// Layers at once beside the first of each image, on the whole host: three of one image, as the other engines have it.
/// An image never waits for another one's layers to be had: up to [`FIRST`] of them, one that comes slowly delays nobody
/// but those that need the very layer.
const BESIDE_THE_FIRST: usize = 2;

/// Images at once that have a first layer under way, on the whole host: a commit that moves every service would else start
/// as many processes that unpack as there are services, each with a window of up to 128 MiB, on a host of 1 GiB too. More of
/// them keep neither a line nor a disk busier.
const FIRST: usize = 16;

/// A gate for each image that is on its way: who comes second waits, and finds it here.
#[derive(Default)]
struct Gates(Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

impl Gates {
    async fn pass(&self, what: &Digest) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Gates that nobody holds any more.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(what.clone()).or_default().clone()
        };
        gate.lock_owned().await
    }
}

/// Layers that somebody fetches.
#[derive(Default)]
struct Claimed {
    layers: Mutex<BTreeSet<Digest>>,
    /// Told when one is given back.
    freed: Notify,
}

/// The right to fetch a layer, given back when it is dropped.
pub(super) struct Claim {
    claimed: Arc<Claimed>,
    layer: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claimed.layers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.layer);
        self.claimed.freed.notify_waiters();
    }
}

/// How many layers come at once.
pub(super) struct Slots {
    first: Semaphore,
    beside: Semaphore,
}

/// One of them. The semaphores are never closed.
type Slot<'a> = Result<SemaphorePermit<'a>, AcquireError>;

impl Slots {
    /// Waits for one. `own` is the image's: it has one permit, for its first layer. Whoever has a slot waits for no other one,
    /// nor for a claim.
    pub async fn take<'a>(&'a self, own: &'a Semaphore) -> (Slot<'a>, Option<Slot<'a>>) {
        let first = async {
            let own = own.acquire().await;
            (own, Some(self.first.acquire().await))
        };
        tokio::select! { slot = first => slot, slot = self.beside.acquire() => (slot, None) }
    }
}

/// What is on its way. Whoever has claimed layers waits for no image's gate.
pub(super) struct Underway {
    images: Gates,
    claimed: Arc<Claimed>,
    /// For the layers of all images.
    pub slots: Arc<Slots>,
}

impl Default for Underway {
    fn default() -> Self {
        let slots = Slots { first: Semaphore::new(FIRST), beside: Semaphore::new(BESIDE_THE_FIRST) };
        Self { images: Gates::default(), claimed: Arc::default(), slots: Arc::new(slots) }
    }
}

impl Underway {
    /// One at a time has an image brought here, or an archive looked into.
    pub async fn image(&self, image: &Digest) -> OwnedMutexGuard<()> {
        self.images.pass(image).await
    }

    /// One at a time fetches a layer.
    pub async fn layer(&self, diff_id: &Digest) -> BTreeMap<Digest, Claim> {
        self.layers(std::slice::from_ref(diff_id), |_| false).await
    }

    /// Claims those of `layers` that are not here, once nobody else has any of them. All of them or none: who waits has nothing
    /// that somebody else waits for, so that nobody waits in a circle, nor for a layer that he does not need.
    pub async fn layers(
        &self,
        layers: &[Digest],
        is_here: impl Fn(&Digest) -> bool,
    ) -> BTreeMap<Digest, Claim> {
        loop {
            // It hears of all that is given back from here on.
            let freed = self.claimed.freed.notified();
            let missing = layers.iter().filter(|layer| !is_here(layer)).cloned().collect();
            if let Some(mut claims) = self.claim(missing) {
                // One may have got its name between the two looks.
                claims.retain(|layer, _| !is_here(layer));
                return claims;
            }
            freed.await;
        }
    }

    fn claim(&self, layers: BTreeSet<Digest>) -> Option<BTreeMap<Digest, Claim>> {
        let mut claimed = self.claimed.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if !claimed.is_disjoint(&layers) {
            return None;
        }
        claimed.extend(layers.iter().cloned());
        let claim = |layer: Digest| (layer.clone(), Claim { claimed: self.claimed.clone(), layer });
        Some(layers.into_iter().map(claim).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn layer(number: u8) -> Digest {
        Digest::from_sha256(&[number; 32])
    }

    #[tokio::test]
    async fn who_waits_for_a_layer_has_none_that_another_needs() {
        let underway = Underway::default();
        let never = |_: &Digest| false;
        let slow = underway.layers(&[layer(9), layer(8)], never).await;
        let both = [layer(1), layer(9)];
        let waiting = underway.layers(&both, never);
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "one of them is on its way");
        // A third one needs the other.
        let third = timeout(Duration::from_secs(10), underway.layers(&[layer(1)], never)).await.unwrap();
        assert_eq!(third.into_keys().collect::<Vec<_>>(), [layer(1)]);
        // What else the first one fetches does not matter.
        let mut slow = slow;
        slow.remove(&layer(9));
        let claims = timeout(Duration::from_secs(10), waiting).await.unwrap();
        assert_eq!(claims.into_keys().collect::<Vec<_>>(), both);
    }

    #[tokio::test]
    async fn what_is_here_is_claimed_by_nobody() {
        let underway = Underway::default();
        let _other = underway.layer(&layer(1)).await;
        // It is here already, and whoever has it is mending it.
        let claims = underway.layers(&[layer(1), layer(2)], |known| *known == layer(1)).await;
        assert_eq!(claims.into_keys().collect::<Vec<_>>(), [layer(2)]);
    }
}
