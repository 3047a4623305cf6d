//! Names in listings: keys of WAL files, ids of backups, packings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla::pipeline::Packing;
use walhalla::repository::{BackupId, Layout};
use walhalla_postgres::{SystemIdentifier, WalFileName};
use walhalla_providers::ObjectKey;

fuzz_target!(|text: &str| {
    let layout = Layout::new(SystemIdentifier(7));
    if let Ok(file) = text.parse::<WalFileName>() {
        assert_eq!(file.to_string(), text);
    }
    if let Ok(id) = text.parse::<BackupId>() {
        assert_eq!(id.to_string(), text);
    }
    let (name, packing) = Packing::split(text);
    assert_eq!(format!("{name}{packing}"), text);
    for key in [
        text.to_owned(),
        format!("7/{text}"),
        format!("{}00000001/{text}", layout.wal_folders()),
    ] {
        if let Ok(key) = ObjectKey::new(key) {
            assert_eq!(layout.key(&layout.parse(&key)), key);
        }
    }
});
