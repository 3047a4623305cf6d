//! kill -9 in the middle: nothing lost, nothing half-visible, and the next run carries on.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    Area, Cluster, Ending, Moment, PgbenchLoad, Segments, Shape, Store, Walhalla, fill,
    give_rights_back, make_history, make_read_only, random_moment_within,
};

#[test]
fn a_killed_wal_push_leaves_all_or_nothing_and_the_next_one_succeeds() {
    killed_wal_pushes(Store::directory);
}

#[test]
fn a_killed_wal_push_to_s3_leaves_all_or_nothing_and_the_next_one_succeeds() {
    killed_wal_pushes(Store::s3);
}

fn killed_wal_pushes(store: fn(&Area) -> Store) {
    let area = Area::new();
    let store = store(&area);
    let walhalla = Walhalla::new(&area, &store);
    let segments = Segments::make(&area, 16);
    let (first, others) = segments.names.split_first().unwrap();
    let span = timed(|| segments.push(&walhalla, first).succeeds());

    let mut kills = 0;
    for name in others {
        let path = format!("pg_wal/{name}");
        let mut push = walhalla.command(&["wal-push", &path]);
        if let Ending::Killed =
            Walhalla::kill_after(push.current_dir(&segments.data), random_moment_within(span))
        {
            kills += 1;
        }
        // Whatever the kill left, a fetch gets the whole segment or hears that there is none.
        let (outcome, fetched) = segments.fetch(&walhalla, name);
        match fetched {
            Some(bytes) => assert!(
                bytes == segments.original(name),
                "half of {name} is visible"
            ),
            None => drop(outcome.exits_with(74)),
        }
        segments.push(&walhalla, name).succeeds();
        segments.assert_archived(&walhalla, name);
    }
    assert!(
        kills > 0,
        "every push was faster than its kill (a push took {span:?})"
    );
}

#[test]
fn a_killed_backup_push_shows_no_backup_and_leaves_the_server_out_of_backup_mode() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(14));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let mut known = Vec::new();
    let span = timed(|| known.push(walhalla.back_up(&primary)));

    let load = PgbenchLoad::start(&primary);
    let mut kills = 0;
    while kills < 6 {
        let mut push = backup_push(&walhalla, &primary);
        match Walhalla::kill_after(&mut push, random_moment_within(span)) {
            Ending::Killed => kills += 1,
            Ending::Finished(outcome) => {
                outcome.succeeds();
                known.push(walhalla.newest_backup());
            }
        }
        let listed = walhalla.backup_ids();
        // A kill between the commit point and the exit leaves a whole backup; one that was listed stays listed.
        assert!(
            listed.len() <= known.len() + 1 && listed.starts_with(&known),
            "{listed:?}, and there were {known:?}"
        );
        known = listed;
        primary.wait_until_out_of_backup_mode();
    }
    load.stop(&primary);

    let id = walhalla.back_up(&primary);
    assert!(!known.contains(&id));
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();
    for backup in walhalla.backup_ids() {
        comes_back_whole(&walhalla, &area, 14, &backup, &end);
    }
}

#[test]
fn a_failed_backup_push_shows_no_backup_and_leaves_the_server_out_of_backup_mode() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(14));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.archive_everything();

    make_read_only(store.path());
    let failed = walhalla.run_with(&primary, &["backup-push", primary.data.to_str().unwrap()]);
    failed.exits_with(1).says(&["ermission denied", "hint:"]);
    give_rights_back(store.path());
    primary.wait_until_out_of_backup_mode();
    assert!(walhalla.backup_ids().is_empty());

    walhalla.back_up(&primary);
}

#[test]
fn a_killed_restore_does_not_start_and_is_not_taken_for_a_whole_one() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let backup = walhalla.back_up(&primary);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();
    let span = timed(|| comes_back_whole(&walhalla, &area, 17, &backup, &end));

    let mut kills = 0;
    while kills < 8 {
        let data = area.path("half");
        let mut restore =
            walhalla.command(&["restore", data.to_str().unwrap(), "--archive-mode", "off"]);
        let ending = Walhalla::kill_after(&mut restore, random_moment_within(span));
        let mut half = Cluster::adopt(&area, 17, data.clone());
        if let Ending::Finished(outcome) = ending {
            outcome.succeeds();
        } else if data.join("global/pg_control").exists() {
            // The kill came after the last step: then everything has to be there.
        } else {
            kills += 1;
            if data.join("PG_VERSION").exists() {
                half.start_and_fail();
                let again = ["restore", data.to_str().unwrap(), "--archive-mode", "off"];
                walhalla.run(&again).exits_within(1..=2).says(&["empty"]);
            }
            clear(&area, "half");
            continue;
        }
        half.start();
        half.wait_until_promoted();
        half.dump()
            .assert_same_as(&end.dump, "a restore that was whole");
        half.stop();
        clear(&area, "half");
    }
    comes_back_whole(&walhalla, &area, 17, &backup, &end);
}

#[test]
fn a_server_killed_while_it_archives_loses_nothing() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(
        &area,
        "primary",
        Shape {
            version: 17,
            segment_mb: 1,
        },
    );
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let backup = walhalla.back_up(&primary);
    for round in 0..3 {
        let load = PgbenchLoad::start(&primary);
        let segment = primary.switch_segment();
        primary.wait_until_archived(&segment);
        primary.kill();
        drop(load);
        primary.start();
        make_history(&primary, &format!("round_{round}"));
    }
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();
    comes_back_whole(&walhalla, &area, 17, &backup, &end);
}

/// Restores to the end from this backup, and removes it again.
fn comes_back_whole(walhalla: &Walhalla, area: &Area, version: u32, backup: &str, end: &Moment) {
    let mut restored = walhalla.restore(area, version, "whole", &["--backup", backup]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "restored after the kills");
    restored.stop();
    clear(area, "whole");
}

/// Removes a restored directory, and what a restore puts beside it.
fn clear(area: &Area, name: &str) {
    for entry in std::fs::read_dir(area.root()).unwrap() {
        let entry = entry.unwrap();
        let file = entry.file_name();
        let is_beside = file
            .to_string_lossy()
            .trim_start_matches('.')
            .starts_with(name);
        if is_beside && entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

fn backup_push(walhalla: &Walhalla, primary: &Cluster) -> Command {
    let mut command = walhalla.command(&["backup-push", primary.data.to_str().unwrap()]);
    command.envs(primary.connection());
    command
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

impl Cluster {
    /// A backup's session is gone, and with it what the server keeps for it.
    fn wait_until_out_of_backup_mode(&self) {
        crate::support::eventually(
            "the backup's session to end",
            Duration::from_mins(1),
            || {
                let sql = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                       and application_name not in ('psql', 'pgbench')";
                self.sql(sql) == "0"
            },
        );
        assert!(
            !self.data.join("backup_label").exists(),
            "an exclusive backup was begun"
        );
        if self.version < 15 {
            assert_eq!(self.sql("select pg_is_in_backup()"), "f");
        }
    }
}
