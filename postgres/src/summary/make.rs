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
    wal_bytes: WalBytes,
    pg_class_deletes: BTreeMap<u32, u32>,
    changes: Collector,
    damage: Option<(Lsn, RecordNotUnderstood)>,
}

/// Bytes of records by transaction.
#[derive(Debug, Default)]
struct WalBytes {
    /// Transactions that wrote last, each in the place that the last bits of its number give, or 0; a transaction writes many
    /// records among those of few others.
    recent: [(u32, u64); RECENT],
    others: FxHashMap<u32, u64>,
}

/// A power of two.
const RECENT: usize = 16;

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
            wal_bytes: WalBytes::default(),
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
    pub fn finish(self, read: &ReadSegment) -> Result<Summary, (Lsn, RecordNotUnderstood)> {
        if let Some(damage) = self.damage {
            return Err(damage);
        }
        let times = self.transactions.iter().map(|end| end.time);
        let (cluster, reader) = (read.cluster(), read.records());
        let tail = reader.tail();
        let open = self.wal_bytes.finish();
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
        self.wal_bytes.add(xid, u64::from(record.header.size_bytes));
        let Some(event) = event(record, version)? else {
            return Ok(());
        };
        self.changes.event(&event);
        match event {
            Event::TransactionEnd(end) => {
                let own = std::iter::once(&end.xid).chain(&end.subtransactions);
                let wal_bytes = own.map(|xid| self.wal_bytes.take(*xid)).sum();
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
}

impl WalBytes {
    fn add(&mut self, xid: u32, bytes: u64) {
        if xid == 0 {
            return;
        }
        let (known, sum) = self.place(xid);
        if *known == xid {
            *sum += bytes;
            return;
        }
        let (other, its_bytes) = (std::mem::replace(known, xid), std::mem::replace(sum, bytes));
        if other != 0 {
            *self.others.entry(other).or_default() += its_bytes;
        }
    }

    /// What a transaction wrote, which is forgotten then.
    fn take(&mut self, xid: u32) -> u64 {
        let mut bytes = self.others.remove(&xid).unwrap_or_default();
        let (known, sum) = self.place(xid);
        if *known == xid {
            bytes += std::mem::take(sum);
            *known = 0;
        }
        bytes
    }

    /// Transactions in order, and what each wrote.
    fn finish(mut self) -> Vec<(u32, u64)> {
        for (xid, bytes) in self.recent.into_iter().filter(|(xid, _)| *xid != 0) {
            *self.others.entry(xid).or_default() += bytes;
        }
        let mut all: Vec<(u32, u64)> = self.others.into_iter().collect();
        all.sort_unstable();
        all
    }

    fn place(&mut self, xid: u32) -> (&mut u32, &mut u64) {
        let at = xid as usize % RECENT;
        let (xid, bytes) = self.recent.get_mut(at).expect("it is a remainder");
        (xid, bytes)
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
        // A switch that runs into the segment leaves the rest of it unused.
        if record.is_switch() {
            self.cut = None;
        }
        for (xid, bytes) in early.wal_bytes.finish() {
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
