//! Checking the pages of one segment, and the CRC of every record in them.

use super::Mismatch;
use super::cluster::Cluster;
use super::page_header::{ALL_FLAGS, PageHeader, SHORT_HEADER_BYTES};
use super::reader::{Record, RecordReader};
use crate::{History, Lsn, SegmentName, SystemIdentifier};

/// Whether a segment was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It holds WAL to its end or to a segment switch.
    Whole,
    /// It was left where a promotion happened (`.partial`).
    Partial,
}

/// Checks a segment's pages and the CRC of each record in them one after the other as they come by.
///
/// Each page must have the version's magic, its own address, and the timeline that the history
/// gives for that address. After a segment switch PostgreSQL reads nothing more, and what stands there
/// is not looked at: zeros (10 writes bare headers), or after a crash what was recycled. A partial segment
/// may end anywhere: behind its last record what is left of a recycled segment is not looked at.
#[derive(Clone, Debug)]
pub(super) struct PageCheck {
    cluster: Cluster,
    history: History,
    /// Where the next page begins.
    next: Lsn,
    begin: Lsn,
    end: Lsn,
    extent: Extent,
    ended: Option<Lsn>,
    records: RecordReader,
}

impl PageCheck {
    /// A check of the pages of `name`, whose timeline has the given history; `records` has read what is before them.
    pub(super) fn new(
        cluster: Cluster,
        history: History,
        name: SegmentName,
        extent: Extent,
        records: Option<RecordReader>,
    ) -> Result<Self, Mismatch> {
        let size = cluster.segment_size;
        let number = name.number(size).ok_or(Mismatch::Name(size))?;
        let begin = number.start(size);
        Ok(Self {
            cluster,
            history,
            next: begin,
            begin,
            end: Lsn(begin.0.saturating_add(size.bytes())),
            extent,
            ended: None,
            records: records.unwrap_or_else(|| RecordReader::new(size)),
        })
    }

    /// Checks the next page and shows each record that ends in it.
    pub(super) fn page(
        &mut self,
        page: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), Mismatch> {
        // What expands without end stops here, and not after it was read.
        if self.next >= self.end {
            return Err(Mismatch::TooLong(self.cluster.segment_size));
        }
        if self.is_first() || !self.records.is_over() {
            self.page_and_records(page, show)?;
        }
        let size_bytes = u64::from(self.cluster.page_size_bytes);
        self.next = Lsn(self.next.0.saturating_add(size_bytes));
        Ok(())
    }

    /// What is missing of a segment that was read to its last byte: PostgreSQL finishes one with a switch or fills it,
    /// and a record that does not fit goes on in the next one.
    pub(super) fn unfinished(&self) -> Option<Mismatch> {
        let is_whole = self.ended.is_none() && !self.records.has_ended();
        (!is_whole).then(|| Mismatch::Cut {
            at: self.valid_until(),
        })
    }

    /// Where the WAL ends of the pages that were read: after the last whole record, or after the last page where that is
    /// filled.
    pub(super) fn valid_until(&self) -> Lsn {
        if self.ended.is_some() || self.records.has_ended() || self.records.is_over() {
            self.records.valid_until().max(self.begin)
        } else {
            self.next
        }
    }

    pub(super) fn ended(&self) -> Option<Lsn> {
        self.ended
    }

    pub(super) fn cluster(&self) -> Cluster {
        self.cluster
    }

    pub(super) fn records(&self) -> &RecordReader {
        &self.records
    }

    pub(super) fn into_records(self) -> RecordReader {
        self.records
    }

    fn is_first(&self) -> bool {
        self.next == self.begin
    }

    fn page_and_records(
        &mut self,
        page: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), Mismatch> {
        let is_partial = self.extent == Extent::Partial;
        self.page_frame(page)?;
        if is_partial && self.ended.is_some() {
            return Ok(());
        }
        match self.records.page(self.next, page, show) {
            Err(_) if is_partial => {
                self.ended = Some(self.next);
                Ok(())
            }
            read => read.map_err(Mismatch::Record),
        }
    }

    /// Checks the header of a page, or that a page after the segment's WAL is empty.
    fn page_frame(&mut self, page: &[u8]) -> Result<(), Mismatch> {
        let is_partial = self.extent == Extent::Partial;
        if let Some(end) = self.ended {
            let clean = is_partial || page.iter().all(|byte| *byte == 0);
            return if clean {
                Ok(())
            } else {
                Err(Mismatch::Hole { at: end })
            };
        }
        let empty = !self.is_first()
            && page
                .get(..SHORT_HEADER_BYTES)
                .is_some_and(|header| header.iter().all(|b| *b == 0));
        match self.header(page) {
            Err(_) if is_partial && !self.is_first() => self.ended = Some(self.next),
            Err(_) if empty => {
                self.ended = Some(self.next);
                return self.page_frame(page);
            }
            result => return result,
        }
        Ok(())
    }

    fn header(&self, page: &[u8]) -> Result<(), Mismatch> {
        let (cluster, at) = (&self.cluster, self.next);
        let expected = cluster.version.wal_page_magic();
        let magic = |actual| Mismatch::Magic {
            at,
            actual,
            expected,
            version: cluster.version,
        };
        let header = PageHeader::read(page).ok_or(magic(0))?;
        if header.magic != expected || self.is_first() && header.long.is_none() {
            return Err(magic(header.magic));
        }
        if header.info & !ALL_FLAGS != 0 {
            let actual = header.info;
            return Err(Mismatch::Flags { at, actual });
        }
        if let Some((system, segment, page)) = header.long {
            self.long_header(SystemIdentifier(system), segment, page)?;
        }
        if header.address != at {
            return Err(Mismatch::Address {
                at,
                actual: header.address,
            });
        }
        let expected = self.history.timeline_at(at);
        if header.timeline != expected.number() {
            return Err(Mismatch::Timeline {
                at,
                actual: header.timeline,
                expected,
            });
        }
        Ok(())
    }

    fn long_header(
        &self,
        system: SystemIdentifier,
        segment: u32,
        page: u32,
    ) -> Result<(), Mismatch> {
        let cluster = &self.cluster;
        if system != cluster.system_identifier {
            return Err(Mismatch::Cluster {
                actual: system,
                expected: cluster.system_identifier,
            });
        }
        if u64::from(segment) != cluster.segment_size.bytes() || page != cluster.page_size_bytes {
            return Err(Mismatch::Sizes { segment, page });
        }
        Ok(())
    }
}
