//! Summarizing records as they come by.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::changes::Collector;
use super::{Digest, FORMAT, Note, Summary, Transaction};
use crate::wal::event::{Event, event};
use crate::wal::reader::Record;
use crate::wal::record::RecordNotUnderstood;
use crate::wal::segment_reader::ReadSegment;
use crate::{Lsn, SegmentName, Version};

/// `RelationRelationId`, which names its files until it is rewritten.
const PG_CLASS: u32 = 1259;

/// A summary in the making.
#[derive(Debug)]
pub struct Summarizer {
    segment: SegmentName,
    first: Option<Lsn>,
    first_previous: Option<Lsn>,
    last: Option<Lsn>,
    notes: Vec<Note>,
    transactions: Vec<Transaction>,
    /// Bytes of records by transaction.
    wal_bytes: FxHashMap<u32, u64>,
    /// The transaction that wrote last, and its bytes.
    writing: (u32, u64),
    pg_class_deletes: BTreeMap<u32, u32>,
    changes: Collector,
    damage: Option<(Lsn, RecordNotUnderstood)>,
}

impl Summarizer {
    /// A summarizer of the records in `segment`.
    pub fn new(segment: SegmentName) -> Self {
        Self {
            segment,
            first: None,
            first_previous: None,
            last: None,
            notes: Vec::new(),
            transactions: Vec::new(),
            wal_bytes: FxHashMap::default(),
            writing: (0, 0),
            pg_class_deletes: BTreeMap::new(),
            changes: Collector::default(),
            damage: None,
        }
    }

    /// Takes in the next record.
    pub fn record(&mut self, record: &Record, version: Version) {
        self.first = self.first.or(Some(record.start));
        self.first_previous = self.first_previous.or(Some(record.header.previous));
        self.last = Some(record.start);
        if let Err(damage) = self.take(record, version) {
            self.damage = self.damage.or(Some((record.start, damage)));
        }
    }

    /// The summary of the segment that was read and of which each record was taken in.
    ///
    /// # Errors
    /// A record whose CRC is right and whose content is not understood, and where it begins.
    pub fn finish(mut self, read: &ReadSegment) -> Result<Summary, (Lsn, RecordNotUnderstood)> {
        if let Some(damage) = self.damage {
            return Err(damage);
        }
        self.count();
        let times = self.transactions.iter().map(|end| end.time);
        let (cluster, reader) = (read.cluster(), read.records());
        let tail = reader.tail();
        let mut open: Vec<(u32, u64)> = self.wal_bytes.into_iter().collect();
        open.sort_unstable();
        Ok(Summary {
            format: FORMAT,
            system_identifier: cluster.system_identifier,
            segment: self.segment,
            postgres_version: cluster.version,
            segment_size: cluster.segment_size,
            segment_blake3: read.blake3().map(Digest),
            segment_sha256: None,
            segment_trailer: None,
            first_record: self.first.or(tail.as_ref().map(|tail| tail.start)),
            first_previous: self.first_previous,
            last_record: self.last,
            times: times.clone().min().zip(times.max()),
            head: reader.head().cloned(),
            overwrites: reader.overwrites(),
            tail: tail.map(super::border::shortened),
            cut: reader.cut(),
            notes: self.notes,
            transactions: self.transactions,
            open,
            pg_class_deletes: self.pg_class_deletes.into_iter().collect(),
            changes: self.changes.finish(),
        })
    }

    fn take(&mut self, record: &Record, version: Version) -> Result<(), RecordNotUnderstood> {
        let xid = record.header.xid;
        let changes = &mut self.changes;
        let mut is_pg_class = false;
        record.headers(version, |block| {
            changes.block(&block);
            is_pg_class |= block.relation.number == PG_CLASS;
        })?;
        if is_pg_class && record.is_heap_delete() {
            *self.pg_class_deletes.entry(xid).or_default() += 1;
        }
        if self.writing.0 != xid {
            self.count();
            self.writing.0 = xid;
        }
        self.writing.1 += u64::from(record.header.size_bytes);
        let Some(event) = event(record, version)? else {
            return Ok(());
        };
        self.changes.event(&event);
        match event {
            Event::TransactionEnd(end) => {
                self.count();
                let own = std::iter::once(&end.xid).chain(&end.subtransactions);
                let wal_bytes = own.filter_map(|xid| self.wal_bytes.remove(xid)).sum();
                self.transactions.push(Transaction {
                    lsn: record.start,
                    xid: end.xid,
                    time: end.time,
                    outcome: end.outcome,
                    wal_bytes,
                    subtransactions: end.subtransactions,
                    dropped: end.dropped,
                });
            }
            Event::Prepared { .. } => {}
            event => self.notes.push(Note {
                lsn: record.start,
                xid,
                event,
            }),
        }
        Ok(())
    }

    /// Counts the bytes of the transaction that wrote last.
    fn count(&mut self) {
        let (xid, bytes) = std::mem::take(&mut self.writing);
        if xid != 0 && bytes > 0 {
            *self.wal_bytes.entry(xid).or_default() += bytes;
        }
    }
}

impl Summary {
    /// Takes in a record that ended in the segment and began before it.
    ///
    /// # Errors
    /// [`RecordNotUnderstood`]: it is not understood.
    pub fn prepend(&mut self, record: &Record) -> Result<(), RecordNotUnderstood> {
        let mut early = Summarizer::new(self.segment);
        early.take(record, self.postgres_version)?;
        early.count();
        // A switch that runs into the segment leaves the rest of it unused.
        if record.is_switch() {
            self.cut = None;
        }
        for (xid, bytes) in early.wal_bytes {
            self.count_earlier(xid, bytes);
        }
        self.times = early
            .transactions
            .iter()
            .map(|end| (end.time, end.time))
            .chain(self.times)
            .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
        for (xid, deletes) in early.pg_class_deletes {
            self.pg_class_deletes.push((xid, deletes));
        }
        self.notes.splice(..0, early.notes);
        self.transactions.splice(..0, early.transactions);
        let later = std::mem::replace(&mut self.changes, early.changes.finish());
        self.changes.extend(later);
        Ok(())
    }

    fn count_earlier(&mut self, xid: u32, bytes: u64) {
        let is_own = |end: &&mut Transaction| end.xid == xid || end.subtransactions.contains(&xid);
        if let Some(end) = self.transactions.iter_mut().find(is_own) {
            end.wal_bytes = end.wal_bytes.saturating_add(bytes);
        } else if let Some((_, open)) = self.open.iter_mut().find(|(open, _)| *open == xid) {
            *open = open.saturating_add(bytes);
        } else {
            self.open.push((xid, bytes));
        }
    }
}
