//! What happened in the cluster's life, as numbers: a segment of 1 MiB is filled each minute, and a base backup is taken at
//! even distances. Timeline 2 begins with a promotion. Timeline 3 begins with a restore to the past, so that the end of timeline
//! 2 is a branch that was left.
//!
//! ```text
//! timeline 1  ━━━━━━━━━━━━━━━━━━━┓
//! timeline 2                     ┗━━━━━━━━━━━━━━━━┳━━━ left
//! timeline 3                                      ┗━━━━━━━━━━━━━━━━━━━
//! ```

use jiff::{SignedDuration, Timestamp};
use walhalla::repository::{BackupId, BackupKind};
use walhalla_postgres::timeline::Ancestor;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

pub const SYSTEM_IDENTIFIER: u64 = 7_710_533_931_497_189_584;
/// A full backup and the deltas that stand on it.
const CHAIN: usize = 7;
const RESTORE_POINT_EVERY: usize = 1000;
const DROP_EVERY: usize = 50;
const CHECKPOINT_EVERY: usize = 5;
const PERMANENT_EVERY: usize = 50;

/// Where things are in each segment. Everything is after the middle, where timelines are left.
pub const SWITCH: u64 = 0x8_0000;
pub const END_OF_RECOVERY: u64 = 0x8_8000;
pub const REDO: u64 = 0x8_9000;
pub const CHECKPOINT: u64 = 0x8_A000;
pub const BACKUP_END: u64 = 0x8_C000;
pub const BACKUP_STOP: u64 = 0x8_C100;
pub const RESTORE_POINT: u64 = 0x8_E000;
pub const COMMITS: [(u64, i64); 3] = [(0x9_0000, 10), (0xA_0000, 30), (0xB_0000, 50)];
pub const FIRST_RECORD: u64 = 40;
pub const LAST_RECORD: u64 = 0xF_0000;

/// Everything that happened, in order.
pub struct Life {
    pub segments: Vec<Segment>,
    pub backups: Vec<Backup>,
    histories: [History; 3],
}

#[derive(Clone, Copy)]
pub struct Segment {
    pub timeline: TimelineId,
    pub number: SegmentNo,
    /// Whether its timeline begins in it.
    pub is_first: bool,
}

pub struct Backup {
    pub id: BackupId,
    /// The place of its parent among the backups.
    pub parent: Option<usize>,
    /// The places of the segments in which it begins and ends.
    pub start: usize,
    pub stop: usize,
}

pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

impl Life {
    pub fn new(segments: u64, backups: u64) -> Self {
        assert!(
            backups * 10 <= segments,
            "at least ten segments for a backup"
        );
        let first_of_2 = segments * 6 / 10;
        let last_of_2 = segments * 8 / 10;
        let first_of_3 = segments * 78 / 100;
        let last_of_3 = segments - (last_of_2 - first_of_3) - 1;
        let timelines = [1, 2, 3].map(|number| TimelineId::new(number).unwrap());
        let spans = [
            (1, first_of_2 - 1),
            (first_of_2, last_of_2),
            (first_of_3, last_of_3),
        ];
        let segments = timelines
            .iter()
            .zip(spans)
            .flat_map(|(timeline, (first, last))| {
                (first..=last).map(move |number| Segment {
                    timeline: *timeline,
                    number: SegmentNo(number),
                    is_first: number == first && first > 1,
                })
            });
        let switch = |number: u64| Lsn(SegmentNo(number).start(size()).0 + SWITCH);
        let left = [
            Ancestor {
                timeline: timelines[0],
                switch_lsn: switch(first_of_2),
            },
            Ancestor {
                timeline: timelines[1],
                switch_lsn: switch(first_of_3),
            },
        ];
        let mut life = Self {
            segments: segments.collect(),
            backups: Vec::new(),
            histories: [0, 1, 2].map(|at| History {
                timeline: timelines[at],
                ancestors: left[..at].to_vec(),
            }),
        };
        life.take_backups(usize::try_from(backups).unwrap());
        life
    }

    /// A backup begins in one segment and ends two segments later, on the same timeline.
    fn take_backups(&mut self, count: usize) {
        let distance = self.segments.len() / count.max(1);
        let mut chain = 0;
        for number in 0..count {
            let start = number * distance + distance / 2;
            let is_there = |at: usize| {
                let [first, last] = [at, at + 2].map(|at| self.segments[at]);
                first.timeline == last.timeline && !first.is_first
            };
            let start = (start..).find(|at| is_there(*at)).unwrap();
            let before = self.backups.last().map(|backup| self.segments[backup.stop]);
            let is_new = before.is_none_or(|it| it.timeline != self.segments[start].timeline);
            chain = if is_new { 0 } else { (chain + 1) % CHAIN };
            let kind = if chain == 0 {
                BackupKind::Full
            } else {
                BackupKind::Delta
            };
            self.backups.push(Backup {
                id: BackupId::new(self.backup_start_time(start), kind),
                parent: (chain > 0).then(|| number - 1),
                start,
                stop: start + 2,
            });
        }
    }

    pub fn histories(&self) -> &[History] {
        &self.histories
    }

    pub fn history(&self, timeline: TimelineId) -> &History {
        let found = self
            .histories
            .iter()
            .find(|history| history.timeline == timeline);
        found.unwrap()
    }

    pub fn lsn(&self, at: usize, offset: u64) -> Lsn {
        Lsn(self.segments[at].number.start(size()).0 + offset)
    }

    pub fn name(&self, at: usize) -> SegmentName {
        let segment = self.segments[at];
        segment.number.on(segment.timeline, size())
    }

    /// When a segment began to be filled.
    pub fn time(&self, at: usize) -> Timestamp {
        let begin: Timestamp = "2025-01-01T00:00:00Z".parse().unwrap();
        begin + SignedDuration::from_mins(i64::try_from(at).unwrap())
    }

    pub fn commit_time(&self, at: usize) -> Timestamp {
        self.time(at) + SignedDuration::from_secs(COMMITS[1].1)
    }

    pub fn checkpoint_time(&self, at: usize) -> Timestamp {
        self.time(at) + SignedDuration::from_secs(2)
    }

    pub fn backup_start_time(&self, at: usize) -> Timestamp {
        self.time(at) + SignedDuration::from_secs(1)
    }

    pub fn backup_stop_time(&self, at: usize) -> Timestamp {
        self.time(at) + SignedDuration::from_secs(5)
    }

    pub fn restore_point(&self, at: usize) -> Option<String> {
        at.is_multiple_of(RESTORE_POINT_EVERY)
            .then(|| format!("point-{at}"))
    }

    /// The last restore point before a segment; one of the first segments where there is none.
    pub fn restore_point_before(&self, at: usize) -> String {
        let before = at - at % RESTORE_POINT_EVERY;
        self.restore_point(before).unwrap()
    }

    pub fn is_permanent(&self, backup: usize) -> bool {
        backup.is_multiple_of(PERMANENT_EVERY)
    }

    pub fn drops_table(&self, at: usize) -> bool {
        at.is_multiple_of(DROP_EVERY)
    }

    pub fn has_checkpoint(&self, at: usize) -> bool {
        at.is_multiple_of(CHECKPOINT_EVERY) || self.starting_in(at).is_some()
    }

    fn starting_in(&self, at: usize) -> Option<&Backup> {
        let place = self
            .backups
            .binary_search_by_key(&at, |backup| backup.start);
        place.ok().map(|place| &self.backups[place])
    }

    /// The backup that ends in a segment.
    pub fn ending_in(&self, at: usize) -> Option<&Backup> {
        let place = self.backups.binary_search_by_key(&at, |backup| backup.stop);
        place.ok().map(|place| &self.backups[place])
    }
}
