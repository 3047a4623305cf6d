//! `backup_manifest`: whatever is accepted can be written and read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use walhalla::contents::manifest::{Manifest, WalRange};
use walhalla_postgres::{Lsn, SystemIdentifier, TimelineId, Version};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let covered = text
        .split("\"Manifest-Checksum\"")
        .next()
        .unwrap_or_default();
    let checksum = hex::encode(Sha256::digest(covered));
    let text = format!("{covered}\"Manifest-Checksum\": \"{checksum}\"}}\n");
    let Ok(manifest) = Manifest::parse(&text) else {
        return;
    };
    let wal = WalRange {
        timeline: TimelineId::FIRST,
        start: Lsn(1),
        end: Lsn(2),
    };
    let version = Version::parse("17").expect("a version");
    let written = manifest.to_text(version, SystemIdentifier(1), wal);
    assert_eq!(
        Manifest::parse(&written).expect("what was written can be read"),
        manifest
    );
});
