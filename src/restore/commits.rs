//! Between which commits the WAL of a plan lies: where a restore ends as a moment.

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::Lsn;
use walhalla_postgres::summary::Summary;
use walhalla_postgres::wal::event::{Event, Outcome};

use super::Error;
use super::plan::Plan;
use super::target::{Bound, Point};
use crate::archive::{Archive, Reading, Sought, Tails};
use crate::repository::Repository;

/// The commits of a plan's WAL.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Commits {
    /// The first one in it.
    pub first: Option<Timestamp>,
    /// The last one that is restored; none where the WAL has none, or none that can be read here.
    pub last: Option<Timestamp>,
    /// Whether it is known that there is none: the restored cluster is as the backup left it.
    #[serde(skip)]
    pub has_none: bool,
}

/// Reads the commits of a plan from the summaries of its WAL.
///
/// # Errors
/// The repository's.
pub fn commits(repository: &Repository, plan: &Plan, reading: Reading) -> Result<Commits, Error> {
    let size = plan.backup.wal_segment_size;
    let archive = Archive::new(repository, &plan.chain, reading)?.with_tails(Tails::Used);
    let route = archive.route(&plan.history, size, size.segment_of(plan.backup.start_lsn))?;
    let last = plan.segments.last().and_then(|(name, _)| name.number(size));
    let Some(last) = last else {
        return Ok(Commits::default());
    };
    let stretch = route.stretch.before(last.next());
    let first = archive.seek(stretch.each(), |_, resolved| {
        committed(&resolved.summary, &Point::End, Bound::Inclusive).map(|(first, _)| first)
    })?;
    let target = &plan.target;
    let last = archive.seek(stretch.each().rev(), |_, resolved| {
        committed(&resolved.summary, &target.point, target.bound).map(|(_, last)| last)
    })?;
    Ok(Commits {
        first: first.found(),
        last: last.found(),
        has_none: last == Sought::Nowhere,
    })
}

/// The first and the last commit of a segment that recovery to a target replays (xlogrecovery.c, `recoveryStopsBefore`).
fn committed(summary: &Summary, point: &Point, bound: Bound) -> Option<(Timestamp, Timestamp)> {
    let end = end_in(summary, point);
    let is_before = |lsn: Lsn, time: Timestamp| match (point, bound) {
        (Point::Time(target), Bound::Inclusive) => time <= *target,
        (Point::Time(target), Bound::Exclusive) => time < *target,
        (_, Bound::Inclusive) => end.is_none_or(|end| lsn <= end),
        (_, Bound::Exclusive) => end.is_none_or(|end| lsn < end),
    };
    let transactions = { summary.transactions.iter() }
        .filter(|it| it.outcome == Outcome::Committed && is_before(it.lsn, it.time));
    let times: Vec<Timestamp> = transactions.map(|it| it.time).collect();
    times.first().copied().zip(times.last().copied())
}

/// Where a target lies in a segment, if it does.
fn end_in(summary: &Summary, point: &Point) -> Option<Lsn> {
    match point {
        Point::Lsn(lsn) => Some(*lsn),
        Point::Xid(xid) => {
            let own = { summary.transactions.iter() }.find(|it| it.xid == *xid);
            own.map(|it| it.lsn)
        }
        Point::Name(wanted) => {
            let mut notes = summary.notes.iter();
            let note = notes.find(
                |note| matches!(&note.event, Event::RestorePoint { name, .. } if name == wanted),
            );
            note.map(|note| note.lsn)
        }
        Point::End | Point::Immediate | Point::Time(_) => None,
    }
}
