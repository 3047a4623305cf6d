//! `backup_manifest`: whatever is accepted can be written and read back the same.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use walhalla::contents::manifest::{self, FileFacts, Head, Manifest, WalRange};
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
    let Ok(manifest) = Manifest::read(text.as_bytes()) else {
        return;
    };
    let head = Head {
        version: Version::parse("17").expect("a version"),
        cluster: SystemIdentifier(1),
        wal: WalRange {
            timeline: TimelineId::FIRST,
            start: Lsn(1),
            end: Lsn(2),
        },
    };
    let files = |manifest: &Manifest| -> Vec<(PathBuf, FileFacts)> {
        let files = manifest.files.list().iter();
        files.map(|(path, facts)| (path, *facts)).collect()
    };
    let mut written = Vec::new();
    manifest::write(&mut written, head, files(&manifest).into_iter()).expect("memory takes all");
    let read = Manifest::read(&*written).expect("what was written can be read");
    assert_eq!(files(&read), files(&manifest));
});
