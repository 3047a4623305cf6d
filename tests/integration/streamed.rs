//! `backup-push` without PGDATA: what the server sends is what its data directory holds, on every version.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    Area, Cluster, Dump, Key, Outcome, Shape, Store, Walhalla, fill, make_history, run,
};

macro_rules! streamed_backups_of_versions {
    ($($name:ident = $version:literal;)*) => {$(
        #[test]
        fn $name() {
            streamed_as_the_directory($version);
        }
    )*};
}

streamed_backups_of_versions! {
    postgres_9_6_sends_what_its_directory_holds = 9;
    postgres_10_sends_what_its_directory_holds = 10;
    postgres_11_sends_what_its_directory_holds = 11;
    postgres_12_sends_what_its_directory_holds = 12;
    postgres_13_sends_what_its_directory_holds = 13;
    postgres_14_sends_what_its_directory_holds = 14;
    postgres_15_sends_what_its_directory_holds = 15;
    postgres_16_sends_what_its_directory_holds = 16;
    postgres_17_sends_what_its_directory_holds = 17;
    postgres_18_sends_what_its_directory_holds = 18;
    postgres_19_sends_what_its_directory_holds = 19;
}

/// What differs between two backups of a cluster in which nothing happened.
const OF_EACH_BACKUP: [&str; 4] = [
    "backup_label",
    "backup_manifest",
    "global/pg_control",
    "tablespace_map",
];

fn streamed_as_the_directory(version: u32) {
    let (area, walhalla, cluster) = archiving(version);
    // The first to read the role's row leaves a hint in it.
    run(cluster
        .client("psql")
        .env("PGUSER", "keeper")
        .args(["-X", "-c", "select 1"]))
    .succeeds();
    cluster.sql("checkpoint");
    let of_directory = walhalla.back_up(&cluster);
    let streamed = stream(&walhalla, &cluster, &[]);
    let [left, right] = [&of_directory, &streamed].map(|id| fetched(&area, &walhalla, id));
    assert_same_files(&left, &right);

    // Each kind of delta on each kind of backup; each is one of what changed only.
    change(&cluster, "first");
    let on_streamed = delta_of_directory(&walhalla, &cluster);
    change(&cluster, "second");
    cluster.sql("update in_space set body = body || 'x' where id % 50 = 0");
    cluster.sql("checkpoint");
    let streamed_delta = stream(&walhalla, &cluster, &["--delta"]);
    let shown = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    let backup = |id: &str| {
        let all = shown.as_array().unwrap();
        all.iter().find(|backup| backup["id"] == id).unwrap()
    };
    assert_eq!(backup(&on_streamed)["parent"], *streamed);
    assert_eq!(backup(&streamed_delta)["parent"], *on_streamed);
    let stored = |id: &str| backup(id)["stored_bytes"].as_u64().unwrap();
    assert!(stored(&streamed_delta) * 2 < stored(&streamed), "{shown:#}");
    let args = ["backup-show", &streamed_delta, "--json"];
    let delta = walhalla.run(&args).succeeds().json();
    let source = if version < 17 { "wal" } else { "server" };
    assert_eq!(delta["changed_blocks"]["source"], source);
    let of_directory = delta_of_directory(&walhalla, &cluster);
    let [left, right] = [&of_directory, &streamed_delta].map(|id| fetched(&area, &walhalla, id));
    assert_same_files(&left, &right);
    let end = change(&cluster, "end");
    walhalla.run(&["verify", "--all"]).succeeds();
    cluster.archive_everything();
    restored_to_the_end(&area, &walhalla, version, &streamed_delta, &end.dump);
    // Which transactions a streamed backup holds the WAL tells.
    let args = [
        "--target-xid",
        &end.xid,
        "--backup",
        &streamed,
        "--target-action",
        "promote",
        "--tablespace-map",
        &elsewhere(&area, &cluster),
    ];
    let mut restored = walhalla.restore(&area, version, "at-xid", &args);
    restored.start();
    restored.wait_until_promoted();
    let original = area.path("space").to_string_lossy().into_owned();
    let own = restored
        .sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'space'");
    let dump = restored.dump().replacing(&own, &original);
    dump.assert_same_as(&end.dump, "at the xid");
}

/// A store of a test's own.
pub fn on_a_directory() -> (Area, Walhalla) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    (area, walhalla)
}

/// A cluster that archives to a store of its own, with a tablespace, and a role that may replicate and nothing else.
fn archiving(version: u32) -> (Area, Walhalla, Cluster) {
    let (area, walhalla) = on_a_directory();
    let cluster = Cluster::create(&area, "primary", Shape::of(version));
    let cluster = prepared(&area, &walhalla, cluster);
    (area, walhalla, cluster)
}

/// The same of a cluster that is there and does not run.
pub fn prepared(area: &Area, walhalla: &Walhalla, mut cluster: Cluster) -> Cluster {
    let_replicate(&cluster);
    if cluster.version >= 17 {
        cluster.configure("summarize_wal = on");
    }
    walhalla.archive_from(&mut cluster);
    if cluster.version >= 10 {
        cluster.sql("create extension amcheck");
    }
    cluster.sql("create table ledger (label text primary key)");
    let space = area.make_dir("space");
    cluster.sql(&format!(
        "create tablespace space location '{}'",
        space.display()
    ));
    cluster.sql(
        "create table in_space tablespace space as select g as id, repeat(md5(g::text), 20) as body \
         from generate_series(1, 3000) g",
    );
    cluster.sql("create role keeper login replication");
    cluster
}

/// What the cluster held, and its last transaction.
pub struct Moment {
    pub dump: Dump,
    xid: String,
}

/// Changes the cluster a little.
pub fn change(cluster: &Cluster, name: &str) -> Moment {
    cluster.sql(&format!(
        "create table at_{name} as select g as id, md5(g::text) as body from generate_series(1, 500) g; \
         create index on at_{name} (body)"
    ));
    let xid = cluster.sql(&format!(
        "with written as (insert into ledger values ('{name}') returning 1) select txid_current() from written"
    ));
    let dump = cluster.dump();
    Moment { dump, xid }
}

/// The servers of 9.6 let nobody replicate unless they are told.
fn let_replicate(cluster: &Cluster) {
    let path = cluster.data.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, rules + "\nlocal replication all trust\n").unwrap();
}

/// Takes a backup over the replication protocol as the role; returns its id.
#[track_caller]
pub fn stream(walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> String {
    streaming(walhalla, cluster, args).succeeds();
    walhalla.newest_backup()
}

pub fn streaming(walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> Outcome {
    run(&mut command(walhalla, cluster, args))
}

/// The command that takes a backup over the replication protocol as the role.
pub fn command(walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = walhalla.command(&[&["backup-push"], args].concat());
    command.envs(cluster.connection()).env("PGUSER", "keeper");
    command
}

fn delta_of_directory(walhalla: &Walhalla, cluster: &Cluster) -> String {
    let data = cluster.data.to_str().unwrap();
    walhalla
        .run_with(cluster, &["backup-push", data, "--delta"])
        .succeeds();
    walhalla.newest_backup()
}

fn fetched(area: &Area, walhalla: &Walhalla, id: &str) -> PathBuf {
    let data = area.path(&format!("fetched-{id}"));
    let space = area.path(&format!("space-{id}"));
    let oid = tablespace_oid(walhalla, id);
    let map = format!("{oid}={}", space.display());
    let path = data.to_str().unwrap();
    walhalla
        .run(&["backup-fetch", path, id, "--tablespace-map", &map])
        .succeeds();
    data
}

fn tablespace_oid(walhalla: &Walhalla, id: &str) -> String {
    let shown = walhalla.run(&["backup-show", id, "--json"]).succeeds();
    let oid = &shown.json()["tablespaces"][0]["oid"];
    oid.to_string()
}

/// Where the cluster's tablespace goes beside a copy.
fn elsewhere(area: &Area, cluster: &Cluster) -> String {
    let oid = cluster.sql("select oid from pg_tablespace where spcname = 'space'");
    let unused = area.path(&format!("space-{}", fastrand::u32(..)));
    format!("{oid}={}", unused.display())
}

#[track_caller]
pub fn restored_to_the_end(
    area: &Area,
    walhalla: &Walhalla,
    version: u32,
    id: &str,
    expected: &Dump,
) {
    let name = format!("restored-{id}");
    let oid = tablespace_oid(walhalla, id);
    let map = format!("{oid}={}", area.path(&format!("{name}-space")).display());
    let args = ["--backup", id, "--tablespace-map", &map];
    let mut restored = walhalla.restore(area, version, &name, &args);
    restored.start();
    restored.wait_until_promoted();
    let original = area.path("space").to_string_lossy().into_owned();
    let own = area.path(&format!("{name}-space"));
    restored
        .dump()
        .replacing(own.to_str().unwrap(), &original)
        .assert_same_as(expected, id);
    restored.amcheck();
}

/// Every file below a directory, and in its tablespaces, with its mode and content.
fn files(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let metadata = std::fs::metadata(&path).unwrap();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let mode = metadata.permissions().mode();
            if metadata.is_dir() {
                files.insert(format!("{name}/"), (mode, Vec::new()));
                folders.push(path);
            } else if !OF_EACH_BACKUP.contains(&name.as_str()) {
                files.insert(name, (mode, std::fs::read(&path).unwrap()));
            }
        }
    }
    files
}

#[track_caller]
fn assert_same_files(left: &Path, right: &Path) {
    let (left, right) = (files(left), files(right));
    let names =
        |files: &BTreeMap<String, (u32, Vec<u8>)>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    for (name, content) in &left {
        assert!(right[name] == *content, "{name} differs");
    }
}

#[test]
fn a_streamed_backup_over_tcp_with_a_password_is_encrypted_and_comes_back() {
    let area = Area::new();
    let store = Store::s3(&area);
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&key.identity);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(17));
    let port = cluster.listen_on_tcp().to_string();
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    cluster.sql("create role keeper login replication password 'between us'");
    std::fs::write(
        cluster.data.join("pg_hba.conf"),
        "local all postgres trust\nhost replication keeper 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    cluster.sql("select pg_reload_conf()");
    let end = make_history(&cluster, "end");
    let mut command = walhalla.command(&["backup-push", "--read-rate", "200MiB"]);
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port)
        .env("PGUSER", "keeper");
    run(&mut command)
        .exits_with(1)
        .says(&["asks for a password"]);
    run(command.env("PGPASSWORD", "between us")).succeeds();
    walhalla.run(&["verify", "--all"]).succeeds();
    cluster.archive_everything();
    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&end.dump, "from S3");
}

#[test]
fn what_a_streamed_delta_cannot_do_is_refused_with_the_reason() {
    let (_area, walhalla, cluster) = archiving(16);
    stream(&walhalla, &cluster, &[]);
    streaming(
        &walhalla,
        &cluster,
        &["--delta", "--changed-blocks", "pages"],
    )
    .exits_with(1)
    .says(&["the data directory"]);
    streaming(
        &walhalla,
        &cluster,
        &["--delta", "--changed-blocks", "server"],
    )
    .exits_with(1)
    .says(&["PostgreSQL 16 takes no incremental backups"]);
    let other = walhalla.with_env("WALHALLA_CLUSTER", "7000000000000000001");
    streaming(&other, &cluster, &[])
        .exits_with(1)
        .says(&["the setting cluster names 7000000000000000001"]);
    cluster.sql("alter role keeper noreplication");
    streaming(&walhalla, &cluster, &[]).exits_with(1);
    assert_eq!(walhalla.backup_ids().len(), 1);
}

#[test]
fn a_streamed_delta_of_a_server_that_summarizes_nothing_is_made_from_the_archive() {
    let (area, walhalla, cluster) = archiving(18);
    cluster.sql("alter system set summarize_wal = off");
    cluster.sql("select pg_reload_conf()");
    stream(&walhalla, &cluster, &[]);
    let end = change(&cluster, "end");
    let delta = stream(&walhalla, &cluster, &["--delta"]);
    let shown = walhalla.run(&["backup-show", &delta, "--json"]).succeeds();
    assert_eq!(shown.json()["changed_blocks"]["source"], "wal");
    cluster.archive_everything();
    restored_to_the_end(&area, &walhalla, 18, &delta, &end.dump);
}

#[test]
fn a_streamed_delta_soon_after_a_promotion_waits_for_wal_of_the_timeline_before() {
    let (area, walhalla) = on_a_directory();
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    primary.configure("summarize_wal = on");
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create role keeper login replication");
    stream(&walhalla, &primary, &[]);
    // The new timeline begins in the first bytes of a segment, so it has none before.
    primary.switch_segment();
    let end = change(&primary, "end");
    primary.sql("select pg_create_restore_point('end')");
    primary.archive_everything();
    primary.stop();
    let args = ["--target-name", "end", "--target-action", "promote"];
    let mut restored = walhalla.restore_archiving(&area, 17, "restored", &args);
    walhalla.give_env(&mut restored);
    restored.start();
    restored.wait_until_promoted();
    let delta = stream(&walhalla, &restored, &["--delta"]);
    restored.archive_everything();
    let mut again = walhalla.restore(&area, 17, "again", &["--backup", &delta]);
    again.start();
    again.wait_until_promoted();
    again.dump().assert_same_as(&end.dump, &delta);
}

#[test]
fn a_backup_with_its_wal_stands_alone_on_a_server_that_archives_nothing() {
    for version in [9, 17, 19] {
        let (area, walhalla) = on_a_directory();
        let mut cluster = Cluster::create(&area, "primary", Shape::of(version));
        let_replicate(&cluster);
        cluster.start();
        fill(&cluster);
        cluster.sql("create role keeper login replication");
        streaming(&walhalla, &cluster, &["--with-wal"]).succeeds();
        // WAL in between is nowhere.
        cluster.switch_segment();
        cluster.switch_segment();
        let end = make_history(&cluster, "end");
        streaming(&walhalla, &cluster, &["--with-wal"]).succeeds();
        let data = cluster.data.to_str().unwrap();
        walhalla
            .run_with(&cluster, &["backup-push", data, "--with-wal"])
            .succeeds();
        cluster.stop();
        walhalla.run(&["verify", "--all"]).succeeds();
        for id in &walhalla.backup_ids()[1..] {
            let name = format!("restored-{id}");
            let args = [
                "--backup",
                id,
                "--target-immediate",
                "--target-action",
                "promote",
            ];
            let mut restored = walhalla.restore(&area, version, &name, &args);
            restored.start();
            restored.wait_until_promoted();
            restored.dump().assert_same_as(&end.dump, id);
        }
    }
}

#[test]
fn blocks_that_are_damaged_on_the_servers_disk_are_named() {
    let (_area, walhalla, mut cluster) = archiving(15);
    let file = cluster.sql("select pg_relation_filepath('in_space')");
    cluster.stop();
    let path = cluster.data.join(&file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 4000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    cluster.start();
    streaming(&walhalla, &cluster, &[])
        .exits_with(3)
        .says(&["block 1 of pg_tblspc/", "is damaged"]);
    let shown = walhalla
        .run(&["backup-show", "LATEST", "--json"])
        .succeeds();
    assert_eq!(shown.json()["corrupt_blocks"][0]["block"], 1);
}

#[test]
fn a_standby_sends_a_backup_too() {
    let (area, walhalla, primary) = archiving(17);
    walhalla.back_up(&primary);
    primary.archive_everything();
    let map = elsewhere(&area, &primary);
    let args = ["--standby", "--tablespace-map", &map];
    let mut standby = walhalla.restore_archiving(&area, 17, "standby", &args);
    standby.configure(&primary.standby_settings());
    walhalla.give_env(&mut standby);
    standby.start();
    let end = change(&primary, "end");
    primary.sql("checkpoint");
    crate::support::eventually(
        "the standby to be there",
        std::time::Duration::from_mins(1),
        || standby.sql("select count(*) from pg_class where relname = 'at_end'") == "1",
    );
    standby.sql("checkpoint");
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| stream(&walhalla, &standby, &[]));
        // Its WAL comes with its primary's.
        while !backup.is_finished() {
            primary.archive_everything();
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let id = backup.join().unwrap();
        let shown = walhalla.run(&["backup-show", &id, "--json"]).succeeds();
        assert_eq!(shown.json()["of_standby"], true);
        let oid = tablespace_oid(&walhalla, &id);
        let place = area.path("promoted-space");
        let map = format!("{oid}={}", place.display());
        let args = ["--backup", &id, "--tablespace-map", &map];
        let mut restored = walhalla.restore(&area, 17, "restored", &args);
        restored.start();
        restored.wait_until_promoted();
        let original = area.path("space").to_string_lossy().into_owned();
        let dump = restored
            .dump()
            .replacing(place.to_str().unwrap(), &original);
        dump.assert_same_as(&end.dump, "of the standby");
    });
}

#[test]
fn a_streamed_backup_without_the_files_of_a_tablespace_is_refused() {
    let (area, walhalla, cluster) = archiving(16);
    cluster.sql("checkpoint");
    // As if the file system of the tablespace were not mounted.
    let (space, away) = (area.path("space"), area.path("away"));
    std::fs::rename(&space, &away).unwrap();
    std::fs::create_dir(&space).unwrap();
    streaming(&walhalla, &cluster, &[])
        .exits_with(1)
        .says(&["has no files in"]);
    assert!(walhalla.backup_ids().is_empty());
    std::fs::remove_dir(&space).unwrap();
    std::fs::rename(&away, &space).unwrap();
}

#[test]
fn a_streamed_delta_is_made_from_the_archive_while_the_server_writes() {
    let (area, walhalla, cluster) = archiving(16);
    stream(&walhalla, &cluster, &[]);
    cluster.sql("create table busy (body text)");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    // The backups begin in the midst of a segment then.
    let deltas: Vec<String> = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(order) {
                    cluster.sql(
                        "insert into busy select repeat('x', 100) from generate_series(1, 500)",
                    );
                }
            });
        }
        let deltas = (0..3).map(|_| streaming(&walhalla, &cluster, &["--delta"]));
        let deltas: Vec<Outcome> = deltas.collect();
        is_over.store(true, order);
        let succeeded = deltas.into_iter().map(Outcome::succeeds);
        drop(succeeded.collect::<Vec<_>>());
        walhalla.backup_ids()
    });
    assert_eq!(deltas.len(), 4);
    let end = change(&cluster, "end");
    cluster.archive_everything();
    restored_to_the_end(&area, &walhalla, 16, &deltas[3], &end.dump);
}

#[test]
fn a_block_that_is_damaged_in_the_parent_is_in_the_streamed_delta() {
    let (area, walhalla, mut cluster) = archiving(17);
    let file = cluster.sql("select pg_relation_filepath('in_space')");
    let path = cluster.data.join(&file);
    cluster.sql("vacuum (freeze) in_space");
    cluster.stop();
    let sound = std::fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damaged[8192 * 3 + 4000..][..8].copy_from_slice(b"DAMAGED!");
    std::fs::write(&path, damaged).unwrap();
    cluster.start();
    streaming(&walhalla, &cluster, &[]).exits_with(3);
    cluster.stop();
    std::fs::write(&path, sound).unwrap();
    cluster.start();
    let end = change(&cluster, "end");
    let delta = stream(&walhalla, &cluster, &["--delta"]);
    cluster.archive_everything();
    restored_to_the_end(&area, &walhalla, 17, &delta, &end.dump);
}

#[test]
fn a_server_of_9_6_without_checksums_sends_what_a_delta_is_made_of() {
    let (area, walhalla) = on_a_directory();
    let mut cluster = Cluster::create_without_checksums(&area, "primary", Shape::of(9));
    let_replicate(&cluster);
    walhalla.archive_from(&mut cluster);
    cluster.sql("create role keeper login replication");
    let full = stream(&walhalla, &cluster, &[]);
    cluster.sql("create table since as select 1 as x");
    let delta = stream(&walhalla, &cluster, &["--delta"]);
    let shown = walhalla.run(&["backup-show", &delta, "--json"]).succeeds();
    assert_eq!(shown.json()["parent"], *full);
}

#[test]
fn a_database_behind_a_link_is_no_part_of_what_the_server_sends_and_the_backup_is_refused() {
    let (area, walhalla, mut cluster) = archiving(16);
    cluster.sql("create database precious");
    let oid = cluster.sql("select oid from pg_database where datname = 'precious'");
    cluster.stop();
    let (folder, disk) = (cluster.data.join("base").join(&oid), area.path("disk"));
    std::fs::rename(&folder, &disk).unwrap();
    std::os::unix::fs::symlink(&disk, &folder).unwrap();
    cluster.start();
    let missing = format!("the server does not send base/{oid}");
    streaming(&walhalla, &cluster, &[])
        .exits_with(1)
        .says(&[&missing]);
    assert!(walhalla.backup_ids().is_empty());
}
