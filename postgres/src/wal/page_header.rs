//! WAL page headers (xlog_internal.h, `XLogPageHeaderData` and `XLogLongPageHeaderData`).

use crate::{Lsn, Version};

/// Length of the header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_BYTES: usize = 40;
/// Length of other pages' headers (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER_BYTES: usize = 24;

/// A page header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// `xlp_magic`
    pub magic: u16,
    /// `xlp_info`
    pub info: u16,
    /// `xlp_tli`
    pub timeline: u32,
    /// `xlp_pageaddr`
    pub address: Lsn,
    /// `xlp_rem_len`: bytes of a record begun on an earlier page, without page headers.
    pub remaining: u32,
    /// `xlp_sysid`, `xlp_seg_size` and `xlp_xlog_blcksz` on a segment's first page.
    pub long: Option<(u64, u32, u32)>,
}

/// `XLP_LONG_HEADER`
const LONG_HEADER: u16 = 0x0002;
/// `XLP_ALL_FLAGS` of all versions.
pub(super) const ALL_FLAGS: u16 = 0x000F;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: until 19 took `XLP_BKP_REMOVABLE` away, that had the lower bit.
const OVERWRITE: u16 = 0x0008;
const OVERWRITE_FROM_19: u16 = 0x0004;

impl PageHeader {
    /// Reads the header at the beginning of `page`; `None` when the page is shorter than its header.
    pub fn read(page: &[u8]) -> Option<Self> {
        let u16_at = |at| {
            page.get(at..)?
                .first_chunk()
                .map(|b| u16::from_le_bytes(*b))
        };
        let u32_at = |at| {
            page.get(at..)?
                .first_chunk()
                .map(|b| u32::from_le_bytes(*b))
        };
        let u64_at = |at| {
            page.get(at..)?
                .first_chunk()
                .map(|b| u64::from_le_bytes(*b))
        };
        let info = u16_at(2)?;
        let long = if info & LONG_HEADER == 0 {
            None
        } else {
            Some((u64_at(24)?, u32_at(32)?, u32_at(36)?))
        };
        Some(Self {
            magic: u16_at(0)?,
            info,
            timeline: u32_at(4)?,
            address: Lsn(u64_at(8)?),
            remaining: u32_at(16)?,
            long,
        })
    }

    /// Whether the record before was given up where the WAL ended in a crash.
    pub fn overwrites(&self) -> bool {
        let is_from_19 =
            Version::of_wal_page(self.magic).is_some_and(|version| version.major() >= 19);
        let flag = if is_from_19 {
            OVERWRITE_FROM_19
        } else {
            OVERWRITE
        };
        self.info & flag != 0
    }

    /// Length of the header itself.
    pub fn size_bytes(&self) -> usize {
        if self.long.is_some() {
            LONG_HEADER_BYTES
        } else {
            SHORT_HEADER_BYTES
        }
    }
}

/// Whether the segment that begins with `page` lies within one record: none begins in it.
pub fn lies_within_a_record(page: &[u8]) -> bool {
    let Some(header) = PageHeader::read(page) else {
        return false;
    };
    let Some((_, segment_bytes, page_bytes)) = header.long else {
        return false;
    };
    let pages = u64::from(segment_bytes / page_bytes.max(1)).max(1);
    let headers = LONG_HEADER_BYTES as u64 + (pages - 1) * SHORT_HEADER_BYTES as u64;
    u64::from(header.remaining) + headers >= u64::from(segment_bytes)
}
