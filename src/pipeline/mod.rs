//! Bytes on their way to and from the store, bounded at every step.
//!
//! ```text
//! Write ─▶ blocks of 1 MiB ─▶ compress ─▶ in order ─▶ trailer ─▶ encrypt ─▶ hash ─▶ upload     ObjectWriter
//!          caller's thread     N threads    one task per object
//! Read  ◀─ decompress ◀─ trailer ◀─ decrypt ◀─ hash ◀─ chunks ◀─ download                      Content
//! Range ◀─ decompress a frame ◀─ decrypt chunks of age ◀─ bytes from … to …                   Ranged
//! ```
//!
//! Each block becomes a frame of its own, so that blocks are compressed on all cores; frames one
//! after the other are what `lz4 -d` and `zstd -d` read. The first error reaches the caller at its
//! next write and drops the upload.
//!
//! Memory for each object being written: at most [`QUEUED_BLOCKS`] + 2 blocks before and after
//! compression, and the parts of its upload (see `walhalla_providers::transfer`).

mod codec;
mod digest;
pub mod encryption;
mod lz4;
mod packing;
mod ranged;
mod reader;
pub mod streams;
pub mod trailer;
mod writer;

pub use codec::{Codec, Compression, open_frame};
pub use digest::{BlockDigest, StoredDigest, StoredHash};
pub use encryption::{Identities, Locked, OpenError, Recipients};
pub use packing::{Encryption, Packing};
pub use ranged::Ranged;
pub use reader::{Content, ObjectReader, SharedHash, Trailed, plain, unpack};
pub use writer::{Closed, Frame, ObjectWriter, Pipeline, StoredObject};

use crate::failure::{Advice, Failure};

/// Bytes compressed at a time.
pub const BLOCK_SIZE_BYTES: usize = 1 << 20;
/// Blocks of one object that wait for compression or upload.
pub const QUEUED_BLOCKS: usize = 4;

/// What stops a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] walhalla_providers::Error),
    /// A codec failed on the way in.
    #[error("could not compress {object}")]
    Compress {
        /// The object being written.
        object: String,
        /// The codec's reason.
        #[source]
        source: std::io::Error,
    },
    /// No header could be written for the recipients.
    #[error("could not encrypt {object} to its recipients")]
    Encrypt {
        /// The object being written.
        object: String,
        /// age's or a plugin's reason.
        #[source]
        source: Box<age::EncryptError>,
    },
    /// A stage ended without a word; the object is not stored.
    #[error("writing {object} was broken off")]
    BrokenOff {
        /// The object being written.
        object: String,
    },
}

/// What is being written is no object yet, so that none of these is an object's own.
impl Failure for Error {
    fn hint(&self) -> Option<Advice> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Encrypt { .. } => Some(
                "see `age_recipients` and `age_recipients_file`; a plugin must be in the PATH of the server too"
                    .into(),
            ),
            Self::Compress { .. } | Self::BrokenOff { .. } => None,
        }
    }
}
