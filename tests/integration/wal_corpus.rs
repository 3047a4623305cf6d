//! WAL segments of real servers, kept in `tests/fixtures/wal`, and what the reader makes of them: read without any
//! server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use walhalla_postgres::wal::reader::{Record, RecordReader};
use walhalla_postgres::{Lsn, SegmentName, SegmentSize, Version};

use crate::support::{
    Area, Cluster, Shape, Shown, compare_with_pg_waldump, configure_for_wal, crash_within_a_record,
    segments_of,
};

/// The oldest with segments of 1 MiB, the first that records top-level transactions, and the newest.
const VERSIONS: [u32; 3] = [11, 14, 18];
const PAGE_BYTES: usize = 8192;

#[test]
fn the_kept_segments_are_read_as_written_beside_them() {
    for version in VERSIONS {
        for (path, found) in readings(version) {
            if std::env::var_os("WALHALLA_TEST_REWRITE").is_some() {
                std::fs::write(&path, &found).unwrap();
            }
            let wanted = std::fs::read_to_string(&path).unwrap();
            for (index, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
                assert_eq!(found, wanted, "{}, line {}", path.display(), index + 1);
            }
            assert_eq!(found.len(), wanted.len(), "{}", path.display());
        }
    }
}

#[test]
fn the_kept_segments_hold_what_they_are_kept_for() {
    for version in VERSIONS {
        let text: String = readings(version)
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        for wanted in [
            "(the rest of a record",
            "(a record from",
            " image ",
            "PREPARE ",
            "COMMIT_PREPARED ",
            "subxacts: ",
            "rels: ",
            "TRUNCATE ",
            "DROP dir ",
            "RESTORE_POINT ",
            "SWITCH",
            "OVERWRITE_CONTRECORD ",
            "END_OF_RECOVERY tli 2; prev tli 1",
        ] {
            assert!(text.contains(wanted), "{version}: no {wanted}");
        }
    }
}

/// Makes the corpus anew: segments by servers, compared with `pg_waldump`, and what the reader makes of them.
#[test]
#[ignore = "changes the files in tests/fixtures/wal, which is to be done by hand only"]
fn make_the_kept_segments() {
    for version in VERSIONS {
        let _ = std::fs::remove_dir_all(folder(version));
        std::fs::create_dir_all(folder(version)).unwrap();
        let area = Area::new();
        for segments in write_cases(&area, version) {
            compare_with_pg_waldump(&area, version, &segments, segment_size());
            for path in segments {
                let name = path.file_name().unwrap().to_str().unwrap();
                let packed = zstd::encode_all(&std::fs::read(&path).unwrap()[..], 19).unwrap();
                std::fs::write(folder(version).join(format!("{name}.zst")), packed).unwrap();
            }
        }
        for (path, text) in readings(version) {
            std::fs::write(path, text).unwrap();
        }
    }
}

/// Writes the cases; returns the segments to keep, by timeline.
fn write_cases(area: &Area, version: u32) -> [Vec<PathBuf>; 2] {
    let mut cluster = Cluster::create(area, "primary", Shape::small(version));
    configure_for_wal(&cluster);
    cluster.configure("wal_level = logical");
    cluster.start();
    cluster.sql("create table things (id int primary key, body text)");
    cluster.sql("create table gone as select g as id, repeat('x', 1500) as body from generate_series(1, 60) g");
    cluster.sql("checkpoint");
    let before = cluster.switch_segment();
    for statement in cases(version) {
        cluster.sql(&statement);
    }
    let end = cluster.switch_segment();
    let first = segments_of(&cluster, '1', &end);
    // The first segment after `before` is filled by a message, of which the second one holds the rest.
    let first = first
        .into_iter()
        .filter(|path| name(path) > before.as_str());
    let first: Vec<PathBuf> = first.skip(1).collect();
    crash_within_a_record(&mut cluster);
    cluster.sql("insert into things values (50, 'after the crash')");
    cluster.stop();
    cluster.promote();
    cluster.sql("insert into things values (60, 'on timeline 2')");
    let end = cluster.switch_segment();
    let second = segments_of(&cluster, '2', &end);
    cluster.stop();
    [first, second]
}

fn cases(version: u32) -> Vec<String> {
    // A record over a segment border; the first segment that is kept begins with the rest of it.
    let message = |bytes| {
        format!("select pg_logical_emit_message(false, 'test', repeat('0123456789', {bytes} / 10))")
    };
    let mut cases = vec![
        message(1_100_000),
        "insert into things select g, 'thing ' || g from generate_series(1, 10) g".to_owned(),
        "checkpoint".to_owned(),
        "update things set body = 'changed' where id < 3".to_owned(),
        "delete from gone where id > 10".to_owned(),
        "vacuum gone".to_owned(),
        "begin; insert into things values (41, 'a'); savepoint a; insert into things values (42, 'b'); \
         savepoint b; insert into things values (43, 'c'); rollback to b; commit"
            .to_owned(),
        "begin; insert into things values (44, 'two'); prepare transaction 'two phases'".to_owned(),
        "commit prepared 'two phases'".to_owned(),
        "begin; insert into things values (45, 'none'); prepare transaction 'given up'".to_owned(),
        "rollback prepared 'given up'".to_owned(),
        "begin; insert into things values (46, 'never'); rollback".to_owned(),
        "select pg_create_restore_point('before the drop')".to_owned(),
        "drop table gone".to_owned(),
    ];
    if version >= 15 {
        cases.push("create database copied strategy file_copy".to_owned());
    } else {
        cases.push("create database copied".to_owned());
    }
    cases.push("drop database copied".to_owned());
    cases.push(message(1_000_000));
    cases.push("insert into things values (47, 'the last of its segment')".to_owned());
    cases
}

/// For each kept segment the path of the text beside it, and the text that there should be.
fn readings(version: u32) -> Vec<(PathBuf, String)> {
    let mut packed: Vec<PathBuf> = std::fs::read_dir(folder(version))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "zst"))
        .collect();
    packed.sort();
    let parsed = Version::parse(&version.to_string()).unwrap();
    let mut chain = RecordReader::new(segment_size());
    let mut timeline = None;
    let mut readings = Vec::new();
    for path in packed {
        let segment: SegmentName = name(&path.with_extension("")).parse().unwrap();
        if timeline != Some(segment.timeline) {
            timeline = Some(segment.timeline);
            chain = RecordReader::new(segment_size());
        }
        let bytes = zstd::decode_all(&std::fs::read(&path).unwrap()[..]).unwrap();
        let mut records = String::new();
        read(&mut chain, segment, &bytes, |record| {
            writeln!(records, "{}", line(record, parsed)).unwrap();
        });
        let text = format!("{}{records}{}", head(segment, &bytes), tail(&chain));
        readings.push((path.with_extension("txt"), text));
    }
    readings
}

fn read(
    reader: &mut RecordReader,
    segment: SegmentName,
    bytes: &[u8],
    mut show: impl FnMut(&Record),
) {
    let mut address = segment
        .number(segment_size())
        .unwrap()
        .start(segment_size());
    for page in bytes.chunks(PAGE_BYTES) {
        reader.page(address, page, &mut show).unwrap();
        address = Lsn(address.0 + PAGE_BYTES as u64);
    }
}

/// What a reader that begins at the segment says of a record that began before it.
fn head(segment: SegmentName, bytes: &[u8]) -> String {
    let mut alone = RecordReader::new(segment_size());
    read(&mut alone, segment, bytes, |_| {});
    alone.head().map_or_else(String::new, |head| {
        let end = head.end.unwrap();
        format!(
            "(the rest of a record, {} bytes, to {end})\n",
            head.size_bytes
        )
    })
}

fn tail(chain: &RecordReader) -> String {
    chain.tail().map_or_else(String::new, |tail| {
        format!(
            "(a record from {} goes on for {} bytes)\n",
            tail.start, tail.left_bytes
        )
    })
}

/// `0/3000028 HEAP 114 bytes, transaction 740 of 739: rel 1663/5/16384 fork main blk 0 image 8123, … ─ COMMIT …`
fn line(record: &Record, version: Version) -> String {
    let shown = Shown::of(record, version);
    let headers = record.headers(version, |_| {}).unwrap();
    let mut text = format!(
        "{} {} {} bytes",
        shown.lsn, shown.resource_manager, shown.size_bytes
    );
    if shown.xid != 0 {
        write!(text, ", transaction {}", shown.xid).unwrap();
    }
    if let Some(toplevel) = headers.toplevel_xid {
        write!(text, " of {toplevel}").unwrap();
    }
    for (block, image) in shown.blocks {
        write!(text, ", {block}").unwrap();
        if let Some(bytes) = image {
            write!(text, " image {bytes}").unwrap();
        }
    }
    if let Some(event) = shown.event {
        write!(text, ": {event}").unwrap();
    }
    text
}

fn segment_size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/wal/{version}"))
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
