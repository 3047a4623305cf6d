//! Write-ahead log: pages, records and what they mean.
//!
//! ```text
//! bytes ─▶ segment_reader: pages ─▶ page_check: headers, addresses, timelines ─▶ reader: records, CRCs
//!                                                                                  └▶ record: headers, blocks ─▶ event
//! ```

pub mod cluster;
pub mod event;
mod page_check;
pub mod page_header;
pub mod reader;
pub mod record;
pub mod segment_reader;
pub mod text;

use crate::backup_label::BackupLabel;
use crate::{History, Lsn, SegmentSize, SystemIdentifier, TimelineId, Version, WalFileName};

/// Whether `text` is what a history or backup history file of this name holds.
pub fn reads_as(name: WalFileName, text: &[u8]) -> bool {
    match name {
        WalFileName::History(timeline) => {
            !text.trim_ascii().is_empty() && History::parse(timeline, text).is_ok()
        }
        WalFileName::BackupHistory(segment, _) => {
            BackupLabel::parse(&String::from_utf8_lossy(text))
                .is_ok_and(|label| label.start_segment == segment)
        }
        WalFileName::Segment(_) | WalFileName::Partial(..) => true,
    }
}

/// How a WAL file differs from what its name and cluster promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A segment of the wrong length.
    #[error("it has {actual} bytes, a segment of this cluster has {}", expected.bytes())]
    Length {
        /// Length of the file.
        actual: u64,
        /// Length of every segment.
        expected: SegmentSize,
    },
    /// A segment that goes on after its end.
    #[error("it goes on after {} bytes, the length of a segment of this cluster", .0.bytes())]
    TooLong(SegmentSize),
    /// The first page has no WAL page header of this version.
    #[error(
        "the page at {at} begins with {actual:04X}, WAL pages of PostgreSQL {version} begin with {expected:04X}"
    )]
    Magic {
        /// The page's address by the file's name.
        at: Lsn,
        /// Its first two bytes.
        actual: u16,
        /// What they should be.
        expected: u16,
        /// The cluster's version.
        version: Version,
    },
    /// Flags in a page header that PostgreSQL does not know and refuses.
    #[error("the page at {at} has the flags {actual:04X}")]
    Flags {
        /// The page's address.
        at: Lsn,
        /// `xlp_info`
        actual: u16,
    },
    /// Written by another cluster.
    #[error("it belongs to cluster {actual}, and this is cluster {expected}")]
    Cluster {
        /// In the file.
        actual: SystemIdentifier,
        /// In `pg_control`.
        expected: SystemIdentifier,
    },
    /// Written on another timeline.
    #[error("the page at {at} was written on timeline {actual}, it should be {}", expected.number())]
    Timeline {
        /// The page's address.
        at: Lsn,
        /// In the page.
        actual: u32,
        /// By the name and the timeline's history.
        expected: TimelineId,
    },
    /// A page from elsewhere in the WAL: a recycled segment, or a file under another's name.
    #[error("the page at {at} says that it belongs at {actual}")]
    Address {
        /// By the file's name.
        at: Lsn,
        /// In the page.
        actual: Lsn,
    },
    /// Sizes in the long page header that are not the cluster's.
    #[error("its header says segments of {segment} and pages of {page} bytes")]
    Sizes {
        /// Segment size in the header.
        segment: u32,
        /// Page size in the header.
        page: u32,
    },
    /// A name that does not fit the segment size.
    #[error("no segment of {} bytes has this name", .0.bytes())]
    Name(SegmentSize),
    /// Bytes after a page that ended the segment's WAL.
    #[error("the page at {at} is empty but pages after it are not")]
    Hole {
        /// The page's address.
        at: Lsn,
    },
    /// A segment that was not finished, or lost its end.
    #[error("its WAL ends at {at}, within the segment and without a switch: what followed is lost")]
    Cut {
        /// Where no record begins, or one that does not end.
        at: Lsn,
    },
    /// A damaged record.
    #[error("{0}")]
    Record(reader::BrokenRecord),
    /// A history or backup history file that does not read as one.
    #[error("it does not read as one")]
    Text,
}

/// Every segment's length is a multiple of this.
const SMALLEST_SEGMENT_BYTES: u64 = 1 << 20;

impl Mismatch {
    /// Whether the segment is the one that its name says, and WAL in it was changed or lost. Its first page, which was sound
    /// then, shows whose it is (xlog_internal.h, `XLogLongPageHeaderData`).
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Length { .. }
            | Self::TooLong(_)
            | Self::Flags { .. }
            | Self::Hole { .. }
            | Self::Cut { .. }
            | Self::Record(_) => true,
            Self::Magic { at, .. } | Self::Address { at, .. } => {
                !at.0.is_multiple_of(SMALLEST_SEGMENT_BYTES)
            }
            Self::Cluster { .. }
            | Self::Timeline { .. }
            | Self::Sizes { .. }
            | Self::Name(_)
            | Self::Text => false,
        }
    }
}
