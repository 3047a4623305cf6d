//! Records that run over a segment's border, joined from the summaries on both sides.

use crate::postgres::Lsn;
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
    /// The record at this position does not go on in the next segment as it must.
    #[error("the record at {0} does not go on in the next segment")]
    Apart(Lsn),
    /// Too little is kept of the record at this position.
    #[error("too little is kept of the record at {0}")]
    Cut(Lsn),
}

/// Goes from summary to summary, in the order of recovery.
#[derive(Clone, Debug, Default)]
pub struct Joiner {
    open: Option<Tail>,
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
            return Ok(None);
        };
        let head = summary.head.as_ref().ok_or(Rift::Apart(tail.start))?;
        match join(tail, head)? {
            Piece::Whole(joined) => Ok(Some(joined)),
            Piece::Open(tail) => {
                self.open = Some(tail);
                Ok(None)
            }
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
    tail.content_bytes += head.size_bytes.saturating_sub(of_header);
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
