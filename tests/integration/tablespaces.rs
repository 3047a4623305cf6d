//! Tablespaces come back, where they were or elsewhere.

use std::path::Path;

use crate::support::{Area, Cluster, Dump, Shape, Store, Walhalla, eventually, fill};

/// A cluster with a table in a tablespace, backed up and archived to the end, and stopped.
struct Spaced {
    area: Area,
    walhalla: Walhalla,
    version: u32,
    oid: String,
    dump: Dump,
}

impl Spaced {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::of(version));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        let location = area.make_dir("space");
        primary.sql(&format!(
            "create tablespace outside location '{}'",
            location.display()
        ));
        primary.sql("create table far (id int primary key, body text) tablespace outside");
        primary
            .sql("insert into far select g, repeat('before ', 20) from generate_series(1, 3000) g");
        walhalla.back_up(&primary);
        primary.sql(
            "insert into far select g, repeat('after ', 20) from generate_series(3001, 6000) g",
        );
        primary.sql("create table later (id int) tablespace outside");
        let oid = primary.sql("select oid from pg_tablespace where spcname = 'outside'");
        let dump = primary.dump();
        primary.archive_everything();
        primary.stop();
        Self {
            area,
            walhalla,
            version,
            oid,
            dump,
        }
    }

    fn location(&self) -> String {
        self.area.path("space").display().to_string()
    }

    fn recovered_in(&self, mut restored: Cluster, location: &Path) {
        restored.start();
        restored.wait_until_promoted();
        let location = location.display().to_string();
        assert_eq!(
            restored.sql(&format!("select pg_tablespace_location({})", self.oid)),
            location
        );
        restored.dump().assert_same_as(
            &self.dump.replacing(&self.location(), &location),
            "with its tablespace",
        );
        restored.amcheck();
    }
}

fn moves_by_its_oid(version: u32) {
    let spaced = Spaced::make(version);
    let elsewhere = spaced.area.path("elsewhere");
    let map = format!("{}={}", spaced.oid, elsewhere.display());
    let restored = spaced.walhalla.restore(
        &spaced.area,
        version,
        "restored",
        &["--tablespace-map", &map],
    );
    spaced.recovered_in(restored, &elsewhere);
}

#[test]
fn a_tablespace_is_restored_into_another_directory_on_13() {
    moves_by_its_oid(13);
}

#[test]
fn a_tablespace_is_restored_into_another_directory_on_17() {
    moves_by_its_oid(17);
}

#[test]
fn a_tablespace_is_restored_where_it_was_when_that_is_empty() {
    let spaced = Spaced::make(17);
    let location = spaced.area.path("space");
    std::fs::remove_dir_all(&location).unwrap();
    spaced.area.make_dir("space");
    let restored = spaced
        .walhalla
        .restore(&spaced.area, spaced.version, "restored", &[]);
    spaced.recovered_in(restored, &location);
}

#[test]
fn a_restore_refuses_to_write_into_a_tablespace_that_is_in_use() {
    let spaced = Spaced::make(17);
    let restored = spaced.area.path("restored");
    let args = [
        "restore",
        restored.to_str().unwrap(),
        "--archive-mode",
        "off",
    ];
    spaced
        .walhalla
        .run(&args)
        .exits_within(1..=4)
        .says(&[&spaced.location(), "hint:"]);
    assert!(!restored.join("global/pg_control").exists());

    // The original lost nothing.
    let mut primary = Cluster::adopt(&spaced.area, spaced.version, spaced.area.path("primary"));
    primary.start();
    eventually(
        "the original to answer",
        std::time::Duration::from_secs(10),
        || primary.sql("select count(*) from far") == "6000",
    );
}

#[test]
fn a_tablespace_whose_file_system_is_not_mounted_is_refused() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    let location = area.make_dir("space");
    primary.sql(&format!(
        "create tablespace far location '{}'",
        location.display()
    ));
    primary.sql("create table t tablespace far as select 1 as i");
    primary.sql("checkpoint");
    let mounted = std::fs::read_dir(&location)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::rename(&mounted, area.path("unmounted")).unwrap();
    let data = primary.data.to_str().unwrap();
    walhalla
        .run_with(&primary, &["backup-push", data])
        .exits_with(1)
        .says(&["has no files in", "mounted"]);
    assert!(walhalla.backup_ids().is_empty());
    std::fs::rename(area.path("unmounted"), &mounted).unwrap();
    walhalla.back_up(&primary);
    primary.stop();
}
