//! The WAL reader shows the records that PostgreSQL's own `pg_waldump` shows.

use std::path::Path;

use walhalla::postgres::{Lsn, SegmentName, SegmentSize};
use walhalla::wal::reader::RecordReader;

use crate::support::{
    Area, Cluster, PgbenchLoad, Shape, Store, Walhalla, fill, host, make_history,
};

/// `pg_waldump` comes with 14 and later; each can read only its own version's WAL.
const VERSIONS: [u32; 5] = [14, 15, 16, 17, 18];
const PAGE_BYTES: usize = 8192;

#[derive(Debug, PartialEq, Eq)]
struct Shown {
    lsn: String,
    previous: String,
    total: u32,
    xid: u32,
}

#[test]
fn the_wal_reader_and_pg_waldump_show_the_same_records() {
    for version in VERSIONS {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::with_settings(&area, &store, "compression = \"none\"\n");
        let mut primary = Cluster::create(
            &area,
            "primary",
            Shape {
                version,
                segment_mb: 1,
            },
        );
        walhalla.archive_from(&mut primary);
        fill(&primary);
        let load = PgbenchLoad::start(&primary);
        make_history(&primary, "point");
        load.stop(&primary);
        primary.archive_everything();
        primary.stop();
        let mut segments = store.objects_named("00000001");
        segments.sort();
        let segments: Vec<_> = segments
            .iter()
            .filter(|path| name(path).parse::<SegmentName>().is_ok())
            .collect();
        assert!(segments.len() > 4, "{segments:?}");
        let ours = ours(&segments);
        let theirs = theirs(version, &segments);
        assert!(ours.len() > 1000);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "version {version}");
        }
        assert_eq!(ours.len(), theirs.len(), "version {version}");
    }
}

fn ours(segments: &[&std::path::PathBuf]) -> Vec<Shown> {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut reader = RecordReader::new(size);
    let mut shown = Vec::new();
    for path in segments {
        let mut address = name(path)
            .parse::<SegmentName>()
            .unwrap()
            .number(size)
            .unwrap()
            .start(size);
        for page in std::fs::read(path).unwrap().chunks(PAGE_BYTES) {
            reader.page(address, page).unwrap();
            address = Lsn(address.0 + PAGE_BYTES as u64);
        }
        while let Some(record) = reader.next_record() {
            let (lsn, previous) = (record.start.to_string(), record.previous.to_string());
            shown.push(Shown {
                lsn,
                previous,
                total: record.size_bytes,
                xid: record.xid,
            });
        }
    }
    shown
}

fn theirs(version: u32, segments: &[&std::path::PathBuf]) -> Vec<Shown> {
    let (first, last) = (name(segments[0]), name(segments[segments.len() - 1]));
    let mut command = host().command(host().server_program(version, "pg_waldump"));
    command
        .arg("-p")
        .arg(segments[0].parent().unwrap())
        .args([first, last]);
    // The end of the last segment is the end of what was archived, which pg_waldump reports as an error.
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(shown)
        .collect()
}

/// `rmgr: Heap        len (rec/tot):     54/    54, tx:        738, lsn: 0/01500028, prev 0/01500000, desc: …`
fn shown(line: &str) -> Shown {
    let after = |mark: &str| line.split_once(mark).unwrap().1.trim_start();
    let number = |text: &str| text.split(',').next().unwrap().trim().to_owned();
    let lsn = |text: &str| number(text).parse::<Lsn>().unwrap().to_string();
    Shown {
        total: number(after("/tot):").split_once('/').unwrap().1)
            .parse()
            .unwrap(),
        xid: number(after(" tx:")).parse().unwrap(),
        lsn: lsn(after(" lsn: ")),
        previous: lsn(after(" prev ")),
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
