//! `backup.json`: whatever is accepted reads back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use walhalla::repository::BackupEntry;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    assert_reads_back(text.as_bytes());
    // With a checksum that fits, so that the fuzzer need not find one.
    let covered = text.trim_end().trim_end_matches('}').trim_end();
    let checksum = hex::encode(Sha256::digest(covered));
    let text = format!("{covered},\n  \"checksum\": \"{checksum}\"\n}}\n");
    assert_reads_back(text.as_bytes());
});

fn assert_reads_back(text: &[u8]) {
    if let Ok(entry) = BackupEntry::parse(text) {
        let text = entry.to_text().expect("what was read can be written");
        BackupEntry::parse(text.as_bytes()).expect("what was written can be read");
    }
}
