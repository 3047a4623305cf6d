//! Where recovery would end before it comes to its target: WAL that is cut, damaged, or without some changes.

use std::sync::Arc;

use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::Event;
use walhalla_postgres::{Lsn, SegmentNo};

use super::Error;
use super::plan::Unreachable;
use super::planner::Planner;
use super::target::Point;
use super::way::{Way, is_replayed};
use crate::archive::{Examined, Facts};
use crate::repository::BackupEntry;

/// Where recovery would end early.
pub(super) struct Break {
    /// Segments of the route that it goes through.
    pub(super) usable: usize,
    pub(super) reason: String,
}

impl Planner<'_> {
    /// Where recovery through the segments up to `last`, and there to `until`, would end before it comes there.
    pub(super) fn break_in(
        &self,
        way: &Way,
        last: SegmentNo,
        until: Option<Lsn>,
        examined: &Examined,
    ) -> Option<Break> {
        let minimal = minimal(way.backup, &examined.facts, until);
        let gap = self.gap_in(way, last, examined);
        match (minimal, gap) {
            (Some(minimal), Some(gap)) if gap.usable < minimal.usable => Some(gap),
            (minimal, gap) => minimal.or(gap),
        }
    }

    pub(super) fn gap_in(&self, way: &Way, last: SegmentNo, examined: &Examined) -> Option<Break> {
        let first = way.first();
        let number = |index: usize| SegmentNo(first.0 + index as u64);
        let is_end = matches!(self.target.point, Point::End);
        let cut = examined
            .facts
            .iter()
            .enumerate()
            .find_map(|(index, facts)| {
                // What is looked for in the last one was found before it.
                let at = number(index);
                // The archive ends in what was received last; of what comes after it nothing may be lost.
                let is_tail = at.next() == way.next() && way.route.stretch.ends_in_a_tail();
                let counts = (is_end && !is_tail) || at < last;
                let lsn = facts.cut.filter(|_| counts)?;
                Some((index, lsn))
            });
        let size = way.backup.wal_segment_size;
        if let Some((index, lsn)) = cut {
            let name = way.history.segment_name(number(index), size);
            return Some(Break {
                usable: index + 1,
                reason: format!(
                    "WAL segment {name} was cut: its WAL ends at {lsn}, within the segment and without a switch"
                ),
            });
        }
        let damage = examined.damage.as_ref()?;
        Some(Break {
            usable: examined.facts.len(),
            reason: crate::output::chain(damage),
        })
    }

    /// The target lies behind a break.
    pub(super) fn at_break(&self, way: &Way, gap: Break) -> Result<Unreachable, Error> {
        let mut way = way.clone();
        let end = SegmentNo(way.first().0 + gap.usable as u64);
        way.route.stretch = way.route.stretch.before(end);
        Ok(Unreachable {
            reason: gap.reason,
            nearest: self.before_gap(&way)?,
        })
    }
}

/// Where replay ends because changes are not in the WAL.
fn minimal(backup: &BackupEntry, facts: &[Arc<Facts>], until: Option<Lsn>) -> Option<Break> {
    facts.iter().enumerate().find_map(|(index, facts)| {
        let is_minimal = |note: &&Note| {
            matches!(note.event, Event::ParameterChange { wal_level: 0, .. })
                && is_replayed(backup, until, note.lsn)
        };
        let lsn = facts.notes.iter().find(is_minimal)?.lsn;
        Some(Break {
            usable: index + 1,
            reason: format!(
                "the server ran with wal_level = minimal from {lsn} on: changes are missing in the WAL after that, and \
                 PostgreSQL does not replay it"
            ),
        })
    })
}
