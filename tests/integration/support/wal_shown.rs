//! Records as `pg_waldump` shows them, made from what the WAL reader found.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use walhalla_postgres::wal::event::{
    Checkpoint, Event, Outcome, TransactionEnd, Truncation, event,
};
use walhalla_postgres::wal::reader::{Record, RecordReader};
use walhalla_postgres::wal::record::{Fork, Headers, RelationFiles};
use walhalla_postgres::{Lsn, SegmentName, SegmentSize, Version};

/// Length of a WAL page of every build that tests run.
const PAGE_BYTES: usize = 8192;

/// rmgrlist.h, unchanged from 10 to 18.
pub const RESOURCE_MANAGERS: [&str; 22] = [
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

/// What `pg_waldump --bkp-details` says about a record, as far as the reader knows it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub lsn: Lsn,
    pub previous: Lsn,
    pub resource_manager: String,
    pub size_bytes: u32,
    pub size_without_images_bytes: u32,
    pub xid: u32,
    /// `rel 1663/5/16384 fork main blk 0`, and the length of its image.
    pub blocks: Vec<(String, Option<u32>)>,
    /// The description, of what [`event`] decodes.
    pub event: Option<String>,
}

/// Calls `show` with each record in segments of one timeline that follow each other.
pub fn read_segments(segments: &[PathBuf], size: SegmentSize, mut show: impl FnMut(&Record)) {
    let mut reader = RecordReader::new(size);
    for path in segments {
        let mut address = segment_name(path).number(size).unwrap().start(size);
        for page in std::fs::read(path).unwrap().chunks(PAGE_BYTES) {
            reader.page(address, page, &mut show).unwrap();
            address = Lsn(address.0 + PAGE_BYTES as u64);
        }
    }
}

fn segment_name(path: &Path) -> SegmentName {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

impl Shown {
    pub fn of(record: &Record, version: Version) -> Self {
        let mut blocks = Vec::new();
        let headers = record.headers(version, |block| {
            let (relation, fork, number) = (block.relation, block.fork, block.block);
            let text = format!("rel {relation} fork {fork} blk {number}");
            blocks.push((text, block.image_bytes.map(u32::from)));
        });
        let headers = headers.unwrap();
        let header = record.header;
        let images: u32 = blocks.iter().filter_map(|(_, image)| *image).sum();
        Self {
            lsn: record.start,
            previous: header.previous,
            resource_manager: RESOURCE_MANAGERS[usize::from(header.resource_manager)].to_owned(),
            size_bytes: header.size_bytes,
            size_without_images_bytes: header.size_bytes - images,
            xid: header.xid,
            blocks,
            event: event(record, version)
                .unwrap()
                .map(|event| description(&event, &headers)),
        }
    }
}

/// As the `*desc.c` of PostgreSQL describe the record, without what [`Event`] leaves out.
fn description(event: &Event, headers: &Headers) -> String {
    match event {
        Event::TransactionEnd(end) => transaction(end, headers),
        Event::Prepared { time: at, .. } => format!("PREPARE {}", time(*at)),
        Event::Checkpoint(checkpoint) => checkpoint_description(checkpoint),
        Event::EndOfRecovery(switch) => format!(
            "END_OF_RECOVERY tli {}; prev tli {}; time {}",
            switch.timeline,
            switch.previous,
            time(switch.time)
        ),
        Event::ParameterChange { wal_level, limits } => {
            let names = ["minimal", "replica", "logical"];
            format!(
                "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
                 max_locks_per_xact={} wal_level={}",
                limits.max_connections,
                limits.max_worker_processes,
                limits.max_wal_senders,
                limits.max_prepared_transactions,
                limits.max_locks_per_transaction,
                names[*wal_level as usize]
            )
        }
        Event::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        Event::BackupEnd { start } => format!("BACKUP_END {start}"),
        Event::Switch => "SWITCH".to_owned(),
        Event::Overwrite { overwritten } => format!("OVERWRITE_CONTRECORD lsn {overwritten}"),
        Event::RelationCreated { relation, fork } => {
            format!("CREATE {relation} fork {fork}")
        }
        Event::RelationTruncated(truncation) => truncate(truncation),
        Event::DatabaseCreated {
            database,
            tablespace,
            copy_of,
        } => match copy_of {
            Some((from, in_tablespace)) => {
                format!("CREATE copy dir {in_tablespace}/{from} to {tablespace}/{database}")
            }
            None => format!("CREATE create dir {tablespace}/{database}"),
        },
        Event::DatabaseDropped {
            database,
            tablespaces,
        } => {
            let folders: Vec<_> = tablespaces
                .iter()
                .map(|tablespace| format!("{tablespace}/{database}"))
                .collect();
            format!("DROP dir {}", folders.join(" "))
        }
        Event::TablespaceCreated {
            tablespace,
            location,
        } => format!("CREATE {tablespace} \"{location}\""),
        Event::TablespaceDropped { tablespace } => format!("DROP {tablespace}"),
    }
}

fn transaction(end: &TransactionEnd, headers: &Headers) -> String {
    let operation = match end.outcome {
        Outcome::Committed => "COMMIT",
        Outcome::Aborted => "ABORT",
    };
    let at = time(end.time);
    let mut parts = vec![if end.prepared.is_some() {
        format!("{operation}_PREPARED {}: {at}", end.xid)
    } else {
        format!("{operation} {at}")
    }];
    if !end.dropped.is_empty() {
        parts.push(format!("rels: {}", list(&end.dropped)));
    }
    if !end.subtransactions.is_empty() {
        parts.push(format!("subxacts: {}", list(&end.subtransactions)));
    }
    if end.invalidations > 0 {
        parts.push(format!("inval msgs: {}", end.invalidations));
    }
    if let Some((lsn, at)) = end.origin {
        let node = headers.origin.unwrap();
        parts.push(format!("origin: node {node}, lsn {lsn}, at {}", time(at)));
    }
    parts.join("; ")
}

fn checkpoint_description(checkpoint: &Checkpoint) -> String {
    let (name, kind) = if checkpoint.is_shutdown {
        ("CHECKPOINT_SHUTDOWN", "shutdown")
    } else {
        ("CHECKPOINT_ONLINE", "online")
    };
    let (redo, next_xid) = (checkpoint.redo, checkpoint.next_xid);
    let (timeline, previous) = (checkpoint.timelines.timeline, checkpoint.timelines.previous);
    format!("{name} redo {redo}; tli {timeline}; prev tli {previous}; xid {next_xid}; {kind}")
}

fn truncate(truncation: &Truncation) -> String {
    let Truncation {
        relation,
        blocks,
        main,
        visibility_map,
        free_space_map,
    } = *truncation;
    let flags = u8::from(main) | u8::from(visibility_map) << 1 | u8::from(free_space_map) << 2;
    format!(
        "TRUNCATE {relation} fork {} to {blocks} blocks flags {flags}",
        Fork::Main
    )
}

fn list(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(" ")
}

/// As `pg_waldump` shows it where `TZ` is UTC.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f UTC").to_string()
}

/// `base/5/16384_fsm`: a path in a data directory, as the relation and fork that it belongs to.
pub fn relation_of_path(path: &str) -> (RelationFiles, &str) {
    let (path, fork) = path
        .rsplit_once('_')
        .map_or((path, "main"), |(start, end)| {
            // The underscore may be one of the folder PG_17_202406281.
            if end.contains('/') {
                (path, "main")
            } else {
                (start, end)
            }
        });
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| text.parse::<u32>().unwrap();
    let relation = |tablespace, database, number| RelationFiles {
        tablespace,
        database,
        number,
    };
    let relation = match parts[..] {
        ["base", database, name] => relation(1663, number(database), number(name)),
        ["global", name] => relation(1664, 0, number(name)),
        ["pg_tblspc", tablespace, _, database, name] => {
            relation(number(tablespace), number(database), number(name))
        }
        _ => panic!("{path} is no relation's path"),
    };
    (relation, fork)
}
