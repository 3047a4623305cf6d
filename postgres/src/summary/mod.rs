//! What a segment's WAL holds, in short: enough to plan a restore, to find a moment and to know which blocks changed,
//! without reading the WAL.
//!
//! ```text
//! records ─▶ Summarizer ─▶ Summary ─▶ JSON               make, text
//! summaries of consecutive segments ─▶ Joiner ─▶ what ran over their borders  border
//! ```
//!
//! A summary is taken from its segment alone: of records that run over the segment's borders it holds what is in the
//! segment, and whoever reads two summaries in order joins the two halves. So segments can be summarized in any order,
//! and by hosts that cannot read the archive.

mod border;
mod changes;
mod make;
mod text;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use border::{Joined, Joiner, Rift};
pub use changes::{Changed, Changes};
pub use make::Summarizer;

use crate::wal::event::{Event, Outcome};
use crate::wal::reader::{Head, Tail};
use crate::wal::record::RelationFiles;
use crate::{Lsn, SegmentName, SegmentSize, SystemIdentifier, Version};

/// The format that is written.
pub const FORMAT: u32 = 3;
/// The oldest that is read: what was written before does not tell of which segment it was made, nor of tablespaces. It names
/// the segment by its SHA-256.
const OLDEST_FORMAT: u32 = 2;

/// A hash of 32 bytes, in JSON hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(#[serde(with = "hex::serde")] pub [u8; 32]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a segment's WAL holds. As JSON, times are the server's, and lists of numbers are differences from one to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The segment.
    pub segment: SegmentName,
    /// Major version.
    pub postgres_version: Version,
    /// Length of the cluster's segments.
    pub segment_size: SegmentSize,
    /// BLAKE3 hash of the segment; `None` of one that was still being written, whose summary is never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_blake3: Option<Digest>,
    /// SHA-256 of the segment instead, in format 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_sha256: Option<Digest>,
    /// The checksum in which the segment's object ends, if it does: it shows that the object is that segment's without
    /// reading all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_trailer: Option<Digest>,
    /// Start of the first record that begins in it.
    pub first_record: Option<Lsn>,
    /// Where the first record that begins and ends in it says that the one before begins (`xl_prev`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_previous: Option<Lsn>,
    /// Start of the last record that begins and ends in it.
    pub last_record: Option<Lsn>,
    /// First and last of the times at which transactions ended in it.
    pub times: Option<(Timestamp, Timestamp)>,
    /// What goes on from the segment before.
    pub head: Option<Head>,
    /// Whether what the segment before ended with was given up.
    pub overwrites: bool,
    /// What goes on in the next segment.
    pub tail: Option<Tail>,
    /// Where the WAL ends although the segment goes on, without a switch: what was after it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Lsn>,
    /// What happened besides ends of transactions, in order.
    pub notes: Vec<Note>,
    /// Transactions that ended, in order.
    #[serde(with = "text")]
    pub transactions: Vec<Transaction>,
    /// Transactions and subtransactions that wrote here and whose end is not here: bytes of their records.
    pub open: Vec<(u32, u64)>,
    /// Transactions and subtransactions that deleted rows of `pg_class`, and how many: relations that were dropped, but
    /// for a rewritten one also its short-lived double.
    pub pg_class_deletes: Vec<(u32, u32)>,
    /// Blocks that changed.
    pub changes: Changes,
}

/// By what a summary names its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentDigest {
    /// Its BLAKE3 hash.
    Blake3([u8; 32]),
    /// Its SHA-256, as earlier versions wrote it.
    Sha256([u8; 32]),
}

/// Something of which a record tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Start of the record.
    pub lsn: Lsn,
    /// The transaction that wrote it, or 0.
    pub xid: u32,
    /// What it tells.
    #[serde(flatten)]
    pub event: Event,
}

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Start of its last record.
    pub lsn: Lsn,
    /// Its number.
    pub xid: u32,
    /// By the server's clock.
    pub time: Timestamp,
    /// Commit or abort.
    pub outcome: Outcome,
    /// Bytes of its records in this segment, those of its subtransactions included.
    pub wal_bytes: u64,
    /// Its subtransactions.
    pub subtransactions: Vec<u32>,
    /// Relations whose files went with it.
    pub dropped: Vec<RelationFiles>,
}

/// Why a summary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is no summary.
    #[error("it does not read as a summary")]
    Syntax(#[from] serde_json::Error),
    /// A newer program wrote it.
    #[error("it has format {0}, this program reads up to {FORMAT}")]
    Newer(u32),
    /// An older program wrote it.
    #[error(
        "it has the older format {0}, which does not tell enough; `walhalla wal-summarize` makes it anew"
    )]
    Older(u32),
    /// It is another segment's.
    #[error("it is the summary of {0}")]
    Other(SegmentName),
    /// It is another cluster's.
    #[error("it belongs to the cluster {0}")]
    Cluster(SystemIdentifier),
}

impl Summary {
    /// Which segment it is of; `None` of one that was still being written.
    pub fn segment_digest(&self) -> Option<SegmentDigest> {
        let blake3 = self.segment_blake3.map(|sum| SegmentDigest::Blake3(sum.0));
        let sha256 = self.segment_sha256.map(|sum| SegmentDigest::Sha256(sum.0));
        blake3.or(sha256)
    }

    /// The summary as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json =
            serde_json::to_vec(self).expect("numbers, names and lists make a JSON document");
        json.push(b'\n');
        json
    }

    /// Reads a stored summary of `segment`.
    ///
    /// # Errors
    /// Why it is [`Unusable`].
    pub fn parse(
        json: &[u8],
        segment: SegmentName,
        system_identifier: SystemIdentifier,
    ) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json)?;
        if format > FORMAT {
            return Err(Unusable::Newer(format));
        }
        if format < OLDEST_FORMAT {
            return Err(Unusable::Older(format));
        }
        let summary: Self = serde_json::from_slice(json)?;
        if summary.segment != segment {
            return Err(Unusable::Other(summary.segment));
        }
        if summary.system_identifier != system_identifier {
            return Err(Unusable::Cluster(summary.system_identifier));
        }
        Ok(summary)
    }
}
