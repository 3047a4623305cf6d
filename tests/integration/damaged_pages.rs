//! A page that is damaged on disk is found when it is backed up.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, fill, run};

const PAGE_BYTES: u64 = 8192;
const DAMAGED_BLOCK: u64 = 11;

fn is_reported_by_file_and_block(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(version));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create table victim as select g as id, repeat('x', 200) as body from generate_series(1, 1000) g");
    let file = primary.sql("select pg_relation_filepath('victim')");
    primary.stop();
    let relation = OpenOptions::new()
        .write(true)
        .open(primary.data.join(&file))
        .unwrap();
    relation
        .write_all_at(b"not what was here", DAMAGED_BLOCK * PAGE_BYTES + 5000)
        .unwrap();
    primary.start();

    let outcome = walhalla.run_with(&primary, &["backup-push", primary.data.to_str().unwrap()]);
    outcome
        .exits_with(3)
        .says(&[&file, &format!("block {DAMAGED_BLOCK}")]);
    primary.wait_until_quiet();
    primary.archive_everything();

    // It is kept, since the rest of it is worth having, and says what it lacks.
    let id = walhalla.newest_backup();
    let shown = walhalla.run(&["backup-show", "--json", &id]).succeeds();
    assert!(
        shown.stdout.contains(&file),
        "backup-show does not name the damaged file: {shown}"
    );

    let mut restored = walhalla.restore(&area, version, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.assert_books_balance();
    let read = run(restored
        .client("psql")
        .args(["-X", "-c", "select count(*) from victim"]))
    .exits_with(1);
    read.says(&[&format!("invalid page in block {DAMAGED_BLOCK}")]);
}

#[test]
fn a_damaged_page_is_reported_by_file_and_block_and_the_backup_is_kept_on_13() {
    is_reported_by_file_and_block(13);
}

#[test]
fn a_damaged_page_is_reported_by_file_and_block_and_the_backup_is_kept_on_17() {
    is_reported_by_file_and_block(17);
}

/// Four pages with one damage each, which no checksum need tell: an LSN from the future, with and without other changes, a
/// page without content that holds something, and a header that no page has.
fn pages_that_no_server_writes_are_damaged(version: u32, checksums: bool) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let shape = Shape::of(version);
    let mut primary = if checksums {
        Cluster::create(&area, "primary", shape)
    } else {
        Cluster::create_without_checksums(&area, "primary", shape)
    };
    walhalla.archive_from(&mut primary);
    primary.sql("create table victim as select g as id, repeat('x', 200) as body from generate_series(1, 1000) g");
    let file = primary.sql("select pg_relation_filepath('victim')");
    primary.stop();
    let relation = OpenOptions::new()
        .write(true)
        .open(primary.data.join(&file))
        .unwrap();
    let write = |block: u64, offset: u64, bytes: &[u8]| {
        let at = block * PAGE_BYTES + offset;
        relation.write_all_at(bytes, at).unwrap();
    };
    write(3, 0, &[0xFF, 0xFF, 0xFF, 0x7F]);
    let noise: Vec<u8> = (0..PAGE_BYTES).map(|at| (at % 251) as u8).collect();
    write(5, 0, &noise);
    write(5, 0, &[9, 0, 0, 0]);
    write(7, 14, &[0, 0]);
    write(9, 12, &[0xFF, 0xFF]);
    primary.start();

    let outcome = walhalla.run_with(&primary, &["backup-push", primary.data.to_str().unwrap()]);
    let outcome = outcome.exits_with(3);
    let verified = walhalla.run(&["verify", "--json"]).exits_with(3);
    for block in [3, 5, 7, 9] {
        let said = format!("block {block} of {file} is damaged");
        assert!(outcome.stderr.contains(&said), "{said}: {outcome}");
        let found = format!("block {block} of the file {file} in it is damaged, as it was when");
        assert!(verified.stdout.contains(&found), "{found}: {verified}");
    }
    assert_eq!(outcome.stderr.matches("is damaged").count(), 4, "{outcome}");
    let problems = verified.json()["problems"].as_array().unwrap().len();
    assert_eq!(problems, 4, "{verified}");
}

#[test]
fn pages_that_no_server_writes_are_damaged_on_15() {
    pages_that_no_server_writes_are_damaged(15, true);
}

#[test]
fn pages_that_no_server_writes_are_damaged_on_17() {
    pages_that_no_server_writes_are_damaged(17, true);
}

#[test]
fn pages_that_no_server_writes_are_damaged_without_checksums() {
    pages_that_no_server_writes_are_damaged(15, false);
}
