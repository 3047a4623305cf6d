//! Where a search for what happened from a time on may begin: with the WAL of a backup that ended before.

use jiff::{SignedDuration, Timestamp};
use walhalla_postgres::{History, SegmentNo, Snapshot};

use crate::repository::BackupEntry;

/// How far the clocks of the server and of a standby that was backed up may differ, or have been set.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(10);

/// The first segment along `history` that must be searched for transactions that ended at `from` or later; the first one
/// that there is, where no backup tells.
///
/// What such a transaction did at its begin counts, too. So the search begins with a backup whose snapshot shows no
/// transaction that was running when the last backup before `from` ended.
pub(super) fn first_segment(
    backups: &[BackupEntry],
    history: &History,
    from: Timestamp,
) -> SegmentNo {
    let mut on_way: Vec<&BackupEntry> = backups
        .iter()
        .filter(|backup| backup.leads_to(history) && is_well_before(backup, from))
        .collect();
    on_way.sort_by_key(|backup| backup.stop_lsn);
    let mut newest_first = on_way.into_iter().rev();
    let Some(last) = newest_first.next() else {
        return SegmentNo(0);
    };
    let Some(snapshot) = Snapshot::parse(&last.stop_snapshot) else {
        return SegmentNo(0);
    };
    let oldest = snapshot.oldest_running;
    let begin = if oldest == snapshot.next {
        Some(last)
    } else {
        newest_first.find(|backup| {
            let earlier = Snapshot::parse(&backup.stop_snapshot);
            earlier.is_some_and(|earlier| earlier.next <= oldest)
        })
    };
    begin.map_or(SegmentNo(0), |backup| {
        backup.wal_segment_size.segment_of(backup.start_lsn)
    })
}

fn is_well_before(backup: &BackupEntry, from: Timestamp) -> bool {
    let sure = backup.stop_time.checked_add(CLOCKS_DIFFER);
    sure.is_ok_and(|sure| sure < from)
}
