//! What one backup and the WAL after it offer to a target.

use std::collections::BTreeSet;

use jiff::Timestamp;
use walhalla_postgres::wal::event::Outcome;
use walhalla_postgres::{History, Lsn, SegmentNo, TimelineId, WalFileName};

use super::Error;
use super::branches;
use super::plan::{Plan, Unreachable};
use super::planner::Planner;
use super::target::{Bound, Point};
use super::way::{Stop, Way, limits, new_tablespaces, replayed};
use crate::archive::proof::Proof;
use crate::failure::Failure as _;
use crate::repository::entry::Place;
use crate::repository::{ArchivedFile, BackupEntry};

/// Within so many bytes after a position a record begins, but for rare long ones.
const NEXT_RECORD_BYTES: u64 = 16 << 10;

/// What one backup and the WAL after it offer.
pub(super) enum Offer<'a> {
    Reaches(Box<Plan>),
    /// Not from here.
    Falls(Falls<'a>),
}

/// Why a backup does not lead to the target.
pub(super) enum Falls<'a> {
    /// For this reason.
    Reason(Unreachable),
    /// It is not whole itself, so that an older one may do.
    Broken(Unreachable),
    /// The target is there, and was rolled back; of all reasons the best.
    RolledBack(Unreachable),
    /// The target is nowhere on the way. What else is there is known when every backup was tried.
    NotFound(Way<'a>),
}

impl<'a> Planner<'a> {
    pub(super) fn offer(
        &mut self,
        backup: &'a BackupEntry,
        history: &'a History,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Offer<'a>, Error> {
        let chain = self.catalog.whole_chain(&backup.id)?;
        let place = match chain.as_slice() {
            [_] => Place::Alone,
            _ => Place::InChain,
        };
        for member in &chain {
            if let Some(object) = self.repository.missing_object(member, place)? {
                let reason =
                    format!("{object}, a part of the backup, is missing or of another length");
                return Ok(Offer::Falls(Falls::Broken(Unreachable::because(reason))));
            }
        }
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let way = Way {
            backup,
            history,
            route: self.archive.route(history, size, first)?,
            consistent: size.segment_before(backup.stop_lsn),
        };
        if !way.is_consistent() {
            let missing = way.consistent.min(way.next());
            let missing = way.route.stretch.name(missing);
            let why = self.archive.why_missing(missing);
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            let reason = format!(
                "WAL segment {missing}, without which backup {} is not consistent, is missing{why}",
                backup.id
            );
            return Ok(Offer::Falls(Falls::Broken(Unreachable::because(reason))));
        }
        if let Err(broken) = self.is_own(&way)? {
            return Ok(Offer::Falls(Falls::Broken(broken)));
        }
        let last = match &self.target.point {
            Point::End => self.end(&way)?.map_err(Falls::Reason),
            _ => self.target_segment(&way, named)?,
        };
        let Stop {
            segment: last,
            until,
        } = match last {
            Ok(stop) => stop,
            Err(falls) => return Ok(Offer::Falls(falls)),
        };
        let examined = self.archive.examine(&way.to(last))?;
        if let Some(gap) = self.break_in(&way, last, until, &examined) {
            let gap = self.at_break(&way, gap)?;
            return Ok(Offer::Falls(Falls::Reason(gap)));
        }
        // Keys may have been changed between a full backup and its deltas.
        { chain.iter() }.try_for_each(|member| self.repository.must_open(member))?;
        let replayed = || replayed(backup, &examined.facts, until);
        let planned = self.planned(way, chain, last)?;
        Ok(Offer::Reaches(Box::new(Plan {
            new_tablespaces: new_tablespaces(replayed()),
            limits: limits(replayed()),
            ..planned
        })))
    }

    /// Whether the archived WAL from the backup's start to its end is of the server that was backed up, and whole.
    pub(super) fn is_own(&self, way: &Way) -> Result<Result<(), Unreachable>, Error> {
        let (backup, mut proof) = (way.backup, Proof::of(way.backup));
        let examined = self.archive.examine(&way.to(way.consistent))?;
        if let Some(gap) = self.break_in(way, way.consistent, Some(backup.stop_lsn), &examined) {
            let reason = format!("backup {} is not consistent: {}", backup.id, gap.reason);
            return Ok(Err(Unreachable::because(reason)));
        }
        examined
            .facts
            .iter()
            .for_each(|facts| facts.show(&mut proof));
        if proof.holds() {
            return Ok(Ok(()));
        }
        Ok(Err(Unreachable::because(format!(
            "the archived WAL from {} to {} is not that of backup {}: no record in it names the backup; another \
             server with the same system identifier, such as a copy of the cluster, archived it under the same names",
            backup.start_lsn, backup.stop_lsn, backup.id
        ))))
    }

    /// The last segment of the archive.
    pub(super) fn end(&self, way: &Way) -> Result<Result<Stop, Unreachable>, Error> {
        let missing = way.missing();
        if way.route.gap {
            return Ok(Err(Unreachable {
                reason: match self.archive.why_missing(missing) {
                    Some(gap) => format!("WAL segment {missing} is missing: {gap}"),
                    None if way.route.stretch.ends_in_a_tail() => format!(
                        "of WAL segment {missing} only the begin that wal-receive stored is there, and later ones are archived"
                    ),
                    None => {
                        format!("WAL segment {missing} is missing, and it or later ones were there")
                    }
                },
                nearest: self.before_gap(way)?,
            }));
        }
        // The archive ends before the timeline that is followed begins.
        let begins = way.history.spans().next_back();
        let begin = begins.map_or(Lsn::ZERO, |(_, begin, _)| begin);
        if !way.has(way.backup.wal_segment_size.segment_of(begin)) {
            return Ok(Err(Unreachable {
                reason: format!("WAL segment {missing} is missing"),
                nearest: self.before_gap(way)?,
            }));
        }
        Ok(Ok(Stop {
            segment: SegmentNo(way.next().0 - 1),
            until: None,
        }))
    }

    /// The segment in which the record ends at which recovery stops.
    pub(super) fn target_segment(
        &mut self,
        way: &Way<'a>,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Result<Stop, Falls<'a>>, Error> {
        let Some(search) = &mut self.search else {
            return Ok(Err(Falls::Reason(self.no_candidate()?)));
        };
        let found = match search.find(&way.route.stretch, way.backup) {
            Err(error) if error.is_of_the_object() => {
                let all = self.archive.examine(&way.route.stretch)?;
                let last = SegmentNo(way.next().0 - 1);
                return match self.break_in(way, last, None, &all) {
                    Some(gap) => Ok(Err(Falls::Reason(self.at_break(way, gap)?))),
                    None => Err(error.into()),
                };
            }
            found => found?,
        };
        let places = found
            .iter()
            .filter_map(|found| Some((found.hit.start, found.hit.time?)));
        named.extend(places);
        let Some(first) = found.first() else {
            return Ok(Err(Falls::NotFound(way.clone())));
        };
        if first.hit.outcome == Some(Outcome::Aborted) && matches!(self.target.point, Point::Xid(_))
        {
            return Ok(Err(Falls::RolledBack(self.aborted(way, first)?)));
        }
        // PostgreSQL refuses to stop before it is consistent.
        if first.hit.start < way.backup.stop_lsn {
            return Ok(Err(Falls::Reason(self.before(way.backup)?)));
        }
        let start = first.hit.start;
        let until = match (&self.target.point, self.target.bound) {
            (Point::Immediate, _) | (Point::Lsn(_), Bound::Exclusive) => start,
            // The first record from there on is replayed too.
            (Point::Lsn(_), Bound::Inclusive) => Lsn(start.0.saturating_add(NEXT_RECORD_BYTES)),
            (Point::End | Point::Time(_) | Point::Xid(_) | Point::Name(_), _) => {
                Lsn(start.0.saturating_add(1))
            }
        };
        Ok(Ok(Stop {
            segment: first.segment.max(way.consistent),
            until: Some(until),
        }))
    }

    pub(super) fn planned(
        &self,
        way: Way,
        chain: Vec<BackupEntry>,
        last: SegmentNo,
    ) -> Result<Plan, Error> {
        let Way {
            backup,
            history,
            route,
            consistent,
        } = way;
        let first = backup.wal_segment_size.segment_of(backup.start_lsn);
        let count = |last: SegmentNo| usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let segments = route.stretch.to(last);
        let tail = segments.tail().map(|tail| tail.valid_until);
        let end = last.next().start(backup.wal_segment_size);
        let mut histories = self.archive.histories.known.values();
        let is_left_before = |later: &History| {
            let switch = later.switch_from(history.timeline);
            switch.is_some_and(|switch| switch < end)
        };
        let tail_is_the_end = !route.gap && !histories.any(is_left_before);
        Ok(Plan {
            tail,
            tail_is_the_end,
            target: self.target.clone(),
            backup: backup.clone(),
            chain,
            history: history.clone(),
            segments: segments
                .segments()
                .map(|needed| (needed.name, needed.archived))
                .collect(),
            segments_to_consistency: count(consistent),
            histories: self.history_files(history)?,
            other_timelines: branches::others(self.archive, history, backup)?,
            new_tablespaces: Vec::new(),
            limits: None,
        })
    }

    /// The history of the timeline that is followed; those of the timelines on the way to it, on which the server reads
    /// prepared transactions that are open from WAL of earlier ones (xlogutils.c, `XLogReadDetermineTimeline`); and those
    /// of all newer ones: the server asks for them to find a number for its own next timeline that is not taken.
    pub(super) fn history_files(
        &self,
        history: &History,
    ) -> Result<Vec<(TimelineId, ArchivedFile)>, Error> {
        let mut files = Vec::new();
        let known = self.archive.histories.known.keys();
        let is_asked_for = |timeline: TimelineId| {
            timeline >= history.timeline || history.switch_from(timeline).is_some()
        };
        for timeline in known.filter(|timeline| is_asked_for(**timeline)) {
            if let Some(archived) = self.repository.find_wal(WalFileName::History(*timeline))? {
                files.push((*timeline, archived));
            }
        }
        Ok(files)
    }
}

impl Falls<'_> {
    /// Whether it says more than `known`, the reason of a newer backup: that the target is there and was rolled back, or
    /// how far the WAL goes, where the newer backup is not whole. A gap behind an older backup says nothing about a target
    /// that the newer one would lead to.
    pub(super) fn outdoes(&self, known: &Self) -> bool {
        match self {
            Self::RolledBack(_) => !matches!(known, Self::RolledBack(_)),
            Self::NotFound(_) => matches!(known, Self::Broken(_)),
            Self::Reason(_) | Self::Broken(_) => false,
        }
    }
}
