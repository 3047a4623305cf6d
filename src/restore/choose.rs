//! Choosing backup, timeline and segments.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::Error;
use super::plan::{Plan, Unreachable};
use super::reach::{Found, Search};
use super::target::{self, Point, Target, TargetTimeline};
use crate::postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use crate::repository::{ArchivedFile, BackupEntry, Repository};
use crate::wal;
use crate::wal::archive::{Archive, Route};
use crate::wal::event::{Event, Outcome, TimelineSwitch};
use crate::wal::summary::{Note, Transaction};

/// Everything the choice is made from.
pub(super) struct Planner<'a> {
    archive: &'a Archive<'a>,
    repository: &'a Repository,
    target: &'a Target,
    backups: &'a [BackupEntry],
    /// Whether the user named the backup.
    is_chosen: bool,
    search: Option<Search<'a>>,
}

/// What one backup and the WAL after it offer.
enum Offer<'a> {
    Reaches(Box<Plan>),
    /// Not from here.
    Falls(Falls<'a>),
}

/// Why a backup does not lead to the target.
enum Falls<'a> {
    /// For this reason.
    Reason(Unreachable),
    /// The target is there, and was rolled back; of all reasons the best.
    RolledBack(Unreachable),
    /// The target is nowhere on the way. What else is there is known when every backup was tried.
    NotFound(Way<'a>),
}

/// Where recovery from a backup goes to.
#[derive(Clone)]
struct Way<'a> {
    backup: &'a BackupEntry,
    history: &'a History,
    route: Route,
    /// The segment that makes the backup consistent.
    consistent: SegmentNo,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        archive: &'a Archive<'a>,
        target: &'a Target,
        backups: &'a [BackupEntry],
        is_chosen: bool,
    ) -> Self {
        let size = backups.first().map(|backup| backup.wal_segment_size);
        Self {
            archive,
            repository: archive.repository,
            target,
            backups,
            is_chosen,
            search: size.map(|size| Search::new(archive, target, size)),
        }
    }

    pub(super) fn plan(mut self) -> Result<Plan, Error> {
        if self.backups.is_empty() {
            let store = self.repository.store.url();
            return Err(unreachable(format!("{store} holds no backup")).into());
        }
        let mut refusal = None;
        let mut named: BTreeSet<(Lsn, Timestamp)> = BTreeSet::new();
        let (mut reaching, mut left_out) = (None, None);
        for backup in self.candidates() {
            let Some(history) = self.followed(backup)? else {
                continue;
            };
            if let Some(left) = self.passed_over(history, backup)? {
                left_out.get_or_insert(left);
                continue;
            }
            match self.offer(backup, history, &mut named)? {
                Offer::Reaches(plan) if self.looks_on() => _ = reaching.get_or_insert(*plan),
                Offer::Reaches(plan) => return Ok(*plan),
                Offer::Falls(falls @ Falls::RolledBack(_)) => refusal = Some(falls),
                // The newest backup's reason is the one that a reader can act on.
                Offer::Falls(falls) => _ = refusal.get_or_insert(falls),
            }
            if !self.older_may_do() {
                break;
            }
        }
        if let Some(plan) = reaching {
            return Self::only(plan, &named);
        }
        let refusal = refusal.map(|falls| self.told(falls)).or(left_out);
        Err(refusal.unwrap_or_else(|| self.no_candidate()).into())
    }

    /// Backups in the order in which they are tried: the newest first of those that end before the target for all that
    /// the catalog tells.
    fn candidates(&self) -> Vec<&'a BackupEntry> {
        let mut backups: Vec<_> = self
            .backups
            .iter()
            .filter(|backup| self.may_end_before_target(backup))
            .collect();
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_time));
        backups
    }

    /// Whether an older backup may reach what a newer one does not: a point that the catalog cannot place for sure, and
    /// one that may be on the older one's timeline, where backups are on several.
    fn older_may_do(&self) -> bool {
        match self.target.point {
            Point::Name(_) | Point::Xid(_) | Point::Time(_) | Point::Lsn(_) => true,
            Point::End | Point::Immediate => false,
        }
    }

    /// Whether older backups are looked at although one reaches the target: a name may be there twice.
    fn looks_on(&self) -> bool {
        matches!(self.target.point, Point::Name(_))
    }

    /// The plan for a name, if only one restore point has it.
    fn only(plan: Plan, named: &BTreeSet<(Lsn, Timestamp)>) -> Result<Plan, Error> {
        if named.len() < 2 {
            return Ok(plan);
        }
        let places: Vec<String> = named
            .iter()
            .map(|(lsn, time)| format!("{lsn} ({time})"))
            .collect();
        let last = named.last().map(|(lsn, _)| *lsn);
        Err(Unreachable {
            reason: format!(
                "{} restore points have the name: at {}",
                named.len(),
                places.join(", at ")
            ),
            nearest: last.map(|lsn| format!("--target-lsn {lsn}")),
        }
        .into())
    }

    /// The history to follow from `backup`; `None` when it does not lead to the timeline that is asked for.
    ///
    /// `latest` is the newest timeline that leads on from the backup and that somebody lived on: a
    /// copy that was promoted and never archived a segment has left no more than its history.
    fn followed(&self, backup: &BackupEntry) -> Result<Option<&'a History>, Error> {
        let histories = &self.archive.histories.known;
        match self.target.timeline {
            TargetTimeline::Current => Ok(histories.get(&backup.timeline)),
            TargetTimeline::Latest => {
                self.nothing_newer_is_unknown(backup)?;
                let newest_first = histories.values().rev();
                for history in newest_first.filter(|history| backup.leads_to(history)) {
                    if self.is_lived_on(history, backup)? {
                        return Ok(Some(history));
                    }
                }
                Ok(None)
            }
            TargetTimeline::Id(timeline) => {
                let unknown =
                    || unreachable(format!("the archive has no timeline {}", timeline.number()));
                let history = histories.get(&timeline).ok_or_else(unknown)?;
                Ok(Some(history).filter(|history| backup.leads_to(history)))
            }
        }
    }

    /// A later timeline whose history is lost may be the one that was lived on.
    fn nothing_newer_is_unknown(&self, backup: &BackupEntry) -> Result<(), Error> {
        for timeline in &self.archive.histories.unknown {
            let has_segments = || -> Result<bool, Error> {
                let listing = self.archive.listing(*timeline, None)?;
                Ok(!listing.segments.is_empty())
            };
            if *timeline > backup.timeline && has_segments()? {
                let number = timeline.number();
                let file = WalFileName::History(*timeline);
                return Err(unreachable(format!(
                    "the archive holds WAL of timeline {number} and not its history, {file}, so whether it leads on \
                     from backup {} cannot be told; bring the file back, or choose with --target-timeline",
                    backup.id
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Whether the segment in which a timeline begins is in the archive.
    fn is_lived_on(&self, history: &History, backup: &BackupEntry) -> Result<bool, Error> {
        let Some(parent) = history
            .ancestors
            .last()
            .filter(|_| history.timeline != backup.timeline)
        else {
            return Ok(true);
        };
        let size = backup.wal_segment_size;
        self.is_archived(
            size.segment_of(parent.switch_lsn)
                .on(history.timeline, size),
        )
    }

    fn is_archived(&self, segment: SegmentName) -> Result<bool, Error> {
        Ok(self
            .repository
            .find_wal(WalFileName::Segment(segment))?
            .is_some())
    }

    /// Timelines that lead on from the backup too and that the plan does not follow.
    fn other_timelines(&self, history: &History, backup: &BackupEntry) -> Result<Vec<u32>, Error> {
        let size = backup.wal_segment_size;
        let mut others = Vec::new();
        for other in self.archive.histories.known.values() {
            let goes_on = match history.switch_from(other.timeline) {
                Some(switch) => {
                    self.is_archived(size.segment_of(switch).next().on(other.timeline, size))?
                }
                None => other.timeline != history.timeline && self.is_lived_on(other, backup)?,
            };
            if goes_on && backup.leads_to(other) {
                others.push(other.timeline.number());
            }
        }
        Ok(others)
    }

    /// Why `latest` does not begin with `backup`, if it does not: its branch had ended before another one began.
    fn passed_over(
        &self,
        history: &History,
        backup: &BackupEntry,
    ) -> Result<Option<Unreachable>, Error> {
        let is_free = self.target.timeline == TargetTimeline::Latest && !self.is_chosen;
        let left_for = is_free
            .then(|| self.left_for(history, backup))
            .transpose()?;
        let (own, id) = (history.timeline.number(), &backup.id);
        Ok(left_for.flatten().map(|other| Unreachable {
            reason: format!(
                "timeline {} began after timeline {own} had ended, and no backup leads to it; {id} is one of the branch \
                 that was left",
                other.number()
            ),
            nearest: Some(format!("--target-timeline {own}")),
        }))
    }

    /// The timeline that began, and was lived on, after the branch of `history` had ended: `history` was left by a restore
    /// to the past, and `backup`, taken after that point, does not lead to where life went on.
    fn left_for(
        &self,
        history: &History,
        backup: &BackupEntry,
    ) -> Result<Option<TimelineId>, Error> {
        let others = self.archive.histories.known.values();
        for other in others.filter(|other| !backup.leads_to(other)) {
            let is_later = other.timeline > history.timeline && self.is_lived_on(other, backup)?;
            if is_later
                && let Some(began) = self.began(other, backup.wal_segment_size)?
                && let Some(ended) = self.ended(history, backup.wal_segment_size)?
                && ended < began
            {
                return Ok(Some(other.timeline));
            }
        }
        Ok(None)
    }

    /// When a timeline began: its first record tells (xlog.c, `CreateEndOfRecoveryRecord`, or a checkpoint).
    fn began(&self, history: &History, size: SegmentSize) -> Result<Option<Timestamp>, Error> {
        let Some((timeline, begin, _)) = history.spans().next_back() else {
            return Ok(None);
        };
        let route = self.archive.route(history, size, size.segment_of(begin))?;
        let mut first = None;
        self.archive.walk(history, &route.segments, |_, resolved| {
            let mut switches = resolved.summary.notes.iter().filter_map(timelines);
            first = switches.find(|switch| switch.timeline == timeline.number());
            Ok::<_, wal::Error>(first.is_none())
        })?;
        Ok(first.map(|switch| switch.time))
    }

    /// When the last transaction or checkpoint of a timeline ended.
    fn ended(&self, history: &History, size: SegmentSize) -> Result<Option<Timestamp>, Error> {
        let Some((_, begin, _)) = history.spans().next_back() else {
            return Ok(None);
        };
        let route = self.archive.route(history, size, size.segment_of(begin))?;
        for last in (0..route.segments.len()).rev() {
            let mut ended = None;
            let one = route.segments.get(last..=last).unwrap_or_default();
            self.archive.walk(history, one, |_, resolved| {
                let summary = &resolved.summary;
                let checkpoints = summary.notes.iter().filter_map(timelines);
                let checkpoints = checkpoints.map(|switch| switch.time).max();
                ended = checkpoints.max(summary.times.map(|(_, last)| last));
                Ok::<_, wal::Error>(true)
            })?;
            if ended.is_some() {
                return Ok(ended);
            }
        }
        Ok(None)
    }

    fn may_end_before_target(&self, backup: &BackupEntry) -> bool {
        match &self.target.point {
            Point::End | Point::Immediate | Point::Name(_) => true,
            // What was committed between an earlier time and the backup's end is in its files, whatever PostgreSQL stops at.
            Point::Time(time) => backup.stop_time <= *time,
            Point::Lsn(lsn) => backup.stop_lsn <= *lsn,
            Point::Xid(xid) => ends_after(&backup.stop_snapshot, *xid),
        }
    }

    fn no_candidate(&self) -> Unreachable {
        let leads = |backup: &&BackupEntry| {
            let followed = self.followed(backup);
            followed.is_ok_and(|history| history.is_some())
        };
        let backups = self.backups.iter().filter(leads);
        match backups.min_by_key(|backup| backup.stop_lsn) {
            Some(oldest) => self.before(oldest),
            None => unreachable("no backup leads to this timeline".to_owned()),
        }
    }

    /// The target lies before the end of `backup`.
    fn before(&self, backup: &BackupEntry) -> Unreachable {
        Unreachable {
            reason: format!(
                "{} is before the end of backup {}, {} ({}), and no older backup leads there",
                self.target.point, backup.id, backup.stop_lsn, backup.stop_time
            ),
            nearest: Some(format!("--target-immediate --backup {}", backup.id)),
        }
    }

    fn offer(
        &mut self,
        backup: &'a BackupEntry,
        history: &'a History,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Offer<'a>, Error> {
        if let Some(object) = self.repository.missing_object(backup)? {
            let reason = format!("{object}, a part of the backup, is missing or of another length");
            return Ok(Offer::Falls(Falls::Reason(unreachable(reason))));
        }
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let way = Way {
            backup,
            history,
            route: self.archive.route(history, size, first)?,
            consistent: size.segment_before(backup.stop_lsn),
        };
        if !way.has(way.consistent) {
            let reason = format!(
                "WAL segment {}, without which backup {} is not consistent, is missing",
                way.missing(),
                backup.id
            );
            return Ok(Offer::Falls(Falls::Reason(unreachable(reason))));
        }
        let last = match &self.target.point {
            Point::Immediate => Ok(way.consistent),
            Point::End => Self::end(&way).map_err(Falls::Reason),
            _ => self.target_segment(&way, named)?,
        };
        Ok(match last {
            Ok(last) => Offer::Reaches(Box::new(self.planned(way, last)?)),
            Err(falls) => Offer::Falls(falls),
        })
    }

    fn told(&self, falls: Falls) -> Unreachable {
        match falls {
            Falls::Reason(reason) | Falls::RolledBack(reason) => reason,
            Falls::NotFound(way) => self.not_found(&way),
        }
    }

    /// The last segment of the archive.
    fn end(way: &Way) -> Result<SegmentNo, Unreachable> {
        let missing = way.missing();
        if way.route.gap {
            let reason = format!("WAL segment {missing} is missing, and later ones are there");
            return Err(unreachable(reason));
        }
        // The archive ends before the timeline that is followed begins.
        let begins = way.history.spans().next_back();
        let begin = begins.map_or(Lsn::ZERO, |(_, begin, _)| begin);
        if !way.has(way.backup.wal_segment_size.segment_of(begin)) {
            return Err(unreachable(format!("WAL segment {missing} is missing")));
        }
        Ok(SegmentNo(way.next().0 - 1))
    }

    /// The segment in which the record ends at which recovery stops.
    fn target_segment(
        &mut self,
        way: &Way<'a>,
        named: &mut BTreeSet<(Lsn, Timestamp)>,
    ) -> Result<Result<SegmentNo, Falls<'a>>, Error> {
        let Some(search) = &mut self.search else {
            return Ok(Err(Falls::Reason(self.no_candidate())));
        };
        let found = search.find(way.history, &way.route.segments, way.backup.start_lsn)?;
        let places = found
            .iter()
            .filter_map(|found| Some((found.hit.start, found.hit.time?)));
        named.extend(places);
        let Some(first) = found.first() else {
            return Ok(Err(Falls::NotFound(way.clone())));
        };
        if first.hit.outcome == Some(Outcome::Aborted) && matches!(self.target.point, Point::Xid(_))
        {
            return Ok(Err(Falls::RolledBack(self.aborted(way, first))));
        }
        // PostgreSQL refuses to stop before it is consistent.
        if first.hit.start < way.backup.stop_lsn {
            return Ok(Err(Falls::Reason(self.before(way.backup))));
        }
        Ok(Ok(first.segment.max(way.consistent)))
    }

    fn aborted(&self, way: &Way, found: &Found) -> Unreachable {
        let position = found.hit.start;
        let is_in_files = |backup: &BackupEntry| position < backup.stop_lsn;
        let nearest = if self.backups.iter().all(is_in_files) {
            format!("--target-immediate --backup {}", way.backup.id)
        } else {
            format!("--target-lsn {position}")
        };
        let time = found
            .hit
            .time
            .map_or_else(String::new, |time| format!(" at {time}"));
        Unreachable {
            reason: format!("{} was rolled back{time}", self.target.point),
            nearest: Some(nearest),
        }
    }

    fn not_found(&self, way: &Way) -> Unreachable {
        let point = &self.target.point;
        let seen = self.search.as_ref().map(|search| search.seen.clone());
        let seen = seen.unwrap_or_default();
        let missing = way.missing();
        let reason = match point {
            Point::Xid(_) if let Some(parent) = &seen.parent => return self.part_of(parent),
            Point::Name(name) => {
                let similar = nearest_names(name, &self.usable(&seen.restore_points));
                if let Some((nearest, _)) = similar.first().filter(|_| !way.route.gap) {
                    let quoted = target::shell_word(nearest);
                    return Unreachable {
                        reason: format!(
                            "the archive has no {point}; there are {}",
                            shown(&similar)
                        ),
                        nearest: Some(format!("--target-name {quoted}")),
                    };
                }
                format!("{point} is not in the archive, which")
            }
            Point::Xid(_) if seen.wrote => {
                format!("{point} neither committed nor was rolled back in the archive, which")
            }
            _ => format!("{point} is not in the archive, which"),
        };
        let newest = seen.newest.map_or_else(String::new, |newest| {
            format!(
                "; its newest transaction, {}, ended at {}",
                newest.xid, newest.time
            )
        });
        if way.route.gap {
            let nearest = seen
                .newest
                .map(|newest| format!("--target-xid {}", newest.xid));
            return Unreachable {
                reason: format!("{reason} has a gap at WAL segment {missing}{newest}"),
                nearest,
            };
        }
        Unreachable {
            reason: format!("{reason} ends before WAL segment {missing}{newest}"),
            nearest: Some("none of the --target options (the end of the archive)".to_owned()),
        }
    }

    /// The target is a subtransaction of `parent`.
    fn part_of(&self, parent: &Transaction) -> Unreachable {
        let (point, xid) = (&self.target.point, parent.xid);
        match parent.outcome {
            Outcome::Committed => Unreachable {
                reason: format!("{point} is a subtransaction of {xid}"),
                nearest: Some(format!("--target-xid {xid}")),
            },
            Outcome::Aborted => Unreachable {
                reason: format!(
                    "{point} is a subtransaction of {xid}, which was rolled back at {}",
                    parent.time
                ),
                nearest: Some(format!("--target-lsn {}", parent.lsn)),
            },
        }
    }

    /// The restore points that can be targets: their names are there once, and a backup ends before them.
    fn usable(&self, points: &BTreeSet<(String, Lsn, Timestamp)>) -> Vec<(String, Timestamp)> {
        let oldest = self.backups.iter().map(|backup| backup.stop_lsn).min();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (name, ..) in points {
            *places.entry(name).or_default() += 1;
        }
        let usable = points
            .iter()
            .filter(|(name, lsn, _)| Some(*lsn) >= oldest && places.get(name.as_str()) == Some(&1));
        usable
            .map(|(name, _, time)| (name.clone(), *time))
            .collect()
    }

    fn planned(&self, way: Way, last: SegmentNo) -> Result<Plan, Error> {
        let Way {
            backup,
            history,
            route,
            consistent,
        } = way;
        let first = backup.wal_segment_size.segment_of(backup.start_lsn);
        let count = |last: SegmentNo| usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let segments = route.segments.into_iter().take(count(last));
        Ok(Plan {
            target: self.target.clone(),
            backup: backup.clone(),
            history: history.clone(),
            segments: segments
                .map(|needed| (needed.name, needed.archived))
                .collect(),
            segments_to_consistency: count(consistent),
            histories: self.history_files(history)?,
            other_timelines: self.other_timelines(history, backup)?,
        })
    }

    /// The history of the timeline that is followed, and those of all newer ones: the server asks for
    /// them to find a number for its own next timeline that is not taken.
    fn history_files(&self, history: &History) -> Result<Vec<(TimelineId, ArchivedFile)>, Error> {
        let mut files = Vec::new();
        for timeline in self
            .archive
            .histories
            .known
            .keys()
            .filter(|timeline| **timeline >= history.timeline)
        {
            if let Some(archived) = self.repository.find_wal(WalFileName::History(*timeline))? {
                files.push((*timeline, archived));
            }
        }
        Ok(files)
    }
}

impl Way<'_> {
    /// The segment after the last one of the route.
    fn next(&self) -> SegmentNo {
        let first = self
            .backup
            .wal_segment_size
            .segment_of(self.backup.start_lsn);
        SegmentNo(first.0 + self.route.segments.len() as u64)
    }

    /// Its name, for messages.
    fn missing(&self) -> SegmentName {
        self.history
            .segment_name(self.next(), self.backup.wal_segment_size)
    }

    fn has(&self, segment: SegmentNo) -> bool {
        segment < self.next()
    }
}

/// The timeline that a checkpoint, or the end of recovery, tells.
fn timelines(note: &Note) -> Option<TimelineSwitch> {
    match note.event {
        Event::Checkpoint(checkpoint) => Some(checkpoint.timelines),
        Event::EndOfRecovery(timelines) => Some(timelines),
        _ => None,
    }
}

fn unreachable(reason: String) -> Unreachable {
    Unreachable {
        reason,
        nearest: None,
    }
}

/// The restore points whose names are most like `name`, the most alike first.
fn nearest_names(name: &str, points: &[(String, Timestamp)]) -> Vec<(String, Timestamp)> {
    const SHOWN: usize = 3;
    let mut points: Vec<_> = points.to_vec();
    points.sort_by_key(|(other, _)| strsim::damerau_levenshtein(name, other));
    points.truncate(SHOWN);
    points
}

fn shown(points: &[(String, Timestamp)]) -> String {
    let shown = points
        .iter()
        .map(|(name, time)| format!("{name:?} ({time})"));
    shown.collect::<Vec<_>>().join(", ")
}

/// Whether transaction `xid` ends after the snapshot `xmin:xmax:xip,…` was taken, as far as the snapshot tells.
fn ends_after(snapshot: &str, xid: u32) -> bool {
    let mut fields = snapshot.split(':').map(|field| {
        field
            .split(',')
            .filter_map(|number| number.parse::<u64>().ok())
    });
    let (_, xmax) = (
        fields.next(),
        fields.next().and_then(|mut numbers| numbers.next()),
    );
    let running: Vec<u64> = fields.next().map(Iterator::collect).unwrap_or_default();
    // Of the 64-bit numbers that the target may stand for, the one nearest to the snapshot (transam.h, `TransactionIdPrecedes`).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "transaction numbers are compared modulo 2^32"
    )]
    let is_later = xmax.is_some_and(|xmax| xid.wrapping_sub(xmax as u32) < 1 << 31);
    #[expect(clippy::cast_possible_truncation, reason = "as above")]
    let is_running = running.iter().any(|number| *number as u32 == xid);
    is_later || is_running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_a_snapshot_does_not_see_ends_after_it() {
        for (snapshot, xid, later) in [
            ("700:700:", 700, true),
            ("700:700:", 699, false),
            ("700:705:700,703", 703, true),
            ("700:705:700,703", 702, false),
            ("4294967290:4294967300:", 3, false),
            ("4294967290:4294967300:", 5, true),
        ] {
            assert_eq!(ends_after(snapshot, xid), later, "{xid} in {snapshot}");
        }
    }
}
