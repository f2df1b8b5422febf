//! Layers as they should be and as they should not, against the reader and the tree together.

mod attacks;
mod canary;
mod differential;
mod forge;
mod layers;
mod limits;
mod merged;
mod table;

use std::fs::File;
use std::path::Path;

use super::{Error, Implied};

/// Unpacks an archive into a directory, without the process around it.
fn unpack(archive: &[u8], layer: &Path) -> Result<Implied, Error> {
    super::unpack(archive, File::open(layer).unwrap().into(), &mut Vec::new())
}
