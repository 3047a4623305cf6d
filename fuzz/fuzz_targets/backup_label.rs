//! `backup_label` and backup history files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::WalFileName;
use walhalla_postgres::backup_label::BackupLabel;

fuzz_target!(|text: &str| {
    if let Ok(label) = BackupLabel::parse(text) {
        assert_eq!(label.timeline, label.start_segment.timeline);
        let file = WalFileName::BackupHistory(label.start_segment, 0);
        assert!(walhalla_postgres::wal::reads_as(file, text.as_bytes()));
    }
});
