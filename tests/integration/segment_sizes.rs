//! Segments of every size are ordinary.

use std::time::Duration;

use crate::support::{
    Area, Cluster, PgbenchLoad, Shape, Store, Walhalla, eventually, fill, host, make_history, run,
};

#[test]
fn segments_of_1_mib_are_archived_and_restored_on_13() {
    archive_and_restore(Shape {
        version: 13,
        segment_mb: 1,
    });
}

#[test]
fn segments_of_1_mib_are_archived_and_restored_on_17() {
    archive_and_restore(Shape {
        version: 17,
        segment_mb: 1,
    });
}

#[test]
fn segments_of_16_mib_are_archived_and_restored_on_17() {
    archive_and_restore(Shape {
        version: 17,
        segment_mb: 16,
    });
}

#[test]
fn segments_of_64_mib_are_archived_and_restored_on_17() {
    archive_and_restore(Shape {
        version: 17,
        segment_mb: 64,
    });
}

#[test]
fn segments_of_64_mib_are_archived_and_restored_on_14() {
    archive_and_restore(Shape {
        version: 14,
        segment_mb: 64,
    });
}

fn archive_and_restore(shape: Shape) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", shape);
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let load = PgbenchLoad::start(&primary);
    walhalla.back_up(&primary);
    load.stop(&primary);

    let point = make_history(&primary, "point");
    primary.pgbench(&["-t", "500"]);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    let mut at_point = walhalla.restore(
        &area,
        shape.version,
        "at-point",
        &["--target-name", &point.name],
    );
    at_point.start();
    at_point.wait_until_paused();
    at_point
        .dump()
        .assert_same_as(&point.dump, "the restore point");
    at_point.stop();

    let mut at_end = walhalla.restore(&area, shape.version, "at-end", &[]);
    at_end.start();
    at_end.wait_until_promoted();
    at_end
        .dump()
        .assert_same_as(&end.dump, "the end of the archive");
    at_end.amcheck();
}

#[test]
fn a_cluster_whose_segment_size_was_changed_is_told_so() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "server", Shape::of(17));
    cluster.configure("min_wal_size = 160MB");
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    for _ in 0..12 {
        cluster.sql("create table if not exists t as select 1 as a; insert into t values (1)");
        cluster.archive_everything();
    }
    cluster.stop();
    let resetwal = host().server_program(17, "pg_resetwal");
    run(host()
        .command(resetwal)
        .args(["--wal-segsize=64", "-D"])
        .arg(&cluster.data))
    .succeeds();
    cluster.start();
    cluster.switch_segment();
    eventually("the segment to be refused", Duration::from_secs(30), || {
        cluster.sql("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    cluster.crash();
    let log = cluster.log_text();
    assert!(
        log.contains("the cluster's segment size was changed"),
        "{log}"
    );
    assert!(!log.contains("two servers are archiving"), "{log}");
}
