//! Records that run over a segment's border, joined from the summaries on both sides.

use crate::Lsn;
use crate::wal::reader::{
    HEADER_BYTES, Head, KEPT_BYTES, KEPT_HEAD_BYTES, Record, RecordHeader, Tail,
};

use super::Summary;

/// A record that began in an earlier segment and ended in this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Position of its first byte.
    pub start: Lsn,
    /// Position after its last byte.
    pub end: Lsn,
    header: RecordHeader,
    content: Vec<u8>,
}

/// Why summaries do not tell what is between them; the segments do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rift {
    /// The record at this position does not go on in the next segment as it must, or does not follow the last one of the
    /// segment before.
    #[error(
        "the record at {0} does not belong to the WAL of the segment on the other side of its border"
    )]
    Apart(Lsn),
    /// Too little is kept of the record at this position.
    #[error("too little is kept of the record at {0}")]
    Cut(Lsn),
}

/// Goes from summary to summary, in the order of recovery.
#[derive(Clone, Debug, Default)]
pub struct Joiner {
    open: Option<Tail>,
    /// Start of the last record that ended.
    last: Option<Lsn>,
}

impl From<&Record<'_>> for Joined {
    fn from(record: &Record) -> Self {
        Self {
            start: record.start,
            end: record.end,
            header: record.header,
            content: record.content.to_vec(),
        }
    }
}

impl Joined {
    /// The record.
    pub fn record(&self) -> Record<'_> {
        Record {
            start: self.start,
            end: self.end,
            header: self.header,
            content: &self.content,
        }
    }
}

impl Joiner {
    /// The record that ran into the segment of `summary` and ended there.
    ///
    /// # Errors
    /// The [`Rift`]; the next summary is joined to this one all the same.
    pub fn next(&mut self, summary: &Summary) -> Result<Option<Joined>, Rift> {
        let open = std::mem::replace(&mut self.open, summary.tail.clone());
        let Some(tail) = open.filter(|_| !summary.overwrites) else {
            return self.follows(summary).map(|()| None);
        };
        let start = tail.start;
        let head = summary.head.as_ref().ok_or(Rift::Apart(start))?;
        match join(tail, head) {
            Ok(Piece::Open(tail)) => {
                self.open = Some(tail);
                Ok(None)
            }
            Ok(Piece::Whole(joined)) => {
                self.last = Some(start);
                self.follows(summary).map(|()| Some(joined))
            }
            Err(rift) => {
                self.last = Some(start);
                self.follows(summary)?;
                Err(rift)
            }
        }
    }

    /// Whether the first record of the segment points back to the last one before it.
    fn follows(&mut self, summary: &Summary) -> Result<(), Rift> {
        let last = match summary.last_record {
            None => self.last,
            last => std::mem::replace(&mut self.last, last),
        };
        match (last, summary.first_previous, summary.first_record) {
            (Some(last), Some(previous), Some(first))
                if last != previous && !summary.overwrites =>
            {
                Err(Rift::Apart(first))
            }
            _ => Ok(()),
        }
    }
}

fn join(mut tail: Tail, head: &Head) -> Result<Piece, Rift> {
    let start = tail.start;
    if tail.left_bytes != head.left_bytes {
        return Err(Rift::Apart(start));
    }
    let of_header = (HEADER_BYTES - tail.header.len().min(HEADER_BYTES)).min(head.bytes.len());
    let (header, content) = head.bytes.split_at(of_header);
    tail.header.extend_from_slice(header);
    // The CRC in the head leaves out as many bytes as a header has, of which some are content here.
    let early = content
        .get(..(HEADER_BYTES - of_header).min(content.len()))
        .unwrap_or_default();
    tail.crc = crc32c::crc32c_append(tail.crc, early);
    let later_bytes = usize::try_from(head.size_bytes)
        .unwrap_or(usize::MAX)
        .saturating_sub(HEADER_BYTES);
    tail.crc = crc32c::crc32c_combine(tail.crc, head.crc, later_bytes);
    if tail.content.len() == usize::try_from(tail.content_bytes).unwrap_or(usize::MAX) {
        tail.content.extend_from_slice(content);
    }
    let of_header = u32::try_from(of_header).unwrap_or(u32::MAX);
    let more = head.size_bytes.saturating_sub(of_header);
    tail.content_bytes = tail.content_bytes.saturating_add(more);
    tail.left_bytes -= head.size_bytes.min(tail.left_bytes);
    let Some(end) = head.end else {
        return Ok(Piece::Open(tail));
    };
    let header = tail.header.first_chunk().ok_or(Rift::Apart(start))?;
    let header = RecordHeader::checked(start, header, tail.crc).map_err(|_| Rift::Apart(start))?;
    let is_enough = tail.content.len() >= needed(&header, tail.content_bytes);
    if !is_enough {
        return Err(Rift::Cut(start));
    }
    Ok(Piece::Whole(Joined {
        start,
        end,
        header,
        content: tail.content,
    }))
}

enum Piece {
    Whole(Joined),
    Open(Tail),
}

/// How much of a record's content it takes to understand it.
fn needed(header: &RecordHeader, content_bytes: u32) -> usize {
    let all = usize::try_from(content_bytes).unwrap_or(usize::MAX);
    all.min(header.kept_bytes())
}

/// A tail with no more content than a summary keeps.
pub(super) fn shortened(mut tail: Tail) -> Tail {
    let limit = match tail.header.first_chunk() {
        Some(header) if RecordHeader::read(header).kept_bytes() <= KEPT_BYTES => KEPT_BYTES,
        _ => KEPT_HEAD_BYTES,
    };
    tail.content.truncate(limit);
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::Changes;
    use crate::wal::reader::RecordReader;
    use crate::{SegmentName, SegmentSize, SystemIdentifier, Version};

    const PAGE_BYTES: usize = 8192;

    /// What is kept of a record however it was read.
    type Shown = (Lsn, Lsn, RecordHeader, Vec<u8>);

    fn shown(record: &Record) -> Shown {
        let kept = record.content.len().min(KEPT_BYTES);
        let content = record.content[..kept].to_vec();
        (record.start, record.end, record.header, content)
    }

    /// Segments of a real server that follow one another.
    fn segments(version: &str) -> Vec<(SegmentName, Vec<u8>)> {
        let folder = format!(
            "{}/../tests/fixtures/wal/{version}",
            env!("CARGO_MANIFEST_DIR")
        );
        let mut segments: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let name = path
                    .file_name()?
                    .to_str()?
                    .strip_suffix(".zst")?
                    .parse()
                    .ok()?;
                let bytes = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
                Some((name, bytes))
            })
            .collect();
        segments.sort();
        assert!(segments.len() > 1);
        segments
    }

    /// A summary of a page alone, as if it were a segment.
    fn summary_of(reader: &RecordReader, segment: SegmentName, size: SegmentSize) -> Summary {
        Summary {
            format: crate::summary::FORMAT,
            system_identifier: SystemIdentifier(1),
            segment,
            postgres_version: Version::parse("17").unwrap(),
            segment_size: size,
            segment_blake3: None,
            segment_sha256: None,
            segment_trailer: None,
            first_record: None,
            first_previous: None,
            last_record: None,
            times: None,
            head: reader.head().cloned(),
            overwrites: reader.overwrites(),
            tail: reader.tail().map(shortened),
            cut: reader.cut(),
            notes: Vec::new(),
            transactions: Vec::new(),
            open: Vec::new(),
            pg_class_deletes: Vec::new(),
            changes: Changes::default(),
        }
    }

    #[test]
    fn records_joined_from_the_pieces_in_each_page_are_those_of_the_whole_wal() {
        let size = SegmentSize::new(1 << 20).unwrap();
        for version in ["11", "14", "18"] {
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut reader = RecordReader::new(size);
            let mut joiner = Joiner::default();
            let mut across = 0;
            for (name, bytes) in segments(version) {
                let begin = name.number(size).unwrap().start(size);
                let mut is_over = false;
                for (index, page) in bytes.chunks(PAGE_BYTES).enumerate() {
                    let address = Lsn(begin.0 + (index * PAGE_BYTES) as u64);
                    let before = whole.len();
                    reader
                        .page(address, page, &mut |record| {
                            is_over |= record.is_switch();
                            whole.push(shown(record));
                        })
                        .unwrap();
                    // After a switch nothing of a segment counts.
                    if is_over && whole.len() == before {
                        continue;
                    }
                    let mut alone = RecordReader::new(size);
                    let mut own = Vec::new();
                    let mut show = |record: &Record| own.push(shown(record));
                    alone.page(address, page, &mut show).unwrap();
                    let summary = summary_of(&alone, name, size);
                    if let Some(record) = joiner.next(&summary).unwrap() {
                        across += 1;
                        pieces.push(shown(&record.record()));
                    }
                    pieces.append(&mut own);
                }
            }
            assert!(
                across > 3,
                "{across} records over page borders in {version}"
            );
            assert_eq!(pieces, whole, "{version}");
        }
    }

    #[test]
    fn halves_that_do_not_belong_together_are_told() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let segments = segments("18");
        let (name, bytes) = &segments[0];
        let begin = name.number(size).unwrap().start(size);
        let read = |index: usize, page: &[u8]| {
            let mut reader = RecordReader::new(size);
            let address = Lsn(begin.0 + (index * PAGE_BYTES) as u64);
            reader.page(address, page, &mut |_| {}).unwrap();
            summary_of(&reader, *name, size)
        };
        let pages: Vec<_> = bytes.chunks(PAGE_BYTES).enumerate().collect();
        let (mut borders, mut rifts) = (0, 0);
        for pair in pages.windows(2) {
            let (first, second) = (read(pair[0].0, pair[0].1), read(pair[1].0, pair[1].1));
            let ends = second.head.clone().filter(|head| head.end.is_some());
            let Some(mut head) = ends.filter(|_| first.tail.is_some()) else {
                continue;
            };
            borders += 1;
            head.crc ^= 1;
            head.bytes[0] ^= 1;
            let mut changed = second;
            changed.head = Some(head);
            let mut joiner = Joiner::default();
            joiner.next(&first).unwrap();
            rifts += usize::from(joiner.next(&changed).is_err());
        }
        assert!(borders > 3);
        assert_eq!(rifts, borders);
    }
}
