//! What every segment of a cluster has in common.

use super::Mismatch;
use super::page_header::PageHeader;
use crate::{ControlFile, SegmentSize, SystemIdentifier, Version, control};

/// What every segment of a cluster has in common.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// Its version.
    pub version: Version,
    /// Length of its segments.
    pub segment_size: SegmentSize,
    /// Length of its WAL pages.
    pub page_size_bytes: u32,
}

impl From<&ControlFile> for Cluster {
    fn from(control: &ControlFile) -> Self {
        Self {
            system_identifier: control.system_identifier,
            version: control.version,
            segment_size: control.segment_size,
            page_size_bytes: control.wal_block_size_bytes,
        }
    }
}

impl Cluster {
    /// What a segment's own first page says, for a segment that must belong to `system_identifier`.
    pub fn of_first_page(page: &[u8], system_identifier: SystemIdentifier) -> Option<Self> {
        let header = PageHeader::read(page)?;
        let (_, segment_size, page_size_bytes) = header.long?;
        let version = Version::of_wal_page(header.magic)?;
        Some(Self {
            system_identifier,
            version,
            segment_size: SegmentSize::new(u64::from(segment_size))?,
            page_size_bytes: control::page_size(page_size_bytes)?,
        })
    }

    /// Refuses a segment of another length.
    ///
    /// # Errors
    /// [`Mismatch::Length`].
    pub fn must_have_length(&self, size_bytes: u64) -> Result<(), Mismatch> {
        let expected = self.segment_size;
        if size_bytes == expected.bytes() {
            return Ok(());
        }
        Err(Mismatch::Length {
            actual: size_bytes,
            expected,
        })
    }
}
