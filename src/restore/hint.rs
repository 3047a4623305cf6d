//! What can be reached instead of a target.

use std::fmt;

use walhalla_postgres::TimelineId;

use super::target::{Bound, Point, Target, TargetTimeline, shell_bytes, shell_word};
use crate::repository::{BackupEntry, BackupId};

/// Options of `restore` that lead somewhere, beside those that the user gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    point: Point,
    timeline: Option<TimelineId>,
    is_exclusive: bool,
    pub(super) backup: Option<BackupId>,
}

impl Hint {
    /// To this point.
    pub(super) fn of(point: Point) -> Self {
        Self {
            point,
            timeline: None,
            is_exclusive: false,
            backup: None,
        }
    }

    /// To the end of a backup.
    pub(super) fn end_of(backup: &BackupEntry) -> Self {
        Self {
            backup: Some(backup.id.clone()),
            ..Self::of(Point::Immediate)
        }
    }

    /// The same on a timeline.
    pub(super) fn on(self, timeline: TimelineId) -> Self {
        Self {
            timeline: Some(timeline),
            ..self
        }
    }

    /// The same, stopping just before it.
    pub(super) fn exclusive(self) -> Self {
        Self {
            is_exclusive: true,
            ..self
        }
    }

    /// The target that it makes of the one that was asked for.
    pub(super) fn target(&self, asked: &Target) -> Target {
        Target {
            point: self.point.clone(),
            timeline: self.timeline.map_or(asked.timeline, TargetTimeline::Id),
            bound: if self.is_exclusive {
                Bound::Exclusive
            } else {
                asked.bound
            },
            ..asked.clone()
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.point {
            Point::End => {
                f.write_str("no --target option, which restores everything that is archived")?;
            }
            Point::Immediate => f.write_str("--target-immediate")?,
            Point::Time(time) => write!(f, "--target-time {}", shell_word(&time.to_string()))?,
            Point::Lsn(lsn) => write!(f, "--target-lsn {lsn}")?,
            Point::Xid(xid) => write!(f, "--target-xid {xid}")?,
            Point::Name(name) => write!(f, "--target-name {}", shell_bytes(name.as_bytes()))?,
        }
        if self.is_exclusive {
            f.write_str(" --target-exclusive")?;
        }
        if let Some(timeline) = self.timeline {
            write!(f, " --target-timeline {}", timeline.number())?;
        }
        if let Some(backup) = &self.backup {
            write!(f, " --backup {backup}")?;
        }
        Ok(())
    }
}
