//! What is said of backups after they were taken: whether they are permanent.
//!
//! `backup.json` is never replaced, so each mark is an object of its own, created once and never changed:
//!
//! ```text
//! <system identifier>/marks/<backup id>/NNNNN-permanent       or -impermanent
//! ```
//!
//! The key says everything: one listing reads the marks of all backups. Of a backup's marks the one with the greatest
//! number counts; of two with one number, made at the same moment, the permanent one. A backup without a mark is
//! what its `backup.json` says, and every backup is permanent that a permanent delta stands on.

use std::collections::HashMap;
use std::fmt;

use super::entry::{BackupEntry, BackupId};

/// Whether retention rules keep a backup. The greater one counts where two are said at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permanence {
    /// The rules decide.
    Impermanent,
    /// It is kept whatever they say.
    Permanent,
}

/// A backup's mark: the later of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Its number, from 1.
    pub number: u32,
    /// What it says.
    pub permanence: Permanence,
}

/// The mark of each backup that counts.
#[derive(Clone, Debug, Default)]
pub struct Marks(HashMap<BackupId, Mark>);

impl Permanence {
    /// Of a backup that is permanent or not.
    pub fn of(permanent: bool) -> Self {
        if permanent {
            Self::Permanent
        } else {
            Self::Impermanent
        }
    }
}

impl fmt::Display for Permanence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Permanent => "permanent",
            Self::Impermanent => "impermanent",
        })
    }
}

impl FromIterator<(BackupId, Mark)> for Marks {
    fn from_iter<I: IntoIterator<Item = (BackupId, Mark)>>(marks: I) -> Self {
        let mut newest: HashMap<BackupId, Mark> = HashMap::new();
        for (id, mark) in marks {
            let known = newest.entry(id).or_insert(mark);
            *known = mark.max(*known);
        }
        Self(newest)
    }
}

impl Marks {
    /// What was said last of a backup by itself; `backup` as its `backup.json` has it.
    pub fn permanence_of(&self, backup: &BackupEntry) -> Permanence {
        self.0.get(&backup.id).map_or_else(
            || Permanence::of(backup.permanent),
            |newest| newest.permanence,
        )
    }

    /// The mark that comes after those that there are.
    pub(super) fn next(&self, id: &BackupId, permanence: Permanence) -> Mark {
        let newest = self.0.get(id).map_or(0, |newest| newest.number);
        Mark {
            number: newest.saturating_add(1),
            permanence,
        }
    }

    /// The backups of which something was said later than what `others` say.
    pub fn newer_than<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a BackupId> {
        let newer = |(id, mark): &(&BackupId, &Mark)| others.0.get(*id) < Some(*mark);
        self.0
            .iter()
            .filter(move |named| newer(named))
            .map(|(id, _)| id)
    }

    /// The mark of a backup that counts, if it has one.
    pub(super) fn of(&self, id: &BackupId) -> Option<Mark> {
        self.0.get(id).copied()
    }
}
