//! Choosing what a restore takes, before anything is written.
//!
//! The plan names the backup, the timelines, every WAL segment that recovery will ask for, and how
//! far it must get. If something is missing the plan says what, and nothing is restored.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Error;
use super::reach::{Found, Needed, Run, Seen};
use super::target::{Point, Target, TargetTimeline};
use crate::postgres::{History, Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};
use crate::repository::{self, ArchivedFile, BackupEntry, Repository};

/// A restore that can be carried out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub target: Target,
    /// The backup to begin with.
    pub backup: BackupEntry,
    /// The timeline that recovery follows.
    pub history: History,
    /// Every segment that recovery will ask for, in the order of replay.
    pub segments: Vec<(SegmentName, ArchivedFile)>,
    /// How many of them make the backup consistent.
    pub segments_to_consistency: usize,
    /// History files that the server will ask for.
    pub histories: Vec<(TimelineId, ArchivedFile)>,
    /// Timelines that lead on from the backup too and are not followed.
    pub other_timelines: Vec<u32>,
}

/// `plan --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether the target can be reached.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Backups to restore, the full one first.
    pub backup_chain: Vec<String>,
    /// Timelines to follow, oldest first.
    pub timelines: Vec<u32>,
    /// Timelines that lead on from the backup too and are not followed.
    pub other_timelines: Vec<u32>,
    /// Segments to replay, in order.
    pub segments: Vec<String>,
    /// How many of them make the backup consistent.
    pub segments_to_consistency: usize,
    /// How many of them reach the target.
    pub segments_to_target: usize,
    /// What will be downloaded.
    pub download_bytes: u64,
    /// The target, in words.
    pub target: String,
}

/// Everything the choice is made from.
struct Planner<'a> {
    repository: &'a Repository,
    target: &'a Target,
    backups: Vec<BackupEntry>,
    histories: BTreeMap<TimelineId, History>,
    /// Timelines of which nothing tells where they come from.
    unknown: Vec<TimelineId>,
}

/// What one backup and the WAL after it offer.
enum Offer {
    Reaches(Box<Plan>),
    /// Not from here, for this reason.
    Falls(String),
}

/// Plans a restore to `target`, from the backup `chosen` or the best one.
///
/// # Errors
/// [`Error::Unreachable`] with the reason: no backup before the target, a missing segment (by name),
/// or an archive that ends too early.
pub fn plan(repository: &Repository, target: &Target, chosen: Option<&str>) -> Result<Plan, Error> {
    let backups = match chosen {
        Some(id) => vec![repository.backup(id)?],
        None => repository.usable_backups()?,
    };
    let Histories { known, unknown } = histories(repository, &backups)?;
    let planner = Planner {
        repository,
        target,
        backups,
        histories: known,
        unknown,
    };
    planner.plan()
}

/// What is known of timelines.
struct Histories {
    /// Of all timelines that the archive or a backup knows.
    known: BTreeMap<TimelineId, History>,
    /// Timelines in the archive of which nothing tells where they come from.
    unknown: Vec<TimelineId>,
}

fn histories(repository: &Repository, backups: &[BackupEntry]) -> Result<Histories, Error> {
    let mut known: BTreeMap<_, _> = backups
        .iter()
        .map(|backup| (backup.timeline, backup.timeline_history()))
        .collect();
    let mut unknown = Vec::new();
    for timeline in repository.timelines()? {
        match repository.history(timeline)? {
            Some(history) => _ = known.insert(timeline, history),
            None if timeline == TimelineId::FIRST => {
                known.insert(timeline, History::root(timeline));
            }
            None if known.contains_key(&timeline) => {}
            None => unknown.push(timeline),
        }
    }
    Ok(Histories { known, unknown })
}

impl Planner<'_> {
    fn plan(self) -> Result<Plan, Error> {
        if self.backups.is_empty() {
            let store = self.repository.store.url();
            return Err(Error::Unreachable(format!("{store} holds no backup")));
        }
        let mut backups: Vec<_> = self
            .backups
            .iter()
            .filter(|backup| self.ends_before_target(backup))
            .collect();
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_time));
        let mut reason = None;
        for backup in backups {
            let Some(history) = self.followed(backup)? else {
                continue;
            };
            match self.offer(backup, history)? {
                Offer::Reaches(plan) => return Ok(*plan),
                // The newest backup's reason is the one that a reader can act on.
                Offer::Falls(falls) => _ = reason.get_or_insert(falls),
            }
            if !self.older_may_do() {
                break;
            }
        }
        Err(Error::Unreachable(
            reason.unwrap_or_else(|| self.no_candidate()),
        ))
    }

    /// Whether an older backup may reach what a newer one does not: only what the catalog cannot place for sure.
    fn older_may_do(&self) -> bool {
        matches!(
            self.target.point,
            Point::Name(_) | Point::Xid(_) | Point::Time(_)
        )
    }

    /// The history to follow from `backup`; `None` when it does not lead to the timeline that is asked for.
    ///
    /// `latest` is the newest timeline that leads on from the backup and that somebody lived on: a
    /// copy that was promoted and never archived a segment has left no more than its history.
    fn followed(&self, backup: &BackupEntry) -> Result<Option<&History>, Error> {
        match self.target.timeline {
            TargetTimeline::Current => Ok(self.histories.get(&backup.timeline)),
            TargetTimeline::Latest => {
                self.nothing_newer_is_unknown(backup)?;
                for history in self
                    .histories
                    .values()
                    .rev()
                    .filter(|history| backup.leads_to(history))
                {
                    if self.is_lived_on(history, backup)? {
                        return Ok(Some(history));
                    }
                }
                Ok(None)
            }
            TargetTimeline::Id(timeline) => {
                let unknown = || {
                    Error::Unreachable(format!("the archive has no timeline {}", timeline.number()))
                };
                let history = self.histories.get(&timeline).ok_or_else(unknown)?;
                Ok(Some(history).filter(|history| backup.leads_to(history)))
            }
        }
    }

    /// A later timeline whose history is lost may be the one that was lived on.
    fn nothing_newer_is_unknown(&self, backup: &BackupEntry) -> Result<(), Error> {
        for timeline in &self.unknown {
            let has_segments = || -> Result<bool, Error> {
                let listing = self.repository.list_wal(*timeline, None)?;
                Ok(!listing.segments.is_empty())
            };
            if *timeline > backup.timeline && has_segments()? {
                let number = timeline.number();
                let file = WalFileName::History(*timeline);
                return Err(Error::Unreachable(format!(
                    "the archive holds WAL of timeline {number} and not its history, {file}, so whether it leads on \
                     from backup {} cannot be told; bring the file back, or choose with --target-timeline",
                    backup.id
                )));
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
        for other in self.histories.values() {
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

    fn ends_before_target(&self, backup: &BackupEntry) -> bool {
        match &self.target.point {
            Point::End | Point::Immediate | Point::Name(_) => true,
            Point::Time(time) => backup.stop_time <= *time,
            Point::Lsn(lsn) => backup.stop_lsn <= *lsn,
            Point::Xid(xid) => ends_after(&backup.stop_snapshot, *xid),
        }
    }

    fn no_candidate(&self) -> String {
        let oldest = self.backups.iter().min_by_key(|backup| backup.stop_lsn);
        let Some(oldest) = oldest.filter(|backup| !self.ends_before_target(backup)) else {
            return "no backup leads to this timeline".to_owned();
        };
        format!(
            "no backup ends before {}; the oldest, {}, ends at {} ({})",
            self.target.point, oldest.id, oldest.stop_lsn, oldest.stop_time,
        )
    }

    fn offer(&self, backup: &BackupEntry, history: &History) -> Result<Offer, Error> {
        if let Some(object) = self.repository.missing_object(backup)? {
            return Ok(Offer::Falls(format!(
                "{object}, a part of the backup, is missing or of another length"
            )));
        }
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let (segments, gap) = self.contiguous(backup, history, first)?;
        let run = Run {
            repository: self.repository,
            version: backup.postgres_version,
            segment_size: size,
            wal_page_bytes: usize::try_from(backup.wal_block_size)
                .unwrap_or(usize::MAX)
                .max(1024),
            segments,
        };
        let have = |last: SegmentNo| {
            run.segments
                .last()
                .is_some_and(|needed| needed.number >= last)
        };
        let consistent = size.segment_before(backup.stop_lsn);
        let next = SegmentNo(first.0 + run.segments.len() as u64);
        let missing = history.segment_name(next, size);
        if !have(consistent) {
            let id = &backup.id;
            return Ok(Offer::Falls(format!(
                "WAL segment {missing}, without which backup {id} is not consistent, is missing"
            )));
        }
        let begin = size.segment_of(
            history
                .spans()
                .next_back()
                .map_or(Lsn::ZERO, |(_, begin, _)| begin),
        );
        let mut seen = Seen::default();
        let last = match &self.target.point {
            Point::Immediate => consistent,
            Point::End if gap => {
                return Ok(Offer::Falls(format!(
                    "WAL segment {missing} is missing, and later ones are there"
                )));
            }
            // The archive ends before the timeline that is followed begins.
            Point::End if !have(begin) => {
                return Ok(Offer::Falls(format!("WAL segment {missing} is missing")));
            }
            Point::End => SegmentNo(next.0 - 1),
            point => match run.find(point, self.target.bound, backup.start_lsn, &mut seen)? {
                Some(found) if self.is_too_early(found, backup) => {
                    return Ok(Offer::Falls(format!(
                        "{point} is before the end of backup {}",
                        backup.id
                    )));
                }
                Some(found) => size.segment_before(found.end).max(consistent),
                None if gap => {
                    return Ok(Offer::Falls(format!(
                        "WAL segment {missing} is missing, and {point} is not before it"
                    )));
                }
                None => return Ok(Offer::Falls(ends_early(point, missing, seen))),
            },
        };
        if !have(last) {
            return Ok(Offer::Falls(format!("WAL segment {missing} is missing")));
        }
        let count = usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let segments = run
            .segments
            .into_iter()
            .take(count)
            .map(|needed| (needed.name, needed.archived))
            .collect();
        Ok(Offer::Reaches(Box::new(Plan {
            target: self.target.clone(),
            backup: backup.clone(),
            history: history.clone(),
            segments,
            segments_to_consistency: usize::try_from(consistent.0 - first.0 + 1)
                .unwrap_or(usize::MAX),
            histories: self.history_files(history)?,
            other_timelines: self.other_timelines(history, backup)?,
        })))
    }

    /// PostgreSQL refuses to stop before it is consistent.
    fn is_too_early(&self, found: Found, backup: &BackupEntry) -> bool {
        self.older_may_do() && found.start < backup.stop_lsn
    }

    /// Segments from `first` on without a hole, and whether there are more after the hole.
    fn contiguous(
        &self,
        backup: &BackupEntry,
        history: &History,
        first: SegmentNo,
    ) -> Result<(Vec<Needed>, bool), Error> {
        let size = backup.wal_segment_size;
        let mut found: BTreeMap<SegmentNo, (SegmentName, ArchivedFile)> = BTreeMap::new();
        for (timeline, begin, end) in history.segments(size) {
            let from = begin.max(first);
            if end.is_some_and(|end| end <= from) {
                continue;
            }
            let listing = self
                .repository
                .list_wal(timeline, Some(from.on(timeline, size)))?;
            for double in listing.doubles {
                match double {
                    repository::Error::TwoContents { .. } => return Err(double.into()),
                    damaged => tracing::warn!("{damaged}; its other form is used"),
                }
            }
            for (name, archived) in listing.segments {
                let Some(number) = name.number(size) else {
                    continue;
                };
                if number >= from && end.is_none_or(|end| number < end) {
                    found.insert(number, (name, archived));
                }
            }
        }
        let mut segments = Vec::new();
        let mut next = first;
        while let Some((name, archived)) = found.remove(&next) {
            segments.push(Needed {
                number: next,
                name,
                archived,
            });
            next = next.next();
        }
        Ok((segments, found.keys().any(|number| *number > next)))
    }

    /// The history of the timeline that is followed, and those of all newer ones: the server asks for
    /// them to find a number for its own next timeline that is not taken.
    fn history_files(&self, history: &History) -> Result<Vec<(TimelineId, ArchivedFile)>, Error> {
        let mut files = Vec::new();
        for timeline in self
            .histories
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

fn ends_early(point: &Point, missing: SegmentName, seen: Seen) -> String {
    let newest = seen.last_time.map_or_else(String::new, |time| {
        format!("; its newest transaction ended at {time}")
    });
    format!("{point} is not in the archive, which ends before WAL segment {missing}{newest}")
}

impl Plan {
    /// Tells of timelines that the plan leaves aside.
    pub fn warn(&self) {
        if !self.other_timelines.is_empty() {
            let (followed, others) = (self.history.timeline.number(), &self.other_timelines);
            tracing::warn!(
                "the plan follows timeline {followed}; timelines {others:?} go on from the same backup \
                 and are left aside: --target-timeline chooses"
            );
        }
    }

    /// What will be downloaded.
    pub fn download_bytes(&self) -> u64 {
        let wal: u64 = self
            .segments
            .iter()
            .map(|(_, archived)| archived.stored_bytes)
            .sum();
        let histories: u64 = self
            .histories
            .iter()
            .map(|(_, archived)| archived.stored_bytes)
            .sum();
        self.backup.stored_bytes + wal + histories
    }

    /// Room that the staged WAL takes.
    pub fn stage_bytes(&self) -> u64 {
        self.backup
            .wal_segment_size
            .bytes()
            .saturating_mul(self.segments.len() as u64)
    }

    /// The plan as `plan --json` shows it.
    pub fn report(&self) -> Report {
        Report {
            reachable: true,
            reason: None,
            backup_chain: vec![self.backup.id.to_string()],
            timelines: self.timelines(),
            other_timelines: self.other_timelines.clone(),
            segments: self
                .segments
                .iter()
                .map(|(name, _)| name.to_string())
                .collect(),
            segments_to_consistency: self.segments_to_consistency,
            segments_to_target: self.segments.len(),
            download_bytes: self.download_bytes(),
            target: self.target.point.to_string(),
        }
    }

    fn timelines(&self) -> Vec<u32> {
        let mut timelines: Vec<u32> = self
            .segments
            .iter()
            .map(|(name, _)| name.timeline.number())
            .collect();
        timelines.push(self.history.timeline.number());
        timelines.dedup();
        timelines
    }
}

impl Report {
    /// The report of a target that cannot be reached.
    pub fn unreachable(target: &Target, reason: String) -> Self {
        Self {
            reachable: false,
            reason: Some(reason),
            backup_chain: Vec::new(),
            timelines: Vec::new(),
            other_timelines: Vec::new(),
            segments: Vec::new(),
            segments_to_consistency: 0,
            segments_to_target: 0,
            download_bytes: 0,
            target: target.point.to_string(),
        }
    }
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
