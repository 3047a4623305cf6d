//! How far recovery must replay to reach its target, read from the WAL's summaries.
//!
//! PostgreSQL stops at the first record, from the backup's redo position on, that meets the target
//! (xlogrecovery.c, `recoveryStopsBefore` and `recoveryStopsAfter`). The segment in which that record ends is the last
//! one that recovery asks for.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walhalla_postgres::summary::Transaction;
use walhalla_postgres::wal::event::{Event, Outcome};
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

use super::target::{Bound, Point, Target};
use crate::archive::inventory::Runs;
use crate::archive::{Archive, Resolved, Stretch};
use crate::failure::Failure as _;
use crate::repository::BackupEntry;
use crate::wal::Error;

/// A record at which recovery stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// Where it begins; of an LSN, the target itself.
    pub(super) start: Lsn,
    /// When it was written, by the server's clock.
    pub(super) time: Option<Timestamp>,
    /// Of the end of a transaction: how it ended.
    pub(super) outcome: Option<Outcome>,
}

/// A hit and the segment in which its record ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) hit: Hit,
    pub(super) segment: SegmentNo,
}

/// A timeline that holds a target which is not in the archive along another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elsewhere {
    pub(super) timeline: TimelineId,
    pub(super) place: Place,
}

/// Where a target lies on a timeline, seen from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In WAL that both have: a segment in which one of them ended was copied to the other.
    Shared,
    /// After the two went apart.
    Apart,
}

/// What was met on the way, for messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The last transaction that committed, by position.
    pub(super) newest: Option<Committed>,
    /// Restore points: names, positions, times.
    pub(super) restore_points: BTreeSet<(ServerText, Lsn, Timestamp)>,
    /// The end of the transaction of which the target is a subtransaction.
    pub(super) parent: Option<Transaction>,
    /// The first and the last segment that were searched.
    pub(super) searched: Option<(SegmentName, SegmentName)>,
    /// Whether the target wrote something.
    pub(super) wrote: bool,
    /// Where the server came up with `wal_level = minimal`, beyond which nothing can be replayed (xlogrecovery.c,
    /// `CheckRequiredParameterValues`).
    pub(super) minimal: Option<Lsn>,
}

/// A transaction that committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) lsn: Lsn,
    pub(super) xid: u32,
    pub(super) time: Timestamp,
}

/// A search for a target over the archive's summaries. Segments that were searched once are not read again.
pub(super) struct Search<'a> {
    archive: &'a Archive<'a>,
    point: &'a Point,
    bound: Bound,
    size: SegmentSize,
    searched: BTreeMap<TimelineId, Runs>,
    hits: BTreeMap<SegmentName, Vec<Hit>>,
    /// How many segments were read.
    pub(super) read: usize,
    pub(super) seen: Seen,
}

impl<'a> Search<'a> {
    pub(super) fn new(archive: &'a Archive<'a>, target: &'a Target, size: SegmentSize) -> Self {
        Self {
            archive,
            point: &target.point,
            bound: target.bound,
            size,
            searched: BTreeMap::new(),
            hits: BTreeMap::new(),
            read: 0,
            seen: Seen::default(),
        }
    }

    /// Where recovery from `start` stops on its way through `segments`; of a name, every restore point that has it.
    pub(super) fn find(
        &mut self,
        stretch: &Stretch,
        backup: &BackupEntry,
    ) -> Result<Vec<Found>, Error> {
        let position = match self.point {
            Point::Lsn(target) => Some(*target),
            // At the first record after consistency is reached: it looks for that only there, and after ends of
            // transactions.
            Point::Immediate => Some(backup.stop_lsn),
            _ => None,
        };
        if let Some(position) = position {
            let found = self.position(stretch, position)?;
            return Ok(found.into_iter().collect());
        }
        let start = backup.start_lsn;
        let mut found = Vec::new();
        let mut left = stretch.clone();
        while !left.run().is_empty() && !self.is_done(&found) {
            let at = left.run().first;
            let next = match self.searched_until(&left) {
                Some(end) => {
                    self.recall(&left.before(end), start, &mut found);
                    end
                }
                None => self.search(stretch, at, start, &mut found)?,
            };
            left = left.since(next);
        }
        Ok(found)
    }

    /// Where the segments end, from the first of `left` on, that were searched before; `None` where that was not.
    fn searched_until(&self, left: &Stretch) -> Option<SegmentNo> {
        let name = left.name(left.run().first);
        let run = self.searched.get(&name.timeline)?;
        let run = run.containing(left.run().first)?;
        // A segment of the same number on another timeline is another one.
        let spans = left.history().segments(self.size);
        let mut own = spans.filter(|(timeline, ..)| *timeline == name.timeline);
        let end = own.next().and_then(|(.., end)| end);
        Some(run.end.min(end.unwrap_or(run.end)))
    }

    /// What was found before in segments of one timeline.
    fn recall(&self, searched: &Stretch, start: Lsn, found: &mut Vec<Found>) {
        let run = searched.run();
        let names = searched.name(run.first)..=searched.name(run.last());
        for (name, hits) in self.hits.range(names) {
            if self.is_done(found) {
                return;
            }
            if let Some(number) = name.number(self.size) {
                found.extend(from(start, hits, number));
            }
        }
    }

    /// Searches the segments from `at` on that were not searched before; returns where it ended.
    fn search(
        &mut self,
        stretch: &Stretch,
        at: SegmentNo,
        start: Lsn,
        found: &mut Vec<Found>,
    ) -> Result<SegmentNo, Error> {
        let all = stretch.run();
        let is_known = |number: &SegmentNo| {
            let searched = self.searched.get(&stretch.name(*number).timeline);
            searched.is_some_and(|runs| runs.containing(*number).is_some())
        };
        let unknown = stretch.since(at).run().numbers().find(is_known);
        // The one before tells what runs into the first.
        let begin = SegmentNo(at.0.saturating_sub(1));
        let part = stretch.since(begin).before(unknown.unwrap_or(all.end));
        let mut next = begin;
        // What runs into a segment is known once a record began before it.
        let (mut is_sure, mut is_over) = (false, false);
        let walked = self.archive.walk(&part, |number, resolved| {
            next = number.next();
            self.read += 1;
            let was_sure = is_sure;
            is_sure |= resolved.summary.first_record.is_some();
            if number < at {
                return Ok::<_, Error>(true);
            }
            let hits = self.hits_in(&resolved);
            self.note_for_messages(&resolved);
            self.seen.note_searched(part.name(number));
            let minimal = minimal(&resolved).filter(|lsn| *lsn >= start);
            let before = |found: &Found| minimal.is_none_or(|lsn| found.hit.start < lsn);
            found.extend(from(start, &hits, number).filter(before));
            if minimal.is_some() {
                (self.seen.minimal, is_over) = (minimal, true);
            } else if was_sure {
                self.remember_hits(part.name(number), number, hits);
            }
            Ok(!is_over && !self.is_done(found))
        });
        match walked {
            Err(error) if error.is_of_the_object() && !found.is_empty() => {
                tracing::warn!("{error}; WAL after it is not searched for another such name");
                Ok(all.end)
            }
            Err(error) => Err(error),
            Ok(()) if is_over => Ok(all.end),
            Ok(()) => Ok(next.max(at.next())),
        }
    }

    /// Keeps what was found in a segment.
    fn remember_hits(&mut self, name: SegmentName, number: SegmentNo, hits: Vec<Hit>) {
        self.searched
            .entry(name.timeline)
            .or_default()
            .insert(number);
        if !hits.is_empty() {
            self.hits.insert(name, hits);
        }
    }

    /// Where the target is, when it is not in the archive along `history`: the newest timeline that holds the same WAL, or
    /// else the newest one on which it lies apart from `history`. A time is on every way, and so is a backup's end.
    pub(super) fn on_another_branch(&self, history: &History) -> Result<Option<Elsewhere>, Error> {
        if matches!(self.point, Point::Time(_) | Point::Immediate) {
            return Ok(None);
        }
        let mut apart = None;
        let others = self.archive.histories.known.values().rev();
        for other in others.filter(|other| other.timeline != history.timeline) {
            match self.place_on(other, history)? {
                Some(Place::Apart) if apart.is_some() => {}
                Some(place) => {
                    let found = Elsewhere {
                        timeline: other.timeline,
                        place,
                    };
                    if place == Place::Shared {
                        return Ok(Some(found));
                    }
                    apart = Some(found);
                }
                None => {}
            }
        }
        Ok(apart)
    }

    /// Whether the archived segments of `other` hold the target, and if so, whether `history` has the same WAL there.
    fn place_on(&self, other: &History, history: &History) -> Result<Option<Place>, Error> {
        let place_of = |lsn: Lsn| {
            let timeline = other.timeline_at(lsn);
            if history.timeline_at(lsn) == timeline {
                Some(Place::Shared)
            } else {
                (timeline == other.timeline).then_some(Place::Apart)
            }
        };
        for stretch in self.archive.stretches(other, SegmentNo(0))? {
            let mut place = None;
            let walked = self.archive.walk(&stretch, |number, resolved| {
                // The segment before the timeline is another's.
                if stretch.name(number).timeline != other.timeline {
                    return Ok::<_, Error>(true);
                }
                place = match self.point {
                    Point::Lsn(target) => {
                        let begins = number.start(self.size) <= *target;
                        let reaches = resolved.summary.last_record >= Some(*target);
                        place_of(*target).filter(|_| begins && reaches)
                    }
                    _ => self
                        .hits_in(&resolved)
                        .iter()
                        .find_map(|hit| place_of(hit.start)),
                };
                Ok(place.is_none())
            });
            // What cannot be read elsewhere is no reason to say nothing of the way that was asked for.
            match walked {
                Err(error) if !error.is_of_the_object() => return Err(error),
                _ => {}
            }
            if place.is_some() {
                return Ok(place);
            }
        }
        Ok(None)
    }

    /// Where a record meets the target and when it was written, anywhere in the archived WAL of a timeline.
    pub(super) fn anywhere_on(&self, history: &History) -> Result<Option<(Lsn, Timestamp)>, Error> {
        let mut found = None;
        for stretch in self.archive.stretches(history, SegmentNo(0))? {
            let walked = self.archive.walk(&stretch, |_, resolved| {
                let hits = self.hits_in(&resolved);
                found = { hits.iter() }.find_map(|hit| Some((hit.start, hit.time?)));
                Ok::<_, Error>(found.is_none())
            });
            match walked {
                Err(error) if !error.is_of_the_object() => return Err(error),
                _ if found.is_some() => break,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether the first of the hits is all that matters.
    fn is_done(&self, found: &[Found]) -> bool {
        !found.is_empty() && !matches!(self.point, Point::Name(_))
    }

    fn hits_in(&self, resolved: &Resolved) -> Vec<Hit> {
        let ends = resolved.summary.transactions.iter();
        let of_end = |end: &Transaction| Hit {
            start: end.lsn,
            time: Some(end.time),
            outcome: Some(end.outcome),
        };
        match self.point {
            Point::End | Point::Immediate | Point::Lsn(_) => Vec::new(),
            Point::Time(target) => {
                let late = ends.filter(|end| stops_at(end.time, *target, self.bound));
                late.map(of_end).collect()
            }
            Point::Xid(target) => ends.filter(|end| end.xid == *target).map(of_end).collect(),
            Point::Name(target) => {
                let points = restore_points(resolved).filter(|(_, name, _)| *name == target);
                let hit = |(start, _, time): (Lsn, &ServerText, Timestamp)| Hit {
                    start,
                    time: Some(time),
                    outcome: None,
                };
                points.map(hit).collect()
            }
        }
    }

    fn note_for_messages(&mut self, resolved: &Resolved) {
        let ends = &resolved.summary.transactions;
        let committed = |end: &&Transaction| end.outcome == Outcome::Committed && end.xid != 0;
        if let Some(end) = ends.iter().rev().find(committed) {
            let newest = Committed {
                lsn: end.lsn,
                xid: end.xid,
                time: end.time,
            };
            let is_newer = self.seen.newest.is_none_or(|seen| seen.lsn < newest.lsn);
            self.seen.newest = Some(newest).filter(|_| is_newer).or(self.seen.newest);
        }
        match self.point {
            Point::Name(_) => {
                let points =
                    restore_points(resolved).map(|(lsn, name, time)| (name.clone(), lsn, time));
                self.seen.restore_points.extend(points);
            }
            Point::Xid(xid) => {
                let parent = ends.iter().find(|end| end.subtransactions.contains(xid));
                if let Some(parent) = parent {
                    self.seen.parent.get_or_insert_with(|| parent.clone());
                }
                self.seen.wrote |= resolved.summary.open.iter().any(|(open, _)| open == xid);
            }
            Point::End | Point::Immediate | Point::Time(_) | Point::Lsn(_) => {}
        }
    }

    /// The segment in which the first record at or after `target` ends.
    fn position(&mut self, stretch: &Stretch, target: Lsn) -> Result<Option<Found>, Error> {
        let holding = self.size.segment_of(target).min(stretch.run().last());
        let part = stretch.since(holding);
        let mut found = None;
        self.archive.walk(&part, |number, resolved| {
            self.note_for_messages(&resolved);
            let border = resolved.border.map(|(start, _)| start);
            let last = border.max(resolved.summary.last_record);
            found = last.filter(|last| *last >= target).map(|_| Found {
                hit: Hit {
                    start: target,
                    time: None,
                    outcome: None,
                },
                segment: number,
            });
            Ok::<_, Error>(found.is_none())
        })?;
        Ok(found)
    }
}

impl Seen {
    fn note_searched(&mut self, segment: SegmentName) {
        self.searched = Some(match self.searched {
            Some((first, last)) => (first.min(segment), last.max(segment)),
            None => (segment, segment),
        });
    }
}

fn from(start: Lsn, hits: &[Hit], segment: SegmentNo) -> impl Iterator<Item = Found> {
    let later = hits.iter().filter(move |hit| hit.start >= start);
    later.map(move |hit| Found {
        hit: hit.clone(),
        segment,
    })
}

fn restore_points(resolved: &Resolved) -> impl Iterator<Item = (Lsn, &ServerText, Timestamp)> {
    let notes = resolved.summary.notes.iter();
    notes.filter_map(|note| match &note.event {
        Event::RestorePoint { name, time } => Some((note.lsn, name, *time)),
        _ => None,
    })
}

/// Where the server came up with `wal_level = minimal`.
fn minimal(resolved: &Resolved) -> Option<Lsn> {
    let mut notes = resolved.summary.notes.iter();
    let change =
        notes.find(|note| matches!(note.event, Event::ParameterChange { wal_level: 0, .. }));
    change.map(|note| note.lsn)
}

/// Whether a transaction that ended at `time` makes recovery stop before it.
fn stops_at(time: Timestamp, target: Timestamp, bound: Bound) -> bool {
    match bound {
        Bound::Inclusive => time > target,
        Bound::Exclusive => time >= target,
    }
}
