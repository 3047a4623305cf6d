//! Settings that were changed after the backup, and what they mean for its restore.

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host, run};

fn archiving(area: &Area, walhalla: &Walhalla, version: u32) -> Cluster {
    let mut cluster = Cluster::create(area, "primary", Shape::small(version));
    walhalla.archive_from(&mut cluster);
    cluster.sql("create table t as select 1 as i");
    cluster
}

/// Starts the server anew with these settings.
fn restart_with(cluster: &mut Cluster, settings: &str) {
    cluster.stop();
    cluster.configure(settings);
    cluster.start();
}

/// With fewer connections than the WAL was written with, a server in recovery stops, or from 14 on pauses for ever.
fn replay_has_the_room_that_it_needs(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = archiving(&area, &walhalla, version);
    walhalla.back_up(&cluster);
    restart_with(
        &mut cluster,
        "max_connections = 60\nmax_prepared_transactions = 7",
    );
    cluster.sql("insert into t values (2)");
    // It goes up and down; the highest counts.
    restart_with(
        &mut cluster,
        "max_connections = 25\nmax_prepared_transactions = 0",
    );
    cluster.sql("insert into t values (3)");
    cluster.archive_everything();
    cluster.stop();

    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["needed_settings"]["max_connections"], 60);
    assert_eq!(plan["needed_settings"]["max_prepared_transactions"], 7);
    let shown = walhalla.run(&["plan"]).succeeds();
    assert!(shown.stdout.contains("max_connections 60"), "{shown}");
    let mut restored = walhalla.restore(&area, version, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from t"), "3");
    assert_eq!(restored.sql("show max_connections"), "60");
    assert_eq!(restored.sql("show max_prepared_transactions"), "7");
    // What is enough stays.
    assert_eq!(restored.sql("show max_wal_senders"), "4");
    restored.stop();
    // Before they were raised nothing is needed.
    let plan = walhalla.run(&["plan", "--json", "--target-immediate"]);
    assert!(plan.succeeds().json().get("needed_settings").is_none());
}

#[test]
fn replay_has_the_room_that_it_needs_on_13() {
    replay_has_the_room_that_it_needs(13);
}

#[test]
fn replay_has_the_room_that_it_needs_on_17() {
    replay_has_the_room_that_it_needs(17);
}

/// PostgreSQL replays no WAL after `wal_level = minimal`, in which changes are missing.
fn nothing_after_wal_level_minimal_is_reached(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = archiving(&area, &walhalla, version);
    let backup = walhalla.back_up(&cluster);
    cluster.sql("insert into t values (2)");
    cluster.archive_everything();
    restart_with(
        &mut cluster,
        "archive_mode = off\nmax_wal_senders = 0\nwal_level = minimal",
    );
    cluster.sql("insert into t values (3)");
    restart_with(
        &mut cluster,
        "wal_level = replica\nmax_wal_senders = 4\narchive_mode = on",
    );
    cluster.sql("insert into t values (4)");
    let after = cluster.insert_lsn();
    cluster.sql("insert into t values (5)");
    cluster.archive_everything();
    for target in [&[][..], &["--target-lsn", &after]] {
        let plan = walhalla.run(&[&["plan"], target].concat());
        plan.exits_with(4)
            .says(&["wal_level = minimal", "use instead: "]);
        let place = area.path("refused").display().to_string();
        let restore = walhalla.run(&[&["restore", &place], target].concat());
        restore.exits_with(4);
        assert!(!area.path("refused").exists());
    }
    let immediate = ["plan", "--target-immediate", "--backup", &backup];
    walhalla.run(&immediate).succeeds();
    // A backup that was taken since is not concerned.
    walhalla.back_up(&cluster);
    cluster.archive_everything();
    cluster.stop();
    let mut restored = walhalla.restore(&area, version, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from t"), "5");
    restored.stop();
}

#[test]
fn nothing_after_wal_level_minimal_is_reached_on_13() {
    nothing_after_wal_level_minimal_is_reached(13);
}

#[test]
fn nothing_after_wal_level_minimal_is_reached_on_17() {
    nothing_after_wal_level_minimal_is_reached(17);
}

/// While checksums and `wal_log_hints` are off, `VACUUM` marks pages as all-visible without a new LSN.
#[test]
fn checksums_that_were_off_between_hide_no_page_from_a_delta() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = archiving(&area, &walhalla, 15);
    restart_with(&mut cluster, "wal_log_hints = off");
    cluster.sql("create table v (a int primary key, b text)");
    cluster.sql("insert into v select g, repeat('x', 200) from generate_series(1, 5000) g");
    cluster.sql("checkpoint");
    // Hint bits are set before the backup, so that nothing else touches the pages.
    cluster.sql("select sum(length(b)) from v");
    cluster.sql("checkpoint");
    walhalla.back_up(&cluster);
    let pg_checksums = |cluster: &Cluster, how: &str| {
        let program = host().server_program(15, "pg_checksums");
        run(host()
            .command(program)
            .args(["--no-sync", how, "-D"])
            .arg(&cluster.data))
        .succeeds();
    };
    cluster.stop();
    pg_checksums(&cluster, "--disable");
    cluster.start();
    cluster.sql("vacuum v");
    cluster.stop();
    pg_checksums(&cluster, "--enable");
    cluster.start();
    let data = cluster.data.to_str().unwrap();
    let delta = ["backup-push", data, "--delta", "--changed-blocks", "pages"];
    walhalla.run_with(&cluster, &delta).succeeds();
    assert!(walhalla.newest_backup().ends_with("-D"));
    cluster.stop();
    let mut restored = walhalla.restore(&area, 15, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.sql("delete from v where a <= 1000");
    let by_index =
        "set enable_seqscan = off; set enable_bitmapscan = off; select count(*) from v where a > 0";
    assert_eq!(restored.sql(by_index), "4000");
    restored.stop();
}
