//! Records out of pages whose headers are right, and what a record's content tells.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla::postgres::{Lsn, SegmentSize, Version};
use walhalla::wal::event::event;
use walhalla::wal::reader::{Record, RecordHeader, RecordReader};

const PAGE_BYTES: usize = 8192;

fuzz_target!(|data: (u8, u8, &[u8])| {
    let (info, resource_manager, bytes) = data;
    let mut header = [0; 24];
    header[..4].copy_from_slice(&(24 + bytes.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&700_u32.to_le_bytes());
    header[16] = info;
    header[17] = resource_manager;
    let record = Record {
        start: Lsn(0x300_0028),
        end: Lsn(0x300_0100),
        header: RecordHeader::read(&header),
        content: bytes,
    };
    for version in ["9.6", "10", "13", "15", "18"] {
        let version = Version::parse(version).expect("a version");
        let _ = event(&record, version);
        let _ = record.headers(version, |_| {});
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
        let mut show = |record: &Record| assert!(record.start < record.end);
        if reader.page(Lsn(address), &page, &mut show).is_err() {
            return;
        }
        address += PAGE_BYTES as u64;
    }
});
