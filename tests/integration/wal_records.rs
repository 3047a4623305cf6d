//! The WAL reader shows the records that PostgreSQL's own `pg_waldump` shows, and decodes what it describes.

use std::collections::BTreeSet;

use walhalla_postgres::Version;
use walhalla_postgres::wal::event::{Event, Outcome, event};

use crate::support::{
    Area, RESOURCE_MANAGERS, Shown, WrittenWal, compare_with_pg_waldump, read_segments,
    version_name, write_every_kind,
};

/// What must be in the WAL that is compared.
const DESCRIBED: [&str; 19] = [
    "COMMIT",
    "ABORT",
    "PREPARE",
    "COMMIT_PREPARED",
    "ABORT_PREPARED",
    "CHECKPOINT_SHUTDOWN",
    "CHECKPOINT_ONLINE",
    "END_OF_RECOVERY",
    "RESTORE_POINT",
    "BACKUP_END",
    "SWITCH",
    "OVERWRITE_CONTRECORD",
    "CREATE",
    "CREATE copy",
    "TRUNCATE",
    "rels",
    "subxacts",
    "inval msgs",
    "origin",
];
/// These need not be: CLOG has a record every 32,768 transactions; nothing in PostgreSQL itself writes generic ones.
const NOT_WRITTEN: [&str; 2] = ["CLOG", "Generic"];

/// `XLOG_PAGE_MAGIC` of the first version with `XLR_BLOCK_ID_TOPLEVEL_XID`.
const MAGIC_OF_14: u16 = 0xD10D;

#[test]
fn records_of_postgresql_9_6_are_those_of_pg_waldump() {
    compare(9);
}

#[test]
fn records_of_postgresql_10_are_those_of_pg_waldump() {
    compare(10);
}

#[test]
fn records_of_postgresql_11_are_those_of_pg_waldump() {
    compare(11);
}

#[test]
fn records_of_postgresql_12_are_those_of_pg_waldump() {
    compare(12);
}

#[test]
fn records_of_postgresql_13_are_those_of_pg_waldump() {
    compare(13);
}

#[test]
fn records_of_postgresql_14_are_those_of_pg_waldump() {
    compare(14);
}

#[test]
fn records_of_postgresql_15_are_those_of_pg_waldump() {
    compare(15);
}

#[test]
fn records_of_postgresql_16_are_those_of_pg_waldump() {
    compare(16);
}

#[test]
fn records_of_postgresql_17_are_those_of_pg_waldump() {
    compare(17);
}

#[test]
fn records_of_postgresql_18_are_those_of_pg_waldump() {
    compare(18);
}

#[test]
fn records_of_postgresql_19_are_those_of_pg_waldump() {
    compare(19);
}

fn compare(version: u32) {
    let area = Area::new();
    // Every second one writes what logical decoding wants: names of prepared transactions, top-level transactions.
    let is_logical = version % 2 == 1;
    let settings = if is_logical {
        "wal_level = logical"
    } else {
        ""
    };
    let written = write_every_kind(&area, version, settings);
    let mut all = Vec::new();
    for segments in [&written.first_timeline, &written.second_timeline] {
        let size = written.segment_size;
        all.extend(compare_with_pg_waldump(&area, version, segments, size));
    }
    everything_is_covered(&all, version);
    let version = Version::parse(&version_name(version)).unwrap();
    dropped_databases_are_found(version, &written);
    the_last_checkpoint_is_the_control_files(version, &written);
    if is_logical {
        parts_name_their_transaction(version, &written);
    }
}

fn everything_is_covered(records: &[Shown], version: u32) {
    let managers: BTreeSet<&str> = records
        .iter()
        .map(|record| record.resource_manager.as_str())
        .collect();
    let missing: Vec<&str> = RESOURCE_MANAGERS
        .into_iter()
        .filter(|name| !managers.contains(name) && !NOT_WRITTEN.contains(name))
        // Changes of hash indexes are in the WAL from 10 on.
        .filter(|name| version >= 10 || *name != "Hash")
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    for wanted in DESCRIBED {
        let is_it = |text: &String| {
            text.starts_with(&format!("{wanted} "))
                || text == wanted
                || text.contains(&format!("; {wanted}: "))
        };
        let found = records.iter().filter_map(|record| record.event.as_ref());
        assert!(found.into_iter().any(is_it), "no {wanted}");
    }
    assert!(records.len() > 10_000, "{}", records.len());
}

fn events(version: Version, written: &WrittenWal) -> Vec<Event> {
    let mut events = Vec::new();
    for segments in [&written.first_timeline, &written.second_timeline] {
        read_segments(segments, written.segment_size, |record| {
            events.extend(event(record, version).unwrap());
        });
    }
    events
}

fn dropped_databases_are_found(version: Version, written: &WrittenWal) {
    let events = events(version, written);
    for (wanted, wanted_tablespaces) in &written.dropped_databases {
        let mut found: Vec<u32> = Vec::new();
        for event in &events {
            if let Event::DatabaseDropped {
                database,
                tablespaces,
            } = event
                && database == wanted
            {
                found.extend(tablespaces);
            }
        }
        found.sort_unstable();
        assert_eq!(&found, wanted_tablespaces);
    }
}

/// `pg_waldump` does not show a checkpoint's time.
fn the_last_checkpoint_is_the_control_files(version: Version, written: &WrittenWal) {
    let (seconds, redo) = &written.last_checkpoint;
    let is_it = |event: &Event| match event {
        Event::Checkpoint(checkpoint) => {
            // 19 writes it with zeros in front.
            checkpoint.redo == redo.parse().unwrap()
                && checkpoint.timelines.time.as_second() == *seconds
        }
        _ => false,
    };
    let events = events(version, written);
    assert!(events.iter().any(is_it), "{:?}", written.last_checkpoint);
}

/// `pg_waldump` shows neither: each transaction that says that it is a part of another one (14 and later) is in the list
/// of that one's parts or was rolled back by itself; the ends of prepared transactions name them (11 and later).
fn parts_name_their_transaction(version: Version, written: &WrittenWal) {
    let mut parts = BTreeSet::new();
    let (mut listed, mut rolled_back) = (BTreeSet::new(), BTreeSet::new());
    let mut names = Vec::new();
    read_segments(&written.first_timeline, written.segment_size, |record| {
        let headers = record.headers(version, |_| {}).unwrap();
        if let Some(toplevel) = headers.toplevel_xid {
            parts.insert((toplevel, record.header.xid));
        }
        if let Some(Event::TransactionEnd(end)) = event(record, version).unwrap() {
            listed.extend(end.subtransactions.iter().map(|part| (end.xid, *part)));
            if end.outcome == Outcome::Aborted {
                rolled_back.insert(end.xid);
            }
            names.extend(end.prepared.flatten());
        }
    });
    let unexplained: Vec<_> = parts
        .difference(&listed)
        .filter(|(_, part)| !rolled_back.contains(part))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert_eq!(parts.len() > 3000, version.wal_page_magic() >= MAGIC_OF_14);
    // They are named from 11 on.
    let wanted = if version.major() < 11 {
        &[][..]
    } else {
        &["to be kept", "to be dropped"]
    };
    assert_eq!(names, wanted);
}
