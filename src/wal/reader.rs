//! Records out of WAL pages (xlogreader.c, `XLogDecodeNextRecord`).
//!
//! Feed pages in order, poll records. Reading may begin at any segment: what is left there of an
//! earlier record is skipped. Of each record the first [`KEPT_BYTES`] are kept (none when only checking),
//! its CRC is checked over all of it, so memory does not grow with the WAL.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::pages::{PageHeader, SHORT_HEADER_BYTES};
use super::record::{self, Headers};
use crate::postgres::{Lsn, SegmentSize, Version};

/// How much of a record's content is kept.
pub const KEPT_BYTES: usize = 64 << 10;

/// `SizeOfXLogRecord`
const HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: u32 = 24;
/// `XLogRecordMaxSize` (xlogrecord.h) of 16 and later, rounded up; longer ones are damage.
const MAX_RECORD_BYTES: u32 = 1 << 30;
/// `XLP_FIRST_IS_CONTRECORD`
const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record before was given up where the WAL ended in a crash.
const OVERWRITE: u16 = 0x0008;

/// A record; its CRC was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position of its first byte.
    pub start: Lsn,
    /// Position after its last byte.
    pub end: Lsn,
    /// `xl_xid`
    pub xid: u32,
    /// `xl_info`
    pub info: u8,
    /// `xl_rmid`
    pub resource_manager: u8,
    /// `xl_prev`
    pub previous: Lsn,
    /// `xl_tot_len`
    pub size_bytes: u32,
    /// The first bytes after the header.
    pub content: Vec<u8>,
}

/// What a record means to recovery targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction ended.
    Transaction {
        /// Its number.
        xid: u32,
        /// Its end, by the server's clock.
        time: Timestamp,
        /// Whether it committed.
        committed: bool,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: String,
        /// When it was created.
        time: Timestamp,
    },
}

/// Damage in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
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

/// The state of reading.
#[derive(Clone, Debug)]
pub struct RecordReader {
    segment_size: SegmentSize,
    records: VecDeque<Record>,
    state: State,
    /// Start of the last record, where the next one must point back to.
    last: Option<Lsn>,
    kept_bytes: usize,
    delivers: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// At the beginning, and after the rest of a segment was left out: the next page tells where its first record begins.
    Lost,
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
    crc: u32,
    left: usize,
}

impl RecordReader {
    /// A reader for WAL in segments of the given size.
    pub fn new(segment_size: SegmentSize) -> Self {
        Self {
            segment_size,
            records: VecDeque::new(),
            state: State::Lost,
            last: None,
            kept_bytes: KEPT_BYTES,
            delivers: true,
        }
    }

    /// A reader that only checks: it keeps nothing and has no next record.
    pub fn checking(segment_size: SegmentSize) -> Self {
        Self {
            kept_bytes: 0,
            delivers: false,
            ..Self::new(segment_size)
        }
    }

    /// The next record, if one is complete.
    pub fn next_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    /// Takes in the next page, which begins at `address`. Its header was checked before.
    ///
    /// # Errors
    /// The [`Damage`]; nothing further can be read then.
    pub fn page(&mut self, address: Lsn, page: &[u8]) -> Result<(), Damage> {
        let begins_segment = address.0.is_multiple_of(self.segment_size.bytes());
        if matches!(self.state, State::SegmentOver | State::Ended) {
            if !begins_segment {
                return self.after_end(address, page);
            }
            self.state = State::Lost;
        }
        let Some(header) = PageHeader::read(page).filter(|header| header.magic != 0) else {
            self.state = State::Ended;
            return self.after_end(address, page);
        };
        if header.address != address {
            return Err(Damage::Continuation(address));
        }
        let begin = self.first_byte(address, &header, page.len())?;
        let mut cursor = Cursor {
            page,
            at: begin,
            address,
        };
        while cursor.at < page.len() {
            self.step(&mut cursor)?;
        }
        Ok(())
    }

    /// A page after the WAL's end in a segment: of zeros, with or without a page header.
    fn after_end(&self, address: Lsn, page: &[u8]) -> Result<(), Damage> {
        let is_bare = PageHeader::read(page).is_some_and(|header| header.magic != 0);
        let rest = page.get(if is_bare { SHORT_HEADER_BYTES } else { 0 }..);
        let clean = matches!(self.state, State::SegmentOver)
            || rest.is_none_or(|rest| rest.iter().all(|b| *b == 0));
        if clean {
            Ok(())
        } else {
            Err(Damage::AfterEnd(address))
        }
    }

    /// Where reading goes on in a page.
    fn first_byte(
        &mut self,
        address: Lsn,
        header: &PageHeader,
        page_bytes: usize,
    ) -> Result<usize, Damage> {
        let begin = header.size_bytes();
        let remaining = usize::try_from(header.remaining).unwrap_or(usize::MAX);
        if header.info & OVERWRITE != 0 {
            self.state = State::Between;
            self.last = None;
        }
        // XLogReaderValidatePageHeader does not compare the two, XLogDecodeNextRecord and XLogFindNextRecord rely on both.
        let continues = header.info & FIRST_IS_CONTRECORD != 0;
        if continues != (remaining != 0) {
            return Err(Damage::Continuation(address));
        }
        match &self.state {
            State::Lost => {
                let skip = begin.saturating_add(remaining).saturating_add(7) & !7;
                // A record that goes on beyond this page leaves the reader lost until it ends.
                if begin.saturating_add(remaining) <= page_bytes {
                    self.state = State::Between;
                }
                Ok(skip)
            }
            State::Within(record) if record.left != remaining => Err(Damage::Continuation(address)),
            State::Between if remaining != 0 => Err(Damage::Continuation(address)),
            State::Within(_) | State::Between | State::SegmentOver | State::Ended => Ok(begin),
        }
    }

    fn step(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Within(begun) => self.take(begun, cursor),
            State::Between => self.begin(cursor),
            over @ (State::Lost | State::SegmentOver | State::Ended) => {
                self.state = over;
                cursor.at = cursor.page.len();
                Ok(())
            }
        }
    }

    /// The first bytes of a record; `xl_tot_len` never crosses a page, as records begin at multiples of 8.
    fn begin(&mut self, cursor: &mut Cursor) -> Result<(), Damage> {
        cursor.at = (cursor.at + 7) & !7;
        let start = cursor.lsn();
        let Some(length) = cursor.page.get(cursor.at..).and_then(<[u8]>::first_chunk) else {
            // The end of a page, or of a segment that was cut.
            cursor.at = cursor.page.len();
            return Ok(());
        };
        let length = u32::from_le_bytes(*length);
        if length == 0 {
            self.state = State::Ended;
            let clean = cursor
                .page
                .get(cursor.at..)
                .is_none_or(|rest| rest.iter().all(|b| *b == 0));
            return if clean {
                Ok(())
            } else {
                Err(Damage::AfterEnd(start))
            };
        }
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        if left < HEADER_BYTES || length > MAX_RECORD_BYTES {
            return Err(Damage::Length(start));
        }
        let (header, content) = ([0; HEADER_BYTES], Vec::new());
        self.take(
            Begun {
                start,
                header,
                header_bytes: 0,
                content,
                crc: 0,
                left,
            },
            cursor,
        )
    }

    fn take(&mut self, mut begun: Begun, cursor: &mut Cursor) -> Result<(), Damage> {
        let room = begun
            .header
            .get_mut(begun.header_bytes..)
            .unwrap_or_default();
        let header = cursor.take(room.len().min(begun.left));
        room.iter_mut()
            .zip(header)
            .for_each(|(to, from)| *to = *from);
        begun.header_bytes += header.len();
        begun.left -= header.len();
        let content = cursor.take(begun.left);
        begun.left -= content.len();
        begun.crc = crc32c::crc32c_append(begun.crc, content);
        let kept = content
            .len()
            .min(self.kept_bytes.saturating_sub(begun.content.len()));
        begun
            .content
            .extend_from_slice(content.get(..kept).unwrap_or_default());
        if begun.left > 0 {
            self.state = State::Within(begun);
            return Ok(());
        }
        let record = begun.finish(cursor.lsn())?;
        if self.last.is_some_and(|last| last != record.previous) {
            return Err(Damage::Previous(record.start));
        }
        self.last = Some(record.start);
        if record.is_switch() {
            self.state = State::SegmentOver;
        }
        if self.delivers {
            self.records.push_back(record);
        }
        Ok(())
    }
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
    fn finish(self, end: Lsn) -> Result<Record, Damage> {
        let damage = Damage::Length(self.start);
        let header = &self.header;
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
        ] = *header;
        let covered = header.get(..20).ok_or(damage)?;
        if crc32c::crc32c_append(self.crc, covered) != u32::from_le_bytes(crc) {
            return Err(Damage::Crc(self.start));
        }
        Ok(Record {
            start: self.start,
            end,
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            info,
            resource_manager,
            previous: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            size_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            content: self.content,
        })
    }
}

/// `RM_XLOG_ID` and `RM_XACT_ID` (rmgrlist.h).
const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
/// `XLR_RMGR_INFO_MASK`
const INFO_MASK: u8 = 0xF0;
/// `XLOG_SWITCH` and `XLOG_RESTORE_POINT` (pg_control.h).
const SWITCH: u8 = 0x40;
const RESTORE_POINT: u8 = 0x70;
/// `XLOG_XACT_OPMASK` and `XLOG_XACT_HAS_INFO` (xact.h).
const XACT_OPERATION: u8 = 0x70;
const XACT_HAS_INFO: u8 = 0x80;
/// `MAXFNAMELEN`
const NAME_BYTES: usize = 64;
/// Microseconds from 1970 to PostgreSQL's epoch, 2000-01-01.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

impl Record {
    /// Whether the rest of the segment is unused (`XLOG_SWITCH`).
    pub fn is_switch(&self) -> bool {
        self.resource_manager == RM_XLOG && self.info & INFO_MASK == SWITCH
    }

    /// Which blocks it changes.
    ///
    /// # Errors
    /// [`record::Damage`].
    pub fn headers(&self, version: Version) -> Result<Headers, record::Damage> {
        let content_bytes = self.size_bytes.saturating_sub(RECORD_HEADER_BYTES);
        Headers::read(&self.content, content_bytes, version)
    }

    /// What the record means to recovery targets, if anything.
    pub fn event(&self, version: Version) -> Option<Event> {
        match self.resource_manager {
            RM_XLOG if self.info & INFO_MASK == RESTORE_POINT => restore_point(self.main_data()?),
            RM_XACT => self.transaction(version),
            _ => None,
        }
    }

    /// The main data of a record without block references (xlogrecord.h).
    fn main_data(&self) -> Option<&[u8]> {
        let mut rest = self.content.as_slice();
        loop {
            let (id, after) = rest.split_first()?;
            rest = match *id {
                255 => return after.get(1..),
                254 => return after.get(4..),
                253 => after.get(2..)?,
                252 => after.get(4..)?,
                _ => return None,
            };
        }
    }

    fn transaction(&self, version: Version) -> Option<Event> {
        let data = self.main_data()?;
        let (committed, prepared) = match self.info & XACT_OPERATION {
            0x00 => (true, false),
            0x20 => (false, false),
            0x30 => (true, true),
            0x40 => (false, true),
            _ => return None,
        };
        let time = time(data)?;
        let xid = if prepared {
            self.prepared_xid(data, version)?
        } else {
            self.xid
        };
        Some(Event::Transaction {
            xid,
            time,
            committed,
        })
    }

    /// `xl_xact_twophase`, behind what the flags of `xl_xact_xinfo` announce (xactdesc.c, `ParseCommitRecord`).
    fn prepared_xid(&self, data: &[u8], version: Version) -> Option<u32> {
        if self.info & XACT_HAS_INFO == 0 {
            return None;
        }
        let flags = u32_at(data, 8)?;
        let mut at = 12;
        if flags & 1 != 0 {
            at += 8;
        }
        for (flag, item_bytes) in [
            (1 << 1, 4),
            (1 << 2, 12),
            (1 << 8, version.dropped_stats_bytes()),
            (1 << 3, 16),
        ] {
            if flags & flag != 0 {
                let items = usize::try_from(u32_at(data, at)?).ok()?;
                at = items.checked_mul(item_bytes)?.checked_add(at + 4)?;
            }
        }
        if flags & 1 << 4 == 0 {
            None
        } else {
            u32_at(data, at)
        }
    }
}

/// `xl_restore_point`
fn restore_point(data: &[u8]) -> Option<Event> {
    let name = data
        .get(8..8 + NAME_BYTES)?
        .split(|byte| *byte == 0)
        .next()?;
    Some(Event::RestorePoint {
        name: String::from_utf8_lossy(name).into_owned(),
        time: time(data)?,
    })
}

fn time(data: &[u8]) -> Option<Timestamp> {
    let since_2000 = data.first_chunk().map(|bytes| i64::from_le_bytes(*bytes))?;
    Timestamp::from_microsecond(since_2000.checked_add(EPOCH_MICROSECONDS)?).ok()
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}
