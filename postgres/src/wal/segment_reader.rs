//! Reading one segment out of bytes that come in pieces of any length: from a file, a download or a stream.
//!
//! ```text
//! begin ─▶ feed, feed, feed … ─▶ finish ─▶ ReadSegment ─▶ begin of the next segment
//!            └▶ the records that end in what was fed
//! ```
//!
//! Pages that are whole in a piece are checked where they lie. Only a page that is torn by the border between two
//! pieces is copied.

use super::Mismatch;
use super::cluster::Cluster;
use super::page_check::PageCheck;
use super::page_header::LONG_HEADER_BYTES;
use super::reader::{Record, RecordReader};
use crate::{History, Lsn, SegmentName, SystemIdentifier};

pub use super::page_check::Extent;

/// What is known of the cluster that a segment must belong to.
#[derive(Clone, Copy, Debug)]
pub enum KnownCluster {
    /// All that its segments have in common.
    Whole(Cluster),
    /// Its identity only. Version and sizes are those that the segment's first page names.
    Identity(SystemIdentifier),
}

/// Reads a segment and checks that it is the one that its name says: every page, and the CRC of every record.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    name: SegmentName,
    history: History,
    extent: Extent,
    /// `None` until the first page has named the cluster.
    pages: Option<PageCheck>,
    identity: SystemIdentifier,
    /// The begin of a page whose rest was not fed yet; shorter than a page.
    torn: Vec<u8>,
    fed_bytes: u64,
    /// The hash of what was fed, if that is wanted.
    hash: Option<Box<blake3::Hasher>>,
}

/// A segment that was read, and found to be what its name says as far as it was read.
#[derive(Clone, Debug)]
pub struct ReadSegment {
    pages: PageCheck,
    blake3: Option<[u8; 32]>,
}

impl SegmentReader {
    /// A reader of `name`, whose timeline is `history`'s own or one of its ancestors.
    ///
    /// `last` is the segment before it on the way of recovery, if that was read: the cluster is that segment's then, and
    /// a record that runs over the border is checked too.
    ///
    /// # Errors
    /// [`Mismatch::Name`].
    pub fn begin(
        known: KnownCluster,
        history: &History,
        name: SegmentName,
        extent: Extent,
        last: Option<ReadSegment>,
    ) -> Result<Self, Mismatch> {
        let (known, records) = match last {
            Some(last) => (
                KnownCluster::Whole(last.cluster()),
                Some(last.pages.into_records()),
            ),
            None => (known, None),
        };
        let (identity, cluster) = match known {
            KnownCluster::Whole(cluster) => (cluster.system_identifier, Some(cluster)),
            KnownCluster::Identity(identity) => (identity, None),
        };
        let mut reader = Self {
            name,
            history: history.of(name.timeline),
            extent,
            pages: None,
            identity,
            torn: Vec::new(),
            fed_bytes: 0,
            hash: None,
        };
        if let Some(cluster) = cluster {
            reader.pages = Some(reader.page_check(cluster, records)?);
        }
        Ok(reader)
    }

    /// The same, which also computes the segment's BLAKE3 hash.
    #[must_use]
    pub fn hashing(self) -> Self {
        Self {
            hash: Some(Box::default()),
            ..self
        }
    }

    /// What the segment has in common with all others, once its first page was fed or where that is known.
    pub fn cluster(&self) -> Option<Cluster> {
        self.pages.as_ref().map(PageCheck::cluster)
    }

    /// Takes in the next bytes, and shows each record that ends in them.
    ///
    /// # Errors
    /// What is wrong with the segment up to here; nothing further can be read then. [`Mismatch::TooLong`] for a byte
    /// after its end.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut show: impl FnMut(&Cluster, &Record),
    ) -> Result<(), Mismatch> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.fed_bytes = self.fed_bytes.saturating_add(bytes.len() as u64);
        if self.pages.is_none() {
            bytes = self.find_cluster(bytes)?;
        }
        let Some(pages) = &mut self.pages else {
            return Ok(());
        };
        let cluster = pages.cluster();
        let mut show = |record: &Record| show(&cluster, record);
        let page_bytes = usize::try_from(cluster.page_size_bytes).unwrap_or(usize::MAX);
        if !self.torn.is_empty() {
            bytes = fill(&mut self.torn, bytes, page_bytes);
            if self.torn.len() < page_bytes {
                return Ok(());
            }
            pages.page(&self.torn, &mut show)?;
            self.torn.clear();
        }
        let whole_pages = bytes.chunks_exact(page_bytes);
        let rest = whole_pages.remainder();
        for page in whole_pages {
            pages.page(page, &mut show)?;
        }
        self.torn.extend_from_slice(rest);
        if self.fed_bytes > cluster.segment_size.bytes() {
            return Err(Mismatch::TooLong(cluster.segment_size));
        }
        Ok(())
    }

    /// The segment, after all of its bytes were fed. Whether its WAL reaches to its end is for
    /// [`ReadSegment::unfinished`] to say.
    ///
    /// # Errors
    /// [`Mismatch::Length`], and [`Mismatch::Text`] where no first page was fed.
    pub fn finish(self) -> Result<ReadSegment, Mismatch> {
        let pages = self.pages.ok_or(Mismatch::Text)?;
        pages.cluster().must_have_length(self.fed_bytes)?;
        let blake3 = self.hash.map(|hash| hash.finalize().into());
        Ok(ReadSegment { pages, blake3 })
    }

    /// The segment as far as whole pages of it were fed, for a caller who needs no more of it. Its hash is not known.
    ///
    /// # Errors
    /// [`Mismatch::Text`] where no first page was fed.
    pub fn leave(self) -> Result<ReadSegment, Mismatch> {
        let pages = self.pages.ok_or(Mismatch::Text)?;
        Ok(ReadSegment {
            pages,
            blake3: None,
        })
    }

    /// Finds the cluster in the first page's header. Returns the bytes that are still to be read.
    fn find_cluster<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Mismatch> {
        let (header, rest) = if self.torn.is_empty() && bytes.len() >= LONG_HEADER_BYTES {
            (bytes, bytes)
        } else {
            let rest = fill(&mut self.torn, bytes, LONG_HEADER_BYTES);
            (self.torn.as_slice(), rest)
        };
        if header.len() >= LONG_HEADER_BYTES {
            let cluster = Cluster::of_first_page(header, self.identity).ok_or(Mismatch::Text)?;
            self.pages = Some(self.page_check(cluster, None)?);
        }
        Ok(rest)
    }

    fn page_check(
        &self,
        cluster: Cluster,
        records: Option<RecordReader>,
    ) -> Result<PageCheck, Mismatch> {
        let history = self.history.clone();
        PageCheck::new(cluster, history, self.name, self.extent, records)
    }
}

impl ReadSegment {
    /// What every segment has in common with this one.
    pub fn cluster(&self) -> Cluster {
        self.pages.cluster()
    }

    /// The BLAKE3 hash of a segment that was read to its end, if [`SegmentReader::hashing`] asked for it.
    pub fn blake3(&self) -> Option<[u8; 32]> {
        self.blake3
    }

    /// What is missing of the segment: PostgreSQL finishes one with a switch or fills it, and a record that does not fit
    /// goes on in the next one.
    pub fn unfinished(&self) -> Option<Mismatch> {
        self.pages.unfinished()
    }

    /// Where the segment's WAL ends: after its last whole record, or at the segment's end where that is filled.
    pub fn valid_until(&self) -> Lsn {
        self.pages.valid_until()
    }

    /// Where no page of this segment follows any more, if that is before its end: also a place at which a server goes on
    /// that gives up a record which was cut (`XLOG_OVERWRITE_CONTRECORD`).
    pub fn stopped_at(&self) -> Option<Lsn> {
        self.pages.ended()
    }

    /// What read the records.
    pub fn records(&self) -> &RecordReader {
        self.pages.records()
    }
}

/// Moves bytes from the begin of `from` to `to` until that has `size_bytes`; returns what is left of them.
fn fill<'a>(to: &mut Vec<u8>, from: &'a [u8], size_bytes: usize) -> &'a [u8] {
    let missing = size_bytes.saturating_sub(to.len()).min(from.len());
    let (now, later) = from.split_at(missing);
    to.extend_from_slice(now);
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::page_header::PageHeader;
    use crate::{SegmentSize, TimelineId, Version, timeline::Ancestor};

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

    fn begin(name: &str, history: &History, extent: Extent) -> Result<SegmentReader, Mismatch> {
        let known = KnownCluster::Whole(cluster());
        SegmentReader::begin(known, history, name.parse().unwrap(), extent, None)
    }

    fn read(
        bytes: &[u8],
        name: &str,
        history: &History,
        extent: Extent,
    ) -> Result<ReadSegment, Mismatch> {
        let mut reader = begin(name, history, extent)?;
        reader.feed(bytes, |_, _| {})?;
        reader.finish()
    }

    fn check(bytes: &[u8], name: &str, history: &History, extent: Extent) -> Result<(), Mismatch> {
        read(bytes, name, history, extent).map(drop)
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
        assert_eq!(check(&segment(|_| 1), NAME, &root(), Extent::Whole), Ok(()));
    }

    #[test]
    fn each_field_that_does_not_fit_is_named() {
        for (at, wanted) in [
            (0, "begins with"),
            (4, "timeline"),
            (PAGE + 9, "belongs at"),
            (24, "belongs to cluster"),
            (33, "segments of"),
        ] {
            let mut bytes = segment(|_| 1);
            bytes[at] ^= 0x40;
            let mismatch = check(&bytes, NAME, &root(), Extent::Whole)
                .unwrap_err()
                .to_string();
            assert!(mismatch.contains(wanted), "{at}: {mismatch}");
        }
    }

    #[test]
    fn a_segment_under_another_name_or_of_another_length_is_refused() {
        let bytes = segment(|_| 1);
        let other = check(&bytes, "000000010000000000000004", &root(), Extent::Whole);
        assert!(matches!(other, Err(Mismatch::Address { .. })));
        let short = check(&bytes[..PAGE], NAME, &root(), Extent::Whole);
        assert!(matches!(short, Err(Mismatch::Length { .. })));
        let two = History::root(TimelineId::new(2).unwrap());
        let timeline = check(&bytes, "000000020000000000000003", &two, Extent::Whole);
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
        assert_eq!(check(&bytes, name, &history, Extent::Whole), Ok(()));
        assert!(check(&segment(|_| 1), name, &history, Extent::Whole).is_err());
    }

    #[test]
    fn zeros_may_follow_a_segment_switch_but_nothing_may_follow_them() {
        let mut bytes = segment(|_| 1);
        bytes[4 * PAGE..].fill(0);
        assert_eq!(check(&bytes, NAME, &root(), Extent::Whole), Ok(()));
        bytes[9 * PAGE] = 1;
        assert!(matches!(
            check(&bytes, NAME, &root(), Extent::Whole),
            Err(Mismatch::Hole { .. })
        ));
    }

    #[test]
    fn a_segment_that_does_not_end_is_refused_at_its_end() {
        let bytes = [segment(|_| 1), vec![0; PAGE]].concat();
        for extent in [Extent::Whole, Extent::Partial] {
            for size_bytes in [bytes.len(), (1 << 20) + 1] {
                let mut reader = begin(NAME, &root(), extent).unwrap();
                let fed = reader.feed(&bytes[..size_bytes], |_, _| {});
                assert!(matches!(fed, Err(Mismatch::TooLong(_))));
            }
        }
    }

    #[test]
    fn a_segment_is_unfinished_that_ends_in_zeros() {
        let read = read(&segment(|_| 1), NAME, &root(), Extent::Whole).unwrap();
        let at = Lsn(3 << 20);
        assert_eq!(read.unfinished(), Some(Mismatch::Cut { at }));
        assert_eq!(read.valid_until(), at);
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
                let read = read(&bytes, NAME, &root(), Extent::Whole).unwrap();
                assert_eq!(read.unfinished().is_none(), is_whole, "{left} {info}");
            }
        }
    }

    #[test]
    fn a_partial_segment_may_end_in_what_was_recycled() {
        let mut bytes = segment(|_| 1);
        bytes[4 * PAGE + 9] ^= 0x40;
        assert_eq!(check(&bytes, NAME, &root(), Extent::Partial), Ok(()));
        assert!(check(&bytes, NAME, &root(), Extent::Whole).is_err());
    }

    /// A record's start, end and content.
    type Shown = (Lsn, Lsn, Vec<u8>);

    /// What a reader says of `bytes`, fed in pieces of the lengths that `next_length` gives: the records, and how it ends.
    fn reading(
        known: KnownCluster,
        name: SegmentName,
        bytes: &[u8],
        mut next_length: impl FnMut() -> usize,
    ) -> (Vec<Shown>, Result<String, Mismatch>) {
        let mut records = Vec::new();
        let root = History::root(name.timeline);
        let reader = SegmentReader::begin(known, &root, name, Extent::Whole, None);
        let ended = reader.map(SegmentReader::hashing).and_then(|mut reader| {
            let mut left = bytes;
            while !left.is_empty() {
                let (piece, later) = left.split_at(next_length().min(left.len()));
                reader.feed(piece, |_, record| {
                    records.push((record.start, record.end, record.content.to_vec()));
                })?;
                left = later;
            }
            reader.finish()
        });
        let ended = ended.map(|read| {
            let reader = read.records();
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                read.blake3(),
                read.unfinished(),
                read.valid_until(),
                read.stopped_at(),
                reader.head(),
                reader.tail(),
                reader.cut()
            )
        });
        (records, ended)
    }

    fn kept_segments() -> Vec<(SegmentName, Vec<u8>)> {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/wal");
        let versions = ["11", "14", "18"].into_iter();
        let files = versions
            .flat_map(|version| std::fs::read_dir(format!("{fixtures}/{version}")).unwrap());
        let segments = files.filter_map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name()?.to_str()?.strip_suffix(".zst")?;
            let packed = std::fs::read(&path).unwrap();
            Some((name.parse().ok()?, zstd::decode_all(&*packed).unwrap()))
        });
        segments.collect()
    }

    #[test]
    fn a_segment_in_pieces_of_any_length_reads_as_in_one_piece() {
        let kept = kept_segments();
        assert!(kept.len() >= 3);
        for (name, bytes) in kept {
            let system = PageHeader::read(&bytes).unwrap().long.unwrap().0;
            let identity = SystemIdentifier(system);
            let cluster = Cluster::of_first_page(&bytes, identity).unwrap();
            let mut damaged = bytes.clone();
            damaged[fastrand::usize(..bytes.len())] ^= 1 << fastrand::u8(..8);
            let short = bytes[..bytes.len() - fastrand::usize(1..20_000)].to_vec();
            for content in [bytes, damaged, short] {
                for known in [
                    KnownCluster::Identity(identity),
                    KnownCluster::Whole(cluster),
                ] {
                    let whole = reading(known, name, &content, || usize::MAX);
                    for most in [200, 5_000, 70_000] {
                        let length = || fastrand::usize(1..=most);
                        let in_pieces = reading(known, name, &content, length);
                        assert!(whole == in_pieces, "{name} in pieces of up to {most}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_segment_of_which_no_page_header_came_is_none() {
        let bytes = segment(|_| 1);
        let known = KnownCluster::Identity(SystemIdentifier(7));
        for length in [0, 1, LONG_HEADER_BYTES - 1] {
            let (_, ended) = reading(known, NAME.parse().unwrap(), &bytes[..length], || 1);
            assert_eq!(ended, Err(Mismatch::Text), "{length}");
        }
    }
}
