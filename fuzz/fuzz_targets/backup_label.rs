//! `backup_label` and backup history files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla::postgres::WalFileName;
use walhalla::postgres::backup_label::BackupLabel;

fuzz_target!(|text: &str| {
    if let Ok(label) = BackupLabel::parse(text) {
        assert_eq!(label.timeline, label.start_segment.timeline);
        let file = WalFileName::BackupHistory(label.start_segment, 0);
        assert!(walhalla::wal::reads_as(file, text.as_bytes()));
    }
});
