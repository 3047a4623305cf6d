//! A random life of a cluster: timelines that begin at any place of any earlier one, backups of which some stand on others.
//! It answers as the life of the large store does, so that the same code makes its objects.

use jiff::{SignedDuration, Timestamp};
use walhalla::repository::{BackupId, BackupKind};
use walhalla_postgres::timeline::Ancestor;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

pub const SYSTEM_IDENTIFIER: u64 = 7_710_533_931_497_189_584;

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
#[derive(Clone)]
pub struct Life {
    pub segments: Vec<Segment>,
    pub backups: Vec<Backup>,
    histories: Vec<History>,
    begin: Timestamp,
    /// How long it takes to fill a segment.
    pace: SignedDuration,
}

#[derive(Clone, Copy)]
pub struct Segment {
    pub timeline: TimelineId,
    pub number: SegmentNo,
    /// Whether its timeline begins in it.
    pub is_first: bool,
}

#[derive(Clone)]
pub struct Backup {
    pub id: BackupId,
    /// The place of its parent among the backups.
    pub parent: Option<usize>,
    /// The places of the segments in which it begins and ends.
    pub start: usize,
    pub stop: usize,
    pub is_permanent: bool,
}

pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

impl Life {
    /// A life that ends at `now`.
    pub fn random(random: &mut fastrand::Rng, now: Timestamp) -> Self {
        let mut life = Self {
            segments: Vec::new(),
            backups: Vec::new(),
            histories: Vec::new(),
            begin: now,
            pace: SignedDuration::from_mins(random.i64(10..2000)),
        };
        for number in 1..=random.u32(1..=4) {
            life.live_on(random, TimelineId::new(number).unwrap());
        }
        let lived = life.pace * i32::try_from(life.segments.len()).unwrap();
        life.begin = now - lived;
        life.take_backups(random);
        life
    }

    /// A timeline that begins in a segment of an earlier one, or after its last one.
    fn live_on(&mut self, random: &mut fastrand::Rng, timeline: TimelineId) {
        let mut ancestors = Vec::new();
        let mut first = random.u64(1..300);
        if !self.histories.is_empty() {
            let parent = random.choice(&self.histories).unwrap().clone();
            let own = self
                .segments
                .iter()
                .filter(|it| it.timeline == parent.timeline);
            let numbers: Vec<u64> = own.map(|it| it.number.0).collect();
            // Not in the segment in which the parent begins.
            first = random.u64(numbers[0] + 1..=numbers[numbers.len() - 1] + 1);
            ancestors = parent.ancestors;
            ancestors.push(Ancestor {
                timeline: parent.timeline,
                switch_lsn: Lsn(SegmentNo(first).start(size()).0 + SWITCH),
            });
        }
        let is_root = ancestors.is_empty();
        self.histories.push(History {
            timeline,
            ancestors,
        });
        let length = random.u64(2..25);
        self.segments
            .extend((first..first + length).map(|number| Segment {
                timeline,
                number: SegmentNo(number),
                is_first: number == first && !is_root,
            }));
    }

    fn take_backups(&mut self, random: &mut fastrand::Rng) {
        let mut at = random.usize(..4);
        while at + 2 < self.segments.len() {
            let stop = at + random.usize(..=2);
            let [first, last] = [at, stop].map(|at| self.segments[at]);
            if first.timeline == last.timeline && !first.is_first {
                self.take_backup(random, at, stop);
            }
            at = stop + random.usize(1..8);
        }
    }

    fn take_backup(&mut self, random: &mut fastrand::Rng, start: usize, stop: usize) {
        let history = self.history(self.segments[start].timeline);
        let leads_here = |backup: &Backup| {
            let (timeline, end) = (
                self.segments[backup.stop].timeline,
                self.lsn(backup.stop, BACKUP_STOP),
            );
            history.contains(timeline, end) && end <= self.lsn(start, REDO)
        };
        let parents: Vec<usize> = (0..self.backups.len())
            .filter(|at| leads_here(&self.backups[*at]))
            .collect();
        let parent = random.choice(&parents).copied().filter(|_| random.bool());
        let kind = if parent.is_some() {
            BackupKind::Delta
        } else {
            BackupKind::Full
        };
        self.backups.push(Backup {
            id: BackupId::new(self.backup_start_time(start), kind),
            parent,
            start,
            stop,
            is_permanent: random.u32(..8) == 0,
        });
    }

    pub fn histories(&self) -> &[History] {
        &self.histories
    }

    pub fn history(&self, timeline: TimelineId) -> &History {
        let mut histories = self.histories.iter();
        histories
            .find(|history| history.timeline == timeline)
            .unwrap()
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
        self.begin + self.pace * i32::try_from(at).unwrap()
    }

    /// When a timeline's history was archived.
    pub fn promoted_time(&self, timeline: TimelineId) -> Timestamp {
        let first = self
            .segments
            .iter()
            .position(|segment| segment.timeline == timeline);
        self.time(first.unwrap())
    }

    /// When a segment was archived.
    pub fn archived_time(&self, at: usize) -> Timestamp {
        self.time(at) + SignedDuration::from_mins(1)
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

    pub fn restore_point(&self, _at: usize) -> Option<String> {
        None
    }

    pub fn drops_table(&self, _at: usize) -> bool {
        false
    }

    pub fn is_permanent(&self, backup: usize) -> bool {
        self.backups[backup].is_permanent
    }

    pub fn has_checkpoint(&self, at: usize) -> bool {
        self.backups.iter().any(|backup| backup.start == at)
    }

    /// The backup that ends in a segment.
    pub fn ending_in(&self, at: usize) -> Option<&Backup> {
        self.backups.iter().find(|backup| backup.stop == at)
    }
}
