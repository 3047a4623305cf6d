//! Whether the server itself tells of an earlier backup.
//!
//! At a backup's end a primary writes a backup history file beside its WAL (xlog.c, `do_pg_backup_stop`), and keeps it until
//! the next one is archived. A server that was put back to a state from before that backup does not have it.

use std::path::Path;

use jiff::Timestamp;
use walhalla_postgres::{Lsn, WalFileName};

use crate::repository::BackupEntry;

/// What the server is to call a backup: no other begins at the same microsecond.
pub(super) fn label(own: Option<&str>, start: Timestamp) -> String {
    match own {
        Some(own) => format!("{own} (walhalla {start})"),
        None => format!("walhalla {start}"),
    }
}

/// Whether the folder holds the backup history file of this backup.
pub(super) fn names(wal_folder: &Path, backup: &BackupEntry) -> bool {
    let Ok(entries) = std::fs::read_dir(wal_folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let file = name.to_str().and_then(|name| name.parse().ok());
        matches!(file, Some(WalFileName::BackupHistory(..)))
            && std::fs::read(entry.path())
                .is_ok_and(|text| is_of(&String::from_utf8_lossy(&text), backup))
    })
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`, the same of the stop, `CHECKPOINT LOCATION`, and the
/// label: copies of a server that do the same come to the same positions.
fn is_of(text: &str, backup: &BackupEntry) -> bool {
    let position = |field: &str| -> Option<Lsn> {
        let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let label = label(backup.label.as_deref(), backup.start_time);
    text.contains(&format!("LABEL: {label}\n"))
        && position("START WAL LOCATION:") == Some(backup.start_lsn)
        && position("STOP WAL LOCATION:") == Some(backup.stop_lsn)
        && backup
            .checkpoint_lsn
            .is_none_or(|known| position("CHECKPOINT LOCATION:") == Some(known))
}
