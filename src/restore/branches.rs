//! Which way leads on from a backup.

use jiff::Timestamp;
use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::{Event, TimelineSwitch};
use walhalla_postgres::{History, SegmentName, SegmentNo, TimelineId, WalFileName};

use super::Error;
use super::plan::Unreachable;
use super::target::TargetTimeline;
use crate::archive::Archive;
use crate::repository::BackupEntry;
use crate::wal;

/// The history to follow from `backup`; `None` when it does not lead to the timeline that is asked for.
///
/// `latest` is the newest timeline that leads on from the backup and that somebody lived on: a
/// copy that was promoted and never archived a segment has left no more than its history.
pub(super) fn followed<'a>(
    archive: &'a Archive,
    backup: &BackupEntry,
    timeline: TargetTimeline,
) -> Result<Option<&'a History>, Error> {
    let histories = &archive.histories.known;
    match timeline {
        TargetTimeline::Current => Ok(histories.get(&backup.timeline)),
        TargetTimeline::Latest => {
            nothing_newer_is_unknown(archive, backup)?;
            let newest_first = histories.values().rev();
            for history in newest_first.filter(|history| backup.leads_to(history)) {
                if is_lived_on(archive, history, backup)? {
                    return Ok(Some(history));
                }
            }
            Ok(None)
        }
        TargetTimeline::Id(timeline) => {
            let unknown = || {
                Unreachable::because(format!("the archive has no timeline {}", timeline.number()))
            };
            let history = histories.get(&timeline).ok_or_else(unknown)?;
            Ok(Some(history).filter(|history| backup.leads_to(history)))
        }
    }
}

/// A later timeline whose history is lost may be the one that was lived on.
fn nothing_newer_is_unknown(archive: &Archive, backup: &BackupEntry) -> Result<(), Error> {
    for timeline in &archive.histories.unknown {
        let has_segments =
            || -> Result<bool, Error> { Ok(!archive.files(*timeline, None)?.segments.is_empty()) };
        if *timeline > backup.timeline && has_segments()? {
            let number = timeline.number();
            let file = WalFileName::History(*timeline);
            return Err(Unreachable::because(format!(
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
fn is_lived_on(archive: &Archive, history: &History, backup: &BackupEntry) -> Result<bool, Error> {
    let Some(parent) = history
        .ancestors
        .last()
        .filter(|_| history.timeline != backup.timeline)
    else {
        return Ok(true);
    };
    let size = backup.wal_segment_size;
    is_archived(
        archive,
        size.segment_of(parent.switch_lsn)
            .on(history.timeline, size),
    )
}

fn is_archived(archive: &Archive, segment: SegmentName) -> Result<bool, Error> {
    let files = archive.files(segment.timeline, Some(segment))?;
    Ok(files.segments.contains_key(&segment))
}

/// Timelines that lead on from the backup too, and newer ones that do not, which the plan does not follow.
pub(super) fn others(
    archive: &Archive,
    history: &History,
    backup: &BackupEntry,
) -> Result<Vec<u32>, Error> {
    let size = backup.wal_segment_size;
    let mut others = Vec::new();
    for other in archive.histories.known.values() {
        let goes_on = match history.switch_from(other.timeline) {
            Some(switch) => is_archived(
                archive,
                size.segment_of(switch).next().on(other.timeline, size),
            )?,
            None => other.timeline != history.timeline && is_lived_on(archive, other, backup)?,
        };
        if goes_on && (backup.leads_to(other) || other.timeline > history.timeline) {
            others.push(other.timeline.number());
        }
    }
    Ok(others)
}

/// The newer timeline that went on when the branch of `history` had ended and to which `backup` does not lead: `history`
/// was left by a restore to the past.
pub(super) fn left_for(
    archive: &Archive,
    history: &History,
    backup: &BackupEntry,
) -> Result<Option<TimelineId>, Error> {
    let others = archive.histories.known.values();
    for other in others.filter(|other| !backup.leads_to(other)) {
        let is_later = other.timeline > history.timeline && is_lived_on(archive, other, backup)?;
        if is_later && ended(archive, history)? < ended(archive, other)? {
            return Ok(Some(other.timeline));
        }
    }
    Ok(None)
}

/// When the last transaction or checkpoint of a timeline ended; `None` where there was none. Which branch is restored depends
/// on it, so that it is looked for as far back as it takes.
fn ended(archive: &Archive, history: &History) -> Result<Option<Timestamp>, Error> {
    let stretches = archive.stretches(history, SegmentNo(0))?;
    let newest_first = stretches.iter().rev();
    let newest_first = newest_first.flat_map(|stretch| stretch.each().rev());
    for segment in newest_first {
        let mut ended = None;
        archive.walk(&segment, |_, resolved| {
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

/// The timeline that a checkpoint, or the end of recovery, tells.
fn timelines(note: &Note) -> Option<TimelineSwitch> {
    match note.event {
        Event::Checkpoint(checkpoint) => Some(checkpoint.timelines),
        Event::EndOfRecovery(timelines) => Some(timelines),
        _ => None,
    }
}
