//! Why a target cannot be reached, and what can be reached instead.

use walhalla_postgres::summary::Transaction;
use walhalla_postgres::wal::event::Outcome;

use super::Error;
use super::branches;
use super::hint::Hint;
use super::plan::Unreachable;
use super::planner::Planner;
use super::reach::{Found, Place};
use super::target::Point;
use super::way::Way;
use crate::archive::Sought;
use crate::failure::Failure as _;
use crate::output::look::precise_time;
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
                self.target.point.in_words(),
                backup.id,
                backup.stop_lsn,
                precise_time(backup.data_end())
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
        let last = match last {
            Sought::Found(xid) => Some(Point::Xid(xid)),
            // Nothing committed after the backup: its end loses nothing.
            Sought::Nowhere => None,
            Sought::GivenUp => {
                let last = way.route.stretch.run().last();
                Some(Point::Lsn(last.start(way.backup.wal_segment_size)))
            }
        };
        let last = last.map(Hint::of);
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
            .map_or_else(String::new, |time| format!(" at {}", precise_time(time)));
        Ok(Unreachable {
            reason: format!("{} was rolled back{time}", self.target.point.in_words()),
            nearest: self.hint([Hint::of(Point::Lsn(position)), Hint::end_of(way.backup)])?,
        })
    }

    /// Of a target that is in the archive on another timeline.
    pub(super) fn elsewhere(&self, way: &Way) -> Result<Option<Unreachable>, Error> {
        let point = &self.target.point;
        let said = point.in_words();
        let search = self.search.as_ref().filter(|_| self.gives_hints);
        let found = search.map(|search| search.on_another_branch(way.history));
        let Some(found) = found.transpose()?.flatten() else {
            return Ok(None);
        };
        let (own, other) = (way.history.timeline.number(), found.timeline.number());
        let reason = match found.place {
            Place::Shared => format!(
                "the archived WAL of timeline {own} ends before {said}, at segment {}; timeline {other} holds the same WAL",
                way.missing()
            ),
            Place::Apart => {
                format!("{said} is on timeline {other}, and not on the way to timeline {own}")
            }
        };
        let there = Hint::of(point.clone()).on(found.timeline);
        Ok(Some(Unreachable {
            reason,
            nearest: self.hint([there])?,
        }))
    }

    /// The target is a subtransaction of `parent`.
    pub(super) fn part_of(&self, parent: &Transaction) -> Result<Unreachable, Error> {
        let (point, xid) = (self.target.point.in_words(), parent.xid);
        let (reason, instead) = match parent.outcome {
            Outcome::Committed => (
                format!("{point} is a subtransaction of {xid}"),
                Point::Xid(xid),
            ),
            Outcome::Aborted => (
                format!(
                    "{point} is a subtransaction of {xid}, which was rolled back at {}",
                    precise_time(parent.time)
                ),
                Point::Lsn(parent.lsn),
            ),
        };
        Ok(Unreachable {
            reason,
            nearest: self.hint([Hint::of(instead)])?,
        })
    }
}
