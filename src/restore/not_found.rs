//! Why a target was not found on any way, and the point that comes nearest to it.
//!
//! ```text
//! on another timeline? ─▶ a subtransaction? ─▶ a name like another one? ─▶ behind a gap or damage? ─▶ after the end
//! ```

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{Lsn, SegmentNo};

use super::Error;
use super::hint::Hint;
use super::plan::Unreachable;
use super::planner::Planner;
use super::reach::Seen;
use super::target::Point;
use super::way::Way;
use crate::output::look::precise_time;

/// Restore points that a message names.
const SHOWN: usize = 3;

impl Planner<'_> {
    /// The reason for a target that is on no way; `way` is that of the newest backup.
    pub(super) fn not_found(&self, way: &Way) -> Result<Unreachable, Error> {
        let seen = self.search.as_ref().map(|search| search.seen.clone());
        let seen = seen.unwrap_or_default();
        if let Some(refusal) = self.elsewhere(way)? {
            return Ok(refusal);
        }
        match &self.target.point {
            Point::Xid(_) if let Some(parent) = &seen.parent => self.part_of(parent),
            Point::Name(name) => self.name_not_found(way, name, &seen),
            _ => self.way_ends(way, &seen),
        }
    }

    fn name_not_found(
        &self,
        way: &Way,
        name: &ServerText,
        seen: &Seen,
    ) -> Result<Unreachable, Error> {
        let point = &self.target.point;
        let usable = usable(self.oldest_ends(), &seen.restore_points);
        let similar = similar_names(name, &usable);
        if let Some((nearest, _)) = similar.first() {
            let shown = shown(&similar);
            return Ok(Unreachable {
                reason: format!("the archive has no {point}; similar names: {shown}"),
                nearest: self.hint([Hint::of(Point::Name(nearest.clone()))])?,
            });
        }
        if let Some(refusal) = self.name_off_the_ways(way, &usable)? {
            return Ok(refusal);
        }
        match self.gapped.first() {
            Some(gapped) if !way.route.gap => Ok(Unreachable {
                reason: format!("{}; {}", absent(point, seen, &usable), self.gap_of(gapped)),
                nearest: self.hint([Hint::of(Point::End)])?,
            }),
            _ => self.way_ends_with(way, &absent(point, seen, &usable), seen),
        }
    }

    /// A restore point that is in the archive, where no backup and the WAL after it lead.
    fn name_off_the_ways(
        &self,
        way: &Way,
        usable: &[(ServerText, Timestamp)],
    ) -> Result<Option<Unreachable>, Error> {
        let search = self.search.as_ref().filter(|_| self.gives_hints);
        let at = search.map(|search| search.anywhere_on(way.history));
        let Some((lsn, time)) = at.transpose()?.flatten() else {
            return Ok(None);
        };
        let oldest = self.backups.iter().min_by_key(|backup| backup.stop_lsn);
        if let Some(oldest) = oldest.filter(|oldest| lsn < oldest.stop_lsn) {
            return self.before(oldest).map(Some);
        }
        let starts = |gapped: &&Way| gapped.next().start(way.backup.wal_segment_size) <= lsn;
        let Some(gapped) = self.gapped.iter().find(starts) else {
            return Ok(None);
        };
        let point = &self.target.point;
        let others = match usable {
            [] => String::new(),
            others => format!("; restore points that can be reached: {}", newest(others)),
        };
        Ok(Some(Unreachable {
            reason: format!(
                "{point}, at {lsn} ({}), cannot be reached: {}{others}",
                precise_time(time),
                self.gap_of(gapped)
            ),
            nearest: self.before_gap(gapped)?,
        }))
    }

    fn oldest_ends(&self) -> Option<Lsn> {
        self.backups.iter().map(|backup| backup.stop_lsn).min()
    }

    /// Why the target, which is no name, is not on the way.
    fn way_ends(&self, way: &Way, seen: &Seen) -> Result<Unreachable, Error> {
        let point = &self.target.point;
        let absent = match point {
            Point::Immediate => format!(
                "the record after the end of backup {}, at which PostgreSQL stops, is not in the archive",
                way.backup.id
            ),
            _ => absent(point, seen, &[]),
        };
        self.way_ends_with(way, &absent, seen)
    }

    /// The target is `absent`: why no more of the archive can be searched for it.
    fn way_ends_with(&self, way: &Way, absent: &str, seen: &Seen) -> Result<Unreachable, Error> {
        if way.route.gap {
            return Ok(Unreachable {
                reason: format!("{absent}; {}", self.gap_of(way)),
                nearest: self.before_gap(way)?,
            });
        }
        let all = self.archive.examine(&way.route.stretch)?;
        let last = SegmentNo(way.next().0 - 1);
        if let Some(gap) = self.break_in(way, last, None, &all) {
            return Ok(Unreachable {
                reason: format!("{absent}; {}", gap.reason),
                nearest: self.at_break(way, gap)?.nearest,
            });
        }
        if let Some(lsn) = seen.minimal {
            return Ok(Unreachable {
                reason: format!(
                    "{} is not in the archive before {lsn}, where the server ran with wal_level = minimal: nothing after \
                     that can be replayed",
                    self.target.point.in_words()
                ),
                nearest: self.hint([Hint::of(Point::Lsn(lsn)).exclusive()])?,
            });
        }
        Ok(Unreachable {
            reason: self.after_the_end(way, absent, seen),
            nearest: self.hint([Hint::of(Point::End)])?,
        })
    }

    /// The same of a way without a fault.
    fn after_the_end(&self, way: &Way, absent: &str, seen: &Seen) -> String {
        let newest = match seen.newest {
            Some(newest) => format!(
                "the newest transaction in it (xid {}) committed at {}",
                newest.xid,
                precise_time(newest.time)
            ),
            None => format!(
                "it holds no commit after backup {}, which ended at {}",
                way.backup.id,
                precise_time(way.backup.data_end())
            ),
        };
        match &self.target.point {
            Point::Time(time) => format!(
                "time {} is after the end of the archive: {newest}",
                precise_time(*time)
            ),
            Point::Lsn(lsn) => format!(
                "LSN {lsn} is after the end of the archive, which ends before WAL segment {}: {newest}",
                way.missing()
            ),
            Point::End | Point::Immediate | Point::Xid(_) | Point::Name(_) => format!(
                "{absent}. The archive ends before WAL segment {}; {newest}",
                way.missing()
            ),
        }
    }

    /// That replay ends at a segment, and why.
    fn gap_of(&self, way: &Way) -> String {
        let missing = way.missing();
        let why = self.archive.why_missing(missing);
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        format!(
            "WAL segment {missing} is missing{why}, and replay from backup {} ends there",
            way.backup.id
        )
    }
}

/// That a point was not found, and where it was looked for.
fn absent(point: &Point, seen: &Seen, usable: &[(ServerText, Timestamp)]) -> String {
    let said = point.in_words();
    let searched = match seen.searched {
        Some((first, last)) if first == last => format!("in WAL segment {first}"),
        Some((first, last)) => format!("in the archived WAL from segment {first} to {last}"),
        None => "in the archived WAL".to_owned(),
    };
    match point {
        Point::Xid(_) if seen.wrote => {
            format!("{said} wrote something, and its end was not found {searched}")
        }
        Point::Name(_) if usable.is_empty() => {
            format!("{said} was not found {searched}, nor any other restore point")
        }
        Point::Name(_) => {
            let newest = newest(usable);
            format!("{said} was not found {searched}; the newest restore points there: {newest}")
        }
        _ => format!("{said} was not found {searched}"),
    }
}

/// The restore points that can be targets: their names are there once, and a backup ends before them.
fn usable(
    oldest: Option<Lsn>,
    points: &BTreeSet<(ServerText, Lsn, Timestamp)>,
) -> Vec<(ServerText, Timestamp)> {
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

/// The restore points whose names one may have meant by `name`, the most alike first.
fn similar_names(
    name: &ServerText,
    points: &[(ServerText, Timestamp)],
) -> Vec<(ServerText, Timestamp)> {
    let most = (name.as_bytes().len() / 3).max(2);
    let distance = |other: &ServerText| {
        let (asked, other) = (name.as_bytes(), other.as_bytes());
        let is_alike = asked.eq_ignore_ascii_case(other);
        let distance = strsim::generic_damerau_levenshtein(asked, other);
        if is_alike { 0 } else { distance }
    };
    let mut similar: Vec<_> = { points.iter() }
        .map(|point| (distance(&point.0), point))
        .filter(|(distance, _)| *distance <= most)
        .collect();
    similar.sort_by_key(|(distance, (_, time))| (*distance, std::cmp::Reverse(*time)));
    let similar = similar.into_iter().take(SHOWN);
    similar.map(|(_, point)| point.clone()).collect()
}

/// The newest restore points, as a message names them.
fn newest(points: &[(ServerText, Timestamp)]) -> String {
    let mut points = points.to_vec();
    points.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    points.truncate(SHOWN);
    shown(&points)
}

fn shown(points: &[(ServerText, Timestamp)]) -> String {
    let shown = points
        .iter()
        .map(|(name, time)| format!("{name:?} ({})", precise_time(*time)));
    shown.collect::<Vec<_>>().join(", ")
}
