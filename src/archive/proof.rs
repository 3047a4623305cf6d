//! Whether archived WAL is that of a backup's server.
//!
//! Copies of a data directory have the same system identifier and timeline, and archive segments of the same names. What
//! they wrote after they were parted differs. Records that name the backup show whose the WAL is: `XLOG_BACKUP_END`, which a
//! primary writes at the backup's end, and the checkpoint with which the backup began. As copies that did the same have
//! their backups at the same positions, the checkpoint must have been made while the backup was, too. A standby writes no WAL
//! and begins with an older checkpoint: of its backup the last transaction before the end is known, by position and time.

use jiff::{SignedDuration, Timestamp};
use walhalla_postgres::Lsn;
use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::event::{Checkpoint, Event, event};
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_reader::ReadSegment;

use crate::repository::BackupEntry;
use crate::wal::Error;

/// How far the server's clock may have been set while the backup was taken. Whoever takes a backup looks for this proof, too:
/// a greater step fails there, and not at the restore.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(5);

/// What a backup says of the WAL from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends.
    pub stop: Lsn,
    /// When the backup began and ended, by the server's clock.
    pub times: (Timestamp, Timestamp),
    /// Whether a standby was backed up, which writes no WAL, if the backup tells.
    pub of_standby: Option<bool>,
    /// Where the checkpoint's record is, if the backup tells.
    pub checkpoint: Option<Lsn>,
    /// Where the last transaction of a standby's backup ended, and when, if the backup tells.
    pub transaction: Option<(Lsn, Timestamp)>,
}

impl Told {
    /// What the entry of a backup says.
    pub fn by(backup: &BackupEntry) -> Self {
        Self {
            start: backup.start_lsn,
            stop: backup.stop_lsn,
            times: (backup.start_time, backup.stop_time),
            of_standby: backup.of_standby,
            checkpoint: backup.checkpoint_lsn,
            transaction: backup.replayed_lsn.zip(backup.replayed_time),
        }
    }
}

/// What is looked for in the WAL from a backup's start to its end, and what of it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The transaction is what was not seen yet.
    told: Told,
    has_end: bool,
    has_checkpoint: bool,
    /// Whether the checkpoint was made while the backup was.
    is_timely: bool,
}

impl Proof {
    /// The proof that WAL is that of `backup`, of which nothing was seen yet.
    pub fn of(backup: &BackupEntry) -> Self {
        Self::new(Told::by(backup))
    }

    fn new(told: Told) -> Self {
        Self {
            told,
            has_end: false,
            has_checkpoint: false,
            is_timely: false,
        }
    }

    /// Takes in what a record of the WAL tells.
    pub fn see(&mut self, note: &Note) {
        if !(self.told.start..self.told.stop).contains(&note.lsn) {
            return;
        }
        match &note.event {
            Event::BackupEnd { start } => self.has_end |= *start == self.told.start,
            Event::TransactionEnd(end) => self.see_transaction(note.lsn, end.time),
            Event::Checkpoint(checkpoint) if checkpoint.redo == self.told.start => {
                self.see_checkpoint(note.lsn, *checkpoint);
            }
            _ => {}
        }
    }

    /// Takes in the end of a transaction.
    pub fn see_transaction(&mut self, lsn: Lsn, time: Timestamp) {
        if self.told.transaction == Some((lsn, time)) {
            self.told.transaction = None;
        }
    }

    fn see_checkpoint(&mut self, lsn: Lsn, checkpoint: Checkpoint) {
        if self.told.checkpoint.is_some_and(|known| known != lsn) {
            return;
        }
        let (begin, end) = self.told.times;
        // Its time has no fraction.
        let time = checkpoint.timelines.time;
        let is_late = begin.duration_since(time) <= CLOCK_STEP;
        self.has_checkpoint = true;
        self.is_timely |= is_late && time.duration_since(end) <= CLOCK_STEP;
    }

    /// Whether the backup's checkpoint was seen; what else is looked for is at the backup's end.
    pub fn has_begun(&self) -> bool {
        self.has_checkpoint
    }

    /// Whether what was seen shows that the WAL is the backup's.
    pub fn holds(&self) -> bool {
        match self.told.of_standby {
            Some(false) => self.has_end && self.is_timely,
            // A standby's has no end of its own.
            None if self.has_end => self.is_timely,
            Some(true) | None => self.has_checkpoint && self.told.transaction.is_none(),
        }
    }
}

/// What the WAL from a backup's start to its end shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupWal {
    /// Whether it is the backup's.
    pub is_own: bool,
    /// Where the last transaction before the backup's end ended, and when, as far as segments were read.
    pub last_transaction: Option<(Lsn, Timestamp)>,
}

/// Reads the WAL of which a backup `told`: `segments` are all of it, in order. Those in the middle are not read once the backup's
/// checkpoint was seen. `read` reads one as the segment after the last one, and shows its records.
///
/// # Errors
/// Those of `read`.
pub fn read_backup_wal<S>(
    told: Told,
    segments: &[S],
    mut read: impl FnMut(
        &S,
        Option<ReadSegment>,
        &mut dyn FnMut(&Cluster, &Record),
    ) -> Result<ReadSegment, Error>,
) -> Result<BackupWal, Error> {
    let (stop, mut last_transaction) = (told.stop, None);
    let mut proof = Proof::new(told);
    let mut last = None;
    // A record may run from the one before the last into the last.
    let end = segments.len().saturating_sub(2);
    for (index, segment) in segments.iter().enumerate() {
        if proof.has_begun() && index < end {
            // The last transaction may be in what is not read.
            (last, last_transaction) = (None, None);
            continue;
        }
        let mut show = |cluster: &Cluster, record: &Record| {
            let Ok(Some(event)) = event(record, cluster.version) else {
                return;
            };
            let (lsn, xid) = (record.start, record.header.xid);
            let note = Note { lsn, xid, event };
            proof.see(&note);
            if let Event::TransactionEnd(end) = &note.event
                && lsn < stop
            {
                last_transaction = Some((lsn, end.time));
            }
        };
        last = Some(read(segment, last.take(), &mut show)?);
    }
    Ok(BackupWal {
        is_own: proof.holds(),
        last_transaction,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhalla_postgres::wal::event::TimelineSwitch;

    const DURING: i64 = 1_000_010;

    fn note(lsn: u64, event: Event) -> Note {
        Note {
            lsn: Lsn(lsn),
            xid: 0,
            event,
        }
    }

    fn end(lsn: u64, start: u64) -> Note {
        note(lsn, Event::BackupEnd { start: Lsn(start) })
    }

    fn checkpoint(lsn: u64, redo: u64, seconds: i64) -> Note {
        let timelines = TimelineSwitch {
            time: Timestamp::from_second(seconds).unwrap(),
            timeline: 1,
            previous: 1,
        };
        let checkpoint = Checkpoint {
            redo: Lsn(redo),
            timelines,
            is_shutdown: false,
            next_xid: 3,
        };
        note(lsn, Event::Checkpoint(checkpoint))
    }

    fn holds(of_standby: Option<bool>, notes: &[Note]) -> bool {
        let mut proof = Proof::new(Told {
            start: Lsn(100),
            stop: Lsn(900),
            times: (
                Timestamp::from_second(1_000_000).unwrap(),
                Timestamp::from_second(1_000_060).unwrap(),
            ),
            of_standby,
            checkpoint: Some(Lsn(200)),
            transaction: None,
        });
        for note in notes {
            proof.see(note);
        }
        proof.holds()
    }

    #[test]
    fn a_primarys_wal_ends_the_backup_by_its_own_start() {
        let begin = checkpoint(200, 100, DURING);
        let shown = |end: Note| holds(Some(false), &[begin.clone(), end]);
        assert!(shown(end(850, 100)));
        assert!(!shown(end(850, 101)), "another backup's end");
        assert!(!shown(end(900, 100)), "after the end");
        assert!(!holds(Some(false), &[begin]), "copies may share it");
    }

    #[test]
    fn a_copy_that_was_backed_up_at_the_same_positions_did_so_at_another_time() {
        for (seconds, shown) in [
            (DURING, true),
            (1_000_000 - 5, true),
            (1_000_000 - 6, false),
            (1_000_065, true),
            (1_000_066, false),
        ] {
            let notes = [checkpoint(200, 100, seconds), end(850, 100)];
            assert_eq!(holds(Some(false), &notes), shown, "{seconds}");
            assert_eq!(holds(None, &notes), shown, "{seconds}");
        }
    }

    #[test]
    fn a_standbys_wal_holds_the_checkpoint_of_its_label() {
        assert!(holds(Some(true), &[checkpoint(200, 100, 1)]));
        assert!(
            !holds(Some(true), &[checkpoint(300, 100, 1)]),
            "at another place"
        );
        assert!(
            !holds(Some(true), &[checkpoint(200, 99, 1)]),
            "with another redo"
        );
        assert!(holds(None, &[checkpoint(200, 100, 1)]));
    }

    #[test]
    fn a_standbys_wal_holds_the_last_transaction_of_its_backup() {
        let time = |seconds| Timestamp::from_second(seconds).unwrap();
        let known = Proof::new(Told {
            start: Lsn(100),
            stop: Lsn(900),
            times: (time(1_000_000), time(1_000_060)),
            of_standby: Some(true),
            checkpoint: Some(Lsn(200)),
            transaction: Some((Lsn(700), time(1_000_030))),
        });
        for (lsn, seconds, shown) in [
            (700, 1_000_030, true),
            (700, 1_000_031, false),
            (701, 1_000_030, false),
        ] {
            let mut proof = known.clone();
            proof.see(&checkpoint(200, 100, 1));
            assert!(!proof.holds());
            proof.see_transaction(Lsn(lsn), time(seconds));
            assert_eq!(proof.holds(), shown);
        }
    }
}
