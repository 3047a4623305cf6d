//! The WAL reader shows the records that PostgreSQL's own `pg_waldump` shows.

use std::path::Path;

use walhalla::postgres::{Lsn, SegmentName, SegmentSize, Version};
use walhalla::wal::reader::{Record, RecordReader};
use walhalla::wal::record::BlockReference;

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
    resource_manager: String,
    /// As `pg_waldump --bkp-details` shows them: `rel 1663/5/16384 fork main blk 0`, and whether there is an image.
    blocks: Vec<(String, bool)>,
}

/// rmgrlist.h, unchanged from 10 to 18.
const RESOURCE_MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

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
        primary.configure("max_prepared_transactions = 5\nwal_compression = on");
        walhalla.archive_from(&mut primary);
        fill(&primary);
        let load = PgbenchLoad::start(&primary);
        make_history(&primary, "point");
        load.stop(&primary);
        every_kind_of_record(&primary);
        primary.archive_everything();
        primary.stop();
        let mut segments = store.objects_named("00000001");
        segments.sort();
        let segments: Vec<_> = segments
            .iter()
            .filter(|path| name(path).parse::<SegmentName>().is_ok())
            .collect();
        assert!(segments.len() > 4, "{segments:?}");
        let ours = ours(version, &segments);
        let theirs = theirs(version, &segments);
        assert!(ours.len() > 1000);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "version {version}");
        }
        assert_eq!(ours.len(), theirs.len(), "version {version}");
    }
}

/// Bulk loads, indexes of each kind, large rows, rewrites, DDL, two-phase commits, databases by both strategies.
fn every_kind_of_record(cluster: &Cluster) {
    let sql = [
        "create table bulk as select g, md5(g::text) as text, int4range(g, g + 5) as range, point(g, g) as point, \
         array[g, g % 7] as list from generate_series(1, 20000) g",
        "create index on bulk using btree (text)",
        "create index on bulk using hash (g)",
        "create index on bulk using gin (list)",
        "create index on bulk using gist (range)",
        "create index on bulk using spgist (point)",
        "create index on bulk using brin (g)",
        "update bulk set g = g + 100000 where g % 10 = 0",
        "delete from bulk where g % 3 = 0",
        "vacuum bulk",
        "insert into bulk select g, 'again' from generate_series(1, 3000) g",
        "vacuum full bulk",
        "create table large as select string_agg(md5(g::text), '') as text from generate_series(1, 30000) g",
        "create unlogged table unlogged as select generate_series(1, 1000) as g",
        "create sequence counter",
        "select count(nextval('counter')) from generate_series(1, 200)",
        "begin; insert into bulk (g) values (1); prepare transaction 'kept'",
        "begin; insert into bulk (g) values (2); prepare transaction 'dropped'",
        "commit prepared 'kept'",
        "rollback prepared 'dropped'",
        "begin; insert into bulk (g) values (3); savepoint a; insert into bulk (g) values (4); rollback to a; commit",
        "select g from bulk for update",
        "truncate unlogged, large",
        "create database copied",
        "drop database copied",
        "drop table bulk, large, unlogged",
        "checkpoint",
    ];
    for line in sql {
        cluster.sql(line);
    }
    if cluster.version >= 15 {
        for strategy in ["wal_log", "file_copy"] {
            cluster.sql(&format!(
                "create database by_{strategy} strategy {strategy}"
            ));
        }
    }
}

fn ours(version: u32, segments: &[&std::path::PathBuf]) -> Vec<Shown> {
    let version = Version::parse(&version.to_string()).unwrap();
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
            let mut show = |record: &Record| shown.push(as_shown(record, version));
            reader.page(address, page, &mut show).unwrap();
            address = Lsn(address.0 + PAGE_BYTES as u64);
        }
    }
    shown
}

fn as_shown(record: &Record, version: Version) -> Shown {
    let mut blocks = Vec::new();
    let show = |block: BlockReference| {
        let BlockReference {
            relation,
            fork,
            block: number,
            ..
        } = block;
        let text = format!("rel {relation} fork {fork} blk {number}");
        blocks.push((text, block.image_bytes.is_some()));
    };
    record.headers(version, show).unwrap();
    let header = record.header;
    Shown {
        lsn: record.start.to_string(),
        previous: header.previous.to_string(),
        total: header.size_bytes,
        xid: header.xid,
        resource_manager: RESOURCE_MANAGERS[usize::from(header.resource_manager)].to_owned(),
        blocks,
    }
}

fn theirs(version: u32, segments: &[&std::path::PathBuf]) -> Vec<Shown> {
    let (first, last) = (name(segments[0]), name(segments[segments.len() - 1]));
    let mut command = host().command(host().server_program(version, "pg_waldump"));
    command
        .arg("--bkp-details")
        .arg("-p")
        .arg(segments[0].parent().unwrap())
        .args([first, last]);
    // The end of the last segment is the end of what was archived, which pg_waldump reports as an error.
    let output = command.output().unwrap();
    let mut records: Vec<Shown> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("rmgr: ") {
            records.push(shown(line));
        } else if let Some((_, block)) = line.split_once("blkref #") {
            let (_, block) = block.split_once(": ").unwrap();
            let has_image = block.contains("(FPW");
            let text = block.split(" (FPW").next().unwrap().trim().to_owned();
            records.last_mut().unwrap().blocks.push((text, has_image));
        }
    }
    records
}

/// `rmgr: Heap        len (rec/tot):     54/    54, tx:        738, lsn: 0/01500028, prev 0/01500000, desc: …`
fn shown(line: &str) -> Shown {
    let after = |mark: &str| line.split_once(mark).unwrap().1.trim_start();
    let number = |text: &str| text.split(',').next().unwrap().trim().to_owned();
    let lsn = |text: &str| number(text).parse::<Lsn>().unwrap().to_string();
    Shown {
        resource_manager: after("rmgr: ")
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned(),
        blocks: Vec::new(),
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
