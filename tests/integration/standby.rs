//! Standbys that follow the archive, and backups taken from them.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{
    Area, Cluster, Shape, Store, Walhalla, copy_tree, eventually, fill, make_history,
};

fn follows_the_archive_and_can_be_backed_up(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(version));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);

    let mut standby = walhalla.restore(&area, version, "standby", &["--standby"]);
    standby.start();
    primary.sql("create table seen_by_standby (n int)");
    primary.archive_everything();
    eventually(
        "the standby replays what was archived",
        Duration::from_mins(1),
        || standby.sql("select to_regclass('seen_by_standby') is not null") == "t",
    );
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");

    let from_standby = walhalla.back_up(&standby);
    standby.stop();
    // PostgreSQL stops at the next record, which may not be archived yet. A plan that says yes is true.
    let immediate = ["--target-immediate", "--backup", &from_standby];
    let plan = walhalla.run(&[&["plan"], &immediate[..]].concat());
    match plan.code {
        Some(0) => reaches_its_end(&area, &walhalla, version, &immediate, "at once"),
        _ => _ = plan.exits_with(4).says(&["at which PostgreSQL stops"]),
    }
    primary.archive_everything();
    reaches_its_end(&area, &walhalla, version, &immediate, "later");
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["backup_chain"], serde_json::json!([from_standby]));
    let mut restored = walhalla.restore(&area, version, "restored", &["--wal", "on-demand"]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "from the standby's backup");
    restored.stop();
}

fn reaches_its_end(area: &Area, walhalla: &Walhalla, version: u32, target: &[&str], name: &str) {
    let args = [target, &["--target-action", "promote"]].concat();
    let mut restored = walhalla.restore(area, version, name, &args);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(
        restored.sql("select to_regclass('seen_by_standby') is not null"),
        "t"
    );
    restored.stop();
}

#[test]
fn a_standby_follows_the_archive_and_its_backup_restores_on_13() {
    follows_the_archive_and_can_be_backed_up(13);
}

#[test]
fn a_standby_follows_the_archive_and_its_backup_restores_on_17() {
    follows_the_archive_and_can_be_backed_up(17);
}

/// A primary that archives, and a standby of it, both running; `settings` are added to the standby's.
struct Pair {
    walhalla: Walhalla,
    primary: Cluster,
    standby: Cluster,
    area: Area,
}

impl Pair {
    fn make(
        version: u32,
        prepare: impl FnOnce(&Area, &Cluster),
        restore_args: impl FnOnce(&Area, &Cluster) -> Vec<String>,
        settings: impl FnOnce(&Cluster) -> String,
    ) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let shape = Shape::small(version);
        let mut primary = Cluster::create_without_checksums(&area, "primary", shape);
        walhalla.archive_from(&mut primary);
        primary.sql("create table t (who text)");
        prepare(&area, &primary);
        walhalla.back_up(&primary);
        let args = restore_args(&area, &primary);
        let args: Vec<&str> = ["--standby"]
            .into_iter()
            .chain(args.iter().map(String::as_str))
            .collect();
        let mut standby = walhalla.restore(&area, version, "standby", &args);
        standby.configure(&settings(&primary));
        standby.start();
        Self {
            walhalla,
            primary,
            standby,
            area,
        }
    }

    fn archiving(version: u32) -> Self {
        Self::make(version, |_, _| {}, |_, _| Vec::new(), |_| String::new())
    }

    fn streaming(version: u32) -> Self {
        Self::make(
            version,
            |_, _| {},
            |_, _| Vec::new(),
            Cluster::standby_settings,
        )
    }

    fn wait_for(&self, what: &str, query: &str) {
        eventually(what, Duration::from_mins(1), || {
            self.standby.sql(query) == "t"
        });
    }
}

#[test]
fn a_standbys_backup_ends_with_the_last_commit_in_it_and_not_with_the_standbys_clock() {
    let Pair {
        walhalla,
        mut primary,
        mut standby,
        area,
    } = {
        let pair = Pair::archiving(17);
        pair.primary.sql("insert into t values ('before')");
        pair.primary.sql("checkpoint");
        pair.primary.archive_everything();
        pair.wait_for("the standby replays", "select count(*) = 1 from t");
        pair
    };
    std::thread::sleep(Duration::from_millis(1_100));
    let between = primary.sql("select now()");
    std::thread::sleep(Duration::from_millis(1_100));
    let backup = walhalla.back_up(&standby);
    standby.stop();
    primary.sql("insert into t values ('after')");
    primary.archive_everything();
    primary.stop();

    let target = ["--target-time", &between, "--backup", &backup];
    let args = [&target[..], &["--target-action", "promote"]].concat();
    let mut restored = walhalla.restore(&area, 17, "restored", &args);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select string_agg(who, ' ') from t"), "before");
    restored.stop();
    let list = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    let from = list[1]["reachable_from"].as_str().unwrap();
    assert!(
        from.parse::<jiff::Timestamp>().unwrap() < timestamp(&between),
        "{from} {between}"
    );
}

/// What PostgreSQL prints of a time.
fn timestamp(text: &str) -> jiff::Timestamp {
    text.replacen(' ', "T", 1).parse().unwrap()
}

#[test]
fn a_standbys_tablespaces_go_where_the_user_says() {
    let space = |area: &Area, primary: &Cluster| {
        let place = area.make_dir("space").display().to_string();
        primary.sql(&format!("create tablespace s location '{place}'"));
        primary.sql("create table far tablespace s as select 1 as i");
    };
    let oid = |primary: &Cluster| primary.sql("select oid from pg_tablespace where spcname = 's'");
    let map = |area: &Area, oid: &str, name: &str| format!("{oid}={}", area.path(name).display());
    let mut pair = Pair::make(
        17,
        space,
        |area, primary| {
            vec![
                "--tablespace-map".to_owned(),
                map(area, &oid(primary), "standbys"),
            ]
        },
        |_| String::new(),
    );
    let oid = oid(&pair.primary);
    pair.primary.archive_everything();
    pair.wait_for("the standby answers", "select pg_is_in_recovery()");
    pair.walhalla.back_up(&pair.standby);
    pair.primary.archive_everything();
    pair.standby.stop();
    pair.primary.stop();
    // On another host nothing is there.
    let elsewhere = pair.area.path("standbys");
    std::fs::rename(&elsewhere, pair.area.path("gone")).unwrap();
    let copy = pair.area.path("copy").display().to_string();
    let refused = pair
        .walhalla
        .run(&["restore", &copy, "--archive-mode", "off"]);
    refused
        .exits_with(1)
        .says(&["was taken of a standby", "--tablespace-map", &oid]);
    assert!(!pair.area.path("copy").exists());
    assert!(!elsewhere.exists());

    for name in ["named", "standbys"] {
        let map = map(&pair.area, &oid, name);
        let args = ["--tablespace-map", &map];
        let mut restored = pair
            .walhalla
            .restore(&pair.area, 17, &format!("copy-{name}"), &args);
        restored.start();
        restored.wait_until_promoted();
        assert_eq!(restored.sql("select i from far"), "1");
        let place = restored.sql(&format!("select pg_tablespace_location({oid})"));
        assert_eq!(PathBuf::from(place), pair.area.path(name));
        restored.stop();
    }
}

fn wait_until_streaming(primary: &Cluster) {
    eventually("the standby streams", Duration::from_mins(1), || {
        primary.sql("select count(*) from pg_stat_replication") == "1"
    });
}

/// A copy of the primary parts from it after the checkpoint at which the standby's backup begins, and archives first.
#[test]
fn a_standbys_backup_is_not_taken_with_the_wal_of_another_server() {
    let Pair {
        walhalla,
        mut primary,
        mut standby,
        area,
    } = Pair::streaming(17);
    primary.archive_everything();
    wait_until_streaming(&primary);
    // Otherwise it would follow the other server.
    standby.sql("alter system set restore_command = ''");
    standby.sql("select pg_reload_conf()");
    primary.stop();
    copy_tree(&primary.data, &area.path("other"));
    let mut other = Cluster::adopt(&area, 17, area.path("other"));
    walhalla.give_env(&mut other);
    other.start();
    other.sql("insert into t select 'other' from generate_series(1, 100)");
    let segment = other.switch_segment();
    other.wait_until_archived(&segment);
    other.stop();

    // Its own archiver says nothing of it; what matters is what the archive holds.
    primary.configure("archive_command = 'true'");
    primary.start();
    primary.sql("insert into t select 'own' from generate_series(1, 100)");
    eventually("the standby streams", Duration::from_mins(1), || {
        standby.sql("select count(*) from t where who = 'own'") == "100"
    });
    // Its control file comes up to what it has replayed.
    standby.sql("checkpoint");
    let data = standby.data.to_str().unwrap();
    walhalla
        .run_with(&standby, &["backup-push", data])
        .exits_with(1)
        .says(&[&segment, "other content"]);
    assert_eq!(walhalla.backup_ids().len(), 1);
    standby.stop();
    primary.stop();
}

#[test]
fn a_standby_that_went_over_to_another_timeline_is_not_copied_before_it_begins_there() {
    let mut pair = Pair::streaming(17);
    let mut cascade = pair
        .walhalla
        .restore(&pair.area, 17, "cascade", &["--standby"]);
    cascade.configure(&pair.standby.standby_settings());
    // The checkpoint after the promotion takes its time.
    pair.standby
        .configure("checkpoint_timeout = '1h'\ncheckpoint_completion_target = 0.9");
    pair.primary
        .sql("create table big as select repeat('x', 200) from generate_series(1, 30000)");
    cascade.start();
    let replayed = |cascade: &Cluster, query: &str| {
        eventually("the cascade replays", Duration::from_mins(1), || {
            cascade.sql(query) == "t"
        });
    };
    replayed(&cascade, "select to_regclass('big') is not null");
    pair.primary.stop();
    pair.standby.sql("select pg_promote()");
    pair.standby.sql("insert into t values ('timeline 2')");
    replayed(&cascade, "select count(*) = 1 from t");
    let data = cascade.data.to_str().unwrap();
    let refused = pair
        .walhalla
        .run_with(&cascade, &["backup-push", data])
        .exits_with(1)
        .says(&["from timeline 1 to timeline 2", "CHECKPOINT"]);
    assert!(!refused.stderr.contains(" of PostgreSQL 17"), "{refused}");
    assert_eq!(pair.walhalla.backup_ids().len(), 1);
    cascade.stop();
    pair.standby.stop();
}

#[test]
fn a_standbys_page_that_its_control_file_does_not_know_of_is_told() {
    let Pair {
        walhalla,
        mut primary,
        mut standby,
        area: _area,
    } = Pair::streaming(17);
    primary.sql("insert into t values ('page')");
    primary.sql("checkpoint");
    eventually("the standby replays", Duration::from_mins(1), || {
        standby.sql("select count(*) = 1 from t") == "t"
    });
    standby.sql("checkpoint");
    let file = standby.sql("select pg_relation_filepath('t')");
    standby.sql("select pg_wal_replay_pause()");
    primary.sql("create table later as select generate_series(1, 1000)");
    eventually("the standby receives", Duration::from_mins(1), || {
        standby.sql("select pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn() > 1000") == "t"
    });
    // As a standby of 15 or 17 may have written it.
    let lsn = standby.sql("select (pg_last_wal_receive_lsn() - '0/0'::pg_lsn - 8)::bigint");
    let lsn: u64 = lsn.parse().unwrap();
    let path = standby.data.join(file);
    let mut page = std::fs::read(&path).unwrap();
    let half = |bytes: u64| {
        u32::try_from(bytes & u64::from(u32::MAX))
            .unwrap()
            .to_le_bytes()
    };
    page[..4].copy_from_slice(&half(lsn >> 32));
    page[4..8].copy_from_slice(&half(lsn));
    std::fs::write(&path, page).unwrap();
    let data = standby.data.to_str().unwrap();
    walhalla
        .run_with(&standby, &["backup-push", data])
        .exits_with(1)
        .says(&["block 0 of", "calls the backup consistent"]);
    assert_eq!(walhalla.backup_ids().len(), 1);
    standby.stop();
    primary.stop();
}

/// A copy that parted from the primary after the checkpoint at which the standby's backup begins has that checkpoint, too.
#[test]
fn a_standbys_backup_is_known_by_its_last_transaction() {
    let Pair {
        walhalla,
        mut primary,
        mut standby,
        area,
    } = Pair::streaming(17);
    primary.archive_everything();
    wait_until_streaming(&primary);
    primary.stop();
    copy_tree(&primary.data, &area.path("other"));
    let elsewhere = Area::new();
    let other_store = Store::directory(&elsewhere);
    let mut other = Cluster::adopt(&area, 17, area.path("other"));
    Walhalla::on_host(&area, "elsewhere", &other_store, "").archive_from(&mut other);
    other.sql("insert into t select 'other' from generate_series(1, 100)");
    other.archive_everything();
    other.stop();
    primary.start();
    primary.sql("insert into t select 'own' from generate_series(1, 100)");
    eventually("the standby replays", Duration::from_mins(1), || {
        standby.sql("select count(*) from t where who = 'own'") == "100"
    });
    standby.sql("checkpoint");
    let backup = std::thread::scope(|scope| {
        let taken = scope.spawn(|| walhalla.back_up(&standby));
        while !taken.is_finished() {
            primary.sql("insert into t values ('later')");
            primary.switch_segment();
            std::thread::sleep(Duration::from_millis(300));
        }
        taken.join().unwrap()
    });
    primary.archive_everything();
    standby.stop();
    primary.stop();
    let immediate = ["--target-immediate", "--backup", &backup];
    let plan = [&["plan"], &immediate[..]].concat();
    walhalla.run(&plan).succeeds();
    walhalla.run(&["verify", &backup]).succeeds();

    let cluster = primary.data.parent().unwrap().join("store");
    let cluster = std::fs::read_dir(cluster).unwrap().next().unwrap().unwrap();
    let others = other_store.path().join(cluster.file_name());
    for folder in ["wal/00000001", "summary/00000001"] {
        for object in std::fs::read_dir(others.join(folder)).unwrap() {
            let object = object.unwrap();
            let place = cluster.path().join(folder).join(object.file_name());
            std::fs::copy(object.path(), place).unwrap();
        }
    }
    walhalla
        .run(&plan)
        .exits_with(4)
        .says(&["is not that of backup"]);
    walhalla.run(&["verify", &backup]).exits_with(3);
}
