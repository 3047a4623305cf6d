//! How far recovery must replay to reach its target: read from the WAL itself.
//!
//! Only as many segments are downloaded as the question takes: one or two for an LSN, a binary
//! search for a time, all from the backup on for a transaction or a restore point.

use std::ops::Range;

use jiff::Timestamp;

use super::Error;
use super::target::{Bound, Point};
use crate::pipeline::streams::read_full;
use crate::postgres::{Lsn, SegmentName, SegmentNo, SegmentSize, Version, WalFileName};
use crate::repository::{self, ArchivedFile, Repository};
use crate::wal;
use crate::wal::event::{Event, TransactionEnd, event};
use crate::wal::reader::{Record, RecordReader};

/// Bytes read at a time: whole WAL pages of any size.
const CHUNK_BYTES: usize = 1 << 18;

/// A segment that recovery would ask for.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) number: SegmentNo,
    pub(super) name: SegmentName,
    pub(super) archived: ArchivedFile,
}

/// The WAL from a backup's start to where the archive ends or has a gap: segments without a hole.
pub(super) struct Run<'a> {
    pub(super) repository: &'a Repository,
    pub(super) version: Version,
    pub(super) segment_size: SegmentSize,
    pub(super) wal_page_bytes: usize,
    pub(super) segments: Vec<Needed>,
}

/// Where a target was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The record that makes recovery stop.
    pub(super) start: Lsn,
    /// The end of that record.
    pub(super) end: Lsn,
}

/// The newest end of a transaction that was seen, for messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) last_time: Option<Timestamp>,
}

impl Run<'_> {
    /// The record at which recovery from `start` stops for `point` (xlogrecovery.c, `recoveryStopsBefore`
    /// and `recoveryStopsAfter`); `None` when the run holds none.
    pub(super) fn find(
        &self,
        point: &Point,
        bound: Bound,
        start: Lsn,
        seen: &mut Seen,
    ) -> Result<Option<Found>, Error> {
        match point {
            Point::End | Point::Immediate => Ok(None),
            Point::Lsn(target) => {
                let from = self.index_of(self.segment_size.segment_of(*target));
                self.scan(from..self.segments.len(), |record| record.start >= *target)
            }
            Point::Time(target) => {
                let from = self.first_after(*target, bound)?;
                self.scan(from..self.segments.len(), |record| match self.transaction_end(record) {
                    Some(time) => {
                        seen.last_time = seen.last_time.max(Some(time));
                        stops_at(time, *target, bound)
                    }
                    None => false,
                })
            }
            Point::Xid(target) => self.scan(0..self.segments.len(), |record| {
                record.start >= start
                    && matches!(event(record, self.version), Ok(Some(Event::TransactionEnd(TransactionEnd { xid, .. }))) if xid == *target)
            }),
            Point::Name(target) => self.scan(0..self.segments.len(), |record| {
                record.start >= start
                    && matches!(event(record, self.version), Ok(Some(Event::RestorePoint { name, .. })) if name == *target)
            }),
        }
    }

    fn transaction_end(&self, record: &Record) -> Option<Timestamp> {
        match event(record, self.version) {
            Ok(Some(Event::TransactionEnd(end))) => Some(end.time),
            _ => None,
        }
    }

    /// Binary search for the segment before the first one from which on the next transaction ends too late.
    ///
    /// Ends of transactions are not quite in the order of their times, so this is where to look
    /// from, never beyond the record that stops recovery.
    fn first_after(&self, target: Timestamp, bound: Bound) -> Result<usize, Error> {
        let (mut low, mut high) = (0, self.segments.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.next_transaction_end(middle..high) {
                Ok(Some(time)) if !stops_at(time, target, bound) => low = middle + 1,
                // Without a transaction up to `high`, the next one is behind it, which is known to be late.
                Ok(_) => high = middle,
                // Damage behind the target is no hindrance; damage before it is met again by the scan.
                Err(Error::Wal(_) | Error::Repository(repository::Error::Damaged { .. })) => {
                    high = middle;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(low.saturating_sub(1))
    }

    fn next_transaction_end(&self, within: Range<usize>) -> Result<Option<Timestamp>, Error> {
        let mut time = None;
        self.scan(within, |record| {
            time = self.transaction_end(record);
            time.is_some()
        })?;
        Ok(time)
    }

    fn index_of(&self, number: SegmentNo) -> usize {
        self.segments
            .partition_point(|needed| needed.number < number)
    }

    /// Reads the records of segments until `stop` says so.
    fn scan(
        &self,
        within: Range<usize>,
        mut stop: impl FnMut(&Record) -> bool,
    ) -> Result<Option<Found>, Error> {
        let mut records = RecordReader::new(self.segment_size);
        for needed in self.segments.get(within).unwrap_or_default() {
            if let Some(found) = self.scan_segment(needed, &mut records, &mut stop)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn scan_segment(
        &self,
        needed: &Needed,
        records: &mut RecordReader,
        stop: &mut impl FnMut(&Record) -> bool,
    ) -> Result<Option<Found>, Error> {
        let key = &needed.archived.object.key;
        let mut reader = self.repository.open(&needed.archived.object)?;
        let mut address = needed.number.start(self.segment_size);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = read_full(&mut reader, &mut buffer)
                .map_err(|source| self.repository.damaged(key, source))?;
            if chunk.is_empty() {
                return Ok(None);
            }
            for page in chunk.chunks(self.wal_page_bytes) {
                let mut found = None;
                records
                    .page(address, page, &mut |record| {
                        if found.is_none() && stop(record) {
                            found = Some(Found {
                                start: record.start,
                                end: record.end,
                            });
                        }
                    })
                    .map_err(|damage| wal::Error::Records {
                        object: self.repository.url(key),
                        file: WalFileName::Segment(needed.name),
                        damage,
                    })?;
                address = Lsn(address.0.saturating_add(self.wal_page_bytes as u64));
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
    }
}

/// Whether a transaction that ended at `time` makes recovery stop before it.
fn stops_at(time: Timestamp, target: Timestamp, bound: Bound) -> bool {
    match bound {
        Bound::Inclusive => time > target,
        Bound::Exclusive => time >= target,
    }
}
