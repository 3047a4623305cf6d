//! A stage belongs to one restore, whatever the directories are called.

use std::path::{Path, PathBuf};

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, host, run};

const VERSION: u32 = 17;

/// An archive of rows, one a segment: 1 in the backup, 2 before the restore point, and 3 to 5 after it.
struct Archived {
    area: Area,
    walhalla: Walhalla,
    /// The whole archive's rows.
    end: &'static str,
}

impl Archived {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(version));
        walhalla.archive_from(&mut cluster);
        cluster.sql("create table t as select 1 as i");
        walhalla.back_up(&cluster);
        for row in 2..=5 {
            cluster.sql(&format!("insert into t values ({row})"));
            if row == 2 {
                cluster.sql("select pg_create_restore_point('early')");
            }
            cluster.archive_everything();
        }
        cluster.stop();
        Self {
            area,
            walhalla,
            end: "1,2,3,4,5",
        }
    }

    fn restore(&self, to: &Path, args: &[&str]) -> Outcome {
        let all = ["restore", to.to_str().unwrap(), "--archive-mode", "off"];
        self.walhalla.run(&[&all, args].concat())
    }

    fn early(&self, to: &Path, args: &[&str]) -> Outcome {
        let early = ["--target-name", "early", "--target-action", "promote"];
        self.restore(to, &[&early, args].concat())
    }

    fn recovers(&self, version: u32, data: PathBuf, rows: &str) {
        let mut server = Cluster::adopt(&self.area, version, data);
        server.start();
        server.wait_until_promoted();
        let found = server.sql("select string_agg(i::text, ',' order by i) from t");
        assert_eq!(found, rows);
        server.stop();
    }

    fn stops(&self, data: &Path) -> String {
        let mut server = Cluster::adopt(&self.area, VERSION, data.to_owned());
        let log = server.start_and_fail();
        assert!(log.contains("exit code 200"), "{log}");
        assert!(data.join("recovery.signal").exists());
        log
    }
}

fn each_recovers_from_its_own_stage(version: u32) {
    let archived = Archived::make(version);
    let (there, moved) = (archived.area.path("there"), archived.area.path("moved"));
    archived.restore(&there, &[]).succeeds();
    std::fs::rename(&there, &moved).unwrap();
    let second = archived.early(&there, &[]).succeeds();
    second.says(&["there.walhalla-wal holds the WAL", moved.to_str().unwrap()]);
    let stages =
        ["there.walhalla-wal", "there.walhalla-wal.2"].map(|name| archived.area.path(name));
    assert!(stages.iter().all(|stage| stage.exists()));
    // A third one replaces what belongs to the directory that it goes over.
    archived.early(&there, &["--delta"]).succeeds();
    assert!(!archived.area.path("there.walhalla-wal.3").exists());
    archived.recovers(version, moved, archived.end);
    assert!(!stages[0].exists() && stages[1].exists());
    archived.recovers(version, there, "1,2");
    assert!(!stages[1].exists());
}

#[test]
fn a_restored_directory_that_was_moved_recovers_from_its_own_stage_on_11() {
    each_recovers_from_its_own_stage(11);
}

#[test]
fn a_restored_directory_that_was_moved_recovers_from_its_own_stage_on_17() {
    each_recovers_from_its_own_stage(17);
}

#[test]
fn a_server_whose_stage_is_another_restores_stops_and_leaves_it_alone() {
    let archived = Archived::make(VERSION);
    let there = archived.area.path("there");
    let away = archived.area.make_dir("elsewhere").join("data");
    archived.restore(&there, &[]).succeeds();
    std::fs::rename(&there, &away).unwrap();
    let second = archived.early(&there, &[]).succeeds();
    second.says(&[
        "held the WAL of an earlier restore",
        "it is replaced",
        "restore it again",
    ]);
    let log = archived.stops(&away);
    assert!(log.contains("another restore has the stage now"), "{log}");
    // What its recovery would end with.
    let settings = std::fs::read_to_string(away.join("postgresql.auto.conf")).unwrap();
    let line = settings
        .lines()
        .find(|line| line.starts_with("recovery_end_command"));
    let command = line.unwrap().split('\'').nth(1).unwrap();
    let ended = run(host().command("sh").args(["-c", command])).succeeds();
    ended.says(&["left as it is"]);
    archived.recovers(VERSION, there, "1,2");
    assert!(!archived.area.path("there.walhalla-wal").exists());
    // The stage is gone, and that is not the end of the archive either.
    let log = archived.stops(&away);
    assert!(
        log.contains("that this directory recovers from cannot be read"),
        "{log}"
    );
}

#[test]
fn a_stage_of_another_cluster_in_a_shared_spool_stays() {
    let archived = Archived::make(VERSION);
    let foreign_store = Store::Directory(archived.area.make_dir("foreign-store"));
    let foreign_walhalla = Walhalla::on_host(&archived.area, "foreign", &foreign_store, "");
    let mut foreign = Cluster::create_unrelated(&archived.area, "foreign", Shape::small(VERSION));
    foreign_walhalla.archive_from(&mut foreign);
    foreign.sql("create table t as select 7 as i");
    foreign_walhalla.back_up(&foreign);
    foreign.archive_everything();
    foreign.stop();
    let spool = archived.area.make_dir("spool");
    let spooled =
        |walhalla: &Walhalla| walhalla.with_env("WALHALLA_SPOOL_DIR", spool.to_str().unwrap());
    let (there, away) = (
        archived.area.path("there"),
        archived.area.make_dir("elsewhere").join("data"),
    );
    let args = ["restore", there.to_str().unwrap(), "--archive-mode", "off"];
    // Two containers in which the data directory has one path.
    spooled(&foreign_walhalla).run(&args).succeeds();
    std::fs::rename(&there, &away).unwrap();
    spooled(&archived.walhalla)
        .run(&args)
        .succeeds()
        .says(&["stays as it is"]);
    archived.recovers(VERSION, there, archived.end);
    archived.recovers(VERSION, away, "7");
    assert_eq!(spool.read_dir().unwrap().count(), 0);
}

#[test]
fn a_changed_plan_is_no_plan() {
    let archived = Archived::make(VERSION);
    let there = archived.area.path("there");
    archived.restore(&there, &[]).succeeds();
    let plan = archived.area.path("there.walhalla-wal/plan.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&plan).unwrap()).unwrap();
    let files = json["files"].as_object_mut().unwrap();
    let last = files.keys().next_back().unwrap().clone();
    files.remove(&last);
    std::fs::write(&plan, json.to_string()).unwrap();
    let log = archived.stops(&there);
    assert!(log.contains("or somebody changed the plan"), "{log}");
}
