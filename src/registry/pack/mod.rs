//! An image as an archive that is made for being read by ranges: a plain tar, its contents first, layers packed with
//! zstd. The same image gives the same bytes, whatever it was read from.

mod layout;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::manifest::Descriptor;
use super::pull::{self, At, Contents, Progress};
use super::retry::Budget;
use super::worker::Product;
use super::{PullError, Registry, download, space};
use crate::types::{Digest, ImageRef, PinnedImage};

/// What zstd is told: higher levels take several times as long for some percent less. Unpacking is as fast at any.
const LEVEL: i32 = 9;

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Packed {
    /// Of the manifest in it: what pulling it gives.
    pub digest: Digest,
    /// Of the configuration: the image's own, as it was.
    pub config: Digest,
    /// Lowest first.
    pub layers: Vec<PackedLayer>,
    /// Of the file.
    pub bytes: u64,
    /// Bytes that came from where the image was.
    pub pulled_bytes: u64,
}

/// A layer of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackedLayer {
    /// Of its content: as it was.
    pub diff_id: Digest,
    /// Of its bytes in the archive.
    pub digest: Digest,
    /// Of these.
    pub bytes: u64,
}

impl Registry {
    /// Writes an image, for this machine's platform, into `file`, which must not be there yet. What is under way is in
    /// the store; none of it stays there.
    pub async fn pack(
        &self,
        image: &ImageRef,
        file: &Path,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Packed, PullError> {
        let contents = match image {
            ImageRef::Archive(url) => self.any_archive(url, tell).await?,
            ImageRef::Registry(reference) => {
                let digest = self.resolve_tag(reference).await?;
                let pinned = PinnedImage { reference: image.clone(), digest };
                pull::find(self, &pinned, &At::Name, &Budget::default(), tell).await?
            }
        };
        let received = Arc::new(AtomicU64::new(contents.received));
        let mut packed = BTreeMap::new();
        let layers = self.pack_layers(image, &contents, &received, &mut packed, tell).await?;
        let (digest, bytes) = layout::write(file, &contents, &layers, &packed)
            .map_err(|error| PullError::io(format_args!("writing {}", file.display()), &error))?;
        let config = contents.config_digest;
        Ok(Packed { digest, config, layers, bytes, pulled_bytes: received.load(Ordering::Relaxed) })
    }

    /// Each layer on its own, so that one of them at a time takes room as it is unpacked.
    async fn pack_layers(
        &self,
        image: &ImageRef,
        contents: &Contents,
        received: &Arc<AtomicU64>,
        packed: &mut BTreeMap<Digest, (PackedLayer, Arc<super::store::Temporary>)>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Vec<PackedLayer>, PullError> {
        let name = image.to_string();
        let all: Vec<(Digest, Descriptor)> =
            contents.diff_ids.iter().cloned().zip(contents.layers.iter().cloned()).collect();
        let watch = space::Watch::begin(self.store.root(), &name, &all, false, &self.needs)?;
        let total = all.iter().fold(0u64, |total, (_, layer)| total.saturating_add(layer.size));
        let mut seen = Progress { total, layers: all.len(), ..Progress::default() };
        let mut layers = Vec::new();
        for (diff_id, descriptor) in all {
            let before = seen.bytes;
            if !packed.contains_key(&diff_id) {
                watch.look()?;
                let counted = if contents.is_local { Arc::default() } else { received.clone() };
                let told = |bytes| tell(Progress { bytes: before + bytes, ..seen });
                let one = self.pack_layer(&name, contents, &diff_id, &descriptor, counted, &told).await?;
                packed.insert(diff_id.clone(), one);
            }
            layers.extend(packed.get(&diff_id).map(|(layer, _)| layer.clone()));
            seen.bytes = before.saturating_add(descriptor.size);
            seen.layers_done += 1;
            tell(seen);
        }
        Ok(layers)
    }

    /// Fetches one, checks both of its digests, and packs it anew.
    async fn pack_layer(
        &self,
        name: &str,
        contents: &Contents,
        diff_id: &Digest,
        descriptor: &Descriptor,
        received: Arc<AtomicU64>,
        tell: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(PackedLayer, Arc<super::store::Temporary>), PullError> {
        let source = &contents.source;
        let layer = (diff_id, descriptor);
        let unpacked =
            download::fetch_alone(self, source, name, layer, &received, Product::File, tell).await?;
        let (place, diff_id) = (self.store.temporary()?, diff_id.clone());
        let compressing = tokio::task::spawn_blocking(move || {
            let (digest, bytes) = compress(&unpacked.file(), unpacked.size, &place.path().join(LAYER))?;
            Ok((PackedLayer { diff_id, digest, bytes }, place))
        });
        let compressed = compressing.await.map_err(io::Error::other).flatten();
        compressed.map_err(|error| PullError::io(format_args!("packing a layer of {name}"), &error))
    }
}

/// The file of a packed layer in its directory.
const LAYER: &str = "layer.tar.zst";

/// Packs a file of `size` bytes; its digest and its bytes then. In one thread: several would part it otherwise.
fn compress(from: &Path, size: u64, to: &Path) -> io::Result<(Digest, u64)> {
    let mut input = BufReader::with_capacity(256 << 10, File::open(from)?);
    let output = Hashed { file: File::create_new(to)?, hash: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::stream::write::Encoder::new(BufWriter::with_capacity(256 << 10, output), LEVEL)?;
    encoder.set_pledged_src_size(Some(size))?;
    encoder.include_checksum(true)?;
    io::copy(&mut input, &mut encoder)?;
    let output = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((Digest::from_sha256(&output.hash.finalize().into()), output.bytes))
}

/// Writes, and knows what was written.
struct Hashed {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.file.write(part)?;
        self.hash.update(part.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
