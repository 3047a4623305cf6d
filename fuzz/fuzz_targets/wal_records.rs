//! Records out of pages whose headers are right, and what a record's content tells.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla::postgres::{Lsn, SegmentSize, Version};
use walhalla::wal::reader::{Record, RecordReader};

const PAGE_BYTES: usize = 8192;

fuzz_target!(|data: (u8, u8, &[u8])| {
    let (info, resource_manager, bytes) = data;
    let record = Record {
        start: Lsn(0x300_0028),
        end: Lsn(0x300_0100),
        xid: 700,
        info,
        resource_manager,
        previous: Lsn(0x300_0000),
        size_bytes: 24,
        content: bytes.to_vec(),
    };
    for version in ["10", "13", "15", "18"] {
        let _ = record.event(Version::parse(version).expect("a version"));
    }
    let mut reader = RecordReader::new(SegmentSize::DEFAULT);
    let mut address = 0x300_0000_u64;
    for content in bytes.chunks(PAGE_BYTES - 24) {
        let mut page = vec![0; PAGE_BYTES];
        page[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
        page[4] = 1;
        page[8..16].copy_from_slice(&address.to_le_bytes());
        // The first two bytes say how much of an earlier record goes on here.
        if let Some(remaining) = content.first_chunk::<2>() {
            page[16..18].copy_from_slice(remaining);
        }
        page[24..24 + content.len()].copy_from_slice(content);
        if reader.page(Lsn(address), &page).is_err() {
            return;
        }
        while let Some(record) = reader.next_record() {
            assert!(record.start < record.end);
        }
        address += PAGE_BYTES as u64;
    }
});
