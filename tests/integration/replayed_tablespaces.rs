//! Tablespaces that were created after the backup: replay makes them where the original has them.

use std::path::Path;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, fill, host, run};

/// A backup, and after it a tablespace with a table. The original runs.
struct Spaced {
    area: Area,
    walhalla: Walhalla,
    primary: Cluster,
    oid: String,
    /// Where the tablespace's record begins.
    before: String,
}

impl Spaced {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::small(version));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        primary.archive_everything();
        let before = primary.insert_lsn();
        let place = area.make_dir("a space");
        primary.sql(&format!(
            "create tablespace later location '{}'",
            place.display()
        ));
        primary.sql(
            "create table far tablespace later as select g as id from generate_series(1, 1000) g",
        );
        primary.archive_everything();
        let oid = primary.sql("select oid from pg_tablespace where spcname = 'later'");
        Self {
            area,
            walhalla,
            primary,
            oid,
            before,
        }
    }

    fn place(&self) -> std::path::PathBuf {
        self.area.path("a space")
    }

    fn refuses(&self, args: &[&str], words: &[&str]) {
        let copy = self.area.path("refused");
        let restore = ["restore", copy.to_str().unwrap(), "--archive-mode", "off"];
        let outcome = self
            .walhalla
            .run(&[&restore[..], args].concat())
            .exits_with(1);
        outcome
            .says(words)
            .says(&[self.place().to_str().unwrap(), "hint:"]);
        assert!(!copy.exists());
    }

    fn recovers(&self, args: &[&str], name: &str, rows: &str) -> Cluster {
        let version = self.primary.version;
        let mut copy = self.walhalla.restore(&self.area, version, name, args);
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(copy.sql("select count(*) from far"), rows);
        copy
    }
}

fn never_into_the_original(version: u32) {
    let mut spaced = Spaced::make(version);
    let plan = spaced.walhalla.run(&["plan", "--json"]).succeeds().json();
    let listed = &plan["new_tablespaces"];
    assert_eq!(listed.as_array().unwrap().len(), 1, "{plan}");
    assert_eq!(listed[0]["location"], spaced.place().to_str().unwrap());
    assert_eq!(listed[0]["oid"].to_string(), spaced.oid);
    let text = spaced.walhalla.run(&["plan"]).succeeds();
    assert!(
        text.stdout
            .contains(&format!("replay creates tablespace {}", spaced.oid)),
        "{text}"
    );

    let map = format!("{}={}", spaced.oid, spaced.area.path("mapped").display());
    spaced.refuses(&[], &["there are files in it"]);
    spaced.refuses(
        &["--tablespace-map", &map],
        &["replay would use it and not"],
    );

    // What lies before its creation needs nothing of it.
    let until = [
        "--target-lsn",
        &spaced.before,
        "--target-exclusive",
        "--target-action",
        "promote",
    ];
    let plan = spaced
        .walhalla
        .run(&[&["plan", "--json"], &until[..3]].concat())
        .succeeds()
        .json();
    assert_eq!(plan["new_tablespaces"], serde_json::json!([]));
    let mut copy = spaced
        .walhalla
        .restore(&spaced.area, version, "before", &until);
    copy.start();
    copy.wait_until_promoted();
    copy.stop();

    // The original is whole, and stays so.
    spaced.primary.sql("checkpoint");
    assert_eq!(spaced.primary.sql("select count(*) from far"), "1000");
    spaced.primary.stop();
    let place = spaced.place();
    std::fs::remove_dir_all(&place).unwrap();
    spaced.refuses(&[], &["does not exist here", "--tablespace-map"]);

    // On another host: an empty place, or another one by the map.
    spaced.area.make_dir("a space");
    spaced.recovers(&[], "there", "1000").stop();
    std::fs::remove_dir_all(&place).unwrap();
    let mut copy = spaced.recovers(&["--tablespace-map", &map], "elsewhere", "1000");
    assert!(is_used(&spaced.area.path("mapped")) && place.is_symlink());
    copy.stop();
    spaced.refuses(&["--tablespace-map", &map], &["is to stand for it"]);
}

fn is_used(place: &Path) -> bool {
    std::fs::read_dir(place).unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("PG_")
    })
}

#[test]
fn a_copy_never_writes_into_a_tablespace_that_was_created_since_on_10() {
    never_into_the_original(10);
}

#[test]
fn a_copy_never_writes_into_a_tablespace_that_was_created_since_on_13() {
    never_into_the_original(13);
}

#[test]
fn a_copy_never_writes_into_a_tablespace_that_was_created_since_on_15() {
    never_into_the_original(15);
}

#[test]
fn a_copy_never_writes_into_a_tablespace_that_was_created_since_on_18() {
    never_into_the_original(18);
}

#[test]
fn tablespaces_that_were_dropped_again_or_hold_a_database_are_looked_at_too() {
    let spaced = Spaced::make(17);
    let primary = &spaced.primary;
    primary.sql("drop table far");
    primary.sql("drop tablespace later");
    let place = spaced.place();
    let sql_place = place.display();
    // The same path again, and a database in it.
    primary.sql(&format!("create tablespace again location '{sql_place}'"));
    primary.sql("create database inside tablespace again");
    primary.archive_everything();
    let plan = spaced.walhalla.run(&["plan", "--json"]).succeeds().json();
    let dropped: Vec<bool> = plan["new_tablespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["is_dropped"].as_bool().unwrap())
        .collect();
    assert_eq!(dropped, [true, false]);
    spaced.refuses(&[], &["there are files in it"]);
    primary.sql("drop database inside");
    primary.sql("drop tablespace again");
    primary.archive_everything();
    // Empty, but replay wants it to be there.
    std::fs::remove_dir(&place).unwrap();
    spaced.refuses(&[], &["does not exist here"]);
    let place = spaced.area.make_dir("a space");
    host().give_to_user(&place);
    let mut copy = spaced.walhalla.restore(&spaced.area, 17, "copy", &[]);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.sql("select count(*) from pg_tablespace"), "2");
}

#[test]
fn a_tablespace_in_the_data_directory_is_no_matter() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::small(17));
    walhalla.archive_from(&mut primary);
    walhalla.back_up(&primary);
    primary.sql("alter role postgres set allow_in_place_tablespaces = on");
    primary.sql("create tablespace inside location ''");
    primary.sql("create table near tablespace inside as select 1 as id");
    primary.archive_everything();
    let text = walhalla.run(&["plan"]).succeeds();
    assert!(text.stdout.contains("in the data directory"), "{text}");
    let mut copy = walhalla.restore(&area, 17, "copy", &[]);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.sql("select count(*) from near"), "1");
}

#[test]
fn a_standby_and_a_restore_on_demand_are_told_of_tablespaces_to_come() {
    let spaced = Spaced::make(17);
    let standby = spaced.area.path("standby");
    let args = ["restore", standby.to_str().unwrap(), "--standby"];
    spaced
        .walhalla
        .run(&args)
        .exits_with(1)
        .says(&["there are files in it"]);
    let copy = spaced.area.path("copy");
    let until = [
        "--target-lsn",
        &spaced.before,
        "--target-exclusive",
        "--wal",
        "on-demand",
        "--archive-mode",
        "off",
    ];
    let args = [&["restore", copy.to_str().unwrap()], &until[..]].concat();
    let outcome = spaced.walhalla.run(&args).succeeds();
    assert!(outcome.stdout.contains("created later"), "{outcome}");
}

/// A database in a tablespace, in the backup; after it a second tablespace, to which the database is moved.
fn a_moved_database_is_not_removed_by_replay(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::small(version));
    walhalla.archive_from(&mut primary);
    let (first, second) = (area.make_dir("first"), area.make_dir("second"));
    let create = |name: &str, place: &Path| {
        primary.sql(&format!(
            "create tablespace {name} location '{}'",
            place.display()
        ));
        primary.sql(&format!(
            "select oid from pg_tablespace where spcname = '{name}'"
        ))
    };
    let a = create("a", &first);
    primary.sql("create database d tablespace a");
    walhalla.back_up(&primary);
    let b = create("b", &second);
    primary.sql("alter database d set tablespace b");
    primary.archive_everything();
    primary.stop();
    // Another host: only the second place is there, and it is empty.
    for place in [&first, &second] {
        std::fs::remove_dir_all(place).unwrap();
    }
    area.make_dir("second");
    let link = area.path("link");
    std::os::unix::fs::symlink(&second, &link).unwrap();
    let data = area.path("copy");
    let restore = |map: &[String]| {
        let mut args = vec!["restore", data.to_str().unwrap(), "--archive-mode", "off"];
        args.extend(map.iter().flat_map(|map| ["--tablespace-map", map]));
        walhalla.run(&args)
    };
    let map = |oid: &str, place: &Path| format!("{oid}={}", place.display());
    let inside = second.join("inside");
    for place in [&second, &link, &inside] {
        let refused = restore(&[map(&a, place)]).exits_with(1);
        refused.says(&[
            &format!("replay creates tablespace {b}"),
            place.to_str().unwrap(),
            "would remove them",
            "--tablespace-map",
            "nothing was written",
        ]);
        assert!(!data.exists() && second.read_dir().unwrap().next().is_none());
    }
    // The second place by the map: what stands for it may be nothing of the restore's, either.
    std::fs::remove_dir(&second).unwrap();
    let third = area.path("third");
    let stage = area.path("copy.walhalla-wal");
    for place in [&third, &data, &stage] {
        let refused = restore(&[map(&a, &third), map(&b, place)]).exits_with(1);
        refused.says(&["would remove them", place.to_str().unwrap()]);
        assert!(!data.exists() && !third.exists());
    }
    restore(&[map(&a, &third), map(&b, &area.path("fourth"))]).succeeds();
    let mut copy = Cluster::adopt(&area, version, data);
    copy.start();
    copy.wait_until_promoted();
    let mut psql = copy.client("psql");
    run(psql.args(["-X", "-d", "d", "-c", "select 1"])).succeeds();
    copy.stop();
}

#[test]
fn a_database_that_replay_moves_to_a_mapped_place_is_not_removed_on_12() {
    a_moved_database_is_not_removed_by_replay(12);
}

#[test]
fn a_database_that_replay_moves_to_a_mapped_place_is_not_removed_on_17() {
    a_moved_database_is_not_removed_by_replay(17);
}

#[test]
fn two_tablespaces_of_replay_get_no_directory_in_common() {
    let spaced = Spaced::make(17);
    let place = spaced.area.make_dir("another space");
    let sql = format!("create tablespace another location '{}'", place.display());
    spaced.primary.sql(&sql);
    let other = spaced
        .primary
        .sql("select oid from pg_tablespace where spcname = 'another'");
    spaced.primary.archive_everything();
    let mut primary = spaced.primary;
    primary.stop();
    for place in [spaced.area.path("a space"), place.clone()] {
        std::fs::remove_dir_all(place).unwrap();
    }
    let copy = spaced.area.path("copy");
    let mapped = spaced.area.path("mapped");
    let maps = [&spaced.oid, &other].map(|oid| format!("{oid}={}", mapped.display()));
    let restore = |maps: &[&str]| {
        let mut args = vec!["restore", copy.to_str().unwrap(), "--archive-mode", "off"];
        args.extend(maps.iter().flat_map(|map| ["--tablespace-map", map]));
        spaced.walhalla.run(&args)
    };
    restore(&[&maps[0], &maps[1]])
        .exits_with(1)
        .says(&["would remove them", mapped.to_str().unwrap()]);
    assert!(!copy.exists());
    spaced.area.make_dir("another space");
    restore(&[&maps[0]]).succeeds();
}
