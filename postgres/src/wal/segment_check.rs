//! Checking that a file is the segment that its name says: every page, and the CRC of every record.

use sha2::{Digest, Sha256};

use super::Mismatch;
use super::page_header::{ALL_FLAGS, PageHeader, SHORT_HEADER_BYTES};
use super::reader::{Record, RecordReader};
use crate::{
    ControlFile, History, Lsn, SegmentName, SegmentSize, SystemIdentifier, Version, control,
};

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
}

/// Checks a segment's pages and the CRC of each record in them one after the other as they come by.
///
/// Each page must have the version's magic, its own address, and the timeline that the history
/// gives for that address. After a segment switch PostgreSQL reads nothing more, and what stands there
/// is not looked at: zeros (10 writes bare headers), or after a crash what was recycled. A partial segment
/// may end anywhere: behind its last record what is left of a recycled segment is not looked at.
#[derive(Clone, Debug)]
pub struct SegmentCheck {
    cluster: Cluster,
    history: History,
    next: Lsn,
    first: bool,
    partial: bool,
    ended: Option<Lsn>,
    begin: Lsn,
    /// The segment's end.
    end: Lsn,
    records: RecordReader,
    /// The hash of what came by, if that is wanted.
    hash: Option<Sha256>,
}

impl SegmentCheck {
    /// A check of `name`'s content, whose timeline has the given history.
    ///
    /// # Errors
    /// [`Mismatch::Name`] and [`Mismatch::Length`].
    pub fn new(
        cluster: Cluster,
        history: History,
        name: SegmentName,
        size_bytes: u64,
        extent: Extent,
    ) -> Result<Self, Mismatch> {
        let number = name
            .number(cluster.segment_size)
            .ok_or(Mismatch::Name(cluster.segment_size))?;
        if size_bytes != cluster.segment_size.bytes() {
            return Err(Mismatch::Length {
                actual: size_bytes,
                expected: cluster.segment_size,
            });
        }
        let next = number.start(cluster.segment_size);
        Ok(Self {
            cluster,
            history,
            next,
            first: true,
            partial: extent == Extent::Partial,
            ended: None,
            begin: next,
            end: Lsn(next.0.saturating_add(size_bytes)),
            records: RecordReader::new(cluster.segment_size),
            hash: None,
        })
    }

    /// The same, which comes to know the SHA-256 of the segment too.
    #[must_use]
    pub fn hashing(self) -> Self {
        Self {
            hash: Some(Sha256::new()),
            ..self
        }
    }

    /// SHA-256 of a segment that was read to its end, if [`SegmentCheck::hashing`] asked for it.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        let is_over = self
            .next
            .0
            .is_multiple_of(self.cluster.segment_size.bytes())
            && !self.first;
        let hash = self.hash.clone().filter(|_| is_over);
        hash.map(|hash| hash.finalize().into())
    }

    /// A check of `name`, the segment after this one on the way of recovery: a record that runs over the border is
    /// checked too.
    ///
    /// # Errors
    /// As [`SegmentCheck::new`].
    pub fn followed_by(self, history: History, name: SegmentName) -> Result<Self, Mismatch> {
        let size_bytes = self.cluster.segment_size.bytes();
        let next = Self::new(self.cluster, history, name, size_bytes, Extent::Whole)?;
        Ok(Self {
            records: self.records,
            ..next
        })
    }

    /// Checks the next pages; `bytes` is a whole number of them.
    pub fn pages(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        self.pages_showing(bytes, &mut |_| {})
    }

    /// The same, showing each record that ends in them.
    pub fn pages_showing(
        &mut self,
        bytes: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), Mismatch> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        let size = usize::try_from(self.cluster.page_size_bytes).unwrap_or(usize::MAX);
        for page in bytes.chunks(size) {
            // What expands without end stops here, and not after it was read.
            if self.next >= self.end {
                let longer = self
                    .cluster
                    .segment_size
                    .bytes()
                    .saturating_add(page.len() as u64);
                return Err(Mismatch::Length {
                    actual: longer,
                    expected: self.cluster.segment_size,
                });
            }
            if self.first || !self.records.is_over() {
                self.page_and_records(page, show)?;
            }
            self.first = false;
            self.next = Lsn(self
                .next
                .0
                .saturating_add(u64::from(self.cluster.page_size_bytes)));
        }
        Ok(())
    }

    fn page_and_records(
        &mut self,
        page: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), Mismatch> {
        self.page(page)?;
        if self.partial && self.ended.is_some() {
            return Ok(());
        }
        match self.records.page(self.next, page, show) {
            Err(_) if self.partial => {
                self.ended = Some(self.next);
                Ok(())
            }
            read => read.map_err(Mismatch::Record),
        }
    }

    /// What is missing of a segment that was read to its last byte: PostgreSQL finishes one with a switch or fills it,
    /// and a record that does not fit goes on in the next one.
    pub fn unfinished(&self) -> Option<Mismatch> {
        let is_whole = self.ended.is_none() && !self.records.has_ended();
        (!is_whole).then(|| Mismatch::Cut {
            at: self.valid_until(),
        })
    }

    /// Where the WAL of a segment ends that was read to its last byte: after its last whole record, or at the segment's end
    /// where that is filled.
    pub fn valid_until(&self) -> Lsn {
        if self.ended.is_some() || self.records.has_ended() || self.records.is_over() {
            self.records.valid_until().max(self.begin)
        } else {
            self.next
        }
    }

    /// Where no page of this segment follows any more, if that is before its end: also a place at which a server goes on
    /// that gives up a record which was cut (`XLOG_OVERWRITE_CONTRECORD`).
    pub fn stopped_at(&self) -> Option<Lsn> {
        self.ended
    }

    /// What every segment has in common with this one.
    pub fn cluster(&self) -> Cluster {
        self.cluster
    }

    /// What read the records.
    pub fn records(&self) -> &RecordReader {
        &self.records
    }

    /// How a length that was not known before is wrong, if it is.
    pub fn wrong_length(&self, size_bytes: u64) -> Option<Mismatch> {
        let expected = self.cluster.segment_size;
        (size_bytes != expected.bytes()).then_some(Mismatch::Length {
            actual: size_bytes,
            expected,
        })
    }

    fn page(&mut self, page: &[u8]) -> Result<(), Mismatch> {
        if let Some(end) = self.ended {
            let clean = self.partial || page.iter().all(|byte| *byte == 0);
            return if clean {
                Ok(())
            } else {
                Err(Mismatch::Hole { at: end })
            };
        }
        let empty = !self.first
            && page
                .get(..SHORT_HEADER_BYTES)
                .is_some_and(|header| header.iter().all(|b| *b == 0));
        match self.header(page) {
            Err(_) if self.partial && !self.first => self.ended = Some(self.next),
            Err(_) if empty => {
                self.ended = Some(self.next);
                return self.page(page);
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
        if header.magic != expected || self.first && header.long.is_none() {
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

/// Whether a segment was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// It holds WAL to its end or to a segment switch.
    Whole,
    /// It was left where a promotion happened (`.partial`).
    Partial,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TimelineId, timeline::Ancestor};

    const PAGE: usize = 8192;

    fn cluster() -> Cluster {
        Cluster {
            system_identifier: SystemIdentifier(7),
            version: Version::parse("17").unwrap(),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            page_size_bytes: 8192,
        }
    }

    /// Segment 3 of a cluster with segments of 1 MiB, on the timeline that `timeline` gives for each page.
    fn segment(timeline: impl Fn(Lsn) -> u32) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (index, page) in bytes.chunks_mut(PAGE).enumerate() {
            let address = (3 << 20) + index as u64 * 8192;
            page[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
            page[4..8].copy_from_slice(&timeline(Lsn(address)).to_le_bytes());
            page[8..16].copy_from_slice(&address.to_le_bytes());
            if index == 0 {
                page[2] = 2;
                page[24] = 7;
                page[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
                page[36..40].copy_from_slice(&8192_u32.to_le_bytes());
            }
        }
        bytes
    }

    fn check(bytes: &[u8], name: &str, history: History, extent: Extent) -> Result<(), Mismatch> {
        SegmentCheck::new(
            cluster(),
            history,
            name.parse().unwrap(),
            bytes.len() as u64,
            extent,
        )?
        .pages(bytes)
    }

    fn root() -> History {
        History::root(TimelineId::FIRST)
    }

    const NAME: &str = "000000010000000000000003";

    #[test]
    fn a_first_page_with_impossible_sizes_tells_nothing() {
        let own = |bytes: &[u8]| Cluster::of_first_page(bytes, SystemIdentifier(7));
        let mut bytes = segment(|_| 1);
        assert!(own(&bytes).is_some());
        bytes[36..40].copy_from_slice(&0_u32.to_le_bytes());
        assert!(own(&bytes).is_none());
    }

    #[test]
    fn a_sound_segment_is_accepted() {
        assert_eq!(check(&segment(|_| 1), NAME, root(), Extent::Whole), Ok(()));
    }

    #[test]
    fn each_field_that_does_not_fit_is_named() {
        for (at, wanted) in [
            (0, "begins with"),
            (4, "timeline"),
            (PAGE + 9, "belongs at"),
            (24, "belongs to the cluster"),
            (33, "segments of"),
        ] {
            let mut bytes = segment(|_| 1);
            bytes[at] ^= 0x40;
            let mismatch = check(&bytes, NAME, root(), Extent::Whole)
                .unwrap_err()
                .to_string();
            assert!(mismatch.contains(wanted), "{at}: {mismatch}");
        }
    }

    #[test]
    fn a_segment_under_another_name_or_of_another_length_is_refused() {
        let bytes = segment(|_| 1);
        let other = check(&bytes, "000000010000000000000004", root(), Extent::Whole);
        assert!(matches!(other, Err(Mismatch::Address { .. })));
        let short = check(&bytes[..PAGE], NAME, root(), Extent::Whole);
        assert!(matches!(short, Err(Mismatch::Length { .. })));
        let two = History::root(TimelineId::new(2).unwrap());
        let timeline = check(&bytes, "000000020000000000000003", two, Extent::Whole);
        assert!(matches!(timeline, Err(Mismatch::Timeline { .. })));
    }

    #[test]
    fn a_segment_across_a_timeline_switch_is_checked_by_the_history() {
        let switch = Lsn((3 << 20) + 5 * 8192 + 100);
        let history = History {
            timeline: TimelineId::new(2).unwrap(),
            ancestors: vec![Ancestor {
                timeline: TimelineId::FIRST,
                switch_lsn: switch,
            }],
        };
        let bytes = segment(|lsn| if lsn < switch { 1 } else { 2 });
        let name = "000000020000000000000003";
        assert_eq!(check(&bytes, name, history.clone(), Extent::Whole), Ok(()));
        assert!(check(&segment(|_| 1), name, history, Extent::Whole).is_err());
    }

    #[test]
    fn zeros_may_follow_a_segment_switch_but_nothing_may_follow_them() {
        let mut bytes = segment(|_| 1);
        bytes[4 * PAGE..].fill(0);
        assert_eq!(check(&bytes, NAME, root(), Extent::Whole), Ok(()));
        bytes[9 * PAGE] = 1;
        assert!(matches!(
            check(&bytes, NAME, root(), Extent::Whole),
            Err(Mismatch::Hole { .. })
        ));
    }

    #[test]
    fn a_segment_that_does_not_end_is_refused_at_its_end() {
        let bytes = [segment(|_| 1), vec![0; PAGE]].concat();
        for extent in [Extent::Whole, Extent::Partial] {
            let name = NAME.parse().unwrap();
            let mut check = SegmentCheck::new(cluster(), root(), name, 1 << 20, extent).unwrap();
            assert!(matches!(check.pages(&bytes), Err(Mismatch::Length { .. })));
        }
    }

    #[test]
    fn a_segment_is_unfinished_that_ends_in_zeros() {
        let bytes = segment(|_| 1);
        let name = NAME.parse().unwrap();
        let mut check = SegmentCheck::new(cluster(), root(), name, 1 << 20, Extent::Whole).unwrap();
        check.pages(&bytes).unwrap();
        let at = Lsn(3 << 20);
        assert_eq!(check.unfinished(), Some(Mismatch::Cut { at }));
        assert_eq!(check.valid_until(), at);
    }

    /// A switch of 24 bytes that begins in the segment before: what is here of it is its last bytes.
    #[test]
    fn a_switch_that_runs_into_a_segment_ends_it() {
        for left in [8_usize, 16] {
            for (info, is_whole) in [(0x40, true), (0x50, false)] {
                let mut bytes = segment(|_| 1);
                bytes[2] |= 1;
                bytes[16] = u8::try_from(left).unwrap();
                bytes[40 + left - 8] = info;
                bytes[PAGE..].fill(0);
                let name = NAME.parse().unwrap();
                let mut check =
                    SegmentCheck::new(cluster(), root(), name, 1 << 20, Extent::Whole).unwrap();
                check.pages(&bytes).unwrap();
                assert_eq!(check.unfinished().is_none(), is_whole, "{left} {info}");
            }
        }
    }

    #[test]
    fn a_partial_segment_may_end_in_what_was_recycled() {
        let mut bytes = segment(|_| 1);
        bytes[4 * PAGE + 9] ^= 0x40;
        assert_eq!(check(&bytes, NAME, root(), Extent::Partial), Ok(()));
        assert!(check(&bytes, NAME, root(), Extent::Whole).is_err());
    }
}
