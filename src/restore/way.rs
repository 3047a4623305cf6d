//! The way of a recovery from a backup, and what replay meets on it.

use std::sync::Arc;

use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::Event;
use walhalla_postgres::{History, Limits, Lsn, SegmentName, SegmentNo};

use super::plan::NewTablespace;
use crate::archive::{Facts, Route, Stretch};
use crate::repository::BackupEntry;
use crate::repository::tails::Tail;

/// Where recovery from a backup goes to.
#[derive(Clone)]
pub(super) struct Way<'a> {
    pub(super) backup: &'a BackupEntry,
    pub(super) history: &'a History,
    pub(super) route: Route,
    /// The segment that makes the backup consistent.
    pub(super) consistent: SegmentNo,
}

/// Where recovery stops.
pub(super) struct Stop {
    /// The segment in which the record ends at which it stops.
    pub(super) segment: SegmentNo,
    /// Records from here on are not replayed, if that is known.
    pub(super) until: Option<Lsn>,
}

impl Way<'_> {
    /// Its first segment.
    pub(super) fn first(&self) -> SegmentNo {
        self.route.stretch.run().first
    }

    /// Its segments up to `last`.
    pub(super) fn to(&self, last: SegmentNo) -> Stretch {
        self.route.stretch.to(last)
    }

    /// The segment after the last one of the route.
    pub(super) fn next(&self) -> SegmentNo {
        self.route.stretch.run().end
    }

    /// The segment that is not whole in the archive and ends the route, for messages.
    pub(super) fn missing(&self) -> SegmentName {
        self.route.stretch.missing()
    }

    pub(super) fn has(&self, segment: SegmentNo) -> bool {
        segment < self.next()
    }

    /// Whether it makes the backup consistent.
    pub(super) fn is_consistent(&self) -> bool {
        let tail = self.route.stretch.tail();
        let is_too_short = |tail: &Arc<Tail>| {
            let is_last = self.consistent.next() == self.next();
            is_last && tail.valid_until < self.backup.stop_lsn
        };
        self.has(self.consistent) && !tail.is_some_and(is_too_short)
    }
}

/// Whether recovery from the backup to `until` replays what is at `lsn`.
pub(super) fn is_replayed(backup: &BackupEntry, until: Option<Lsn>, lsn: Lsn) -> bool {
    lsn >= backup.start_lsn && until.is_none_or(|until| lsn < until)
}

/// What recovery from the backup to `until` meets, in order.
pub(super) fn replayed<'f>(
    backup: &'f BackupEntry,
    facts: &'f [Arc<Facts>],
    until: Option<Lsn>,
) -> impl Iterator<Item = &'f Note> {
    let notes = facts.iter().flat_map(|facts| &facts.notes);
    notes.filter(move |note| is_replayed(backup, until, note.lsn))
}

/// What the server that replays must not be below: the greatest of what the WAL tells.
pub(super) fn limits<'n>(notes: impl Iterator<Item = &'n Note>) -> Option<Limits> {
    let limits = notes.filter_map(|note| match note.event {
        Event::ParameterChange { limits, .. } => Some(limits),
        _ => None,
    });
    limits.reduce(Limits::max)
}

/// The tablespaces that replay makes, at the places where they were made, in order.
pub(super) fn new_tablespaces<'n>(notes: impl Iterator<Item = &'n Note>) -> Vec<NewTablespace> {
    let mut new: Vec<NewTablespace> = Vec::new();
    for note in notes {
        match &note.event {
            Event::TablespaceCreated {
                tablespace,
                location,
            } => new.push(NewTablespace {
                oid: *tablespace,
                location: location.clone(),
                lsn: note.lsn,
                is_dropped: false,
            }),
            Event::TablespaceDropped { tablespace } => {
                let mut all = new.iter_mut();
                if let Some(known) = all.find(|known| known.oid == *tablespace) {
                    known.is_dropped = true;
                }
            }
            _ => {}
        }
    }
    new
}
