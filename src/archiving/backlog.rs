//! The backlog: WAL that the server has marked ready and the archive does not have yet. `max_backlog` bounds it.
//!
//! ```text
//! backlog ≤ max_backlog ─▶ push
//! backlog > max_backlog ─▶ push ─▶ the store does not take it ─▶ drop: note it on the host, durably ─▶ answer 0
//! after the next push that succeeds ─▶ record the drops in the store ─▶ forget the notes
//! ```
//!
//! Only segments are dropped, and only for the store's sake. What is wrong with a segment, or with what is archived under
//! its name, is for somebody to look at: the server keeps such a segment (decision 0061).

use std::io;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walhalla_postgres::{SegmentName, SegmentSize, SystemIdentifier};
use walhalla_providers::Error as StoreError;

use crate::repository::Repository;
use crate::repository::gaps::Circumstances;
use crate::repository::layout::DroppedSegments;
use crate::server::wal_directory::WalDirectory;
use crate::spool::{Part, Spool};

/// The part of the spool with a note for each segment that was dropped and whose gap is not recorded in the store yet.
const PART: &str = "dropped";
/// The file whose time tells when the archive last did not keep up.
const TROUBLE: &str = "trouble";
/// How long after that the store is not tried before the next segment is dropped: trying may take a minute for each.
const TROUBLE_LASTS: Duration = Duration::from_mins(1);
/// How many segments of a burst may wait above the bound of a store that takes them.
const LEAST_SLACK: u64 = 16;
/// Longest note that is read.
const LIMIT_BYTES: u64 = 4 << 10;

/// The backlog of one server, and its bound.
#[derive(Debug)]
pub struct Backlog {
    /// Which segments wait.
    pub wal_directory: WalDirectory,
    /// Length of each.
    pub segment_size: SegmentSize,
    /// The setting `max_backlog`.
    pub max_bytes: u64,
    /// Where drops are noted.
    pub notes: Notes,
}

/// What one host keeps about segments that were dropped.
#[derive(Clone, Debug)]
pub struct Notes {
    spool: Spool,
    system_identifier: SystemIdentifier,
}

/// What is noted of a dropped segment, under its name.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    system_identifier: String,
    dropped: Timestamp,
    max_backlog_bytes: u64,
}

/// Segments that were dropped one after the other.
type Gap = (DroppedSegments, Circumstances);

/// What to do with the segment for which the server waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Push it.
    Push,
    /// Drop it without trying: the archive does not keep up.
    Drop,
}

/// Decides before a push, by the length of the backlog and how long ago a segment was last dropped or not taken by the store.
///
/// A store that takes segments, but more slowly than the server writes them, lets the backlog grow by a quarter, or by
/// [`LEAST_SLACK`] segments. Then segments are dropped until the bound is kept again: one long gap costs less than many short
/// ones.
fn decide(
    backlog_bytes: u64,
    max_bytes: u64,
    segment_size: SegmentSize,
    since_trouble: Option<Duration>,
) -> Decision {
    let is_in_trouble = since_trouble.is_some_and(|since| since < TROUBLE_LASTS);
    let slack_bytes = (max_bytes / 4).max(LEAST_SLACK * segment_size.bytes());
    let is_far_behind = backlog_bytes > max_bytes.saturating_add(slack_bytes);
    if backlog_bytes > max_bytes && (is_in_trouble || is_far_behind) {
        Decision::Drop
    } else {
        Decision::Push
    }
}

impl Backlog {
    /// How many bytes of WAL wait for the archive.
    ///
    /// # Errors
    /// The system's.
    pub fn bytes(&self) -> io::Result<u64> {
        let ready = self.wal_directory.ready_segments()?.len() as u64;
        Ok(ready.saturating_mul(self.segment_size.bytes()))
    }

    /// What to do with the segment for which the server waits, before it is pushed.
    ///
    /// # Errors
    /// The system's.
    pub fn decide(&self) -> io::Result<Decision> {
        let since_trouble = self.notes.since_trouble()?;
        let bytes = self.bytes()?;
        Ok(decide(
            bytes,
            self.max_bytes,
            self.segment_size,
            since_trouble,
        ))
    }

    /// Whether a segment that the store did not take may be dropped.
    ///
    /// # Errors
    /// The system's.
    pub fn is_over(&self) -> io::Result<bool> {
        Ok(self.bytes()? > self.max_bytes)
    }

    /// Notes that a segment is dropped. After `Ok` the server may be told that the segment is done with.
    ///
    /// # Errors
    /// The system's. The segment must be kept then.
    pub fn drop(&self, segment: SegmentName) -> io::Result<()> {
        let note = Note {
            system_identifier: self.notes.system_identifier.to_string(),
            dropped: Timestamp::now(),
            max_backlog_bytes: self.max_bytes,
        };
        let part = self.notes.spool.make_part(PART)?;
        let json = serde_json::to_vec(&note).map_err(io::Error::other)?;
        part.write_durably(&segment.to_string(), &json)?;
        part.write(TROUBLE, b"")
    }

    /// Notes that the store did not take a segment.
    ///
    /// # Errors
    /// The system's.
    pub fn note_trouble(&self) -> io::Result<()> {
        self.notes.spool.make_part(PART)?.write(TROUBLE, b"")
    }
}

impl Notes {
    /// Those of the cluster `system_identifier` in `spool`.
    pub fn new(spool: Spool, system_identifier: SystemIdentifier) -> Self {
        Self {
            spool,
            system_identifier,
        }
    }

    /// How long ago the archive last did not keep up; `None` where it did since.
    fn since_trouble(&self) -> io::Result<Option<Duration>> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(None);
        };
        let found = part.read_with_time(TROUBLE, 0)?;
        Ok(found.and_then(|(_, at)| SystemTime::now().duration_since(at).ok()))
    }

    /// After a push that succeeded: whether there are gaps to be recorded in the store.
    ///
    /// # Errors
    /// The system's.
    pub fn end_trouble(&self) -> io::Result<bool> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(false);
        };
        part.remove(TROUBLE)?;
        let names = part.names()?;
        let has_notes = { names.iter() }.any(|name| name.parse::<SegmentName>().is_ok());
        if !has_notes {
            // Another process may just have noted a drop.
            self.spool.remove_if_empty(PART)?;
        }
        Ok(has_notes)
    }

    /// Records in the store what was dropped, and forgets it here. Returns the gaps.
    ///
    /// # Errors
    /// The system's, and by [`io::Error::other`] the store's. What is not recorded stays noted.
    pub fn record(
        &self,
        repository: &Repository,
        size: SegmentSize,
    ) -> io::Result<Vec<DroppedSegments>> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(Vec::new());
        };
        // Two processes that record the same gap would not agree where it ends.
        let Some(_lock) = part.lock()? else {
            return Ok(Vec::new());
        };
        let noted = self.noted(&part)?;
        for (dropped, circumstances) in gaps(&noted, size) {
            let recorded = repository.record_gap(dropped, &circumstances);
            recorded.map_err(|error: StoreError| io::Error::other(error))?;
        }
        for (segment, _) in &noted {
            part.remove(&segment.to_string())?;
        }
        let recorded = gaps(&noted, size).into_iter().map(|(dropped, _)| dropped);
        Ok(recorded.collect())
    }

    /// The notes about this cluster's segments, in order.
    fn noted(&self, part: &Part) -> io::Result<Vec<(SegmentName, Note)>> {
        let mut noted = Vec::new();
        for name in part.names()? {
            let Ok(segment) = name.parse::<SegmentName>() else {
                continue;
            };
            let read = part.read(&name, LIMIT_BYTES)?.unwrap_or_default();
            match serde_json::from_slice::<Note>(&read) {
                Ok(note) if note.system_identifier == self.system_identifier.to_string() => {
                    noted.push((segment, note));
                }
                // Of a cluster that was in this directory before.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("{}/{name} is damaged: {error}", part.path().display());
                }
            }
        }
        noted.sort_unstable_by_key(|(segment, _)| *segment);
        Ok(noted)
    }
}

/// Segments that follow one another are one gap.
fn gaps(noted: &[(SegmentName, Note)], size: SegmentSize) -> Vec<Gap> {
    let follows = |before: &SegmentName, after: &SegmentName| {
        let next = before
            .number(size)
            .map(|number| number.next().on(before.timeline, size));
        next == Some(*after)
    };
    let runs = noted.chunk_by(|(before, _), (after, _)| follows(before, after));
    let gap = |run: &[(SegmentName, Note)]| {
        let (first, last) = (run.first()?, run.last()?);
        let times = || run.iter().map(|(_, note)| note.dropped);
        let circumstances = Circumstances {
            segments: run.len() as u64,
            from: times().min()?,
            to: times().max()?,
            max_backlog_bytes: last.1.max_backlog_bytes,
        };
        Some((DroppedSegments::new(first.0, last.0)?, circumstances))
    };
    runs.filter_map(gap).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SEGMENT: u64 = 16 << 20;
    const MAX: u64 = 1000 * SEGMENT;

    fn decided(backlog_bytes: u64, max_bytes: u64, since_trouble: Option<u64>) -> Decision {
        let size = SegmentSize::new(SEGMENT).unwrap();
        let since_trouble = since_trouble.map(Duration::from_secs);
        decide(backlog_bytes, max_bytes, size, since_trouble)
    }

    #[test]
    fn a_backlog_within_its_bound_is_always_pushed() {
        for since in [None, Some(0), Some(3600)] {
            assert_eq!(decided(0, MAX, since), Decision::Push);
            assert_eq!(decided(MAX, MAX, since), Decision::Push);
        }
    }

    #[test]
    fn above_the_bound_the_store_is_tried_unless_it_has_just_failed() {
        assert_eq!(decided(MAX + 1, MAX, None), Decision::Push);
        assert_eq!(decided(MAX + 1, MAX, Some(59)), Decision::Drop);
        assert_eq!(decided(MAX + 1, MAX, Some(60)), Decision::Push);
    }

    #[test]
    fn a_store_that_is_too_slow_lets_the_backlog_grow_by_a_quarter() {
        assert_eq!(decided(MAX + MAX / 4, MAX, None), Decision::Push);
        assert_eq!(decided(MAX + MAX / 4 + 1, MAX, None), Decision::Drop);
        assert_eq!(decided(u64::MAX, u64::MAX, None), Decision::Push);
    }

    #[test]
    fn a_burst_is_no_reason_to_drop() {
        assert_eq!(decided(17 * SEGMENT, SEGMENT, None), Decision::Push);
        assert_eq!(decided(18 * SEGMENT, SEGMENT, None), Decision::Drop);
    }

    fn segment(name: &str) -> SegmentName {
        name.parse().unwrap()
    }

    fn backlog(dir: &std::path::Path, system_identifier: u64) -> Backlog {
        let pgdata = dir.join("data");
        fs::create_dir_all(pgdata.join("pg_wal/archive_status")).unwrap();
        let system_identifier = system_identifier.to_string().parse().unwrap();
        Backlog {
            wal_directory: WalDirectory::of(&pgdata).unwrap(),
            segment_size: SegmentSize::new(SEGMENT).unwrap(),
            max_bytes: 2 * SEGMENT,
            notes: Notes::new(Spool::of(&pgdata, None).unwrap(), system_identifier),
        }
    }

    #[test]
    fn trouble_is_noted_until_a_push_succeeds_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let backlog = backlog(dir.path(), 7);
        assert_eq!(backlog.notes.since_trouble().unwrap(), None);
        assert!(!backlog.notes.end_trouble().unwrap());
        backlog.note_trouble().unwrap();
        let since = backlog.notes.since_trouble().unwrap().unwrap();
        assert!(since < TROUBLE_LASTS);
        assert!(!backlog.notes.end_trouble().unwrap());
        assert!(!backlog.notes.spool.path().exists());
    }

    #[test]
    fn dropped_segments_that_follow_one_another_are_one_gap_of_their_own_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let other = backlog(dir.path(), 8);
        other.drop(segment("0000000100000000000000A0")).unwrap();
        let backlog = backlog(dir.path(), 7);
        for name in [
            "000000010000000100000000",
            "0000000100000000000000FF",
            "0000000100000000000000FE",
            "000000010000000100000002",
            "000000020000000100000003",
        ] {
            backlog.drop(segment(name)).unwrap();
        }
        assert!(backlog.notes.end_trouble().unwrap());
        let part = backlog.notes.spool.part(PART).unwrap().unwrap();
        let noted = backlog.notes.noted(&part).unwrap();
        let gaps = gaps(&noted, backlog.segment_size);
        let told: Vec<_> = gaps
            .iter()
            .map(|(dropped, told)| (dropped.first, dropped.last, told.segments))
            .collect();
        let run = |first, last, count| (segment(first), segment(last), count);
        assert_eq!(
            told,
            [
                run("0000000100000000000000FE", "000000010000000100000000", 3),
                run("000000010000000100000002", "000000010000000100000002", 1),
                run("000000020000000100000003", "000000020000000100000003", 1),
            ]
        );
    }
}
