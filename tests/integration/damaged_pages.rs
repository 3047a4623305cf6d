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
