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

#[cfg(test)]
mod tests {
    use walhalla_postgres::TimelineId;

    use super::*;

    /// The backup that began in segment `day` and ended at noon of that day of November, with this snapshot.
    fn backup(day: u64, snapshot: &str) -> BackupEntry {
        let part = serde_json::json!({ "name": "x", "size_bytes": 1, "stored_bytes": 1, "sha256": "00".repeat(32) });
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": format!("202611{day:02}T110000Z-F"), "kind": "full", "parent": null,
            "system_identifier": "7710533931497189584", "timeline": 1, "history": [],
            "start_lsn": format!("0/{day:X}000028"), "stop_lsn": format!("0/{day:X}000100"),
            "start_time": format!("2026-11-{day:02}T11:00:00Z"), "stop_time": format!("2026-11-{day:02}T12:00:00Z"),
            "stop_snapshot": snapshot, "postgres_version": "17", "server_version": "17.6",
            "wal_segment_size": 1 << 24, "wal_block_size": 8192, "data_checksums": true, "corrupt_blocks": [],
            "size_bytes": 1, "files": 1, "stored_bytes": 2, "tablespaces": [], "parts": [part], "manifest": part,
            "permanent": false, "label": null, "annotations": {}, "walhalla_version": "0",
        }))
        .unwrap()
    }

    #[test]
    fn a_search_begins_before_whatever_ran_when_the_last_backup_ended() {
        let history = History::root(TimelineId::FIRST);
        let idle = [
            backup(3, "700:700:"),
            backup(4, "710:710:"),
            backup(5, "720:720:"),
        ];
        let busy = [
            backup(3, "700:700:"),
            backup(4, "705:710:705"),
            backup(5, "708:720:708"),
        ];
        let unknown = [backup(3, "700:700:"), backup(4, "")];
        for (backups, from, begin) in [
            (&idle[..], "2026-11-05T13:00:00Z", 5),
            // The clocks may differ.
            (&idle, "2026-11-05T12:05:00Z", 4),
            (&idle, "2026-11-03T12:00:00Z", 0),
            // 708 ran at the end of the last one, and had begun before the end of the one before.
            (&busy, "2026-11-05T13:00:00Z", 3),
            (&busy[1..], "2026-11-05T13:00:00Z", 0),
            (&unknown, "2026-11-05T13:00:00Z", 0),
        ] {
            let found = first_segment(backups, &history, from.parse().unwrap());
            assert_eq!(found, SegmentNo(begin), "{from}");
        }
    }
}
