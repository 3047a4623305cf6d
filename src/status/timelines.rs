//! The timelines of an archive: what is archived of each, what is missing, and the commits between which it lies.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::wal::event::Outcome as End;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, WalFileName};

use crate::archive::{Archive, Resolved, Run, Stretch};
use crate::failure::Failure as _;
use crate::repository::gaps::RecordedGap;
use crate::repository::layout::DroppedSegments;
use crate::repository::ranges::Ranges;
use crate::repository::{ArchivedFile, BackupEntry};
use crate::wal::Error;

/// What is archived of a timeline.
#[derive(Debug, Serialize)]
pub struct Timeline {
    /// Its number.
    pub timeline: u32,
    /// The timeline that it left; none of the first one.
    pub parent_timeline: Option<u32>,
    /// Where it left it.
    pub switch_lsn: Option<Lsn>,
    /// The last commit of its parent before that.
    pub switch_time: Option<Timestamp>,
    /// The first segment that is archived whole.
    pub first_segment: Option<SegmentName>,
    /// The last one.
    pub last_segment: Option<SegmentName>,
    /// How many are archived whole.
    pub segments: u64,
    /// Bytes that its segments take in the store.
    pub stored_bytes: u64,
    /// Segments without a gap, oldest first.
    pub coverage: Vec<Coverage>,
    /// What is missing between them.
    pub gaps: Vec<Gap>,
    /// Segments that have no summary.
    pub without_summary: u64,
    /// Names of unfinished segments.
    pub partial_segments: Vec<String>,
    /// The segment after the last one, as far as it was received.
    pub tail_segment: Option<SegmentName>,
    /// Where its WAL ends.
    pub tail_end: Option<Lsn>,
    /// The first commit of its own.
    pub first_commit_time: Option<Timestamp>,
    /// The last one.
    pub last_commit_time: Option<Timestamp>,
    /// When the store received the newest segment, by the store's clock.
    #[serde(skip)]
    pub newest: Option<Timestamp>,
}

/// Archived segments that follow one another.
#[derive(Debug, Serialize)]
pub struct Coverage {
    /// The first segment.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
    /// How many they are.
    pub segments: u64,
    /// The first commit in them.
    pub from: Option<Timestamp>,
    /// The last one.
    pub to: Option<Timestamp>,
}

/// Segments that are missing between others.
#[derive(Debug, Serialize)]
pub struct Gap {
    /// The first one.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
    /// How many they are.
    pub segments: u64,
    /// The last commit before them.
    pub after: Option<Timestamp>,
    /// The first commit after them.
    pub before: Option<Timestamp>,
    /// Why they are missing, where the store tells.
    pub reason: Option<Reason>,
    /// Whether a backup begins after them, so that what came later can be reached.
    pub is_before_a_backup: bool,
    /// What wal-push dropped of it, as the setting max_backlog allows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
}

/// Why segments are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A deletion took them, or a copy left them out.
    Deleted,
    /// `wal-push` dropped some of them, as the setting `max_backlog` allows.
    Dropped,
    /// No backup begins before them, so that nothing needs them: the store was begun later.
    Earlier,
}

impl Reason {
    /// Whether the segments are missed.
    pub fn is_harmless(self) -> bool {
        match self {
            Self::Deleted | Self::Earlier => true,
            Self::Dropped => false,
        }
    }
}

/// Segments that wal-push dropped.
#[derive(Debug, Serialize)]
pub struct Dropped {
    /// The first one.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
    /// When the store received the record.
    pub recorded: Timestamp,
    /// Whether a backup begins after them, so that what came later can be reached.
    pub is_before_a_backup: bool,
    /// The record.
    #[serde(skip)]
    pub record: RecordedGap,
}

/// The timelines of an archive, of which `backups` are.
///
/// # Errors
/// The repository's.
pub fn timelines(archive: &Archive, backups: &[BackupEntry]) -> Result<Vec<Timeline>, Error> {
    let ledger = Ledger {
        gaps: archive.recorded_gaps(),
        deleted: archive.repository.deleted_wal()?,
        backups,
    };
    let known = archive.histories.known.values();
    let timelines = known.map(|history| timeline(archive, history, &ledger));
    let mut timelines = timelines.collect::<Result<Vec<_>, Error>>()?;
    for lost in &archive.histories.unknown {
        let number = lost.number();
        tracing::warn!("the archive holds WAL of timeline {number} and not its history");
        timelines.push(timeline(archive, &History::root(*lost), &ledger)?);
    }
    Ok(timelines)
}

fn timeline(archive: &Archive, history: &History, ledger: &Ledger) -> Result<Timeline, Error> {
    let (parent, files) = (
        history.ancestors.last(),
        archive.files(history.timeline, None)?,
    );
    let own = own_stretches(archive, history)?;
    let coverage = { own.iter() }
        .map(|stretch| coverage(archive, history, stretch))
        .collect::<Result<Vec<_>, Error>>()?;
    let whole = || {
        files
            .segments
            .iter()
            .filter(|(_, file)| file.tail().is_none())
    };
    let tail = files
        .segments
        .values()
        .next_back()
        .and_then(ArchivedFile::tail);
    Ok(Timeline {
        timeline: history.timeline.number(),
        parent_timeline: parent.map(|parent| parent.timeline.number()),
        switch_lsn: parent.map(|parent| parent.switch_lsn),
        switch_time: switch_time(archive, history)?,
        first_segment: whole().next().map(|(name, _)| *name),
        last_segment: whole().next_back().map(|(name, _)| *name),
        segments: whole().count() as u64,
        tail_segment: tail.map(|tail| tail.segment),
        tail_end: tail.map(|tail| tail.valid_until),
        stored_bytes: { files.segments.values() }
            .map(|file| file.stored_bytes)
            .sum(),
        newest: { files.segments.values() }.map(|file| file.modified).max(),
        gaps: gaps((&own, &coverage), history, ledger),
        without_summary: archive.without_summary(history.timeline)?,
        partial_segments: partial_segments(&files.others),
        first_commit_time: coverage.iter().find_map(|run| run.from),
        last_commit_time: coverage.iter().rev().find_map(|run| run.to),
        coverage,
    })
}

/// The commits between which segments that follow one another lie.
fn coverage(archive: &Archive, history: &History, stretch: &Stretch) -> Result<Coverage, Error> {
    let each = || stretch.each();
    let first = archive.seek(each(), |_, resolved| commits(history, &resolved))?;
    let last = archive.seek(each().rev(), |_, resolved| commits(history, &resolved))?;
    let run = stretch.run();
    Ok(Coverage {
        first: stretch.name(run.first),
        last: stretch.name(run.last()),
        segments: run.len(),
        from: first.found().map(|(first, _)| first),
        to: last.found().map(|(_, last)| last),
    })
}

/// The last commit of a timeline's parent before the timeline left it, where the WAL tells.
fn switch_time(archive: &Archive, history: &History) -> Result<Option<Timestamp>, Error> {
    let Some(parent) = history.ancestors.last() else {
        return Ok(None);
    };
    let Some(history) = archive.histories.known.get(&parent.timeline) else {
        return Ok(None);
    };
    let own = own_stretches(archive, history)?;
    let Some(size) = own.first().map(Stretch::segment_size) else {
        return Ok(None);
    };
    let end = size.segment_of(parent.switch_lsn).next();
    let before = own.iter().map(|stretch| stretch.before(end));
    let before: Vec<Stretch> = before.filter(|it| !it.run().is_empty()).collect();
    let each = before.iter().flat_map(Stretch::each).rev();
    let last = archive.seek(each, |_, resolved| {
        let ends = resolved.summary.transactions.iter();
        let earlier =
            ends.filter(|end| end.lsn < parent.switch_lsn && end.outcome == End::Committed);
        earlier.map(|end| end.time).next_back()
    })?;
    Ok(last.found())
}

/// The names of unfinished segments, in order.
fn partial_segments(others: &[(WalFileName, ArchivedFile)]) -> Vec<String> {
    let partial = others.iter().filter_map(|(file, _)| match file {
        WalFileName::Partial(name, number) => Some((*name, *number, file.to_string())),
        WalFileName::Segment(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => None,
    });
    let mut partial: Vec<_> = partial.collect();
    partial.sort();
    partial.dedup();
    partial.into_iter().map(|(.., shown)| shown).collect()
}

/// The segments of a timeline; none where nothing tells how long they are.
fn own_stretches(archive: &Archive, history: &History) -> Result<Vec<Stretch>, Error> {
    let stretches = match archive.stretches(history, SegmentNo(0)) {
        Err(error) if error.is_locked() || error.is_of_the_object() => {
            tracing::warn!("{error}");
            return Ok(Vec::new());
        }
        stretches => stretches?,
    };
    let own = stretches.into_iter().map(|stretch| {
        let first = stretch.run().first;
        if stretch.name(first).timeline == history.timeline {
            stretch
        } else {
            stretch.since(first.next())
        }
    });
    Ok(own.collect())
}

/// What is missing between segments; and before the first, where the timeline began earlier.
fn gaps(
    (own, coverage): (&[Stretch], &[Coverage]),
    history: &History,
    ledger: &Ledger,
) -> Vec<Gap> {
    let Some(first) = own.first() else {
        return Vec::new();
    };
    let size = first.segment_size();
    let begin = history.ancestors.last();
    let begin = begin.map(|parent| size.segment_of(parent.switch_lsn));
    let begin = begin.unwrap_or(first.run().first);
    // Of a segment that was received in part and not archived, some is missing.
    let whole_end = |stretch: &Stretch| {
        let run = stretch.run();
        if stretch.ends_in_a_tail() {
            run.last()
        } else {
            run.end
        }
    };
    let ends = std::iter::once(begin).chain(own.iter().map(whole_end));
    let commits_before = std::iter::once(None).chain(coverage.iter().map(|run| run.to));
    let around = commits_before.zip(coverage.iter().map(|run| run.from));
    let gaps = ends.zip(own).map(|(end, next)| Run {
        first: end,
        end: next.run().first,
    });
    gaps.zip(around)
        .filter(|(gap, _)| !gap.is_empty())
        .map(|(gap, (after, before))| {
            let first = gap.first.on(history.timeline, size);
            let last = gap.last().on(history.timeline, size);
            let dropped = ledger.within(first, last);
            let is_deleted = ledger.deleted.outside(first, last, size).is_empty();
            Gap {
                reason: match (is_deleted, dropped.is_empty()) {
                    (true, _) => Some(Reason::Deleted),
                    (false, false) => Some(Reason::Dropped),
                    (false, true) if ledger.begins_after(last) => Some(Reason::Earlier),
                    (false, true) => None,
                },
                first,
                last,
                segments: gap.len(),
                after,
                before,
                is_before_a_backup: ledger.has_backup_after(last),
                dropped,
            }
        })
        .collect()
}

/// What is known of dropped segments, and the backups that may begin after them.
struct Ledger<'a> {
    gaps: Arc<Vec<RecordedGap>>,
    deleted: Ranges,
    backups: &'a [BackupEntry],
}

impl Ledger<'_> {
    /// What was dropped of the segments from `first` to `last`.
    fn within(&self, first: SegmentName, last: SegmentName) -> Vec<Dropped> {
        let meets = |gap: &&RecordedGap| gap.dropped.meets(DroppedSegments { first, last });
        let met = self.gaps.iter().filter(meets);
        met.map(|gap| Dropped {
            first: gap.dropped.first,
            last: gap.dropped.last,
            recorded: gap.recorded,
            is_before_a_backup: self.has_backup_after(gap.dropped.last),
            record: *gap,
        })
        .collect()
    }

    /// Whether there are backups, and all begin after a segment, whatever their timeline is.
    fn begins_after(&self, last: SegmentName) -> bool {
        let is_later = |backup: &BackupEntry| {
            let size = backup.wal_segment_size;
            let number = last.number(size);
            number.is_some_and(|number| size.segment_of(backup.start_lsn) > number)
        };
        !self.backups.is_empty() && self.backups.iter().all(is_later)
    }

    /// Whether a backup begins after a segment of its own timeline, or on a later one.
    fn has_backup_after(&self, last: SegmentName) -> bool {
        self.backups.iter().any(|backup| {
            let size = backup.wal_segment_size;
            size.segment_of(backup.start_lsn).on(backup.timeline, size) > last
        })
    }
}

/// First and last commit of the timeline's own in a segment.
fn commits(history: &History, resolved: &Resolved) -> Option<(Timestamp, Timestamp)> {
    let begin = history
        .ancestors
        .last()
        .map_or(Lsn::ZERO, |parent| parent.switch_lsn);
    let ends = resolved.summary.transactions.iter();
    let own = ends.filter(|end| end.lsn >= begin && end.outcome == End::Committed);
    let times: Vec<Timestamp> = own.map(|end| end.time).collect();
    times.first().copied().zip(times.last().copied())
}
