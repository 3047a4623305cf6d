//! Taking deltas: what they hold, on which backup they stand, and what tells which blocks changed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Key, Shape, Store, Walhalla, eventually, fill, host, make_history, run,
};

/// A cluster that archives, with pgbench's tables and a full backup.
struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
    version: u32,
}

impl Site {
    fn make(shape: Shape, settings: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::with_settings(&area, &store, settings);
        let mut cluster = Cluster::create(&area, "primary", shape);
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        walhalla.back_up(&cluster);
        Self {
            area,
            store,
            walhalla,
            cluster,
            version: shape.version,
        }
    }

    /// Takes a delta with these arguments; returns what `backup-show` says of it.
    #[track_caller]
    fn delta(&self, args: &[&str]) -> serde_json::Value {
        let data = self.cluster.data.to_str().unwrap();
        let mut all = vec!["backup-push", data, "--delta"];
        all.extend_from_slice(args);
        self.walhalla.run_with(&self.cluster, &all).succeeds();
        let id = self.walhalla.newest_backup();
        self.show(&id)
    }

    fn show(&self, id: &str) -> serde_json::Value {
        let shown = self.walhalla.run(&["backup-show", id, "--json"]);
        shown.succeeds().json()
    }

    /// The restored cluster has what the original has now.
    #[track_caller]
    fn assert_restores(&mut self) {
        self.cluster.archive_everything();
        let expected = self.cluster.dump();
        self.cluster.stop();
        let mut restored = self
            .walhalla
            .restore(&self.area, self.version, "restored", &[]);
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(&expected, "restored");
        restored.amcheck();
        restored.stop();
    }
}

fn id(value: &serde_json::Value) -> &str {
    value["id"].as_str().unwrap()
}

/// Unpacks each backup by `lz4` and `tar` alone; returns their directories, oldest first.
fn unpack_by_stock_tools(site: &Site) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for id in site.walhalla.backup_ids() {
        let folder = site.area.make_dir(&format!("untarred-{id}"));
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        let stored: Vec<PathBuf> = site.store.objects_named("");
        let of_backup = |path: &&PathBuf| path.to_string_lossy().contains(&id);
        for object in stored.iter().filter(of_backup) {
            let shell = match object.file_name().unwrap().to_str().unwrap() {
                name if name.ends_with(".tar.lz4") => "lz4 -dc \"$0\" | tar -x -C \"$1\"",
                "backup_manifest.lz4" => "lz4 -dcq \"$0\" > \"$1/backup_manifest\"",
                _ => continue,
            };
            let mut unpack = host().command("sh");
            run(unpack.args(["-c", shell]).arg(object).arg(&folder)).succeeds();
        }
        folders.push(folder);
    }
    folders
}

fn make_chain(site: &Site) {
    make_history(&site.cluster, "one");
    site.delta(&[]);
    site.cluster.sql("drop table at_one");
    make_history(&site.cluster, "two");
    site.delta(&[]);
}

/// Starts what was combined, with the WAL of its backups, and compares it with the original.
fn assert_starts(mut site: Site, combined: PathBuf) {
    site.cluster.archive_everything();
    let expected = site.cluster.dump();
    site.cluster.stop();
    let mut cluster = Cluster::adopt(&site.area, site.version, combined);
    let (file, settings) = if site.version < 12 {
        ("recovery.conf", site.walhalla.restore_settings())
    } else {
        ("recovery.signal", String::new())
    };
    let path = cluster.data.join(file);
    std::fs::write(&path, settings).unwrap();
    host().give_to_user(&path);
    if site.version >= 12 {
        site.walhalla.recover(&mut cluster);
    }
    cluster.configure("archive_mode = off");
    cluster.start();
    cluster.wait_until_promoted();
    cluster.dump().assert_same_as(&expected, "combined");
    cluster.amcheck();
    cluster.stop();
}

fn stock_tools_combine_a_chain(version: u32) {
    let site = Site::make(Shape::of(version), "");
    make_chain(&site);
    let folders = unpack_by_stock_tools(&site);
    let combined = site.area.path("combined");
    let mut combine = host().command(host().client_program(version, "pg_combinebackup"));
    run(combine.args(&folders).arg("-o").arg(&combined)).succeeds();
    // What Walhalla makes of the chain is the same, to the byte.
    let fetched = site.area.path("fetched");
    let fetch = ["backup-fetch", fetched.to_str().unwrap(), "LATEST"];
    site.walhalla.run(&fetch).succeeds();
    let mut diff = host().command("diff");
    diff.args(["-r", "-x", "backup_manifest"]);
    run(diff.arg(&combined).arg(&fetched)).succeeds();
    for folder in [&combined, &fetched] {
        let mut verify = host().command(host().client_program(version, "pg_verifybackup"));
        run(verify.arg("-n").arg(folder)).succeeds();
    }
    assert_starts(site, combined);
}

#[test]
fn a_chain_unpacked_by_lz4_and_tar_is_combined_by_pg_combinebackup_on_17() {
    stock_tools_combine_a_chain(17);
}

#[test]
fn a_chain_unpacked_by_lz4_and_tar_is_combined_by_pg_combinebackup_on_18() {
    stock_tools_combine_a_chain(18);
}

fn the_books_script_combines_a_chain(version: u32) {
    let site = Site::make(Shape::of(version), "");
    make_chain(&site);
    let folders = unpack_by_stock_tools(&site);
    let combined = site.area.path("combined");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/combine-backups.py");
    // The user of the tests may not look into the project's folder.
    let script = site
        .area
        .write("combine.py", std::fs::read(script).unwrap());
    let mut combine = host().command("python3");
    run(combine.arg(script).args(&folders).arg(&combined)).succeeds();
    assert_starts(site, combined);
}

#[test]
fn a_chain_of_11_is_combined_by_the_books_script() {
    the_books_script_combines_a_chain(11);
}

#[test]
fn a_chain_of_15_is_combined_by_the_books_script() {
    the_books_script_combines_a_chain(15);
}

#[test]
fn a_file_that_the_summaries_prove_untouched_is_not_opened() {
    let mut site = Site::make(Shape::of(16), "");
    let relation = |name: &str| {
        let sql = format!("select pg_relation_filepath('{name}')");
        site.cluster.data.join(site.cluster.sql(&sql))
    };
    let untouched = relation("pgbench_accounts");
    site.cluster.sql("insert into ledger values ('a', 'b')");
    let modes = |mode| std::fs::set_permissions(&untouched, Permissions::from_mode(mode)).unwrap();
    modes(0o000);
    let delta = site.delta(&["--changed-blocks", "wal"]);
    assert_eq!(delta["changed_blocks"]["source"], "wal");
    let data = site.cluster.data.to_str().unwrap();
    let args = ["backup-push", data, "--delta", "--changed-blocks", "pages"];
    let all_read = site.walhalla.run_with(&site.cluster, &args);
    let name = untouched.file_name().unwrap().to_str().unwrap();
    all_read.exits_with(1).says(&["could not read", name]);
    modes(0o600);
    site.assert_restores();
}

#[test]
fn without_a_backup_to_stand_on_a_full_one_is_taken_with_a_notice() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::with_settings(&area, &store, "delta_max_chain = 2");
    let mut cluster = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut cluster);
    let data = cluster.data.to_str().unwrap().to_owned();
    let args = ["backup-push", data.as_str(), "--delta"];
    let take = || walhalla.run_with(&cluster, &args).succeeds();
    take().says(&["no backup", "a full backup is taken"]);
    take();
    take();
    take().says(&[
        "2 deltas stand on",
        "delta_max_chain",
        "a full backup is taken",
    ]);
    let list = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    let kinds = list.as_array().unwrap().iter();
    let kinds: Vec<&str> = kinds.map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["full", "delta", "delta", "full"]);
    assert_eq!(list[2]["chain"].as_array().unwrap().len(), 3);
    assert_eq!(list[0]["dependents"].as_array().unwrap().len(), 2);
    cluster.stop();
}

#[test]
fn a_parent_on_an_abandoned_branch_is_refused_and_none_is_chosen_there() {
    let mut site = Site::make(Shape::of(15), "");
    make_history(&site.cluster, "fork");
    let abandoned = site.delta(&[]);
    site.cluster.archive_everything();
    site.cluster.stop();
    let target = ["--target-name", "fork", "--target-action", "promote"];
    site.cluster = site
        .walhalla
        .restore_archiving(&site.area, 15, "branch", &target);
    site.cluster.start();
    site.cluster.wait_until_promoted();
    make_history(&site.cluster, "on_the_branch");
    let data = site.cluster.data.to_str().unwrap();
    let args = ["backup-push", data, "--delta", "--parent", id(&abandoned)];
    let refused = site.walhalla.run_with(&site.cluster, &args).exits_with(1);
    refused.says(&["cannot be the parent", "abandoned branch", "--parent"]);
    let delta = site.delta(&[]);
    let full = &site.walhalla.backup_ids()[0];
    assert_eq!(delta["parent"], full.as_str());
    site.assert_restores();
}

#[test]
fn a_parent_from_before_checksums_were_switched_on_is_refused() {
    let mut site = Site::make(Shape::of(14), "");
    let switch = |site: &mut Site, how: &str| {
        site.cluster.archive_everything();
        site.cluster.stop();
        let mut checksums = host().command(host().server_program(14, "pg_checksums"));
        run(checksums
            .args([how, "--no-sync", "-D"])
            .arg(&site.cluster.data))
        .succeeds();
        site.cluster.start();
    };
    switch(&mut site, "--disable");
    site.walhalla.back_up(&site.cluster);
    switch(&mut site, "--enable");
    make_history(&site.cluster, "later");
    let taken = site.delta(&[]);
    assert_eq!(taken["kind"], "full");
    let data = site.cluster.data.to_str().unwrap();
    let old = &site.walhalla.backup_ids()[1];
    let args = ["backup-push", data, "--delta", "--parent", old];
    let refused = site.walhalla.run_with(&site.cluster, &args).exits_with(1);
    refused.says(&["checksums were switched on"]);
    site.assert_restores();
}

#[test]
fn where_wal_is_missing_page_lsns_tell_and_it_is_said() {
    let mut site = Site::make(Shape::of(13), "");
    make_history(&site.cluster, "before");
    let lost = site.cluster.archive_everything();
    // Out of pg_wal too, as after many checkpoints.
    site.cluster.sql("checkpoint");
    site.cluster.archive_everything();
    site.cluster.sql("checkpoint");
    for object in [
        site.store.object_of(&lost),
        site.store.summaries_named(&lost)[0].clone(),
    ] {
        std::fs::remove_file(object).unwrap();
    }
    let _ = std::fs::remove_file(site.cluster.segment_path(&lost));
    let data = site.cluster.data.to_str().unwrap();
    let only = ["backup-push", data, "--delta", "--changed-blocks", "wal"];
    let refused = site.walhalla.run_with(&site.cluster, &only).exits_with(1);
    refused.says(&[&lost, "neither archived nor in pg_wal", "--changed-blocks"]);
    let args = ["backup-push", data, "--delta"];
    let taken = site.walhalla.run_with(&site.cluster, &args).succeeds();
    taken.says(&[&lost, "page LSNs"]);
    let delta = site.show("LATEST");
    assert_eq!(delta["changed_blocks"]["source"], "pages");
    let reason = delta["changed_blocks"]["reason"].as_str().unwrap();
    assert!(reason.contains(&lost), "{reason}");
    site.assert_restores();
}

#[test]
fn a_segment_whose_summary_is_gone_is_read_instead() {
    let mut site = Site::make(Shape::of(12), "");
    make_history(&site.cluster, "one");
    let segment = site.cluster.archive_everything();
    site.cluster.sql("checkpoint");
    std::fs::remove_file(&site.store.summaries_named(&segment)[0]).unwrap();
    let _ = std::fs::remove_file(site.cluster.segment_path(&segment));
    let delta = site.delta(&["--changed-blocks", "wal"]);
    assert_eq!(delta["changed_blocks"]["source"], "wal");
    site.assert_restores();
}

fn a_host_without_identity_takes_deltas(version: u32, source: &str) {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::generate(&area, "key");
    let plain = Walhalla::new(&area, &store);
    let on_host = plain.encrypting_to(&[&key.recipient]);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(version));
    if version >= 17 {
        cluster.configure("summarize_wal = on");
    }
    on_host.archive_from(&mut cluster);
    fill(&cluster);
    on_host.back_up(&cluster);
    make_history(&cluster, "one");
    // Nothing of the WAL in question is left in pg_wal.
    cluster.archive_everything();
    cluster.sql("checkpoint");
    let wal: Vec<_> = std::fs::read_dir(cluster.data.join("pg_wal"))
        .unwrap()
        .flatten()
        .collect();
    let current = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
    for file in wal {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && name < current {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let data = cluster.data.to_str().unwrap();
    on_host
        .run_with(&cluster, &["backup-push", data, "--delta"])
        .succeeds();
    let shown = on_host
        .run(&["backup-show", "LATEST", "--json"])
        .succeeds()
        .json();
    assert_eq!(shown["kind"], "delta");
    assert_eq!(shown["changed_blocks"]["source"], source, "{shown}");
    let expected = make_history(&cluster, "end").dump;
    cluster.archive_everything();
    cluster.stop();
    let restoring = on_host.opening_with(&key.identity);
    let mut restored = restoring.restore(&area, version, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&expected, "restored");
    restored.stop();
}

#[test]
fn a_host_without_identity_takes_deltas_by_page_lsns_on_16() {
    a_host_without_identity_takes_deltas(16, "pages");
}

#[test]
fn a_host_without_identity_takes_deltas_by_the_servers_summaries_on_17() {
    a_host_without_identity_takes_deltas(17, "server");
}

#[test]
fn a_standbys_delta_stands_on_the_primarys_backup() {
    let mut site = Site::make(Shape::of(16), "");
    let mut standby = site
        .walhalla
        .restore(&site.area, 16, "standby", &["--standby"]);
    standby.start();
    make_history(&site.cluster, "one");
    site.cluster.sql("checkpoint");
    let checkpointed = site.cluster.insert_lsn();
    site.cluster.archive_everything();
    let query = format!("select pg_last_wal_replay_lsn() >= '{checkpointed}'");
    eventually(
        "the standby replays what was archived",
        Duration::from_mins(1),
        || standby.sql(&query) == "t",
    );
    let data = standby.data.to_str().unwrap();
    let args = ["backup-push", data, "--delta"];
    site.walhalla.run_with(&standby, &args).succeeds();
    standby.stop();
    let shown = site.show("LATEST");
    assert_eq!(shown["kind"], "delta");
    assert_eq!(shown["changed_blocks"]["source"], "wal");
    site.assert_restores();
}

#[test]
fn deltas_over_an_object_store_restore() {
    let area = Area::new();
    let store = Store::s3(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(18));
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    walhalla.back_up(&cluster);
    let data = cluster.data.to_str().unwrap().to_owned();
    for name in ["one", "two"] {
        make_history(&cluster, name);
        let args = ["backup-push", data.as_str(), "--delta"];
        walhalla.run_with(&cluster, &args).succeeds();
    }
    let end = make_history(&cluster, "end");
    cluster.archive_everything();
    cluster.stop();
    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["backup_chain"].as_array().unwrap().len(), 3);
    let merged = walhalla.run(&["backup-merge", "LATEST", "--json"]);
    assert_eq!(merged.succeeds().json()["kind"], "full");
    let mut restored = walhalla.restore(&area, 18, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&end.dump, "restored");
    restored.stop();
    assert_same_files(&walhalla, &area);
}

/// The merged backup, the newest, is what the chain of the one before it makes.
fn assert_same_files(walhalla: &Walhalla, area: &Area) {
    let ids = walhalla.backup_ids();
    let fetch = |id: &str| {
        let path = area.path(&format!("fetched-{id}"));
        let args = ["backup-fetch", path.to_str().unwrap(), id];
        walhalla.run(&args).succeeds();
        path
    };
    let [.., leaf, merged] = ids.as_slice() else {
        panic!("{ids:?}")
    };
    let mut diff = host().command("diff");
    run(diff.arg("-r").arg(fetch(leaf)).arg(fetch(merged))).succeeds();
}

#[test]
fn a_merged_backup_is_what_its_chain_makes_and_a_delta_may_stand_on_it() {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::generate(&area, "key");
    let walhalla = Walhalla::with_settings(&area, &store, "delta_max_chain = 2");
    let walhalla = walhalla.encrypting_to(&[&key.recipient]);
    let walhalla = walhalla.opening_with(&key.identity);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(14));
    let place = area.make_dir("tablespace");
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    cluster.sql(&format!(
        "create tablespace away location '{}'",
        place.display()
    ));
    cluster.sql("create table afar tablespace away as select generate_series(1, 3000) as i");
    walhalla.back_up(&cluster);
    let data = cluster.data.to_str().unwrap().to_owned();
    let push = ["backup-push", data.as_str(), "--delta"];
    for name in ["one", "two"] {
        make_history(&cluster, name);
        cluster.sql("update afar set i = i + 1 where i % 500 = 0");
        walhalla.run_with(&cluster, &push).succeeds();
    }
    let full = walhalla.backup_ids()[0].clone();
    walhalla
        .run(&["backup-merge", &full])
        .exits_with(1)
        .says(&["full backup", "nothing to merge"]);
    let leaf = walhalla.newest_backup();
    // Nobody lays open what is encrypted by forgetting a setting.
    walhalla
        .without_env(&["WALHALLA_AGE_RECIPIENTS"])
        .run(&["backup-merge", &leaf])
        .exits_with(1)
        .says(&["is encrypted", "age_recipients"]);
    assert_eq!(walhalla.newest_backup(), leaf);
    let merged = walhalla.run(&["backup-merge", &leaf, "--json"]).succeeds();
    assert_eq!(merged.json()["parent"], serde_json::Value::Null);
    walhalla.run(&["verify", "--all"]).succeeds();
    // Its chain is too long for another delta, the merged backup's is not.
    walhalla.run_with(&cluster, &push).succeeds();
    let shown = walhalla
        .run(&["backup-show", "LATEST", "--json"])
        .succeeds()
        .json();
    assert_eq!(shown["parent"], merged.json()["id"]);
    cluster.stop();
    let map = |id: &str, name: &str| {
        let away = area.path(&format!("away-{name}"));
        let (path, map) = (
            area.path(name),
            format!("{}={}", oid(&place), away.display()),
        );
        let args = [
            "backup-fetch",
            path.to_str().unwrap(),
            id,
            "--tablespace-map",
            &map,
        ];
        walhalla.run(&args).succeeds();
        path
    };
    let merged = merged.json()["id"].as_str().unwrap().to_owned();
    let (one, other) = (map(&leaf, "of-chain"), map(&merged, "of-merged"));
    let mut diff = host().command("diff");
    run(diff.arg("-r").arg(one).arg(other)).succeeds();
}

/// The OID in a tablespace's only folder is not its own; its link in the data directory is.
fn oid(place: &Path) -> String {
    let links = place.parent().unwrap().join("primary/pg_tblspc");
    let link = std::fs::read_dir(links).unwrap().next().unwrap().unwrap();
    link.file_name().into_string().unwrap()
}

#[test]
fn a_relation_that_grows_past_1_gib_is_cut_and_grows_again_comes_back() {
    let mut site = Site::make(Shape::of(16), "");
    let cluster = &site.cluster;
    // One row a page: 131,072 of them fill the relation's first file, with little WAL.
    cluster.sql("create table long (i int, p text) with (fillfactor = 10)");
    cluster.sql("alter table long alter p set storage plain");
    let grow = |from: u32, to: u32| {
        let rows = format!(
            "insert into long select g, repeat('x', 600) from generate_series({from}, {to}) g"
        );
        site.cluster.sql(&rows);
    };
    grow(1, 129_000);
    site.walhalla.back_up(cluster);
    grow(129_001, 133_000);
    let pages: u32 = cluster
        .sql("select pg_relation_size('long') / 8192")
        .parse()
        .unwrap();
    assert!(pages > 131_072, "the relation has {pages} pages only");
    let grown = site.delta(&[]);
    cluster.sql("delete from long where i > 130000");
    cluster.sql("vacuum long");
    grow(140_001, 143_000);
    cluster.sql("update long set p = 'short' where i % 9000 = 0");
    let cut = site.delta(&[]);
    for delta in [&grown, &cut] {
        let stored = delta["stored_bytes"].as_u64().unwrap();
        assert!(stored < 30 << 20, "a delta of {stored} bytes");
    }
    site.assert_restores();
}

/// Without checksums and `wal_log_hints` a page becomes all-visible without a new LSN (visibilitymap.c); its visibility map
/// must not come back without it, or index-only scans would show rows that were deleted since.
#[test]
fn pages_that_only_became_all_visible_are_in_a_delta_by_page_lsns() {
    let mut site = Site::make(Shape::of(16), "");
    site.cluster.archive_everything();
    site.cluster.stop();
    let mut checksums = host().command(host().server_program(16, "pg_checksums"));
    run(checksums
        .args(["--disable", "--no-sync", "-D"])
        .arg(&site.cluster.data))
    .succeeds();
    site.cluster.configure("wal_log_hints = off");
    site.cluster.start();
    site.cluster.sql("create extension pg_visibility");
    site.cluster
        .sql("create table seen as select generate_series(1, 5000) as i");
    site.cluster.sql("create index on seen (i)");
    site.walhalla.back_up(&site.cluster);
    site.cluster.sql("vacuum seen");
    let delta = site.delta(&["--changed-blocks", "pages"]);
    assert_eq!(delta["changed_blocks"]["source"], "pages");
    // What comes later stands on it.
    site.delta(&["--changed-blocks", "wal"]);
    site.cluster.archive_everything();
    site.cluster.stop();
    let mut restored = site.walhalla.restore(&site.area, 16, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    let wrong =
        "select count(*) from pg_visibility('seen') where all_visible and not pd_all_visible";
    assert_eq!(restored.sql(wrong), "0");
    restored.sql("delete from seen where i > 2500");
    let counted = restored.sql(
        "set enable_seqscan = off; set enable_bitmapscan = off; select count(*) from seen where i > 0",
    );
    assert_eq!(counted, "2500");
    assert_eq!(
        restored.sql("select count(*) from pg_check_visible('seen')"),
        "0"
    );
    restored.stop();
}

/// The server completes a summary some time after the checkpoint with which the backup began.
#[test]
fn the_servers_summarizer_is_waited_for() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(17));
    cluster.configure("summarize_wal = on");
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    walhalla.back_up(&cluster);
    make_history(&cluster, "one");
    let summarizer =
        cluster.sql("select pid from pg_stat_activity where backend_type = 'walsummarizer'");
    let signal = |name: &str| run(host().command("kill").args([name, &summarizer])).succeeds();
    signal("-STOP");
    let data = cluster.data.to_str().unwrap().to_owned();
    let args = [
        "backup-push",
        &data,
        "--delta",
        "--changed-blocks",
        "server",
    ];
    let mut command = walhalla.command(&args);
    command.envs(cluster.connection());
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| run(&mut command));
        // The backup has begun, and what it needs is not there, as nobody makes it.
        eventually("the backup to begin", Duration::from_mins(1), || {
            // After the start the session looks at the server's control file.
            let begun = "select count(*) from pg_stat_activity \
                         where application_name = 'walhalla' and state = 'idle' and query like '%pg_control_checkpoint%'";
            cluster.sql(begun) == "1"
        });
        assert!(!taken.is_finished());
        signal("-CONT");
        taken.join().unwrap().succeeds();
    });
    let shown = walhalla.run(&["backup-show", "LATEST", "--json"]);
    assert_eq!(
        shown.succeeds().json()["changed_blocks"]["source"],
        "server"
    );
    cluster.stop();
}

/// Files with the names of changed blocks in folders of relations.
fn files_named_as_changed_blocks_are_files_like_others(version: u32) {
    let site = Site::make(Shape::of(version), "");
    let database = site
        .cluster
        .sql("select oid from pg_database where datname = 'postgres'");
    let names = ["1259", "16384.1", "config"].map(|rest| format!("INCREMENTAL.{rest}"));
    let folders = [format!("base/{database}"), "global".to_owned()];
    let strays: Vec<String> = folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")))
        .collect();
    let write = |path: &String| {
        let file = site.cluster.data.join(path);
        std::fs::write(&file, format!("what {path} holds")).unwrap();
        host().give_to_user(&file);
    };
    strays.iter().for_each(write);

    let parent = site.walhalla.newest_backup();
    let data = site.cluster.data.to_str().unwrap();
    let push = |args: &[&str]| {
        let all = [&["backup-push", data, "--delta"], args].concat();
        site.walhalla.run_with(&site.cluster, &all)
    };
    let reason = "one that changed blocks have in a delta";
    push(&["--parent", &parent]).exits_with(1).says(&[reason]);
    push(&[])
        .succeeds()
        .says(&[reason, "a full backup is taken"]);
    let full = site.walhalla.newest_backup();
    assert_eq!(site.show(&full)["kind"], "full");
    site.walhalla.run(&["verify"]).succeeds();
    let fetched = site.area.path("fetched");
    let fetch = ["backup-fetch", fetched.to_str().unwrap(), &full];
    site.walhalla.run(&fetch).succeeds();
    let restored = site
        .walhalla
        .restore(&site.area, site.version, "restored", &[]);
    let unpacked = unpack_by_stock_tools(&site).pop().unwrap();
    let combined = site.area.path("combined");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/combine-backups.py");
    let script = site
        .area
        .write("combine.py", std::fs::read(script).unwrap());
    let mut combine = host().command("python3");
    run(combine.arg(script).arg(unpacked).arg(&combined)).succeeds();
    for folder in [&fetched, &restored.data, &combined] {
        for path in &strays {
            let content = std::fs::read_to_string(folder.join(path)).unwrap();
            assert_eq!(content, format!("what {path} holds"));
        }
    }

    // A delta stands on it when they are gone, and the chain does not have them.
    for path in &strays {
        std::fs::remove_file(site.cluster.data.join(path)).unwrap();
    }
    assert_eq!(site.delta(&[])["parent"], *full);
    let delta = site.walhalla.newest_backup();
    site.walhalla.run(&["backup-merge", &delta]).succeeds();
    site.walhalla.run(&["verify", "--all"]).succeeds();
    let again = site
        .walhalla
        .restore(&site.area, site.version, "again", &[]);
    assert!(!strays.iter().any(|path| again.data.join(path).exists()));
    std::fs::remove_dir_all(&again.data).unwrap();
    std::fs::remove_dir_all(&restored.data).unwrap();
    let mut site = site;
    site.assert_restores();
}

#[test]
fn files_named_as_changed_blocks_are_files_like_others_on_15() {
    files_named_as_changed_blocks_are_files_like_others(15);
}

#[test]
fn files_named_as_changed_blocks_are_files_like_others_on_17() {
    files_named_as_changed_blocks_are_files_like_others(17);
}
