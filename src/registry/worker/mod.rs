//! The process that unpacks one layer: confined before it reads the first byte of it, gone when the layer is there.
//!
//! Packed bytes come in on standard input, the outcome goes out on standard output as one JSON document. The agent
//! hashes what it hands over itself: what it calls verified never depends on this process.

mod confine;
mod stages;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::PullError;
use super::manifest::Packing;
use super::unpack::{Error, Implied};
use crate::types::{Digest, Reason};

/// The hidden subcommand.
pub(crate) const COMMAND: &str = "internal-unpack";

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// An empty directory: the layer's root.
    pub tree: PathBuf,
    /// Where the listing goes; not there yet.
    pub listing: PathBuf,
    /// Where the packed bytes are kept as they come, if they are; not there yet.
    pub blob: Option<PathBuf>,
    pub packing: Packing,
    pub product: Product,
    /// Most bytes that the layer may unpack to.
    pub most: u64,
    /// Ends with it.
    pub parent: u32,
    /// Steps of nice(2) behind it.
    pub nice: i32,
}

/// What is made of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Product {
    /// The tree of a layer.
    Tree,
    /// The unpacked stream itself, as the one file [`SPOOLED`] of the directory.
    File,
}

/// The file of [`Product::File`].
pub(super) const SPOOLED: &str = "archive";

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Done(Done),
    /// The layer holds what no layer should, or is none.
    Refused(String),
    /// The disk said no: what it was, and the kernel's number.
    Disk(String, i32),
    /// The confinement could not be set up.
    Unconfined(String),
}

/// An unpacked layer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    pub diff_id: Digest,
    /// Bytes of the tar stream.
    pub size: u64,
    #[serde(with = "paths")]
    pub implied: Implied,
}

impl Outcome {
    pub fn into_result(self, name: &str) -> Result<Done, PullError> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Refused(why) => Err(PullError::fatal(Reason::ImageInvalid, format!("{name}: {why}"))),
            Self::Disk(what, number) => {
                let error = std::io::Error::from_raw_os_error(number);
                Err(PullError::io(format_args!("{name}: {what}"), &error))
            }
            Self::Unconfined(why) => Err(PullError::retry(
                Reason::Internal,
                format!("{name}: nothing is unpacked unless it is confined: {why}"),
            )),
        }
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(why) => Self::Refused(why),
            // Every decoder has other words for it.
            Error::Broken(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::Refused(format!("it is cut short ({error})"))
            }
            Error::Broken(error) => Self::Refused(error.to_string()),
            Error::Disk(what, error) => {
                Self::Disk(what, error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
            }
        }
    }
}

/// Runs the subcommand.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let order = args.first().and_then(|text| text.to_str()).and_then(|text| serde_json::from_str(text).ok());
    let outcome = match order {
        Some(order) => work(&order),
        None => Outcome::Unconfined("it was called by hand".to_owned()),
    };
    let written = serde_json::to_vec(&outcome)
        .map_err(std::io::Error::from)
        .and_then(|text| std::io::stdout().lock().write_all(&text));
    // The agent may be gone: nobody is left to tell.
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(order: &Order) -> Outcome {
    match prepare(order) {
        Ok(Prepared { input, root, listing, blob }) => {
            let mut listing = BufWriter::with_capacity(64 << 10, listing);
            stages::run((input, blob), order, root, &mut listing, confine::seal)
                .map_or_else(Outcome::from, Outcome::Done)
        }
        Err(error) => Outcome::Unconfined(error.to_string()),
    }
}

/// All that this process can reach from here on.
struct Prepared {
    input: File,
    root: OwnedFd,
    listing: File,
    blob: Option<File>,
}

fn prepare(order: &Order) -> std::io::Result<Prepared> {
    confine::die_with(order.parent)?;
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let create = |path: &PathBuf| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let (listing, blob) = (create(&order.listing)?, order.blob.as_ref().map(create).transpose()?);
    confine::enter(&order.tree, order.most, order.nice)?;
    Ok(Prepared { input, root: File::open("/")?.into(), listing, blob })
}

/// Paths are bytes, and JSON is text.
pub(super) mod paths {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use percent_encoding::percent_decode_str;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Implied;
    use crate::registry::unpack::quoted;

    pub fn serialize<S: Serializer>(implied: &Implied, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(implied.iter().map(|(path, opaque)| (quoted(path).to_string(), opaque)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Implied, D::Error> {
        let all = Vec::<(String, bool)>::deserialize(from)?;
        let path = |text: String| OsString::from_vec(percent_decode_str(&text).collect()).into();
        Ok(all.into_iter().map(|(text, opaque)| (path(text), opaque)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many of its directories a layer only implies, and whatever their names are.
    #[test]
    fn paths_of_any_bytes_are_answered_in_bounds() {
        use std::os::unix::ffi::OsStringExt;
        let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        let paths = [Vec::new(), b"usr/bin".to_vec(), all, b"\"\\\"\\".to_vec(), vec![0xff; 1000]];
        let implied: Implied =
            paths.map(OsString::from_vec).into_iter().map(|path| (path.into(), true)).collect();
        let diff_id = Digest::from_sha256(&[7; 32]);
        let text = serde_json::to_string(&Done { diff_id, size: 1, implied: implied.clone() }).unwrap();
        assert_eq!(serde_json::from_str::<Done>(&text).unwrap().implied, implied);
        let counted: usize = implied.keys().map(|path| super::super::unpack::remembered(path)).sum();
        assert!(text.len() < counted, "{} bytes, and {counted} were counted", text.len());
    }
}
