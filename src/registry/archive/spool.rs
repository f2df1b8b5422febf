//! An archive that is read as a whole: from its begin to its end into one file of the store's own, inflated by a
//! confined process.

use std::collections::BTreeSet;

use super::place::{Part, Place};
use crate::registry::layer::{LayerWriter, Unpacked};
use crate::registry::manifest::{self, Descriptor, Packing};
use crate::registry::pull::Progress;
use crate::registry::retry::{self, Budget, Resume};
use crate::registry::worker::Product;
use crate::registry::{PullError, Registry, space};
use crate::types::Digest;

/// Bytes by which a format is known.
pub(super) const MAGIC: u64 = 6;

/// By the first bytes, whatever the name says.
pub(super) fn packing(magic: &[u8]) -> Packing {
    match magic {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [b'B', b'Z', b'h', ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        _ => Packing::Plain,
    }
}

/// Reads it. Refused before its first byte where even the packed bytes would not fit.
pub(super) async fn spool(
    registry: &Registry,
    place: &Place,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Unpacked, PullError> {
    let (name, size) = (place.name(), place.version.size);
    // What it needed is remembered by what it is, as of layers.
    let id = manifest::sha256(format!("{name} {}", place.version.tag).as_bytes());
    let parts: [(Digest, Descriptor); 1] = [(id.clone(), Descriptor::of_layer(String::new(), id, size))];
    let watch = space::Watch::begin_whole(registry.store.root(), name, &parts, &registry.needs)?;
    let (present, mut gone) = tokio::sync::mpsc::channel(1);
    let (part, begin) = begin(place).await?;
    let to = LayerWriter::start(
        &registry.store,
        &registry.workers,
        name.to_owned(),
        packing(&begin),
        Product::File,
        present,
    )?;
    let written = to.place();
    let result = {
        let copy = copy(place, part, &begin, to, progress);
        tokio::pin!(copy);
        let mut ticks = tokio::time::interval(space::LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut copy => break result,
                _ = ticks.tick() => if let Err(error) = watch.look() {
                    break Err(error);
                },
            }
        }
    };
    let error = match result {
        Ok(unpacked) => return Ok(unpacked),
        Err(error) => error,
    };
    let rest = size.saturating_sub(place.received());
    let error = watch.explain(error, (&parts, &BTreeSet::new()), &[written], rest, &registry.needs);
    // Whoever hears of the error finds nothing half done.
    let _ = gone.recv().await;
    Err(error)
}

/// Opens it, and waits for what says how it is packed.
async fn begin(place: &Place) -> Result<(Part, Vec<u8>), PullError> {
    let size = place.version.size;
    retry::patiently(|| async move {
        let mut part = place.read(0, size).await?;
        let mut begin = Vec::new();
        while (begin.len() as u64) < MAGIC.min(size) {
            match part.chunk().await? {
                Some(chunk) => begin.extend_from_slice(&chunk),
                None => {
                    let what = format!("{}: the connection was lost", place.name());
                    return Err(PullError::network(what, None));
                }
            }
        }
        Ok((part, begin))
    })
    .await
}

async fn copy(
    place: &Place,
    part: Part,
    begin: &[u8],
    mut to: LayerWriter,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Unpacked, PullError> {
    let size = place.version.size;
    let told = |bytes| progress(Progress { bytes, total: size, ..Progress::default() });
    let (mut resume, budget) = (Resume::default(), Budget::default());
    to.write(begin).await?;
    let mut open = Some(part);
    while to.written() < size {
        let stream = async {
            let mut part = match open.take() {
                Some(part) => part,
                None => place.read(to.written(), size - to.written()).await?,
            };
            while let Some(chunk) = part.chunk().await? {
                to.write(&chunk).await?;
                told(to.written());
            }
            Err(PullError::network(format!("{}: the connection was lost", place.name()), None))
        };
        let result: Result<(), PullError> = stream.await;
        // Nothing is missing, however the connection ended.
        if to.written() == size {
            break;
        }
        let Err(error) = result else { break };
        let Some(asked) = error.again else { return Err(error) };
        match resume.broke(to.written(), std::time::Instant::now(), &budget) {
            Some(attempt) => tokio::time::sleep(retry::pause(attempt, asked)).await,
            None => return Err(error),
        }
    }
    to.finish(None, None).await
}
