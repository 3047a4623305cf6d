//! How fast WAL is read: `read_wal MODE SEGMENT...`, segments of one timeline that follow each other.
//!
//! `crc` takes a CRC-32C of all bytes, `checksums` also a BLAKE3 hash, `records` reads the records and checks their CRCs,
//! `blocks` also reads which blocks they change, `events` also what they mean, `summary` takes all of it into a summary. Prints `seconds bytes records`: the time
//! without that for getting the files into memory.
#![allow(clippy::print_stdout, reason = "it prints its one line")]

use std::error::Error;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use walhalla_postgres::summary::Summarizer;
use walhalla_postgres::wal::event::event;
use walhalla_postgres::wal::page_header::PageHeader;
use walhalla_postgres::wal::reader::{Record, RecordReader};
use walhalla_postgres::{Lsn, SegmentName, SegmentSize, Version};

/// Every server's, unless it was built otherwise.
const PAGE_BYTES: usize = 8192;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().ok_or("usage: read_wal MODE SEGMENT...")?;
    let mut reader = None;
    // One for all of them: new memory costs more than reading.
    let mut bytes = Vec::new();
    let mut passed = Duration::ZERO;
    let (mut size_bytes, mut records) = (0, 0_u64);
    for path in arguments {
        bytes.clear();
        std::fs::File::open(&path)?.read_to_end(&mut bytes)?;
        let (version, size) = of_first_page(&bytes).ok_or("this is no WAL segment")?;
        let name: SegmentName = Path::new(&path)
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or("no name")?
            .parse()?;
        let start = name.number(size).ok_or("no such segment")?.start(size);
        let reader = reader.get_or_insert_with(|| RecordReader::new(size));
        let begin = Instant::now();
        match mode.as_str() {
            "crc" => _ = std::hint::black_box(crc32c::crc32c(&bytes)),
            "checksums" => {
                _ = std::hint::black_box(crc32c::crc32c(&bytes));
                _ = std::hint::black_box(blake3::hash(&bytes));
            }
            "records" => read(reader, start, &bytes, |_| records += 1)?,
            "blocks" => read(reader, start, &bytes, |record| {
                records += 1;
                let show = |block| _ = std::hint::black_box(block);
                _ = std::hint::black_box(record.headers(version, show));
            })?,
            "events" => read(reader, start, &bytes, |record| {
                records += 1;
                let show = |block| _ = std::hint::black_box(block);
                _ = std::hint::black_box(record.headers(version, show));
                _ = std::hint::black_box(event(record, version));
            })?,
            "summary" => {
                let mut summarizer = Summarizer::new(name);
                read(reader, start, &bytes, |record| {
                    records += 1;
                    summarizer.record(record, version);
                })?;
                _ = std::hint::black_box(summarizer);
            }
            _ => return Err("no such mode".into()),
        }
        passed += begin.elapsed();
        size_bytes += bytes.len();
    }
    println!("{:.6} {size_bytes} {records}", passed.as_secs_f64());
    Ok(())
}

fn of_first_page(bytes: &[u8]) -> Option<(Version, SegmentSize)> {
    let header = PageHeader::read(bytes)?;
    let (_, segment_bytes, _) = header.long?;
    let size = SegmentSize::new(u64::from(segment_bytes))?;
    Some((Version::of_wal_page(header.magic)?, size))
}

fn read(
    reader: &mut RecordReader,
    start: Lsn,
    bytes: &[u8],
    mut show: impl FnMut(&Record),
) -> Result<(), Box<dyn Error>> {
    let mut address = start;
    for page in bytes.chunks(PAGE_BYTES) {
        reader.page(address, page, &mut show)?;
        address = Lsn(address.0 + PAGE_BYTES as u64);
    }
    Ok(())
}
