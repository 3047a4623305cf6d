//! Whose directory `backup-push` reads: that of the server that answers, on one timeline, with an archiver that works.

use std::time::Duration;

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, copy_tree, eventually};

const OTHER: &str = "the server that answers does not run in";

/// An archiving primary, not yet backed up.
fn primary(area: &Area, walhalla: &Walhalla, version: u32) -> Cluster {
    let mut primary = Cluster::create(area, "primary", Shape::of(version));
    walhalla.archive_from(&mut primary);
    primary.sql("create table t as select 1 as i");
    primary.archive_everything();
    primary
}

/// Backs up the directory `name` over the connection of `cluster`.
fn back_up(area: &Area, walhalla: &Walhalla, cluster: &Cluster, name: &str) -> Outcome {
    let data = area.path(name);
    walhalla.run_with(cluster, &["backup-push", data.to_str().unwrap()])
}

/// Makes `postmaster.pid` in the directory `name` say what the cluster's says.
fn pass_for(area: &Area, cluster: &Cluster, name: &str) {
    let pid_file = std::fs::read(cluster.data.join("postmaster.pid")).unwrap();
    std::fs::write(area.path(name).join("postmaster.pid"), pid_file).unwrap();
}

fn a_copy_or_a_standbys_directory_is_not_the_primarys(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = primary(&area, &walhalla, version);
    copy_tree(&primary.data, &area.path("copy"));
    back_up(&area, &walhalla, &primary, "copy")
        .exits_with(1)
        .says(&[OTHER]);
    assert!(walhalla.backup_ids().is_empty());

    walhalla.back_up(&primary);
    let mut standby = walhalla.restore(&area, version, "standby", &["--standby"]);
    standby.start();
    eventually("the standby answers", Duration::from_mins(1), || {
        standby.sql("select pg_is_in_recovery()") == "t"
    });
    // The old check compares what this file says.
    let own = std::fs::read(standby.data.join("postmaster.pid")).unwrap();
    pass_for(&area, &primary, "standby");
    back_up(&area, &walhalla, &primary, "standby")
        .exits_with(1)
        .says(&[OTHER]);
    std::fs::write(standby.data.join("postmaster.pid"), own).unwrap();
    let primarys = std::fs::read(primary.data.join("postmaster.pid")).unwrap();
    pass_for(&area, &standby, "primary");
    back_up(&area, &walhalla, &standby, "primary")
        .exits_with(1)
        .says(&[OTHER]);
    std::fs::write(primary.data.join("postmaster.pid"), primarys).unwrap();
    assert_eq!(walhalla.backup_ids().len(), 1);
    walhalla.back_up(&standby);
    standby.stop();
    primary.stop();
}

#[test]
fn a_copy_or_a_standbys_directory_is_not_the_primarys_on_13() {
    a_copy_or_a_standbys_directory_is_not_the_primarys(13);
}

#[test]
fn a_copy_or_a_standbys_directory_is_not_the_primarys_on_17() {
    a_copy_or_a_standbys_directory_is_not_the_primarys(17);
}

#[test]
fn a_failing_archiver_is_told_before_the_backup_begins() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = primary(&area, &walhalla, 17);
    primary.configure("archive_command = 'false'");
    primary.switch_segment();
    let failing = || {
        let query =
            "select count(*) from pg_stat_archiver where last_failed_time > last_archived_time";
        primary.sql(query) == "1"
    };
    eventually("the archiver fails", Duration::from_mins(1), failing);
    back_up(&area, &walhalla, &primary, "primary")
        .exits_with(1)
        .says(&["the server's archiver fails on", "last tried it at"]);
    assert!(walhalla.backup_ids().is_empty());

    // A failure that was followed by success is none.
    primary.configure(&walhalla.archive_settings());
    primary.archive_everything();
    walhalla.back_up(&primary);
    primary.stop();
}

/// An idle standby writes nothing by which a copy of its directory could be told from it; its processes tell.
#[test]
fn a_copy_of_an_idle_standby_is_not_its_directory() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = primary(&area, &walhalla, 17);
    walhalla.back_up(&primary);
    primary.archive_everything();
    primary.stop();
    let mut standby = walhalla.restore(&area, 17, "standby", &["--standby"]);
    standby.start();
    eventually("the standby answers", Duration::from_mins(1), || {
        standby.sql("select pg_is_in_recovery()") == "t"
    });
    standby.sql("checkpoint");
    copy_tree(&standby.data, &area.path("copy"));
    back_up(&area, &walhalla, &standby, "copy")
        .exits_with(1)
        .says(&[OTHER]);
    assert_eq!(walhalla.backup_ids().len(), 1);
    standby.stop();
}

#[test]
fn an_archiver_that_fails_while_the_backup_waits_is_told_at_once() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::with_settings(&area, &store, "archive_timeout = \"8s\"\n");
    let mut primary = primary(&area, &walhalla, 17);
    // It has nothing to fail on yet.
    primary.configure("archive_command = 'false'");
    back_up(&area, &walhalla, &primary, "primary")
        .exits_with(1)
        .says(&[
            "the server's archiver fails on",
            "waits for its WAL for",
            "did not arrive in the archive within 8 s",
        ]);
    assert!(walhalla.backup_ids().is_empty());
    primary.stop();
}
