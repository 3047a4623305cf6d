//! `pg_control` out of a backup, with its CRC made to fit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::ControlFile;

fuzz_target!(|data: &[u8]| {
    let _ = ControlFile::parse(data);
    // Where the CRC is depends on the version.
    for at in [280, 288, 292] {
        let mut bytes = data.to_vec();
        if let (Some(covered), Some(crc)) = (data.get(..at), bytes.get_mut(at..at + 4)) {
            crc.copy_from_slice(&crc32c_of(covered).to_le_bytes());
        }
        if let Ok(control) = ControlFile::parse(&bytes) {
            assert!(control.block_size_bytes >= 1024 && control.wal_block_size_bytes >= 1024);
        }
    }
});

/// CRC-32C, bit by bit.
fn crc32c_of(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
