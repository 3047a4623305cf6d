//! Restores that do not wait for the disk.

use std::path::Path;

use crate::support::{
    Area, Cluster, Dump, Outcome, Shape, Store, Walhalla, fill, host, make_history, run,
};

/// What everybody is told who restores so.
const CAUTION: &str =
    "--no-sync: the restore ends before the files are on the disk. If this machine crashes";

/// What `-v` tells where the files of a restore are not synced.
const LEFT: &str = "files are left to the system, which writes them when it likes";

struct Archived {
    walhalla: Walhalla,
    end: Dump,
    area: Area,
}

impl Archived {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::of(17));
        walhalla.archive_from(&mut primary);
        let place = area.make_dir("fast");
        host().give_to_user(&place);
        let place = place.display();
        primary.sql(&format!("create tablespace fast location '{place}'"));
        fill(&primary);
        primary.sql("create table quick tablespace fast as select generate_series(1, 1000) as n");
        walhalla.back_up(&primary);
        let end = make_history(&primary, "end").dump;
        primary.archive_everything();
        primary.stop();
        // The restored cluster's tablespace goes to its old place.
        std::fs::rename(area.path("fast"), area.path("fast-of-primary")).unwrap();
        Self {
            walhalla,
            end,
            area,
        }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.walhalla.run(args)
    }

    /// `--tablespace-map` for the place that the one tablespace of `data` has.
    fn tablespace(&self, data: &Path) -> String {
        let link = data.join("pg_tblspc").read_dir().unwrap().next();
        let oid = link.unwrap().unwrap().file_name().into_string().unwrap();
        format!("{oid}={}", self.area.path("fast").display())
    }

    /// The server of `data` starts, recovers to the end of the archive, and has all that the original had.
    fn comes_up(&self, data: &str) -> Cluster {
        let mut restored = Cluster::adopt(&self.area, 17, data.into());
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(&self.end, data);
        restored.amcheck();
        restored
    }
}

#[test]
fn a_cluster_restored_without_sync_has_what_the_original_had() {
    let archived = Archived::make();
    let data = archived.area.path("restored");
    let data = data.to_str().unwrap();
    let restore = ["-v", "restore", data, "--archive-mode", "off", "--no-sync"];
    archived.run(&restore).succeeds().says(&[CAUTION, LEFT]);
    let mut restored = archived.comes_up(data);

    // Over what is there, where the server went on since.
    restored.sql("insert into ledger values ('later', '')");
    restored.sql("drop table quick");
    restored.stop();
    let map = archived.tablespace(&restored.data);
    let over = [&restore[..], &["--delta", "--tablespace-map", &map]].concat();
    archived.run(&over).succeeds().says(&[CAUTION, LEFT]);
    archived.comes_up(data);
}

#[test]
fn a_backup_fetched_without_sync_is_whole() {
    let archived = Archived::make();
    let data = archived.area.path("fetched");
    let fetch = ["--json", "backup-fetch", data.to_str().unwrap(), "LATEST"];
    let fetched = archived.run(&[&fetch[..], &["--no-sync"]].concat());
    assert_eq!(fetched.succeeds().says(&[CAUTION]).json()["durable"], false);
    let mut verify = host().command(host().client_program(17, "pg_verifybackup"));
    run(verify.arg("-n").arg(&data)).succeeds();
    assert!(!data.join("global/pg_control.walhalla.tmp").exists());

    // The same without the option takes it up, and makes it durable.
    let map = archived.tablespace(&data);
    let again = [&fetch[..], &["--delta", "--tablespace-map", &map]].concat();
    let again = archived.run(&again).succeeds();
    assert!(!again.stderr.contains("--no-sync"), "{}", again.stderr);
    assert_eq!(again.json()["durable"], true);
}

#[test]
fn a_plan_and_the_result_say_that_a_restore_is_not_durable() {
    let archived = Archived::make();
    let data = archived.area.path("restored");
    let data = data.to_str().unwrap();
    for (options, is_durable) in [(&["--no-sync"][..], false), (&[], true)] {
        let plan = [&["plan", data], options].concat();
        let planned = archived.run(&[&["--json"], &plan[..]].concat()).succeeds();
        assert_eq!(planned.json()["durable"], is_durable);
        let shown = archived.run(&plan).succeeds().stdout;
        assert_eq!(shown.contains(CAUTION), !is_durable, "{shown}");
        let without_directory = [&["plan"], options].concat();
        let shown = archived.run(&without_directory).succeeds().stdout;
        assert_eq!(shown.contains(CAUTION), !is_durable, "{shown}");
    }
    let restore = ["--json", "restore", data, "--no-sync"];
    let restored = archived.run(&restore).succeeds().says(&[CAUTION]);
    assert_eq!(restored.json()["durable"], false);
}

#[test]
fn what_measures_or_keeps_has_no_such_option() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    for command in [
        &["drill"][..],
        &["backup-push"],
        &["wal-fetch", "x", "y"],
        &["verify", "--all"],
    ] {
        let refused = walhalla.run(&[command, &["--no-sync"]].concat());
        refused.exits_with(2).says(&["--no-sync"]);
    }
}
