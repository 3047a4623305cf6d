//! Why a target cannot be reached, and what can be reached instead.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use walhalla_postgres::Lsn;
use walhalla_postgres::SegmentNo;
use walhalla_postgres::summary::Transaction;
use walhalla_postgres::wal::event::Outcome;
use walhalla_postgres::wal::text::ServerText;

use super::Error;
use super::branches;
use super::hint::Hint;
use super::plan::Unreachable;
use super::planner::Planner;
use super::reach::{Found, Place, Seen};
use super::target::Point;
use super::way::Way;
use crate::failure::Failure as _;
use crate::repository::BackupEntry;

impl Planner<'_> {
    pub(super) fn no_candidate(&self) -> Result<Unreachable, Error> {
        let leads = |backup: &&BackupEntry| {
            let followed = branches::followed(self.archive, backup, self.target.timeline);
            followed.is_ok_and(|history| history.is_some())
        };
        let backups = self.backups.iter().filter(leads);
        match backups.min_by_key(|backup| backup.stop_lsn) {
            Some(oldest) => self.before(oldest),
            None => Ok(Unreachable::because(
                "no backup leads to this timeline".to_owned(),
            )),
        }
    }

    /// The target lies before the end of `backup`.
    pub(super) fn before(&self, backup: &BackupEntry) -> Result<Unreachable, Error> {
        Ok(Unreachable {
            reason: format!(
                "{} is before the end of backup {}, {} ({}), and no older backup leads there",
                self.target.point,
                backup.id,
                backup.stop_lsn,
                backup.data_end()
            ),
            nearest: self.hint([Hint::end_of(backup)])?,
        })
    }

    /// Options that reach the last commit on a way that ends in a gap.
    pub(super) fn before_gap(&self, way: &Way) -> Result<Option<String>, Error> {
        if !self.gives_hints {
            return Ok(None);
        }
        let newest_first = way.route.stretch.each().rev();
        let last = self.archive.seek(newest_first, |_, resolved| {
            let mut ends = resolved.summary.transactions.iter().rev();
            let is_later = |end: &&Transaction| {
                end.outcome == Outcome::Committed && end.lsn >= way.backup.stop_lsn
            };
            ends.find(is_later).map(|end| end.xid)
        })?;
        let last = last.found().map(|xid| Hint::of(Point::Xid(xid)));
        self.hint(last.into_iter().chain([Hint::end_of(way.backup)]))
    }

    /// The first of the hints whose own plan says yes.
    pub(super) fn hint(
        &self,
        hints: impl IntoIterator<Item = Hint>,
    ) -> Result<Option<String>, Error> {
        for hint in hints {
            if self.is_reached(&hint)? {
                return Ok(Some(hint.to_string()));
            }
        }
        Ok(None)
    }

    /// Whether the plan that a hint leads to says yes.
    pub(super) fn is_reached(&self, hint: &Hint) -> Result<bool, Error> {
        if !self.gives_hints {
            return Ok(false);
        }
        let target = hint.target(self.target);
        let chosen: Vec<BackupEntry> = self
            .backups
            .iter()
            .filter(|backup| hint.backup.as_ref().is_none_or(|id| *id == backup.id))
            .cloned()
            .collect();
        let is_chosen = self.is_chosen || hint.backup.is_some();
        let planner = Planner {
            gives_hints: false,
            ..Planner::new(self.archive, self.catalog, &target, &chosen, is_chosen)
        };
        match planner.plan() {
            Ok(_) => Ok(true),
            Err(Error::Unreachable(_)) => Ok(false),
            Err(error) if error.is_of_the_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn aborted(&self, way: &Way, found: &Found) -> Result<Unreachable, Error> {
        let position = found.hit.start;
        let time = found
            .hit
            .time
            .map_or_else(String::new, |time| format!(" at {time}"));
        Ok(Unreachable {
            reason: format!("{} was rolled back{time}", self.target.point),
            nearest: self.hint([Hint::of(Point::Lsn(position)), Hint::end_of(way.backup)])?,
        })
    }

    pub(super) fn not_found(&self, way: &Way) -> Result<Unreachable, Error> {
        let point = &self.target.point;
        let seen = self.search.as_ref().map(|search| search.seen.clone());
        let seen = seen.unwrap_or_default();
        if let Some(refusal) = self.elsewhere(way)? {
            return Ok(refusal);
        }
        match point {
            Point::Xid(_) if let Some(parent) = &seen.parent => return self.part_of(parent),
            Point::Name(name) if !way.route.gap => {
                let similar = nearest_names(name, &self.usable(&seen.restore_points));
                if let Some((nearest, _)) = similar.first() {
                    let there = Hint::of(Point::Name(nearest.clone()));
                    let shown = shown(&similar);
                    return Ok(Unreachable {
                        reason: format!("the archive has no {point}; there are {shown}"),
                        nearest: self.hint([there])?,
                    });
                }
            }
            _ => {}
        }
        let absent = match point {
            Point::Immediate => format!(
                "the record after the end of backup {}, at which PostgreSQL stops, is not in the archive",
                way.backup.id
            ),
            Point::Xid(_) if seen.wrote => {
                format!("{point} neither committed nor was rolled back in the archive")
            }
            _ => format!("{point} is not in the archive"),
        };
        self.archive_ends(way, &absent, &seen)
    }

    /// Of a target that is in the archive on another timeline.
    pub(super) fn elsewhere(&self, way: &Way) -> Result<Option<Unreachable>, Error> {
        let point = &self.target.point;
        let search = self.search.as_ref().filter(|_| self.gives_hints);
        let found = search.map(|search| search.on_another_branch(way.history));
        let Some(found) = found.transpose()?.flatten() else {
            return Ok(None);
        };
        let (own, other) = (way.history.timeline.number(), found.timeline.number());
        let reason = match found.place {
            Place::Shared => format!(
                "the archived WAL of timeline {own} ends before {point}, at segment {}; timeline {other} holds the same WAL",
                way.missing()
            ),
            Place::Apart => {
                format!("{point} is on timeline {other}, and not on the way to {own}")
            }
        };
        let there = Hint::of(point.clone()).on(found.timeline);
        Ok(Some(Unreachable {
            reason,
            nearest: self.hint([there])?,
        }))
    }

    /// The target is `absent`: why no more of the archive can be searched for it.
    pub(super) fn archive_ends(
        &self,
        way: &Way,
        absent: &str,
        seen: &Seen,
    ) -> Result<Unreachable, Error> {
        let missing = way.missing();
        if way.route.gap {
            return Ok(Unreachable {
                reason: match self.archive.why_missing(missing) {
                    Some(gap) => {
                        format!("{absent}, which has a gap at WAL segment {missing}: {gap}")
                    }
                    None => format!("{absent}, which has a gap at WAL segment {missing}"),
                },
                nearest: self.before_gap(way)?,
            });
        }
        let all = self.archive.examine(&way.route.stretch)?;
        let last = SegmentNo(way.next().0 - 1);
        if let Some(gap) = self.break_in(way, last, None, &all) {
            return Ok(Unreachable {
                reason: format!("{absent}, which has a gap: {}", gap.reason),
                nearest: self.at_break(way, gap)?.nearest,
            });
        }
        if let Some(lsn) = seen.minimal {
            return Ok(Unreachable {
                reason: format!(
                    "{} is not in the archive before {lsn}, where the server ran with wal_level = minimal: nothing after \
                     that can be replayed",
                    self.target.point
                ),
                nearest: self.hint([Hint::of(Point::Lsn(lsn)).exclusive()])?,
            });
        }
        let newest = seen.newest.map_or_else(String::new, |newest| {
            let (xid, time) = (newest.xid, newest.time);
            format!("; its newest transaction, {xid}, ended at {time}")
        });
        Ok(Unreachable {
            reason: format!("{absent}, which ends before WAL segment {missing}{newest}"),
            nearest: self.hint([Hint::of(Point::End)])?,
        })
    }

    /// The target is a subtransaction of `parent`.
    pub(super) fn part_of(&self, parent: &Transaction) -> Result<Unreachable, Error> {
        let (point, xid) = (&self.target.point, parent.xid);
        let (reason, instead) = match parent.outcome {
            Outcome::Committed => (
                format!("{point} is a subtransaction of {xid}"),
                Point::Xid(xid),
            ),
            Outcome::Aborted => (
                format!(
                    "{point} is a subtransaction of {xid}, which was rolled back at {}",
                    parent.time
                ),
                Point::Lsn(parent.lsn),
            ),
        };
        Ok(Unreachable {
            reason,
            nearest: self.hint([Hint::of(instead)])?,
        })
    }

    /// The restore points that can be targets: their names are there once, and a backup ends before them.
    pub(super) fn usable(
        &self,
        points: &BTreeSet<(ServerText, Lsn, Timestamp)>,
    ) -> Vec<(ServerText, Timestamp)> {
        let oldest = self.backups.iter().map(|backup| backup.stop_lsn).min();
        let mut places: HashMap<&ServerText, usize> = HashMap::new();
        for (name, ..) in points {
            *places.entry(name).or_default() += 1;
        }
        let usable = points
            .iter()
            .filter(|(name, lsn, _)| Some(*lsn) >= oldest && places.get(name) == Some(&1));
        usable
            .map(|(name, _, time)| (name.clone(), *time))
            .collect()
    }
}

/// The restore points whose names are most like `name`, the most alike first.
fn nearest_names(
    name: &ServerText,
    points: &[(ServerText, Timestamp)],
) -> Vec<(ServerText, Timestamp)> {
    const SHOWN: usize = 3;
    let mut points: Vec<_> = points.to_vec();
    let distance =
        |other: &ServerText| strsim::generic_damerau_levenshtein(name.as_bytes(), other.as_bytes());
    points.sort_by_key(|(other, _)| distance(other));
    points.truncate(SHOWN);
    points
}

fn shown(points: &[(ServerText, Timestamp)]) -> String {
    let shown = points
        .iter()
        .map(|(name, time)| format!("{name:?} ({time})"));
    shown.collect::<Vec<_>>().join(", ")
}
