//! What was committed, when and on which branch; and what of it a restore has to bring.
//!
//! Of each commit two moments are known, one before it began and one after it was acknowledged. Where a target lies
//! between them, the commit may be there or not; of all others it is known. Branches are what history files say:
//!
//! ```text
//! 1 ──c c c──┬──c c──▶          a path to a target on 3: of 1 what ends before the first switch,
//!            └─ 2 ──c──┬──c──▶                           of 2 what ends before the second, of 3 what ends before
//!                      └─ 3 ──c──▶                       the target
//! ```

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walhalla_postgres::Lsn;

/// Of the servers here (`Shape::small`).
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// A position in the WAL and the time at which it was the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub lsn: Lsn,
    pub time: Timestamp,
}

/// A row that was, or may have been, committed.
#[derive(Clone, Debug)]
pub struct Commit {
    pub id: i64,
    pub timeline: u32,
    pub xid: Option<u32>,
    pub is_acknowledged: bool,
    /// Whether the server acknowledges it only when a receiver has stored it.
    pub waits_for_store: bool,
    /// Before the commit began.
    pub from: Moment,
    /// After it was there; `None` while that is in doubt.
    pub to: Option<Moment>,
}

/// A restore point.
#[derive(Clone, Debug)]
pub struct RestorePoint {
    pub name: String,
    pub timeline: u32,
    pub from: Moment,
    pub to: Moment,
}

/// A backup as `backup-list` shows it.
#[derive(Clone, Debug)]
pub struct Backup {
    pub id: String,
    pub is_delta: bool,
    /// Known of those that were taken here.
    pub is_of_standby: bool,
    pub timeline: u32,
    pub stop_lsn: Lsn,
    pub stop_time: Timestamp,
}

/// A branch.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Its ancestors, and where each was left.
    pub ancestors: Vec<(u32, Lsn)>,
    /// Up to here its WAL was acknowledged by the archive.
    pub archived: Lsn,
}

/// Where a restore stops.
#[derive(Clone, Copy, Debug)]
pub enum Stop<'a> {
    /// At the end of what was archived.
    End,
    Lsn(Lsn),
    /// At a time; whether a commit at that time is in it.
    Time(Timestamp, Bound),
    /// At a commit.
    Xid(&'a Commit, Bound),
    Name(&'a RestorePoint),
}

/// Whether the target itself is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Inclusive,
    Exclusive,
}

/// Whether a commit is there after a restore. The order counts: of several judgements the least holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    Forbidden,
    Possible,
    Required,
}

/// Everything that is known.
#[derive(Default)]
pub struct Model {
    pub commits: Vec<Commit>,
    pub points: Vec<RestorePoint>,
    pub backups: Vec<Backup>,
    pub timelines: BTreeMap<u32, Timeline>,
}

impl Moment {
    /// What of a thing that was begun at `from` and there at `to` lies before `border`.
    fn before<T: PartialOrd>(from: &T, to: Option<&T>, border: &T) -> Presence {
        if to.is_some_and(|to| to <= border) {
            Presence::Required
        } else if from >= border {
            Presence::Forbidden
        } else {
            Presence::Possible
        }
    }
}

impl Commit {
    /// Whether a receiver had stored it when it was acknowledged.
    fn is_received(&self) -> bool {
        self.is_acknowledged && self.waits_for_store
    }

    fn before_lsn(&self, border: Lsn) -> Presence {
        let to = self.to.map(|to| to.lsn);
        Moment::before(&self.from.lsn, to.as_ref(), &border)
    }

    /// Times are compared as PostgreSQL does: a commit at the very time of an inclusive target is replayed.
    fn before_time(&self, border: Timestamp, bound: Bound) -> Presence {
        let (from, to) = (self.from.time, self.to.map(|to| to.time));
        let is_before = |time: Timestamp| match bound {
            Bound::Inclusive => time <= border,
            Bound::Exclusive => time < border,
        };
        if to.is_some_and(is_before) {
            Presence::Required
        } else if is_before(from) {
            Presence::Possible
        } else {
            Presence::Forbidden
        }
    }
}

impl Timeline {
    /// Where the path to this timeline leaves `other`; the end of all things on itself, `None` where it does not lead.
    fn leaves(&self, own: u32, other: u32) -> Option<Lsn> {
        if own == other {
            return Some(Lsn(u64::MAX));
        }
        let ancestor = self.ancestors.iter().find(|(number, _)| *number == other);
        ancestor.map(|(_, lsn)| *lsn)
    }
}

impl Model {
    pub fn timeline(&self, number: u32) -> &Timeline {
        &self.timelines[&number]
    }

    /// A timeline begins, as its history tells.
    ///
    /// A server that recovers along 2 to a point before that one began writes `1 0/9000000` and `2 0/4000000` into the
    /// history of 3: it never was on 2, and left 1 where 3 begins (timeline.c, `tliOfPointInHistory`).
    pub fn begin(&mut self, number: u32, mut ancestors: Vec<(u32, Lsn)>) {
        let mut end = Lsn(u64::MAX);
        for (_, left) in ancestors.iter_mut().rev() {
            end = end.min(*left);
            *left = end;
        }
        // The segment in which a timeline begins is a copy of its parent's up to there. The parent's own is archived as
        // `.partial` only, and this one's not at all if the server is promoted again before it is full.
        let begin = ancestors.last().map_or(Lsn::ZERO, |(_, lsn)| *lsn);
        let archived = Lsn(begin.0 - begin.0 % SEGMENT_BYTES);
        let timeline = Timeline {
            ancestors,
            archived,
        };
        let known = self.timelines.insert(number, timeline);
        assert!(known.is_none(), "timeline {number} began twice");
    }

    /// A client committed, or may have.
    pub fn add(&mut self, commit: Commit) {
        if let (true, Some(to)) = (commit.is_received(), commit.to) {
            self.archived(commit.timeline, to.lsn);
        }
        self.commits.push(commit);
    }

    /// The archive has everything of this timeline before `lsn`.
    pub fn archived(&mut self, number: u32, lsn: Lsn) {
        let archived = &mut self.timelines.get_mut(&number).unwrap().archived;
        *archived = lsn.max(*archived);
    }

    /// Whether a commit is there after a restore along `timeline` to `stop`.
    pub fn presence(&self, commit: &Commit, timeline: u32, stop: Stop) -> Presence {
        let path = self.timeline(timeline);
        let Some(leaves) = path.leaves(timeline, commit.timeline) else {
            return Presence::Forbidden;
        };
        let on_path = commit.before_lsn(leaves);
        let by_stop = match stop {
            // The answer came, so that it is in the store, and where on its path nobody need know.
            Stop::End if commit.is_received() && commit.timeline == timeline => {
                return Presence::Required;
            }
            // What was not acknowledged by the archive may be in it all the same.
            Stop::End => commit.before_lsn(path.archived).max(Presence::Possible),
            Stop::Lsn(lsn) => commit.before_lsn(lsn),
            Stop::Time(time, bound) => commit.before_time(time, bound),
            Stop::Xid(target, bound) if target.id == commit.id => match bound {
                Bound::Inclusive => Presence::Required,
                Bound::Exclusive => Presence::Forbidden,
            },
            Stop::Xid(target, _) => {
                let end = target.to.map_or(target.from.lsn, |to| to.lsn);
                between(commit, target.from.lsn, end)
            }
            Stop::Name(point) => between(commit, point.from.lsn, point.to.lsn),
        };
        on_path.min(by_stop)
    }

    /// Compares the rows of a restored server with what was committed; returns how many commits were checked.
    ///
    /// # Errors
    /// What is missing and what should not be there.
    pub fn compare(
        &self,
        rows: &BTreeSet<i64>,
        timeline: u32,
        stop: Stop,
    ) -> Result<usize, String> {
        let (mut missing, mut too_many, mut checked) = (Vec::new(), Vec::new(), 0);
        for commit in &self.commits {
            let is_there = rows.contains(&commit.id);
            match self.presence(commit, timeline, stop) {
                Presence::Required if !is_there => missing.push(commit),
                Presence::Forbidden if is_there => too_many.push(commit),
                Presence::Possible => continue,
                Presence::Required | Presence::Forbidden => {}
            }
            checked += 1;
        }
        let known: BTreeSet<i64> = self.commits.iter().map(|commit| commit.id).collect();
        let unknown: Vec<&i64> = rows.difference(&known).collect();
        if missing.is_empty() && too_many.is_empty() && unknown.is_empty() {
            return Ok(checked);
        }
        Err(format!(
            "along timeline {timeline} ({:?}) to {stop:?}\n  {} lost: {:?}\n  {} that should not be there: {:?}\n  \
             from nowhere: {unknown:?}",
            self.timeline(timeline),
            missing.len(),
            missing.iter().take(3).collect::<Vec<_>>(),
            too_many.len(),
            too_many.iter().take(3).collect::<Vec<_>>(),
        ))
    }

    /// Settles what was in doubt when the server of `timeline` was killed, by what is there now that it runs again.
    pub fn settle(&mut self, timeline: u32, rows: &BTreeSet<i64>, now: Moment) {
        self.commits.retain_mut(|commit| {
            if commit.timeline != timeline || commit.to.is_some() {
                return true;
            }
            let is_there = rows.contains(&commit.id);
            assert!(
                is_there || !commit.is_acknowledged,
                "the server itself lost {commit:?}"
            );
            commit.to = Some(now);
            is_there
        });
    }

    /// The commits that are surely on the path to the end of `timeline`, in the archive, with another one behind them.
    pub fn targets(&self, timeline: u32) -> Vec<&Commit> {
        let archived = self.timeline(timeline).archived;
        let mut sure: Vec<&Commit> = self
            .commits
            .iter()
            .filter(|commit| self.presence(commit, timeline, Stop::End) == Presence::Required)
            .filter(|commit| commit.to.is_some_and(|to| to.lsn <= archived))
            .collect();
        let last = sure.iter().map(|commit| commit.from);
        let Some(last) = last.max_by_key(|from| from.lsn) else {
            return sure;
        };
        // Recovery to a time ends at a commit that is later; clients commit side by side.
        let has_follower = |to: Moment| to.lsn <= last.lsn && to.time <= last.time;
        sure.retain(|commit| commit.to.is_some_and(has_follower));
        sure
    }

    /// Whether a backup surely leads along `timeline` to what comes after `moment`.
    pub fn leads(&self, backup: &Backup, timeline: u32, moment: Moment) -> bool {
        let is_before = backup.stop_lsn <= moment.lsn && backup.stop_time <= moment.time;
        is_before && self.is_on_path(backup, timeline)
    }

    /// Whether the path to the end of `timeline` goes through the end of a backup.
    pub fn is_on_path(&self, backup: &Backup, timeline: u32) -> bool {
        let leaves = self.timeline(timeline).leaves(timeline, backup.timeline);
        leaves.is_some_and(|lsn| backup.stop_lsn <= lsn)
    }
}

/// Against a target of which only the moments before and after it are known.
fn between(commit: &Commit, from: Lsn, to: Lsn) -> Presence {
    match (commit.before_lsn(from), commit.before_lsn(to)) {
        (Presence::Required, _) => Presence::Required,
        (_, Presence::Forbidden) => Presence::Forbidden,
        _ => Presence::Possible,
    }
}
