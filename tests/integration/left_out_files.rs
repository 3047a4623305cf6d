//! What a backup leaves out, as PostgreSQL's own base backup does (basebackup.c, `excludeDirContents`, `excludeFiles`).

use std::time::Duration;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, eventually, fill};

#[test]
fn what_a_server_makes_anew_is_not_backed_up() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create unlogged table scratch as select g as id from generate_series(1, 5000) g");
    primary.sql("create index on scratch (id)");
    primary.sql("select pg_create_physical_replication_slot('somebody', true)");
    primary.sql("checkpoint");
    let scratch = primary.sql("select pg_relation_filepath('scratch')");
    area.make_dir("primary/base/pgsql_tmp");
    area.write(
        "primary/base/pgsql_tmp/pgsql_tmp123.4",
        "a sort that was cut off",
    );
    area.write("primary/base/5/t3_16999", "a temporary table");
    area.write("primary/pg_notify/0000", "");
    area.write("primary/my_own.conf", "# kept: not PostgreSQL's");
    let backup = walhalla.back_up(&primary);

    let dir = area.path("fetched");
    walhalla
        .run(&["backup-fetch", dir.to_str().unwrap(), &backup])
        .succeeds();
    for absent in [
        "postmaster.pid",
        "postmaster.opts",
        "base/pgsql_tmp/pgsql_tmp123.4",
        "base/5/t3_16999",
        "pg_replslot/somebody",
        "pg_notify/0000",
        "pg_internal.init",
        "base/5/pg_internal.init",
        &scratch,
    ] {
        assert!(!dir.join(absent).exists(), "{absent} is in the backup");
    }
    for present in [
        "PG_VERSION",
        "backup_label",
        "my_own.conf",
        &format!("{scratch}_init"),
    ] {
        assert!(dir.join(present).exists(), "{present} is not in the backup");
    }
    for empty in [
        "pg_wal",
        "pg_replslot",
        "pg_notify",
        "pg_dynshmem",
        "pg_serial",
        "pg_snapshots",
    ] {
        let is_dir = dir.join(empty).is_dir();
        assert!(
            is_dir,
            "the directory {empty} is missing, and a server wants it"
        );
    }
}

#[test]
fn an_unlogged_table_comes_back_empty_and_writable() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create unlogged table scratch (id int primary key)");
    primary.sql("insert into scratch select g from generate_series(1, 5000) g");
    walhalla.back_up(&primary);
    primary.archive_everything();
    primary.stop();

    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from scratch"), "0");
    restored.sql("insert into scratch values (1)");
    restored.amcheck();
}

/// docs/troubleshooting.md, "File exists": what it advises is right, and is needed still.
#[test]
fn an_unlogged_index_that_was_being_built_is_moved_out_of_the_way() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    primary.sql("create unlogged table scratch as select 1 as id");
    primary.sql(
        "create function waits(i int) returns int immutable language plpgsql as $$ begin \
         while (pg_stat_file('backed_up', true)).size is null loop perform pg_sleep(0.01); end loop; \
         return i; end $$",
    );
    let mut build = primary.client("psql");
    let mut build = build
        .args(["-X", "-c", "create index built on scratch (waits(id))"])
        .spawn()
        .unwrap();
    eventually("the index to be built", Duration::from_mins(1), || {
        primary.sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == "1"
    });
    walhalla.back_up(&primary);
    area.write("primary/backed_up", "");
    assert!(build.wait().unwrap().success());
    let index = primary.sql("select pg_relation_filepath('built')");
    primary.archive_everything();
    primary.stop();

    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    let log = restored.run_to_its_end();
    let refusal = format!("could not create file \"{index}\": File exists");
    assert!(log.contains(&refusal), "{log}");
    assert!(restored.data.join(format!("{index}_init")).exists());
    std::fs::rename(restored.data.join(&index), area.path("moved")).unwrap();
    restored.start();
    restored.wait_until_promoted();
    area.write("restored/backed_up", "");
    restored.sql("insert into scratch values (2)");
    assert_eq!(restored.sql("select id from scratch"), "2");
}

#[test]
fn a_cluster_whose_pg_wal_is_a_link_is_archived_and_restored() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    // As `initdb --waldir` leaves it.
    let elsewhere = area.path("wal-elsewhere");
    std::fs::rename(primary.data.join("pg_wal"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, primary.data.join("pg_wal")).unwrap();
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    primary.sql("insert into ledger values ('linked', 'after the backup')");
    let dump = primary.dump();
    primary.archive_everything();
    primary.stop();

    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    let own = std::fs::symlink_metadata(restored.data.join("pg_wal")).unwrap();
    assert!(
        own.is_dir(),
        "the copy would write into the original's pg_wal"
    );
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&dump, "from a linked pg_wal");
}

/// A table that was moved to another disk by hand: no base backup holds it, and the restored server would begin it anew.
#[test]
fn a_link_in_the_place_of_data_is_refused() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    primary.sql("create table t as select 1 as i");
    let table = primary.sql("select pg_relation_filepath('t')");
    let elsewhere = area.path("elsewhere");
    for place in [table.as_str(), "pg_xact", "base/5"] {
        primary.stop();
        let path = primary.data.join(place);
        std::fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        primary.start();
        assert_eq!(primary.sql("select count(*) from t"), "1");
        let data = primary.data.to_str().unwrap();
        walhalla
            .run_with(&primary, &["backup-push", data])
            .exits_with(1)
            .says(&[path.to_str().unwrap(), "is a link", "hint:"]);
        primary.stop();
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        primary.start();
    }
    assert!(walhalla.backup_ids().is_empty());
    walhalla.back_up(&primary);
    primary.stop();
}
