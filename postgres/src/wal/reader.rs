//! Records out of WAL pages (xlogreader.c, `XLogDecodeNextRecord`).
//!
//! Feed pages in order; each record is shown as soon as it is whole. Reading may begin at any segment: what
//! is left there of an earlier record is kept as a [`Head`], and what is begun and not ended as a [`Tail`];
//! [`crate::summary::Joiner`] joins the two. A record's CRC is checked over all of it, but only its first bytes are
//! kept, so memory does not grow with the WAL.

use serde::{Deserialize, Serialize};

use super::page_header::{PageHeader, SHORT_HEADER_BYTES};
use crate::{Lsn, SegmentSize};

/// How much is kept of a record that runs over a page border: its headers, which name the blocks that it changes, are
/// shorter (xloginsert.c, `HEADER_SCRATCH_SIZE`).
pub const KEPT_BYTES: usize = 2 << 10;
/// The same for records whose data is looked at too: those of a transaction's end name up to millions of
/// subtransactions and dropped relations.
pub const KEPT_DECODED_BYTES: usize = 64 << 20;
/// How much of it goes into a [`Head`].
pub const KEPT_HEAD_BYTES: usize = 16 << 10;

/// `SizeOfXLogRecord`
pub const HEADER_BYTES: usize = 24;
/// `XLogRecordMaxSize` (xlogrecord.h) of 16 and later, rounded up; longer ones are damage.
const MAX_RECORD_BYTES: u32 = 1 << 30;
/// Less than this may be left of a record that is a header and nothing else.
const HEADER_BYTES_LEFT: u32 = 24;
/// `XLOG_SWITCH` (pg_control.h), of the resource manager 0.
const SWITCH: u8 = 0x40;
/// `XLP_FIRST_IS_CONTRECORD`
const FIRST_IS_CONTRECORD: u16 = 0x0001;

/// A record; its CRC was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Position of its first byte.
    pub start: Lsn,
    /// Position after its last byte.
    pub end: Lsn,
    /// `XLogRecord`
    pub header: RecordHeader,
    /// What follows the header; cut after [`KEPT_BYTES`] or [`KEPT_DECODED_BYTES`] where it runs over a page border.
    pub content: &'a [u8],
}

/// `XLogRecord` (xlogrecord.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// `xl_tot_len`
    pub size_bytes: u32,
    /// `xl_xid`
    pub xid: u32,
    /// `xl_prev`
    pub previous: Lsn,
    /// `xl_info`
    pub info: u8,
    /// `xl_rmid`
    pub resource_manager: u8,
    /// `xl_crc`
    crc: u32,
}

/// Damage in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRecord {
    /// A record's CRC is wrong.
    #[error("the record at {0} has a wrong CRC")]
    Crc(Lsn),
    /// A record's length is impossible.
    #[error("the record at {0} has an impossible length")]
    Length(Lsn),
    /// A record does not point back to the one before it.
    #[error("the record at {0} does not follow the one before it")]
    Previous(Lsn),
    /// Bytes after the end of a segment's WAL.
    #[error("the WAL ends before {0}, but there are bytes after its end")]
    AfterEnd(Lsn),
    /// A page does not go on where the one before ended.
    #[error("the page at {0} does not continue what is before it")]
    Continuation(Lsn),
}

/// What a reader found of a record that began before the first page it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// `xlp_rem_len` of the first page: how much of the record was left.
    pub left_bytes: u32,
    /// Length of what was found.
    pub size_bytes: u32,
    /// Its first [`KEPT_HEAD_BYTES`].
    #[serde(with = "hex::serde")]
    pub bytes: Vec<u8>,
    /// CRC-32C of what follows its first [`HEADER_BYTES`], which may belong to the record's header.
    pub crc: u32,
    /// Where it ends; `None` when it goes on after the last page.
    pub end: Option<Lsn>,
}

/// A record that goes on after the last page that a reader was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Position of its first byte.
    pub start: Lsn,
    /// What was found of its header.
    #[serde(with = "hex::serde")]
    pub header: Vec<u8>,
    /// The first bytes after the header, as many as a [`Record`] keeps.
    #[serde(with = "hex::serde")]
    pub content: Vec<u8>,
    /// Length of all that was found after the header.
    pub content_bytes: u32,
    /// CRC-32C of that.
    pub crc: u32,
    /// How much of the record is still to come.
    pub left_bytes: u32,
}

/// The state of reading.
#[derive(Clone, Debug)]
pub struct RecordReader {
    segment_size: SegmentSize,
    state: State,
    /// Start of the last record, where the next one must point back to.
    last: Option<Lsn>,
    head: Head,
    overwrites: bool,
    /// Where the WAL of the last segment ended before the segment did, and not by a switch.
    cut: Option<Lsn>,
    /// Position after the last record that ended, where the next one begins.
    valid_until: Lsn,
}

#[derive(Clone, Debug)]
enum State {
    /// At the beginning, and after the rest of a segment was left out: the next page tells where its first record begins.
    Lost,
    /// In a record that began before the first page.
    InHead,
    /// Between two records.
    Between,
    /// In a record that goes on.
    Within(Begun),
    /// After a segment switch: PostgreSQL reads nothing more of this segment.
    SegmentOver,
    /// After a record of length 0: the rest of this segment must be zeros.
    Ended,
}

#[derive(Clone, Debug)]
struct Begun {
    start: Lsn,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    content: Vec<u8>,
    content_bytes: usize,
    crc: u32,
    left: usize,
}

impl RecordReader {
    /// A reader for WAL in segments of the given size.
    pub fn new(segment_size: SegmentSize) -> Self {
        Self {
            segment_size,
            state: State::Lost,
            last: None,
            head: Head::default(),
            overwrites: false,
            cut: None,
            valid_until: Lsn::ZERO,
        }
    }

    /// Whether PostgreSQL reads nothing more of this segment: it was left by a switch.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::SegmentOver)
    }

    /// Whether the WAL ended before the segment did.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended | State::Lost)
    }

    /// Position after the last record that ended, where the next one begins; 0 before the first one ended.
    pub fn valid_until(&self) -> Lsn {
        self.valid_until
    }

    /// What the first page went on with.
    pub fn head(&self) -> Option<&Head> {
        (self.head.left_bytes > 0).then_some(&self.head)
    }

    /// Whether the first page says that the record before it was given up.
    pub fn overwrites(&self) -> bool {
        self.overwrites
    }

    /// Where the WAL of the last segment ended before the segment did, and not by a switch: with the record that begins
    /// there, or before it.
    pub fn cut(&self) -> Option<Lsn> {
        self.cut
    }

    /// The record that goes on after the last page.
    pub fn tail(&self) -> Option<Tail> {
        let State::Within(begun) = &self.state else {
            return None;
        };
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Some(Tail {
            start: begun.start,
            header: begun
                .header
                .get(..begun.header_bytes)
                .unwrap_or_default()
                .to_vec(),
            content: begun.content.clone(),
            content_bytes: length(begun.content_bytes),
            crc: begun.crc,
            left_bytes: length(begun.left),
        })
    }

    /// Takes in the next page, which begins at `address` and whose header was checked before, and shows the records that
    /// end in it.
    ///
    /// # Errors
    /// The [`BrokenRecord`]; nothing further can be read then.
    pub fn page(
        &mut self,
        address: Lsn,
        page: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), BrokenRecord> {
        let begins_segment = address.0.is_multiple_of(self.segment_size.bytes());
        if begins_segment {
            self.cut = None;
        }
        if matches!(self.state, State::SegmentOver | State::Ended) {
            if !begins_segment {
                return self.after_end(address, page);
            }
            self.state = State::Lost;
        }
        let Some(header) = PageHeader::read(page).filter(|header| header.magic != 0) else {
            self.cut = Some(match &self.state {
                State::Within(begun) => begun.start,
                _ => address,
            });
            self.state = State::Ended;
            return self.after_end(address, page);
        };
        if header.address != address {
            return Err(BrokenRecord::Continuation(address));
        }
        self.begin_page(address, &header)?;
        let mut cursor = Cursor {
            page,
            at: header.size_bytes(),
            address,
        };
        while cursor.at < page.len() {
            match self.state {
                State::Between => self.begin(&mut cursor, show)?,
                State::Within(_) => self.go_on(&mut cursor, show)?,
                State::InHead => self.take_head(&mut cursor),
                State::Lost | State::SegmentOver | State::Ended => break,
            }
        }
        Ok(())
    }

    /// A page after the WAL's end in a segment: of zeros, with or without a page header.
    fn after_end(&self, address: Lsn, page: &[u8]) -> Result<(), BrokenRecord> {
        let is_bare = PageHeader::read(page).is_some_and(|header| header.magic != 0);
        let rest = page.get(if is_bare { SHORT_HEADER_BYTES } else { 0 }..);
        let clean = matches!(self.state, State::SegmentOver)
            || rest.is_none_or(|rest| rest.iter().all(|b| *b == 0));
        if clean {
            Ok(())
        } else {
            Err(BrokenRecord::AfterEnd(address))
        }
    }

    /// Checks that a page goes on with what is being read, or begins reading with it.
    fn begin_page(&mut self, address: Lsn, header: &PageHeader) -> Result<(), BrokenRecord> {
        let damage = BrokenRecord::Continuation(address);
        // XLogReaderValidatePageHeader does not compare the two, XLogDecodeNextRecord and XLogFindNextRecord rely on both.
        let continues = header.info & FIRST_IS_CONTRECORD != 0;
        if continues != (header.remaining != 0) {
            return Err(damage);
        }
        if header.overwrites() {
            self.overwrites |= matches!(self.state, State::Lost | State::InHead);
            self.head = Head::default();
            self.state = State::Between;
            self.last = None;
        }
        let left = match &self.state {
            State::Lost if continues => {
                self.head = Head {
                    left_bytes: header.remaining,
                    ..Head::default()
                };
                self.state = State::InHead;
                return Ok(());
            }
            State::Lost => {
                self.state = State::Between;
                return Ok(());
            }
            State::InHead => u64::from(self.head.left_bytes - self.head.size_bytes),
            State::Within(record) => record.left as u64,
            State::Between | State::SegmentOver | State::Ended => 0,
        };
        if left == u64::from(header.remaining) {
            Ok(())
        } else {
            Err(damage)
        }
    }

    /// What a page holds of a record that began before the first page.
    fn take_head(&mut self, cursor: &mut Cursor) {
        let head = &mut self.head;
        let left = usize::try_from(head.left_bytes - head.size_bytes).unwrap_or(usize::MAX);
        let taken = cursor.take(left);
        let before = usize::try_from(head.size_bytes).unwrap_or(usize::MAX);
        let beyond_header = taken.get(HEADER_BYTES.saturating_sub(before)..);
        head.crc = crc32c::crc32c_append(head.crc, beyond_header.unwrap_or_default());
        append_up_to(&mut head.bytes, taken, KEPT_HEAD_BYTES);
        head.size_bytes += u32::try_from(taken.len()).unwrap_or(u32::MAX);
        if head.size_bytes == head.left_bytes {
            head.end = Some(cursor.lsn());
            self.valid_until = aligned(cursor.lsn());
            self.state = State::Between;
        }
    }

    /// The first bytes of a record; `xl_tot_len` never crosses a page, as records begin at multiples of 8.
    fn begin(
        &mut self,
        cursor: &mut Cursor,
        show: &mut impl FnMut(&Record),
    ) -> Result<(), BrokenRecord> {
        cursor.at = (cursor.at + 7) & !7;
        let start = cursor.lsn();
        let rest = cursor.page.get(cursor.at..).unwrap_or_default();
        let Some(length) = rest.first_chunk() else {
            // The end of a page, or of a segment that was cut.
            cursor.at = cursor.page.len();
            return Ok(());
        };
        let length = u32::from_le_bytes(*length);
        if length == 0 {
            if self.head_was_a_switch(start) {
                self.state = State::SegmentOver;
            } else {
                self.cut = Some(start);
                self.state = State::Ended;
            }
            let clean = rest.iter().all(|b| *b == 0);
            return if clean {
                Ok(())
            } else {
                Err(BrokenRecord::AfterEnd(start))
            };
        }
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        if left < HEADER_BYTES || length > MAX_RECORD_BYTES {
            return Err(BrokenRecord::Length(start));
        }
        let whole = rest
            .get(..left)
            .and_then(|whole| whole.split_first_chunk::<HEADER_BYTES>());
        if let Some((header, content)) = whole {
            cursor.at += left;
            return self.end(
                start,
                cursor.lsn(),
                header,
                crc32c::crc32c(content),
                content,
                show,
            );
        }
        self.state = State::Within(Begun {
            start,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            content: Vec::new(),
            content_bytes: 0,
            crc: 0,
            left,
        });
        Ok(())
    }

    /// What a page holds of a record that runs over a page border.
    fn go_on(
        &mut self,
        cursor: &mut Cursor,
        show: &mut impl FnMut(&Record),
    ) -> Result<(), BrokenRecord> {
        let State::Within(begun) = &mut self.state else {
            return Ok(());
        };
        begun.take(cursor);
        if begun.left > 0 {
            return Ok(());
        }
        let State::Within(begun) = std::mem::replace(&mut self.state, State::Between) else {
            return Ok(());
        };
        self.end(
            begun.start,
            cursor.lsn(),
            &begun.header,
            begun.crc,
            &begun.content,
            show,
        )
    }

    /// Whether what ended at `at` and began in the segment before can only have been a segment switch: its last bytes
    /// are those of one, and nothing follows. (A switch has 24 bytes, of which 8 or 16 may be left at a border.)
    fn head_was_a_switch(&self, at: Lsn) -> bool {
        let head = &self.head;
        let last = head.bytes.last_chunk::<8>().filter(|_| self.last.is_none());
        head.left_bytes < HEADER_BYTES_LEFT
            && head.end.map(aligned) == Some(at)
            && last.is_some_and(|[info, resource_manager, ..]| {
                *resource_manager == 0 && info & 0xF0 == SWITCH
            })
    }

    fn end(
        &mut self,
        start: Lsn,
        end: Lsn,
        header: &[u8; HEADER_BYTES],
        content_crc: u32,
        content: &[u8],
        show: &mut impl FnMut(&Record),
    ) -> Result<(), BrokenRecord> {
        let header = RecordHeader::checked(start, header, content_crc)?;
        if self.last.is_some_and(|last| last != header.previous) {
            return Err(BrokenRecord::Previous(start));
        }
        self.last = Some(start);
        self.valid_until = aligned(end);
        let record = Record {
            start,
            end,
            header,
            content,
        };
        if record.is_switch() {
            self.state = State::SegmentOver;
        }
        show(&record);
        Ok(())
    }
}

/// Where a record begins that follows one which ends at `end` (`MAXALIGN`).
fn aligned(end: Lsn) -> Lsn {
    Lsn(end.0.saturating_add(7) & !7)
}

/// Appends as much of `bytes` as fits into `limit`.
fn append_up_to(kept: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let count = bytes.len().min(limit.saturating_sub(kept.len()));
    kept.extend_from_slice(bytes.get(..count).unwrap_or_default());
}

struct Cursor<'a> {
    page: &'a [u8],
    at: usize,
    address: Lsn,
}

impl<'a> Cursor<'a> {
    fn lsn(&self) -> Lsn {
        Lsn(self.address.0.saturating_add(self.at as u64))
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let rest = self.page.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count.min(rest.len())).unwrap_or_default();
        self.at += taken.len();
        taken
    }
}

impl Begun {
    fn take(&mut self, cursor: &mut Cursor) {
        let room = self.header.get_mut(self.header_bytes..).unwrap_or_default();
        let header = cursor.take(room.len().min(self.left));
        room.iter_mut()
            .zip(header)
            .for_each(|(to, from)| *to = *from);
        self.header_bytes += header.len();
        self.left -= header.len();
        let content = cursor.take(self.left);
        self.left -= content.len();
        self.content_bytes += content.len();
        self.crc = crc32c::crc32c_append(self.crc, content);
        let limit = RecordHeader::read(&self.header).kept_bytes();
        append_up_to(&mut self.content, content, limit);
    }
}

impl RecordHeader {
    /// The header, whatever its CRC.
    pub fn read(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [
            l0,
            l1,
            l2,
            l3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            resource_manager,
            _,
            _,
            crc @ ..,
        ] = *bytes;
        Self {
            size_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            previous: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            resource_manager,
            crc: u32::from_le_bytes(crc),
        }
    }

    /// The header of the record at `start` whose content has the CRC `content_crc`.
    ///
    /// # Errors
    /// [`BrokenRecord::Crc`].
    pub fn checked(
        start: Lsn,
        bytes: &[u8; HEADER_BYTES],
        content_crc: u32,
    ) -> Result<Self, BrokenRecord> {
        let header = Self::read(bytes);
        let [covered @ .., _, _, _, _] = bytes;
        if crc32c::crc32c_append(content_crc, covered) == header.crc {
            Ok(header)
        } else {
            Err(BrokenRecord::Crc(start))
        }
    }

    /// Length of what follows the header.
    pub fn content_bytes(&self) -> u32 {
        self.size_bytes.saturating_sub(24)
    }
}
