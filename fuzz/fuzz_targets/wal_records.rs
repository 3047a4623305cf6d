//! Records out of pages, and what a record's content tells: of any bytes, of records that were written rightly, and of
//! those with a byte changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::wal::event::event;
use walhalla_postgres::wal::reader::{HEADER_BYTES, Record, RecordHeader, RecordReader};
use walhalla_postgres::{Lsn, SegmentSize, Version};

const PAGE_BYTES: usize = 8192;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Two pages before the end of a segment, so that what is written crosses its border.
const START: u64 = 4 * SEGMENT_BYTES - 2 * PAGE_BYTES as u64;
/// A record of this length runs over two page borders.
const LONGEST: u16 = 18_000;
/// `RM_XLOG_ID` and `XLOG_SWITCH`: nothing may follow it in its segment.
const XLOG: u8 = 0;
const SWITCH: u8 = 0x40;

fuzz_target!(|data: (u8, u8, u16, u8, &[u8])| {
    let (info, resource_manager, position, change, bytes) = data;
    decode_alone(info, resource_manager, bytes);
    read_any(bytes);
    let written = Written::of(bytes);
    read_written(&written);
    read_in_two_parts(&written, usize::from(position));
    if change != 0 {
        read_changed(written, usize::from(position), change);
    }
});

fn decode_alone(info: u8, resource_manager: u8, bytes: &[u8]) {
    let record = Record {
        start: Lsn(0x300_0028),
        end: Lsn(0x300_0100),
        header: RecordHeader::read(&header(bytes.len(), info, resource_manager, 0)),
        content: bytes,
    };
    for version in ["9.6", "10", "11", "12", "13", "14", "15", "16", "17", "18"] {
        let version = Version::parse(version).expect("a version");
        let _ = event(&record, version);
        let _ = record.headers(version, |_| {});
    }
}

fn header(
    content_bytes: usize,
    info: u8,
    resource_manager: u8,
    previous: u64,
) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&((HEADER_BYTES + content_bytes) as u32).to_le_bytes());
    header[4..8].copy_from_slice(&700_u32.to_le_bytes());
    header[8..16].copy_from_slice(&previous.to_le_bytes());
    header[16] = info;
    header[17] = resource_manager;
    header
}

fn reader() -> RecordReader {
    RecordReader::new(SegmentSize::new(SEGMENT_BYTES).expect("a size"))
}

fn page_header(address: u64, remaining: u32) -> Vec<u8> {
    let is_long = address.is_multiple_of(SEGMENT_BYTES);
    let flags = u16::from(remaining > 0) | u16::from(is_long) << 1;
    let mut page = Vec::with_capacity(PAGE_BYTES);
    page.extend_from_slice(&0xD116_u16.to_le_bytes());
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&1_u32.to_le_bytes());
    page.extend_from_slice(&address.to_le_bytes());
    page.extend_from_slice(&u64::from(remaining).to_le_bytes());
    if is_long {
        page.extend_from_slice(&7_u64.to_le_bytes());
        page.extend_from_slice(&(SEGMENT_BYTES as u32).to_le_bytes());
        page.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    }
    page
}

/// Pages that begin rightly and go on with any bytes, of which the first two say how much of an earlier record they are.
fn read_any(bytes: &[u8]) {
    let mut reader = reader();
    let mut address = START;
    for content in bytes.chunks(PAGE_BYTES - 40) {
        let remaining = content.first_chunk::<2>().copied().unwrap_or_default();
        let mut page = page_header(address, u32::from(u16::from_le_bytes(remaining)));
        page.extend_from_slice(content);
        page.resize(PAGE_BYTES, 0);
        let mut show = |record: &Record| assert!(record.start < record.end);
        if reader.page(Lsn(address), &page, &mut show).is_err() {
            return;
        }
        address += PAGE_BYTES as u64;
    }
}

/// Records as a server writes them.
struct Written {
    pages: Vec<Vec<u8>>,
    records: Vec<(Lsn, Vec<u8>)>,
}

impl Written {
    /// Each record's info, resource manager and length are in five bytes of `bytes`; its content is made of all of them.
    fn of(bytes: &[u8]) -> Self {
        let mut written = Self {
            pages: vec![page_header(START, 0)],
            records: Vec::new(),
        };
        for (number, shape) in bytes.chunks_exact(5).take(8).enumerate() {
            let length = usize::from(u16::from_le_bytes([shape[2], shape[3]]) % LONGEST);
            let (from, rest) = bytes.split_at(number);
            let mut content = [rest, from].concat().repeat(length.div_ceil(bytes.len()));
            content.truncate(length);
            written.write(shape[0], shape[1] % 22, &content);
            if shape[1] % 22 == XLOG && shape[0] & 0xF0 == SWITCH {
                break;
            }
        }
        for page in &mut written.pages {
            page.resize(PAGE_BYTES, 0);
        }
        written
    }

    fn write(&mut self, info: u8, resource_manager: u8, content: &[u8]) {
        let page = self.pages.last_mut().expect("the first page");
        page.resize(page.len().next_multiple_of(8), 0);
        if page.len() == PAGE_BYTES {
            self.add_page(0);
        }
        let previous = self.records.last().map_or(0, |(start, _)| start.0);
        let mut header = header(content.len(), info, resource_manager, previous);
        let crc = crc32c::crc32c_append(crc32c::crc32c(content), &header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        let at = self.pages.last().map_or(0, Vec::len);
        let start = START + ((self.pages.len() - 1) * PAGE_BYTES + at) as u64;
        self.records.push((Lsn(start), content.to_vec()));
        self.put(&[&header[..], content].concat());
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self
                .pages
                .last()
                .is_some_and(|page| page.len() == PAGE_BYTES)
            {
                self.add_page(bytes.len() as u32);
            }
            let page = self.pages.last_mut().expect("the first page");
            let (now, later) = bytes.split_at(bytes.len().min(PAGE_BYTES - page.len()));
            page.extend_from_slice(now);
            bytes = later;
        }
    }

    fn add_page(&mut self, remaining: u32) {
        let address = START + (self.pages.len() * PAGE_BYTES) as u64;
        self.pages.push(page_header(address, remaining));
    }

    /// Whether this is the beginning of a record that was written, or all of it.
    fn holds(&self, record: &Record) -> bool {
        self.records.iter().any(|(start, content)| {
            *start == record.start
                && record.header.content_bytes() as usize == content.len()
                && content.starts_with(record.content)
        })
    }
}

fn address_of(page: usize) -> Lsn {
    Lsn(START + (page * PAGE_BYTES) as u64)
}

fn read_written(written: &Written) {
    let mut reader = reader();
    let mut found = 0;
    for (number, page) in written.pages.iter().enumerate() {
        let mut show = |record: &Record| {
            assert_eq!(record.start, written.records[found].0);
            assert!(written.holds(record));
            found += 1;
        };
        reader
            .page(address_of(number), page, &mut show)
            .expect("what was written rightly is read");
    }
    assert_eq!(found, written.records.len());
}

/// Reading may begin at any page: it finds the records that begin there or later, and says how much went on.
fn read_in_two_parts(written: &Written, position: usize) {
    let border = position % written.pages.len();
    let (mut before, mut after) = (reader(), reader());
    let mut found = 0;
    for (number, page) in written.pages.iter().enumerate() {
        let part = if number < border {
            &mut before
        } else {
            &mut after
        };
        let show = &mut |_: &Record| found += 1;
        part.page(address_of(number), page, show)
            .expect("what was written rightly is read");
    }
    let left = before.tail().map_or(0, |tail| tail.left_bytes);
    assert_eq!(after.head().map_or(0, |head| head.left_bytes), left);
    let is_cut = u64::from(left > 0) as usize;
    assert_eq!(found + is_cut, written.records.len());
}

/// A changed byte never brings a record that was not written.
fn read_changed(mut written: Written, position: usize, change: u8) {
    let bytes = written.pages.len() * PAGE_BYTES;
    let at = position % bytes;
    written.pages[at / PAGE_BYTES][at % PAGE_BYTES] ^= change;
    let mut reader = reader();
    for (number, page) in written.pages.iter().enumerate() {
        let show = &mut |record: &Record| assert!(written.holds(record), "{record:?}");
        if reader.page(address_of(number), page, show).is_err() {
            return;
        }
    }
}
