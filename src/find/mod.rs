//! What happened when: drops, truncations, restore points and transactions, found in the summaries of the archived WAL.
//!
//! ```text
//! timelines ─▶ runs of segments ─▶ summaries ─▶ Finder ─▶ finds, each with its place
//!                                   backup before it ─▶ sizes (manifest), names (catalogs)   relations
//! ```

mod begin;
mod relations;

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use walhalla_postgres::summary::{Note, Transaction};
use walhalla_postgres::wal::event::{Event, Outcome};
use walhalla_postgres::wal::record::{Fork, RelationFiles};
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo};

pub use relations::{Relation, Relations};

use crate::archive::{Archive, Resolved};
use crate::failure::Failure as _;
use crate::repository::BackupEntry;
use crate::wal::Error;

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Relations and databases that were dropped.
    pub dropped: bool,
    /// Relations that were truncated.
    pub truncated: bool,
    /// Restore points.
    pub restore_points: bool,
    /// The end of this transaction.
    pub xid: Option<u32>,
    /// Nothing before this time.
    pub from: Option<Timestamp>,
    /// Nothing after this time.
    pub to: Option<Timestamp>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Find {
    /// When, by the server's clock; of what has no time of its own, the one of the last transaction before it.
    pub time: Option<Timestamp>,
    /// Start of the record that tells of it.
    pub lsn: Lsn,
    /// The transaction, or 0.
    pub xid: u32,
    /// The timeline that it was written on.
    pub timeline: u32,
    /// The segment in which the record ends.
    pub segment: SegmentName,
    /// The way on which it lies.
    pub history: History,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Relations were dropped.
    Drop(Vec<RelationFiles>),
    /// Relations got new files and lost the old ones, and no relation was dropped: `TRUNCATE` or `REINDEX`.
    Truncate(Vec<RelationFiles>),
    /// Relations got new files, and rows went from `pg_class`: `VACUUM FULL`, `CLUSTER`, `ALTER TABLE`, or a `DROP` and a
    /// `CREATE` in one transaction.
    Rewrite(Vec<RelationFiles>),
    /// A relation was cut to so many blocks: by `VACUUM`, or by `TRUNCATE` in the transaction that made it.
    Cut(RelationFiles, u32),
    /// A database was dropped.
    DropDatabase(u32),
    /// A restore point was created.
    RestorePoint(ServerText),
    /// A transaction ended, with so many bytes of WAL.
    End(Outcome, u64),
}

/// Finds what `query` asks for, oldest first.
///
/// # Errors
/// Those of reading summaries and, where one is missing, its segment.
pub fn find(archive: &Archive, backups: &[BackupEntry], query: &Query) -> Result<Vec<Find>, Error> {
    let mut finder = Finder {
        query,
        seen: HashSet::new(),
        finds: Vec::new(),
    };
    for history in archive.histories.known.values() {
        let begin = |from| begin::first_segment(backups, history, from);
        let first = query.from.map_or(SegmentNo(0), begin);
        for stretch in archive.stretches(history, first)? {
            let mut branch = Branch::default();
            let mut left = stretch;
            while !left.run().is_empty() {
                let mut next = left.run().first;
                let walked = archive.walk(&left, |number, resolved| {
                    next = number.next();
                    let segment = left.name(number);
                    finder.segment(&mut branch, history, segment, &resolved);
                    Ok::<_, Error>(true)
                });
                match walked {
                    Err(error) if error.is_of_the_object() => {
                        tracing::warn!("{error}; what is in it is not found");
                        left = left.since(next.next());
                    }
                    walked => {
                        walked?;
                        break;
                    }
                }
            }
        }
    }
    for lost in &archive.histories.unknown {
        let number = lost.number();
        tracing::warn!("timeline {number} is left out: the archive has not its history");
    }
    let mut finds = finder.finds;
    finds.sort_by_key(|find| (find.time, find.lsn));
    Ok(finds)
}

struct Finder<'a> {
    query: &'a Query,
    /// Timelines and positions of what was found: the first segment of a timeline repeats what the one before it wrote.
    seen: HashSet<(u32, Lsn, bool)>,
    finds: Vec<Find>,
}

/// What transactions that go on have done.
#[derive(Default)]
struct Branch {
    /// The last transaction's end.
    time: Option<Timestamp>,
    /// Relations that were created, by transaction.
    created: HashMap<u32, Vec<RelationFiles>>,
    /// Tablespaces of databases that were created.
    databases: HashMap<u32, u32>,
    /// Rows deleted from `pg_class`, by transaction.
    deletes: HashMap<u32, u32>,
    /// Bytes of records in earlier segments, by transaction.
    open: BTreeMap<u32, u64>,
}

impl Finder<'_> {
    fn segment(
        &mut self,
        branch: &mut Branch,
        history: &History,
        segment: SegmentName,
        resolved: &Resolved,
    ) {
        let summary = &resolved.summary;
        for (xid, deletes) in &summary.pg_class_deletes {
            let all = branch.deletes.entry(*xid).or_default();
            *all = all.saturating_add(*deletes);
        }
        let mut notes = summary.notes.iter().peekable();
        for end in &summary.transactions {
            while let Some(note) = notes.next_if(|note| note.lsn < end.lsn) {
                self.note(branch, history, segment, note);
            }
            self.end(branch, history, segment, end);
        }
        for note in notes {
            self.note(branch, history, segment, note);
        }
        for (xid, bytes) in &summary.open {
            let all = branch.open.entry(*xid).or_default();
            *all = all.saturating_add(*bytes);
        }
    }

    fn note(&mut self, branch: &mut Branch, history: &History, segment: SegmentName, note: &Note) {
        let what = match &note.event {
            // Of an unlogged relation only the init fork's creation is recorded.
            Event::RelationCreated {
                relation,
                fork: Fork::Main | Fork::Init,
            } => {
                let created = branch.created.entry(note.xid).or_default();
                if !created.contains(relation) {
                    created.push(*relation);
                }
                return;
            }
            Event::DatabaseCreated {
                database,
                tablespace,
                ..
            } => {
                branch.databases.insert(*database, *tablespace);
                return;
            }
            Event::RelationTruncated(cut) if self.query.truncated => {
                What::Cut(cut.relation, cut.blocks)
            }
            // A database whose files went from one tablespace after they were copied to another was moved.
            Event::DatabaseDropped {
                database,
                tablespaces,
            } if self.query.dropped => {
                // One whose files went from one tablespace after they were copied to another was moved.
                let place = branch.databases.get(database);
                if place.is_some_and(|place| !tablespaces.contains(place)) {
                    return;
                }
                What::DropDatabase(*database)
            }
            Event::RestorePoint { name, time } if self.query.restore_points => {
                let what = What::RestorePoint(name.clone());
                self.add(Some(*time), note.lsn, note.xid, history, segment, what);
                return;
            }
            _ => return,
        };
        self.add(branch.time, note.lsn, note.xid, history, segment, what);
    }

    fn end(
        &mut self,
        branch: &mut Branch,
        history: &History,
        segment: SegmentName,
        end: &Transaction,
    ) {
        branch.time = Some(end.time);
        let own = || std::iter::once(&end.xid).chain(&end.subtransactions);
        let created: Vec<_> = own()
            .filter_map(|xid| branch.created.remove(xid))
            .flatten()
            .collect();
        let deletes = own().filter_map(|xid| branch.deletes.remove(xid));
        let deletes = deletes.fold(0, u32::saturating_add);
        let earlier = own().filter_map(|xid| branch.open.remove(xid));
        let earlier = earlier.fold(0, u64::saturating_add);
        let query = self.query;
        let mut add = |what| self.add(Some(end.time), end.lsn, end.xid, history, segment, what);
        if let Some(what) = dropped(end, &created, deletes) {
            let is_wanted = match what {
                What::Drop(_) => query.dropped,
                What::Truncate(_) => query.truncated,
                _ => query.dropped || query.truncated,
            };
            if is_wanted {
                add(what);
            }
        }
        let is_wanted = match query.xid {
            Some(xid) => end.xid == xid || end.subtransactions.contains(&xid),
            None => query.wants_all(),
        };
        if is_wanted {
            add(What::End(
                end.outcome,
                end.wal_bytes.saturating_add(earlier),
            ));
        }
    }

    fn add(
        &mut self,
        time: Option<Timestamp>,
        lsn: Lsn,
        xid: u32,
        history: &History,
        segment: SegmentName,
        what: What,
    ) {
        let query = self.query;
        let is_early = query
            .from
            .is_some_and(|from| time.is_none_or(|time| time < from));
        let is_late = query.to.is_some_and(|to| time.is_none_or(|time| time > to));
        let timeline = history.timeline_at(lsn);
        let key = (timeline.number(), lsn, matches!(what, What::End(..)));
        if is_early || is_late || !self.seen.insert(key) {
            return;
        }
        self.finds.push(Find {
            time,
            lsn,
            xid,
            timeline: timeline.number(),
            segment,
            history: history.of(timeline),
            what,
        });
    }
}

impl Query {
    /// Whether every transaction's end is asked for: those of a time range.
    fn wants_all(&self) -> bool {
        let asks_else = self.dropped || self.truncated || self.restore_points;
        !asks_else && (self.from.is_some() || self.to.is_some())
    }
}

/// What became of the relations whose files went with a transaction.
fn dropped(end: &Transaction, created: &[RelationFiles], deletes: u32) -> Option<What> {
    if end.outcome == Outcome::Aborted {
        return None;
    }
    let is_old = |relation: &&RelationFiles| !created.contains(relation);
    let old: Vec<RelationFiles> = end.dropped.iter().filter(is_old).copied().collect();
    let is_kept = |relation: &&RelationFiles| !end.dropped.contains(relation);
    let new = created.iter().filter(is_kept).count();
    if old.is_empty() {
        None
    } else if new == 0 {
        Some(What::Drop(old))
    } else if deletes == 0 {
        Some(What::Truncate(old))
    } else {
        Some(What::Rewrite(old))
    }
}
